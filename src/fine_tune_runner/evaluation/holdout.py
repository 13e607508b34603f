"""The holdout as frozen questions: what is asked, what counts as right, and by which score it can be judged.

Knows the chat format and the taxonomy; knows no model and no answer.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec

from fine_tune_runner.dataset.fingerprint import Fingerprint, row_sha256
from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.taxonomy import Taxonomy, cause_line, normalise
from fine_tune_runner.dataset.validate import question_id
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.decisions import (
    Decided,
    answer_sha256,
    decisions_path,
    decisions_sha256,
    read_decisions,
)
from fine_tune_runner.types import Example, Measure, Message, Prompt


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One holdout row: the turns to send, the reference answer, and the cause it stands for.

    `accept` holds labels that are right as well, `reject` labels that never are; `aliases` and `denials` are
    further wordings of the right cause and of rejected ones. `labelled` says where `label` came from, `line`
    where the row stands in its file, from 1.
    """

    id: str
    messages: tuple[Message, ...]
    reference: str
    label: str | None = None
    labelled: Literal["given", "derived"] | None = None
    accept: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()
    line: int = 0

    @property
    def turns(self) -> tuple[Message, ...]:
        """What makes it the same question in another holdout: its messages without the system prompt."""
        plain = (msgspec.structs.replace(m, weight=None) for m in self.messages if m.role != "system")
        return tuple(plain)

    @property
    def text(self) -> str:
        """What the user asked, all turns."""
        return "\n".join(m.content for m in self.messages if m.role == "user")

    @property
    def right(self) -> frozenset[str]:
        """The labels that count as right."""
        own = {self.label} if self.label else set()
        return frozenset((own | set(self.accept)) - set(self.reject))

    @property
    def sha256(self) -> str:
        """What a person's decision is about: the turns, the reference, and which labels are right."""
        return row_sha256(self._row, *sorted(self.right))

    @property
    def row_sha256(self) -> str:
        """What a confirmed label is about (dataset/labels.py): the turns and the reference."""
        return row_sha256(self._row)

    @property
    def _row(self) -> tuple[Message, ...]:
        return (*self.turns, Message(role="assistant", content=self.reference))


class Holdout(msgspec.Struct, frozen=True, kw_only=True):
    """The questions of one evaluation in file order, and the measure that all of them allow.

    `sha256` is that of the whole file's content (Dataset.holdout_sha256), also where rows were left out.
    `decided` is what people, and the judge of that identity, decided about answers: id → answer → decision.
    """

    questions: tuple[Question, ...]
    measure: Measure
    sha256: str = ""
    system_prompt: str | None = None
    decided: dict[str, dict[str, Decided]] = {}
    judge: str | None = None

    @property
    def decisions_sha256(self) -> str:
        """What scores on it owe to people, for the fingerprint; "" for nothing."""
        return decisions_sha256(d for of_question in self.decided.values() for d in of_question.values())

    def decision(self, question_id: str, text: str) -> Decided | None:
        """What was decided about this answer to this question."""
        of_question = self.decided.get(question_id)
        return of_question.get(answer_sha256(text)) if of_question else None

    def prompts(self, repeats: Collection[int]) -> list[Prompt]:
        """One prompt a question and repeat, repeats of one question side by side."""
        return [Prompt(question_id=q.id, k=k, messages=q.messages) for q in self.questions for k in repeats]

    def without(self, ids: Collection[str]) -> Holdout:
        """The holdout less some questions, such as those another version was trained on."""
        kept = tuple(q for q in self.questions if q.id not in ids)
        return msgspec.structs.replace(self, questions=kept, measure=measure_of(kept))


def load_holdout(
    path: Path, taxonomy: Taxonomy, system_prompt: str | None = None, judge: str | None = None
) -> Holdout:
    """Read a holdout, and beside it what people, and that judge, decided about answers to its questions.

    With `system_prompt` every question is asked under it instead of its own.
    Raises DataError for a row that is no chat example, and for two rows with the same id.
    """
    content = Fingerprint(holdout=True)
    rows: list[Question] = []
    for example in examples(path):
        content.add(example)
        rows.append(_question(example, question_id(example, path), taxonomy, system_prompt))
    questions = tuple(rows)
    seen: dict[str, int] = {}
    for line, question in enumerate(questions, 1):
        if question.id in seen:
            raise DataError(
                f"{path}: rows {seen[question.id]} and {line} have the same id {question.id!r}; "
                "give each its own eval.id"
            )
        seen[question.id] = line
    known = read_decisions(decisions_path(path.parent), judge)
    about = {question.id: question.sha256 for question in questions} if known else {}
    return Holdout(
        questions=questions,
        measure=measure_of(questions),
        sha256=content.hexdigest(),
        system_prompt=system_prompt,
        decided={row_id: dict(known[sha256]) for row_id, sha256 in about.items() if known.get(sha256)},
        judge=judge,
    )


def edited(new: Holdout, old: Holdout) -> tuple[tuple[Question, Question], ...]:
    """(row in `new`, row in `old`) of each question that both ask, but with another reference or labels."""
    before = {question.turns: question for question in old.questions}
    shared = [(q, before[q.turns]) for q in new.questions if q.turns in before]
    return tuple((q, was) for q, was in shared if _counts_as_right(q) != _counts_as_right(was))


def _counts_as_right(question: Question) -> tuple[object, ...]:
    q = question
    return q.reference, q.label, *map(frozenset, (q.accept, q.aliases, q.reject, q.denials))


def measure_of(questions: Collection[Question]) -> Measure:
    """Recall where every question has a label; contrast where there are two causes to tell apart."""
    if questions and all(q.label for q in questions):
        return "recall"
    return "contrast" if len({cause_key(q) for q in questions}) > 1 else "similarity"


def cause_key(question: Question) -> str:
    """What makes two rows the same cause under contrast: the label, or without one the reference's words."""
    return question.label or normalise(question.reference)


def _question(example: Example, row_id: str, taxonomy: Taxonomy, system_prompt: str | None) -> Question:
    turns = tuple(m for m in example.messages[:-1] if system_prompt is None or m.role != "system")
    if system_prompt is not None:
        turns = (Message(role="system", content=system_prompt), *turns)
    labels = example.eval
    given = labels.root_cause if labels else None
    line = cause_line(example.answer)
    label = (taxonomy.resolve(given) or given) if given else (taxonomy.resolve(line) if line else None)
    accept, accept_words = _split(labels.accept if labels else (), taxonomy)
    reject, reject_words = _split(labels.reject if labels else (), taxonomy)
    return Question(
        id=row_id,
        messages=turns,
        reference=example.answer,
        label=label,
        labelled=("given" if given else "derived") if label else None,
        accept=accept,
        aliases=(*(labels.aliases if labels else ()), *accept_words),
        reject=reject,
        denials=reject_words,
        line=example.line,
    )


def _split(names: tuple[str, ...], taxonomy: Taxonomy) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(labels, free wordings): a name the taxonomy knows is a label, any other one is a wording."""
    resolved = [(name, taxonomy.resolve(name)) for name in names]
    return tuple(label for _, label in resolved if label), tuple(n for n, label in resolved if not label)
