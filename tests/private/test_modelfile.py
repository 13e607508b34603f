"""The Modelfile: only instructions that Ollama knows, and quoting that gives the prompt back."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fine_tune_runner.errors import ConfigError
from fine_tune_runner.private.modelfile import modelfile

KNOWN = {"FROM", "LICENSE", "TEMPLATE", "SYSTEM", "ADAPTER", "PARAMETER", "MESSAGE", "REQUIRES"}


def write(system: str = "You are an expert.", **changes: object) -> str:
    options: dict[str, object] = {
        "base": "llama3.1:8b",
        "adapter": "./adapter.gguf",
        "system": system,
        "template": "{{ .Prompt }}",
        "stop": ["<|eot_id|>"],
        "metadata": {"client_id": "hre", "version": "3"},
    }
    return modelfile(**(options | changes))  # type: ignore[arg-type]


def read(text: str) -> list[tuple[str, str]]:
    """Instructions as Ollama's parser sees them: `#` counts only where an instruction starts."""
    found, rest = [], text
    while rest:
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        name, rest = rest.split(" ", 1)
        if rest.startswith('"""'):
            value, rest = re.split(r'"""\n', rest[3:], maxsplit=1)
        else:
            value, _, rest = rest.partition("\n")
        found.append((name, value))
    return found


def test_a_whole_file() -> None:
    assert write("You are an expert.\n# not a comment") == (
        "# client_id: hre\n"
        "# version: 3\n"
        "FROM llama3.1:8b\n"
        "ADAPTER ./adapter.gguf\n"
        'TEMPLATE """{{ .Prompt }}"""\n'
        'SYSTEM """You are an expert.\n# not a comment"""\n'
        "PARAMETER temperature 0.2\n"
        "PARAMETER num_ctx 4096\n"
        "PARAMETER stop <|eot_id|>\n"
    )


@given(system=st.text(st.sampled_from('a"\n# FROM'), max_size=30))
def test_a_prompt_comes_back_as_it_was_or_is_refused(system: str) -> None:
    try:
        instructions = read(write(system))
    except ConfigError:
        assert '"' in system
        return
    assert {name for name, _ in instructions} <= KNOWN
    assert dict(instructions)["SYSTEM"] == system


@pytest.mark.parametrize("system", ['Say """\nnow', 'It ends in """', 'It ends in "a quote"'])
def test_what_triple_quotes_cannot_hold_is_refused(system: str) -> None:
    with pytest.raises(ConfigError, match="system prompt has three double quotes"):
        write(system)


def test_metadata_cannot_start_an_instruction() -> None:
    text = write(metadata={"account_state_version": "1.2.0\nFROM evil"})
    assert text.startswith("# account_state_version: 1.2.0 FROM evil\nFROM llama3.1:8b\n")


def test_without_a_template_the_base_keeps_its_own() -> None:
    assert "TEMPLATE" not in write(template=None)
