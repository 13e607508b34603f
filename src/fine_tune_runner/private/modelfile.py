"""The Modelfile beside a run: a record for people, valid for `ollama create -f`; nothing here reads it back.

Facts of the format: facts/ollama.md, section Modelfile. There is no LABEL, so metadata stand in comments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fine_tune_runner.errors import ConfigError

# What a Modelfile's `"""` quotes cannot hold: they end at three quotes before a line's end, and a quote
# directly before the closing ones would be taken for one of them.
_UNQUOTABLE = re.compile(r'"""\s*(\n|$)|"$')


def modelfile(
    *,
    base: str,
    adapter: str,
    system: str,
    template: str | None,
    stop: Sequence[str],
    metadata: Mapping[str, str],
    temperature: float = 0.2,
    num_ctx: int = 4096,
) -> str:
    """The text of a Modelfile.

    `base` and `adapter` are names or relative paths, `template` is in Ollama's Go template language (None:
    the one that the base carries). Raises ConfigError for a text that the format cannot express.
    """
    lines = [f"# {key}: {_one_line(value)}" for key, value in metadata.items()]
    lines += [f"FROM {_one_line(base)}", f"ADAPTER {_one_line(adapter)}"]
    if template is not None:
        lines.append(f"TEMPLATE {_quoted('template', template)}")
    lines.append(f"SYSTEM {_quoted('system prompt', system)}")
    lines += [f"PARAMETER temperature {temperature:g}", f"PARAMETER num_ctx {num_ctx}"]
    lines += [f"PARAMETER stop {_one_line(text)}" for text in stop]
    return "\n".join(lines) + "\n"


def _quoted(what: str, text: str) -> str:
    if _UNQUOTABLE.search(text):
        raise ConfigError(
            f"the {what} has three double quotes at the end of a line, or ends in a quote, which a Modelfile "
            "cannot express; write those quotes in another way"
        )
    return f'"""{text}"""'


def _one_line(text: str) -> str:
    return " ".join(text.split())
