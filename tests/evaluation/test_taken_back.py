"""Right answers put into a sentence that denies, doubts or reports them, or followed by one that takes them
back, are right no longer. Made by machine from judged answers: nobody chose the pairs.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.recall import Row, read_rows

from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.recall import committed, recalled
from fine_tune_runner.evaluation.sentences import sentences
from fine_tune_runner.types import Message

DATA = Path(__file__).parent / "data"
FRAMES = (
    "It is not true that {}.",
    "There is no sign that {}.",
    "I see no evidence that {}.",
    "It is not the case that {}.",
    "We have disproved that {}.",
    "Nobody has shown that {}.",
    "It is a myth that {}.",
    "Imagine that {}.",
    "It might be that {}.",
    "I am not sure whether {}.",
    "Could it be that {}?",
    "The forum has it that {}.",
    "Your agency claims that {}.",
    "On another client's site {}.",
    "Last year {}.",
)
AFTER = (
    "Or so I thought; the logs show otherwise.",
    "But I have ruled this out.",
    "At least, that is what your agency thinks.",
    "This turned out to be false.",
    "But that is only one of several possibilities.",
    "I could not confirm this.",
    "That was last year and has been fixed.",
    "Or it is something else entirely.",
    "However, this does not explain your numbers.",
    "That is only a guess.",
    "But the log contradicts this.",
    "Not so.",
    "I take that back.",
)


def asked(row: Row) -> Question:
    turn = (Message(role="user", content=row.question),)
    return Question(
        id=row.id, messages=turn, reference=row.reference, label=row.labels[0], accept=row.labels[1:]
    )


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy(None)


@pytest.fixture(scope="module")
def plain(taxonomy: Taxonomy) -> list[Row]:
    """Right answers of one plain sentence that are recognised as they stand."""
    rows = (row for name in ("third", "hard_second") for row in read_rows(DATA / f"{name}.jsonl"))
    short = [r for r in rows if r.right and r.kind in ("alias/synonym", "paraphrase", "reference verbatim")]
    return [
        row
        for row in short
        if row.answer.rstrip().endswith(".")
        and not any(mark in row.answer for mark in ("\n", ";", ":", " but ", '"'))
        and len(sentences(row.answer)) == 1
        and recalled(committed(row.answer, asked(row), taxonomy), asked(row))
    ]


def test_there_are_answers_to_put_into_frames(plain: list[Row]) -> None:
    assert len(plain) >= 8


@pytest.mark.parametrize("frame", FRAMES)
def test_a_right_answer_that_is_denied_doubted_or_reported_is_not_accepted(
    frame: str, plain: list[Row], taxonomy: Taxonomy
) -> None:
    told = {row.id: frame.format(row.answer.strip(" .")) for row in plain}
    found = [row.id for row in plain if recalled(committed(told[row.id], asked(row), taxonomy), asked(row))]
    assert found == []


@pytest.mark.parametrize("after", AFTER)
def test_a_right_answer_that_is_taken_back_is_not_accepted(
    after: str, plain: list[Row], taxonomy: Taxonomy
) -> None:
    told = {row.id: f"{row.answer} {after}" for row in plain}
    found = [row.id for row in plain if recalled(committed(told[row.id], asked(row), taxonomy), asked(row))]
    assert found == []
