"""The Modelfile beside a run: a record for people, valid for `ollama create -f`; nothing here reads it back.

Facts of the format: facts/ollama.md, section Modelfile. There is no LABEL, so metadata stand in comments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fine_tune_runner.types import Dataset, Run

# Triple quotes end a text where a line ends after them, also with blanks between.
_ENDS_A_QUOTE = re.compile(r'"""(?=[ \t]*(?:[\r\n]|$))')
_DROPPED = "what this format cannot hold was replaced in the texts below; the model itself has them whole"


def stamps(run: Run, dataset: Dataset) -> dict[str, str]:
    """The key-values that a GGUF of ours carries, so that a model can be told from another of its name."""
    return {
        "ftr.client_id": run.client_id,
        "ftr.version": str(run.version),
        "ftr.run_id": run.run_id,
        "ftr.dataset_sha256": dataset.sha256,
        "ftr.account_state_version": dataset.account_state_version,
    }


def metadata(run: Run, dataset: Dataset) -> dict[str, str]:
    """What the comments at the head of a run's Modelfile say."""
    return {
        "client_id": run.client_id,
        "version": str(run.version),
        "account_state_version": dataset.account_state_version,
        "training_examples": str(dataset.examples),
        "created": run.created_at.isoformat(),
    }


def modelfile(
    *,
    base: str,
    adapter: str | None,
    system: str,
    template: str | None,
    stop: Sequence[str],
    metadata: Mapping[str, str],
    temperature: float = 0.2,
    num_ctx: int = 4096,
) -> str:
    """The text of a Modelfile.

    `base` and `adapter` are names or relative paths (no adapter: it is merged), `template` is in Ollama's Go
    template language (None: the one that the base carries). Triple quotes at a line's end, which the format
    cannot hold, become three apostrophes, and a comment says so.
    """
    lines = [f"# {key}: {_one_line(value)}" for key, value in metadata.items()]
    texts = {"TEMPLATE": template, "SYSTEM": system}
    held = {name: _held(text) for name, text in texts.items() if text is not None}
    if any(held[name] != texts[name] for name in held):
        lines.append(f"# note: {_DROPPED}")
    lines.append(f"FROM {_one_line(base)}")
    if adapter is not None:
        lines.append(f"ADAPTER {_one_line(adapter)}")
    lines += [f'{name} """{text}"""' for name, text in held.items()]
    lines += [f"PARAMETER temperature {temperature:g}", f"PARAMETER num_ctx {num_ctx}"]
    lines += [f"PARAMETER stop {_one_line(text)}" for text in stop]
    return "\n".join(lines) + "\n"


def _held(text: str) -> str:
    """The text without what would end it early, and without characters that the parser drops."""
    printable = "".join(c if c.isprintable() or c in "\n\r\t" else " " for c in text)
    return _ENDS_A_QUOTE.sub("'''", printable)


def _one_line(text: str) -> str:
    return " ".join(text.split())
