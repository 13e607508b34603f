"""Labels that a person confirmed for holdout rows without one: `v{N}_labels.jsonl` beside the holdout.

A label belongs to the words of its row, not to its place: in a holdout that was published again it stays with
that row alone. What upstream says about a row stands over it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from fine_tune_runner.dataset.fingerprint import row_sha256
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError
from fine_tune_runner.files import locked, write_atomic
from fine_tune_runner.types import EvalLabels, Example

LOCK_WAIT_S = 10.0
# Where a label came from: the reference's `Root cause:` line; a sentence of it that commits to one cause; the
# only cause that its words mention; the nearest one by embedding; a person named another one.
Source = Literal["line", "committed", "mentioned", "nearest", "person"]


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """One line: `row` is `row_sha256` of the row it is for, `id` what reports call it, for people only."""

    row: str
    root_cause: str
    source: Source
    who: str
    at: datetime
    id: str = ""


def labels_path(holdout: Path) -> Path:
    """`v{N}_labels.jsonl` beside `v{N}_eval.jsonl`."""
    return holdout.with_name(f"{holdout.stem.removesuffix('_eval')}_labels.jsonl")


def read_labels(path: Path) -> dict[str, Label]:
    """Row → label; empty where there is no such file. DataError names the line that is none."""
    found: dict[str, Label] = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
        try:
            label = msgspec.json.decode(line, type=threadsafe(Label))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} line {number}: not a label ({error}); drop the line and run: fine-tune label"
            ) from None
        found[label.row] = label
    return found


def add_labels(path: Path, labels: Iterable[Label]) -> None:
    """Put labels into the file of a holdout, all or nothing; the last one for a row counts."""
    shared = path.parent / ".fine-tune"
    shared.mkdir(mode=0o700, exist_ok=True)
    with locked(shared / "labels.lock", wait_s=LOCK_WAIT_S):
        known = read_labels(path) | {label.row: label for label in labels}
        write_atomic(path, b"".join(msgspec.json.encode(label) + b"\n" for label in known.values()))


def labelled(example: Example, labels: Mapping[str, Label]) -> Example:
    """The row with its label; as it is where it has none here, or one of upstream's."""
    if not labels or (example.eval and example.eval.root_cause):
        return example
    label = labels.get(row_sha256(example.messages))
    if label is None:
        return example
    named = msgspec.structs.replace(example.eval or EvalLabels(), root_cause=label.root_cause)
    return msgspec.structs.replace(example, eval=named)
