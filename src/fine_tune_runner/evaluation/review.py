"""What a person should look at after an evaluation: answers no rule could read, and questions that changed;
what a judge read, on request.

Texts come out masked, hashes are of the texts themselves. Keeps nothing and scores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.read import holdout_path
from fine_tune_runner.dataset.secrets import mask
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.answers import read_answers
from fine_tune_runner.evaluation.decisions import Decided, answer_sha256
from fine_tune_runner.evaluation.holdout import Holdout, load_holdout
from fine_tune_runner.evaluation.side_by_side import why
from fine_tune_runner.settings import Client
from fine_tune_runner.types import Answer, RegistryEntry, Verdict

REASONS = ("unresolved", "lost", "gained", "judged")  # in the order in which they are gone through


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to be decided; `question` and `answer` are the hashes by which a decision is kept.

    `by` are the versions that gave it, `decided` what a person said already. `nearest` is the cause that an
    embedding suggests, and `nearest_right` whether it is a right one; neither is counted.
    """

    question: str
    answer: str
    id: str
    reason: str
    by: tuple[str, ...]
    asked: str
    right_cause: str
    reference: str
    said: str
    cause: str
    why: str
    counted_right: bool
    nearest: str = ""
    nearest_right: bool = False
    decided: Decided | None = None


class Word(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a file of decisions: an item's hashes, and what somebody says; other keys are ignored."""

    question: str
    answer: str
    right: bool


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A version's last evaluation: the holdout as it is today, and the answers by the version that gave them.

    The base model's are left out: nothing is decided by them.
    """

    entry: RegistryEntry
    verdict: Verdict
    holdout: Holdout
    answers: dict[str, tuple[Answer, ...]]

    @property
    def stale(self) -> bool:
        """Whether a label was confirmed, or a decision made, that the stored scores do not know."""
        return self.entry.holdout_sha256 != self.holdout.sha256 or any(
            (decided := self.holdout.decision(a.question_id, a.text)) is not None
            and (a.decided_by, a.score) != (decided.who, float(bool(decided.right)))
            for several in self.answers.values()
            for a in several
            if a.text and a.method is not None
        )


def last_asked(client: Client, entry: RegistryEntry, run_dir: Path) -> Asked:
    """What a version and the one it was compared with answered; DataError where nothing can be decided."""
    command = f"--client {client.id} --version {entry.version}"
    if entry.evaluation is None:
        raise DataError(f"v{entry.version} was never evaluated; first: fine-tune eval {command}")
    path, verdict = holdout_path(client.dir, entry.version), entry.evaluation.verdict
    holdout = load_holdout(path, load_taxonomy(client.dir))
    if holdout.measure == "similarity":
        raise DataError(
            f"{path} is compared by similarity, where no answer is right or wrong; first: "
            f"fine-tune label {command}"
        )
    keys = [entry.key, *([verdict.compared_with] if verdict.compared_with else [])]
    files = {f"v{k.version} ({k.track})": run_dir / "answers" / f"{k.version}-{k.track}.jsonl" for k in keys}
    answers = {name: read_answers(file) for name, file in files.items() if file.is_file()}
    return Asked(entry=entry, verdict=verdict, holdout=holdout, answers=answers)


def waiting(asked: Asked, *, again: bool = False) -> tuple[Item, ...]:
    """Unresolved answers first, then those to lost and to gained questions, in the order of the holdout.

    The same words to the same question come once; what was decided, or read by a judge, comes only `again`.
    """
    found: dict[tuple[str, str], Item] = {}
    for item in _items(asked.holdout, asked.verdict, asked.answers):
        known = found.get((item.question, item.answer))
        by = dict.fromkeys((*known.by, *item.by)) if known else item.by
        found[item.question, item.answer] = msgspec.structs.replace(known or item, by=tuple(by))
    kept = [i for i in found.values() if again or (i.decided is None and i.reason != "judged")]
    return tuple(sorted(kept, key=lambda item: REASONS.index(item.reason)))


def _items(holdout: Holdout, verdict: Verdict, answers: Mapping[str, Sequence[Answer]]) -> Iterator[Item]:
    lost, gained = set(verdict.lost), set(verdict.gained)
    for question in holdout.questions:
        given = [(by, a) for by, several in answers.items() for a in several if a.question_id == question.id]
        for by, answer in given:
            if not answer.text or answer.method is None:
                continue
            decided = holdout.decision(question.id, answer.text)
            changed = "lost" if question.id in lost else "gained" if question.id in gained else None
            reason = "unresolved" if answer.method == "unresolved" else changed
            if answer.method == "judge":
                reason = reason or "judged"
            if reason is None and decided is None:
                continue
            yield Item(
                question=question.sha256,
                answer=answer_sha256(answer.text),
                id=mask(question.id),
                reason=reason or "unresolved",
                by=(by,),
                asked=mask(question.text),
                right_cause=mask(" or ".join(sorted(question.right))),
                reference=mask(question.reference),
                said=mask(answer.text),
                cause=mask(answer.cause or ""),
                why=why(answer),
                counted_right=answer.score == 1.0,
                nearest=mask(answer.nearest or ""),
                nearest_right=answer.nearest in question.right,
                decided=decided,
            )


def read_words(lines: Sequence[bytes], items: Sequence[Item], where: str) -> tuple[Word, ...]:
    """Decisions as JSON lines; DataError names every line that is none, or is about no answer of `items`."""
    known = {(item.question, item.answer) for item in items}
    words, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            word = msgspec.json.decode(line, type=threadsafe(Word))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            faults.append(f"{where} line {number}: {error}; give question, answer and right (true or false)")
            continue
        if (word.question, word.answer) not in known:
            faults.append(f"{where} line {number}: no such answer; copy question and answer from --json")
        words.append(word)
    if faults:
        raise DataError("\n".join(faults))
    return tuple(words)
