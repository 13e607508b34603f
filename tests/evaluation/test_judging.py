"""What a judge's word is worth beside a person's, and what stays of a reading that was broken off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from benchmarks.recall import outcomes, read_rows

from fine_tune_runner.dataset.taxonomy import Cause, Taxonomy
from fine_tune_runner.errors import Interrupted, ServingError
from fine_tune_runner.evaluation.decisions import (
    Decided,
    answer_sha256,
    append_decision,
    decisions_path,
    read_decisions,
)
from fine_tune_runner.evaluation.holdout import Holdout, Question
from fine_tune_runner.evaluation.judge_prompt import UNDECIDED
from fine_tune_runner.evaluation.judging import Reader, orders
from fine_tune_runner.types import Message

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
TAXONOMY = Taxonomy({label: Cause(label, definition=f"what {label} means") for label in ("a", "b", "c")})
QUESTIONS = tuple(
    Question(id=f"q{n}", messages=(Message(role="user", content=f"Why {n}?"),), reference="", label="a")
    for n in range(3)
)
HOLDOUT = Holdout(questions=QUESTIONS, measure="recall", judge="told")
ANSWERS = [(question, f"Something with {question.id}.") for question in QUESTIONS]


class Told:
    """A judge that says what a function of its turns says; keeps how often it was asked."""

    identity = "told"

    def __init__(self, say: Callable[[str], str | None]) -> None:
        self.say = say
        self.calls = 0

    def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> str | None:
        self.calls += 1
        return self.say(messages[1].content)


def reader(folder: Path, judge: Told, on_read: Callable[[str, int, int], None] | None = None) -> Reader:
    heard = on_read or (lambda name, done, total: None)
    return Reader(judge, TAXONOMY, decisions_path(folder), lambda: NOON, heard)


def said(folder: Path, who: str, right: bool | None, *, judge: bool = False) -> None:
    question, text = ANSWERS[0]
    decided = Decided(
        question=question.sha256,
        answer=answer_sha256(text),
        right=right,
        who=who,
        at=NOON,
        by_judge=judge,
        cause="a" if right else None,
    )
    append_decision(decisions_path(folder), decided)


def counts(folder: Path, judge: str | None) -> list[tuple[str, bool | None]]:
    found = read_decisions(decisions_path(folder), judge)
    return [(d.who, d.right) for of_question in found.values() for d in of_question.values()]


def test_a_persons_word_stands_over_a_judges_whichever_came_last(tmp_path: Path) -> None:
    said(tmp_path, "told", True, judge=True)
    said(tmp_path, "anna", False)
    said(tmp_path, "told", True, judge=True)
    assert counts(tmp_path, "told") == [("anna", False)]


def test_another_judges_word_and_one_that_is_not_asked_for_do_not_count(tmp_path: Path) -> None:
    said(tmp_path, "told", True, judge=True)
    assert counts(tmp_path, "other") == counts(tmp_path, None) == []
    assert counts(tmp_path, "told") == [("told", True)]


def test_what_a_person_decided_is_not_asked(tmp_path: Path) -> None:
    question, text = ANSWERS[0]
    decided = Decided(question=question.sha256, answer=answer_sha256(text), right=False, who="anna", at=NOON)
    holdout = Holdout(
        questions=QUESTIONS, measure="recall", decided={"q0": {decided.answer: decided}}, judge="told"
    )
    judge = Told(lambda asked: "a")
    read = reader(tmp_path, judge).read(holdout, ANSWERS)
    assert judge.calls == 4
    assert read.decision("q0", text) == decided


def test_the_two_orders_are_the_reverse_of_each_other_and_the_same_every_time() -> None:
    one, other = orders(TAXONOMY)
    assert one == other[::-1]
    assert orders(Taxonomy(dict(reversed(TAXONOMY.causes.items())))) == (one, other)


def test_an_undecided_word_is_kept_so_that_it_is_not_asked_again(tmp_path: Path) -> None:
    judge = Told(lambda asked: UNDECIDED)
    read = reader(tmp_path, judge).read(HOLDOUT, ANSWERS)
    assert [read.decision(q.id, text).right for q, text in ANSWERS] == [None] * 3  # type: ignore[union-attr]
    reader(tmp_path, judge).read(read, ANSWERS)
    assert judge.calls == 3
    assert counts(tmp_path, "told") == [("told", None)] * 3


@pytest.mark.parametrize("spoken", [[None], ["a", "a", "a", None]], ids=["first order", "second order"])
def test_what_is_no_readable_choice_is_not_kept_and_is_asked_again_next_time(
    tmp_path: Path, spoken: list[str | None]
) -> None:
    rest = iter(spoken)
    judge = Told(lambda asked: next(rest, "a"))
    one = reader(tmp_path, judge)
    read = one.read(HOLDOUT, ANSWERS)
    assert counts(tmp_path, "told") == [("told", True)] * 2
    assert one.warning == (
        "judge told could not read 1 answers, which stay unresolved: gave no readable choice"
    )
    before = judge.calls
    one.read(read, ANSWERS)
    assert judge.calls == before  # it would say the same again
    again = reader(tmp_path, judge)
    again.read(read, ANSWERS)
    assert (judge.calls, again.warning) == (before + 2, None)
    assert counts(tmp_path, "told") == [("told", True)] * 3


def test_a_reading_that_is_broken_off_keeps_what_was_decided(tmp_path: Path) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if done == 5:
            raise Interrupted("Ctrl-C")

    with pytest.raises(Interrupted):
        reader(tmp_path, Told(lambda asked: "a"), stop).read(HOLDOUT, ANSWERS)
    assert counts(tmp_path, "told") == [("told", True)] * 2


def test_a_call_that_fails_once_is_made_again_and_a_second_failure_ends_the_reading(tmp_path: Path) -> None:
    failing = iter([True, False, False, True, True])

    def say(asked: str) -> str:
        if next(failing):
            raise ServingError("away")
        return UNDECIDED

    judge = Told(say)
    one = reader(tmp_path, judge)
    one.read(HOLDOUT, ANSWERS)
    assert (judge.calls, len(one.unread)) == (5, 1)
    assert one.warning == "judge told could not read 1 answers, which stay unresolved: away"
    one.read(HOLDOUT, ANSWERS[:1])
    assert judge.calls == 5


def test_the_benchmark_leaves_what_no_rule_could_read_to_the_judge() -> None:
    rows = read_rows(Path(__file__).parent / "data" / "fourth.jsonl")[:40]
    right = {row.answer: row.labels[0] for row in rows if row.right}
    plain = outcomes(rows)
    assert any(o.unresolved for o in plain)
    judge = Told(lambda asked: next((c for text, c in right.items() if text in asked), UNDECIDED))
    found = outcomes(rows, judge)
    assert [o.accepted for o in found] == [o.accepted or (o.unresolved and o.row.right) for o in plain]
    assert {o.method for o, was in zip(found, plain, strict=True) if was.unresolved and o.accepted} == {
        "judge"
    }
