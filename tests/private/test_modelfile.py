"""The Modelfile: only instructions that Ollama knows, and quoting that gives the prompt back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.private.modelfile_grammar import ModelfileError, parse

from fine_tune_runner.private.modelfile import modelfile


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


def test_the_server_reads_every_instruction_of_it() -> None:
    assert parse(write("One.\n\nTwo.", template="{{ .System }}\n")) == [
        ("from", "llama3.1:8b"),
        ("adapter", "./adapter.gguf"),
        ("template", "{{ .System }}\n"),
        ("system", "One.\n\nTwo."),
        ("temperature", "0.2"),
        ("num_ctx", "4096"),
        ("stop", "<|eot_id|>"),
    ]


@given(system=st.text(st.sampled_from('a"\n# \tFROM\xa0'), max_size=30))
def test_a_prompt_comes_back_or_the_file_says_that_it_was_changed(system: str) -> None:
    text = write(system)
    said = dict(parse(text))
    assert set(said) == {"from", "adapter", "template", "system", "temperature", "num_ctx", "stop"}
    assert said["system"] == system or "# note: what this format cannot hold was replaced" in text


@pytest.mark.parametrize(
    ("system", "held"),
    [
        ('Say """\nnow', "Say '''\nnow"),
        ('It ends in """', "It ends in '''"),
        ('Say """ \nnow', "Say ''' \nnow"),
        ('It ends in "a quote"', 'It ends in "a quote"'),
        ('Code: """x""" here', 'Code: """x""" here'),
    ],
)
def test_triple_quotes_at_the_end_of_a_line_become_apostrophes(system: str, held: str) -> None:
    assert dict(parse(write(system)))["system"] == held


def test_metadata_cannot_start_an_instruction() -> None:
    text = write(metadata={"account_state_version": "1.2.0\nFROM evil"})
    assert text.startswith("# account_state_version: 1.2.0 FROM evil\nFROM llama3.1:8b\n")


def test_without_a_template_the_base_keeps_its_own_and_a_merged_model_has_no_adapter() -> None:
    text = write(template=None, adapter=None)
    assert ("TEMPLATE" in text, "ADAPTER" in text) == (False, False)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("FROM a\nSYSTEM b\nLABEL c d\n", r"\(line 3\): command must be one of \"from\", \"license\""),
        ("FROM a\nPARAMETER colour blue\n", "unknown parameter 'colour'"),
        ("SYSTEM b\n", "no FROM line"),
        ('FROM a\nSYSTEM """open\n', "unexpected EOF"),
        ("FROM a\nMESSAGE robot hi\n", "message role must be one of"),
        ('FROM a\nSYSTEM """Say """\nnow"""\n', "command must be one of"),
    ],
)
def test_the_oracle_refuses_what_the_server_refuses(text: str, refusal: str) -> None:
    with pytest.raises(ModelfileError, match=refusal):
        parse(text)


def test_the_oracle_takes_a_hash_inside_a_value_for_text() -> None:
    assert parse("# a\nFROM x # y\n") == [("from", "x # y")]
