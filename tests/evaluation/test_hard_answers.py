"""Hard answers that were written and judged by hand, through the product's reading (benchmarks/recall.py).

The rules and the names of causes were mended with all of them, so this guards against falling back and
measures nothing new. As first scored, unseen: `hard_second.jsonl` 91 of 135 right answers recognised and 7 of
132 wrong ones accepted, `third.jsonl` 109 of 152 and 1 of 152, `fourth.jsonl` 59 of 120 and 3 of 120, those
by nearness of wording (2) or embedding (1) as it decided then, `fifth.jsonl` 67 of 120 and 7 of 120,
`sixth.jsonl` 82 of 119 and none of 118, `seventh.jsonl` 80 of 120 and 2 of 120 (one of the
two was mended and nothing else; the other is OPEN).
`hard_own.jsonl` is by the rules' author, wrong answers made to slip through: at their first run 37 of 135
did, and one still does and is left out ("the site pushes X and so does the trigger expect it"). Rows marked
`doubtful` are those whose author was not sure.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.recall import Outcome, outcomes, read_rows

DATA = Path(__file__).parent / "data"
OPEN = {"seventh-F-117"}  # "so it's no longer true that only the first load is measured"
# Least share of right answers recognised; what is missing is left to a person, not called wrong.
LEAST = {
    "hard_dev.jsonl": 0.90,
    "hard_second.jsonl": 0.79,
    "hard_own.jsonl": 0.89,
    "third.jsonl": 0.82,
    "fourth.jsonl": 0.53,
    "fifth.jsonl": 0.77,
    "sixth.jsonl": 0.80,
    "seventh.jsonl": 0.66,
}


@pytest.fixture(scope="module", params=sorted(LEAST))
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def found(file: str) -> list[Outcome]:
    return outcomes(read_rows(DATA / file))


def test_no_wrong_answer_is_accepted(found: list[Outcome]) -> None:
    wrong = [o for o in found if not o.row.right and not o.row.doubtful]
    assert wrong
    assert {o.row.id for o in wrong if o.accepted} == OPEN & {o.row.id for o in wrong}


def test_most_right_answers_are_recognised(found: list[Outcome], file: str) -> None:
    right = [o for o in found if o.row.right]
    assert right
    assert sum(o.accepted for o in right) >= LEAST[file] * len(right)


def test_hardly_any_right_answer_is_read_as_another_cause(found: list[Outcome]) -> None:
    right = [o for o in found if o.row.right]
    assert sum(not o.accepted and not o.unresolved for o in right) <= 0.02 * len(right)
