"""Which cause did a hard answer commit to? A file of judged answers through the product's own reading.

    nice python benchmarks/recall.py tests/evaluation/data/fourth.jsonl [--rows] [--json recall.json]
    OLLAMA_HOST=http://... python benchmarks/recall.py tests/evaluation/data/fourth.jsonl --judge MODEL

A row has id, question, reference, labels (the cause, then those accepted as well), answer, right, kind, and
`doubtful` where its author was not sure. Accepted means counted as right. "Unresolved" is neither: no rule
could tell, a person is asked, or with `--judge` that model at OLLAMA_HOST, as in an evaluation.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.evaluation.decisions import Decided, decisions_path
from fine_tune_runner.evaluation.holdout import Question, load_holdout
from fine_tune_runner.evaluation.judging import Reader
from fine_tune_runner.evaluation.recall import Commitment, committed, recalled
from fine_tune_runner.ports import Judge
from fine_tune_runner.private.judge import judge_at_host
from fine_tune_runner.settings import Client, ClientConfig, EvalConfig, load_settings
from fine_tune_runner.types import EvalLabels, Message


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One answer that a person has judged; `labels` is the row's cause and then what is right as well."""

    id: str
    question: str
    reference: str
    labels: tuple[str, ...]
    answer: str
    right: bool
    kind: str
    why: str = ""
    doubtful: str | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a row: accepted (counted as right), else unresolved or read as another cause."""

    row: Row
    accepted: bool
    unresolved: bool
    method: str
    cause: str | None


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a JSONL file."""
    return tuple(msgspec.json.decode(line, type=Row) for line in path.read_bytes().splitlines() if line)


def outcomes(rows: Sequence[Row], judge: Judge | None = None) -> list[Outcome]:
    """Every row read as the answer to one question of a holdout, with its labels and the shipped causes.

    What no rule could read is left to `judge`, if given; raises where that cannot be asked.
    """
    taxonomy = load_taxonomy(None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v1_eval.jsonl"
        path.write_bytes(b"".join(_holdout_line(row) for row in rows))
        holdout = load_holdout(path, taxonomy)
        asked = list(zip(rows, holdout.questions, strict=True))
        found = [committed(row.answer, question, taxonomy) for row, question in asked]
        if judge is not None:
            kept = decisions_path(path.parent)
            reader = Reader(judge, taxonomy, kept, lambda: datetime.now(UTC), _progress)
            left = zip(asked, found, strict=True)
            unread = [(q, row.answer) for (row, q), said in left if said.method == "unresolved"]
            holdout = reader.read(holdout, unread)
            if reader.warning:
                sys.exit(reader.warning)
    decided = [holdout.decision(question.id, row.answer) for row, question in asked]
    read = zip(asked, found, decided, strict=True)
    return [_outcome(row, question, said, judged) for (row, question), said, judged in read]


def _progress(judge: str, done: int, total: int) -> None:
    print(f"\r{judge}: call {done} of {total}", end="\n" if done == total else "", file=sys.stderr)


def _holdout_line(row: Row) -> bytes:
    turns = (Message(role="user", content=row.question), Message(role="assistant", content=row.reference))
    labels = EvalLabels(id=row.id, root_cause=row.labels[0], accept=row.labels[1:])
    return msgspec.json.encode({"messages": turns, "eval": labels}) + b"\n"


def _outcome(row: Row, question: Question, found: Commitment, judged: Decided | None) -> Outcome:
    if judged is not None and judged.right is not None:
        return Outcome(row=row, accepted=judged.right, unresolved=False, method="judge", cause=judged.cause)
    return Outcome(
        row=row,
        accepted=recalled(found, question),
        unresolved=found.method == "unresolved",
        method=found.method,
        cause=found.cause,
    )


def print_table(found: Sequence[Outcome]) -> None:
    """Totals, then right and wrong answers by kind, then the rows that came out wrong."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in found:
        by_kind[outcome.row.kind].append(outcome)
    print(f"{'kind':28} {'right':>5} {'known':>6} {'called':>7} {'unres.':>6}   "
          f"{'wrong':>5} {'accepted':>8} {'refused':>7} {'unres.':>6}")  # fmt: skip
    for kind, group in (*sorted(by_kind.items()), ("all", list(found))):
        right, wrong = [o for o in group if o.row.right], [o for o in group if not o.row.right]
        print(f"{kind:28} {_cells(right)}   {_cells(wrong, accepted_width=8)}")
    right = [o for o in found if o.row.right]
    known = sum(o.accepted for o in right)
    print(f"\nright answers recognised: {known} of {len(right)} = {known / max(1, len(right)):.1%}")
    accepted = [o for o in found if o.accepted and not o.row.right]
    sure = [o for o in accepted if not o.row.doubtful]
    print(f"wrong answers accepted: {len(accepted)}, {len(accepted) - len(sure)} of them doubtful rows")
    for o in accepted:
        print(f"  {o.row.id} ({o.row.kind}{', doubtful' if o.row.doubtful else ''}) by {o.method}")


def _cells(group: Sequence[Outcome], accepted_width: int = 6) -> str:
    accepted, unresolved = sum(o.accepted for o in group), sum(o.unresolved for o in group)
    called = len(group) - accepted - unresolved
    return f"{len(group):5} {accepted:{accepted_width}} {called:7} {unresolved:6}"


def main() -> None:
    """Score a file, print the table; `--rows` also prints every right answer that was not recognised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", action="store_true", help="also print right answers not recognised")
    parser.add_argument("--json", type=Path, help="write every outcome to this file")
    parser.add_argument("--judge", help="a model at OLLAMA_HOST that reads what no rule could")
    chosen = parser.parse_args()
    rows = read_rows(chosen.file)
    if chosen.judge:
        config = ClientConfig(client_id="recall", eval=EvalConfig(judge=chosen.judge))
        with judge_at_host(
            load_settings(os.environ), Client(id="recall", dir=Path(), config=config)
        ) as judge:
            found = outcomes(rows, judge)
    else:
        found = outcomes(rows)
    print_table(found)
    if chosen.rows:
        for o in found:
            if o.row.right and not o.accepted:
                print(f"  {o.row.id} ({o.row.kind}) {o.method} {o.cause or ''}: {o.row.answer[:160]!r}")
    if chosen.json:
        chosen.json.write_bytes(msgspec.json.format(msgspec.json.encode(found)))


if __name__ == "__main__":
    main()
