"""The gate on two files: what is scored again, what holds, and what the command says and returns."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from tests.scripted_track import Letters
from tests.small_client import plain_row, write_rows

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.answer_sets import gate_answers, scores_of
from fine_tune_runner.evaluation.answers import write_answers
from fine_tune_runner.types import Answer, Verdict

RIGHT, WRONG = "Root cause: consent_update_missing", "Root cause: consent_default_missing_or_late"


class Files:
    """A holdout of `questions` rows, and answer files beside it."""

    def __init__(self, folder: Path, questions: int) -> None:
        self.folder, self.holdout = folder, folder / "v3_eval.jsonl"
        self.ids = [f"q{i}" for i in range(questions)]
        write_rows(self.holdout, [plain_row(f"Why {name}?", RIGHT, id=name) for name in self.ids])

    def answers(self, name: str, texts: Mapping[str, str | None], repeats: int = 1) -> Path:
        path = self.folder / f"{name}.jsonl"
        rows = [
            Answer(
                question_id=q,
                k=k,
                text=text,
                score=math.nan if text is None else 1.0,  # stored scores are not looked at
                method=None,
                fingerprint=name,
            )
            for q, text in texts.items()
            for k in range(repeats)
        ]
        write_answers(path, rows)
        return path

    def right(self, name: str, count: int, repeats: int = 1) -> Path:
        texts = {q: RIGHT if i < count else WRONG for i, q in enumerate(self.ids)}
        return self.answers(name, texts, repeats)

    def verdict(self, new: Path, previous: Path, **words: object) -> Verdict:
        return gate_answers(new, previous, self.holdout, Letters(), **words)  # type: ignore[arg-type]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path, 20)


def test_both_sets_are_scored_again_and_compared(files: Files) -> None:
    verdict = files.verdict(files.right("A", 12, 3), files.right("B", 16, 3))
    assert (verdict.decision, verdict.new, verdict.previous) == ("refuse", 0.6, 0.8)
    assert verdict.lost == ("q12", "q13", "q14", "q15")
    assert verdict.answers_per_question == 3


def test_one_lost_of_twenty_is_a_weak_promote_and_a_hold_under_strict(files: Files) -> None:
    new, previous = files.right("A", 7), files.right("B", 8)
    weak = files.verdict(new, previous)
    assert (weak.decision, weak.strength) == ("promote", "weak")
    assert files.verdict(new, previous, strict=True).decision == "hold"


def test_a_question_without_an_answer_holds(files: Files) -> None:
    whole = dict.fromkeys(files.ids, RIGHT)
    one_less = dict.fromkeys(files.ids[1:], RIGHT)
    failed = whole | {"q0": None}
    for gap in (one_less, failed, {}):
        new, previous = files.answers("A", gap), files.answers("B", whole)
        assert files.verdict(new, previous).decision == "hold"
        assert files.verdict(previous, new).decision == "hold"
        assert files.verdict(new, new).decision == "hold"


def test_a_question_left_out_by_name_is_not_missed(files: Files) -> None:
    path = files.answers("A", dict.fromkeys(files.ids[1:], RIGHT))
    assert files.verdict(path, path, leave_out=["q0"]).decision == "promote"


def test_answers_to_other_questions_hold(files: Files) -> None:
    other = files.answers("A", {f"other-{q}": RIGHT for q in files.ids})
    assert files.verdict(other, files.right("B", 1)).decision == "hold"


def test_many_failed_calls_hold_although_each_question_has_an_answer(files: Files) -> None:
    rows = [
        Answer(
            question_id=q, k=k, text=None if k else RIGHT, score=None, method=None, fingerprint="", error="x"
        )
        for q in files.ids
        for k in range(2)
    ]
    path = files.folder / "A.jsonl"
    write_answers(path, rows)
    verdict = files.verdict(path, files.right("B", 1))
    assert verdict.decision == "hold"
    assert "20 of 40 calls failed" in verdict.reason


def test_an_answer_given_twice_is_named(files: Files) -> None:
    path = files.right("A", 3)
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(DataError, match=r"A\.jsonl line 21: a second answer k=0 to q0"):
        files.verdict(path, files.right("B", 3))


def test_scores_are_taken_by_question_and_failed_calls_have_none() -> None:
    right = Answer(question_id="a", k=0, text="x", score=1.0, method="line", fingerprint="f", similarity=0.4)
    wrong = msgspec.structs.replace(right, k=1, score=0.0)
    failed = msgspec.structs.replace(right, k=2, text=None, score=None, similarity=None)
    by_cosine = msgspec.structs.replace(right, question_id="b", score=None)
    assert scores_of([right, wrong, failed, by_cosine]) == {"a": [1.0, 0.0], "b": [0.4]}


def command(files: Files, models_dir: Path, new: Path, previous: Path, *words: str) -> tuple[int, str]:
    arguments = ["gate", "--new", str(new), "--previous", str(previous), "--holdout", str(files.holdout)]
    env = {"FINE_TUNE_MODELS_DIR": str(models_dir)}
    result = CliRunner().invoke(fine_tune, [*arguments, *words], env=env, standalone_mode=False)
    assert result.exception is None
    return result.return_value, result.output


def test_the_command_returns_0_3_or_4(tmp_path: Path, models_dir: Path) -> None:
    files = Files(tmp_path, 6)
    some, most = files.right("A", 3), files.right("B", 5)
    assert command(files, models_dir, most, some)[0] == 0
    code, text = command(files, models_dir, some, most)
    assert code == 3
    assert "recall 0.500 against 0.833 of B" in text
    assert "Lost:   q3, q4" in text
    assert command(files, models_dir, files.answers("C", {"q0": RIGHT}), most)[0] == 4


def test_tolerance_strict_and_json_reach_the_gate(tmp_path: Path, models_dir: Path) -> None:
    files = Files(tmp_path, 6)
    words = ("--tolerance", "0.4", "--strict", "--json")
    code, text = command(files, models_dir, files.right("A", 3), files.right("B", 5), *words)
    result = json.loads(text)
    assert (code, result["exit_code"], result["verdict"]["decision"]) == (4, 4, "hold")
    assert (result["verdict"]["tolerance"], result["verdict"]["strength"]) == (0.4, "weak")


def test_the_order_of_the_lines_changes_nothing(files: Files) -> None:
    new, previous = files.right("A", 11, 3), files.right("B", 12, 3)
    before = files.verdict(new, previous)
    lines = new.read_bytes().splitlines(keepends=True)
    random.Random(1).shuffle(lines)
    new.write_bytes(b"".join(lines))
    assert files.verdict(new, previous) == before
