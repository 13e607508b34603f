"""What people and judges decided about answers, for good: `decisions.jsonl` in the client's folder.

One line a decision, append-only; the last one about a question and an answer counts. It holds hashes, no
texts: a decision belongs to these words and to no other question. Knows no scorer.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.fingerprint import text_sha256
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError
from fine_tune_runner.files import fsync_dir, locked

LOCK_WAIT_S = 10.0


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """One decision: `question` is `Question.sha256`, `answer` is `answer_sha256`; `at` is UTC.

    A judge's (`by_judge`, `who` its identity) has the `cause` that it read; `right` None: it could not tell.
    """

    question: str
    answer: str
    right: bool | None
    who: str
    at: datetime
    by_judge: bool = False
    cause: str | None = None


Decisions = Mapping[str, Mapping[str, Decided]]  # question → answer → the decision that counts


def decisions_path(client_dir: Path) -> Path:
    """Where a client's decisions are kept."""
    return client_dir / "decisions.jsonl"


def answer_sha256(text: str) -> str:
    """What makes it the same answer: its words, line by line; case and white space do not count."""
    return text_sha256(text)


def read_decisions(path: Path, judge: str | None = None) -> Decisions:
    """The decisions of a file; a last line without its line feed is a torn write that never took effect.

    People's, and of judges' only those of that identity, where no person said anything.
    Raises DataError for a line that is none, since what it said would silently not count.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    found: dict[str, dict[str, Decided]] = {}
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            decided = msgspec.json.decode(line, type=threadsafe(Decided))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path} line {number}: not a decision ({error}); restore the file from a backup, "
                "or drop the line and run: fine-tune review"
            ) from None
        of_question = found.setdefault(decided.question, {})
        before = of_question.get(decided.answer)
        if decided.by_judge and (decided.who != judge or (before and not before.by_judge)):
            continue
        of_question[decided.answer] = decided
    return found


def append_decision(path: Path, decided: Decided) -> None:
    """Write one line durably after the whole ones, cutting off a torn tail; one writer at a time."""
    shared = path.parent / ".fine-tune"
    shared.mkdir(mode=0o700, exist_ok=True)
    with locked(shared / "decisions.lock", wait_s=LOCK_WAIT_S):
        is_new = not path.exists()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
            file.write(msgspec.json.encode(decided) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            fsync_dir(path.parent)


def decisions_sha256(decided: Iterable[Decided]) -> str:
    """What scores owe to these people, as 8 hex digits; "" where there are none.

    Judges' are left out: they follow from the answers, and the judge itself is in the fingerprint.
    """
    parts = sorted(f"{d.question} {d.answer} {bool(d.right):d}" for d in decided if not d.by_judge)
    return text_sha256(*parts)[:8] if parts else ""
