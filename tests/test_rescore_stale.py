"""Scoring again takes the answers of the last evaluation, and none that an earlier one left beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fine_tune_runner.errors import ServingError
from fine_tune_runner.rescore import rescore
from tests.small_client import holdout_rows, write_rows
from tests.test_runner import Desk, right, right_below, wrong


def test_answers_of_an_earlier_evaluation_are_no_evidence(tmp_path: Path) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.track.script = {0: wrong, 1: right_below(6), 2: right_below(3)}
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)  # v1 was asked beside it, and its answers lie beside those of v2
    rows = holdout_rows()
    for row in rows:  # the same ids, other questions
        row["messages"][1]["content"] = row["messages"][1]["content"].replace("Why does", "Since when may")
    write_rows(desk.client / "v2_eval.jsonl", rows)
    desk.track.script = {0: wrong, 2: right}  # v1 cannot be called any more
    _, verdict = desk.runner().evaluate("small", 2)
    assert verdict.decision == "hold"
    _, again = rescore(desk.runner(), "small", 2)
    assert again.decision == "hold"
    assert "m1 was not asked in that evaluation" in again.reason


def test_answers_of_an_evaluation_that_was_broken_off_are_no_evidence(tmp_path: Path) -> None:
    def broken(_question_id: str) -> str:
        raise ZeroDivisionError

    desk = Desk(tmp_path, track_preference="b")
    desk.track.script = {0: wrong, 1: right, 2: wrong}
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    desk.track.script = {0: wrong, 1: broken, 2: right}
    desk.write_config(track_preference="b", eval={"temperature": 0.9})
    with pytest.raises(ZeroDivisionError):
        desk.runner().evaluate("small", 2)  # the answers of v2 at 0.9 are there, a report of them is not
    desk.write_config(track_preference="b")
    with pytest.raises(ServingError, match=r"m2 was not asked in that evaluation.*fine-tune eval"):
        rescore(desk.runner(), "small", 2)
    assert desk.statuses() == {1: "active", 2: "refused"}
