"""Asking in stages, repeats that end early, and what a report warns of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.scripted_track import Letters
from tests.told_models import RIGHT, WRONG, Models, always, first, model, report, write_holdout

from fine_tune_runner.evaluation.answers import read_answers
from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.harness import stages_of
from fine_tune_runner.types import Decoding


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_holdout(tmp_path, 2, [f"q{i}" for i in range(10)])
    return tmp_path


def test_a_clear_case_is_decided_by_the_first_stage(folder: Path) -> None:
    found = report(folder, Models(new=always(WRONG), old=always(RIGHT)))
    assert found.answers_per_question == 3
    assert decide(found, 0.05).strength == "strong"


def test_a_close_case_is_asked_up_to_ten_times_by_both_models_alike(folder: Path) -> None:
    models = Models(new=first(7), old=first(8))
    found = report(folder, models)
    assert found.answers_per_question == 10
    assert found.previous is not None
    assert (found.new.answers, found.previous.answers) == (100, 100)
    assert len({asked[:3] for asked in models.asked}) == len(models.asked) == 200
    assert {k for _, _, k, _ in models.asked} == set(range(10))
    assert len(read_answers(folder / "answers" / "2-B.jsonl")) == 100


def test_more_answers_end_once_the_case_is_clear(folder: Path) -> None:
    """The old model's first answers were right by luck: its repeats are wrong."""
    found = report(folder, Models(new=first(9), old=lambda q, k: RIGHT if k < 3 else WRONG))
    assert found.answers_per_question == 5


def test_a_first_version_is_asked_once(folder: Path) -> None:
    models = Models(new=first(5), base=first(1))
    found = report(folder, models, previous=None, base=model("base"))
    assert (found.answers_per_question, len(models.asked)) == (1, 20)
    assert decide(found, 0.05).decision == "promote"


def test_a_number_of_answers_given_is_kept_to(folder: Path) -> None:
    models = Models(new=first(7), old=first(8))
    assert report(folder, models, answers=2).answers_per_question == 2
    assert len(models.asked) == 40


def test_at_temperature_zero_nothing_is_asked_twice() -> None:
    assert list(stages_of(None, Decoding(temperature=0.0), 10)) == [1]


def test_few_questions_are_never_judged_by_one_answer_each() -> None:
    assert list(stages_of(None, Decoding(), 19)) == [3, 5, 10]
    assert list(stages_of(None, Decoding(), 20)) == [1, 3, 5, 10]
    assert list(stages_of(4, Decoding(), 10)) == [4]


def test_progress_counts_all_answers_of_a_stage(folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    models = Models(new=first(7), old=first(8))
    report(folder, models, answers=3, on_reply=lambda label, done, total: seen.append((label, done, total)))
    assert [done for label, done, _ in seen if label == "2-B"] == list(range(1, 31))
    assert {total for _, _, total in seen} == {30}


def test_repeats_end_after_the_line_that_names_the_cause(folder: Path) -> None:
    tail = "\n" + "because of this and that " * 40
    models = Models(new=first(7, wrong=WRONG + tail), old=lambda q, k: first(8)(q, k) + tail)  # type: ignore[operator]
    found = report(folder, models, answers=3)
    assert {limit for name, _, k, limit in models.asked if name == "old" and k > 0} == {32}
    assert {limit for _, _, k, limit in models.asked if k == 0} == {256}
    assert found.new.recall == 0.7
    kept = read_answers(folder / "answers" / "1-B.jsonl")
    assert [a.similarity is None for a in kept] == [a.k > 0 for a in kept]


def test_a_repeat_that_was_cut_before_its_line_ended_is_asked_for_whole(folder: Path) -> None:
    def old(question: str, k: int) -> str:
        return ("Hm, let me think. " * 20 if k else "") + RIGHT + "\n" + "as it is. " * 40

    models = Models(new=old, old=old)
    found = report(folder, models, answers=2)
    assert [limit for name, _, k, limit in models.asked if name == "old" and k == 1] == [32] * 10 + [256] * 10
    assert found.new.recall == 1.0


def test_answers_without_such_a_line_are_repeated_whole(folder: Path) -> None:
    plain = always("The root cause is consent_update_missing. " + "More words. " * 40)
    models = Models(new=plain, old=plain)
    report(folder, models, answers=2)
    assert {limit for _, _, _, limit in models.asked} == {256}


class Broken(Letters):
    """An embedder that fails once answers are to be scored."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if any("late" in text for text in texts):
            raise RuntimeError("the embedder broke")
        return super().embed(texts)


def test_an_exception_in_the_scorer_gives_no_report_to_decide_on(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="the embedder broke"):
        report(folder, Models(new=always("late"), old=always("late")), embedder=Broken())
