"""Missing evidence never promotes, whichever way it goes missing: harness, stored answers, files.

The new model of these properties is right everywhere and the previous one wrong, so that only missing
evidence can keep it from being promoted. The gate's own properties are in test_gate.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.scripted_track import Letters
from tests.small_client import plain_row, write_rows
from tests.told_models import RIGHT, WRONG, Models, always, old_run, report, write_holdout

from fine_tune_runner.errors import ServingError
from fine_tune_runner.evaluation.answer_sets import gate_answers
from fine_tune_runner.evaluation.answers import read_answers, write_answers
from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.types import Answer, Decision, EvalReport

QUESTIONS = [f"q{i}" for i in range(6)]
SOME = st.sets(st.sampled_from(QUESTIONS), min_size=1)
FEW = settings(max_examples=12, deadline=None)


@contextmanager
def place() -> Iterator[Path]:
    """A fresh folder with a holdout; hypothesis runs many examples in one call of a test."""
    with tempfile.TemporaryDirectory() as name:
        write_holdout(Path(name), 2, QUESTIONS)
        yield Path(name)


def decision(found: EvalReport) -> Decision:
    return decide(found, 0.05).decision


def test_with_all_evidence_it_promotes() -> None:
    with place() as folder:
        assert decision(report(folder, Models(new=always(RIGHT), old=always(WRONG)))) == "promote"
        stored = old_run(folder, QUESTIONS, always(WRONG))
        assert decision(report(folder, Models(new=always(RIGHT)), stored=stored)) == "promote"


@FEW
@given(SOME, st.sampled_from(["new", "old"]))
def test_a_model_that_leaves_questions_unanswered(silent: set[str], which: str) -> None:
    say: dict[str, Any] = {"new": always(RIGHT), "old": always(WRONG)}
    told = say[which]
    say[which] = lambda question, k: None if question.split("-")[1] in silent else told(question, k)
    with place() as folder:
        assert decision(report(folder, Models(**say), answers=2)) == "hold"


@FEW
@given(SOME)
def test_stored_answers_to_other_questions(shared: set[str]) -> None:
    """Six questions of which some are shared: from five on it is decided, on these alone."""
    with place() as folder:
        asked = [q if q in shared else f"{q} elsewhere" for q in QUESTIONS]
        stored = old_run(folder, asked, always(WRONG))
        found = report(folder, Models(new=always(RIGHT)), stored=stored)
        assert decision(found) == ("promote" if len(shared) >= 5 else "hold")
        assert len(found.shared) in (0, len(shared))


@FEW
@given(
    st.sampled_from([float("nan"), float("inf"), -1.0, 7.0, None]),
    st.text(max_size=20),
    st.sampled_from(["line", "review", None]),
)
def test_what_stored_answers_say_of_themselves(score: float | None, stamp: str, method: Any) -> None:
    """Scores, similarity and method on record change nothing: the texts are scored again.

    A fingerprint that is not today's, or none, is no evidence that they were given as today.
    """
    with place() as folder:
        stored = old_run(folder, QUESTIONS, always(RIGHT))
        answers = [
            msgspec.structs.replace(a, score=score, similarity=score, method=method, fingerprint=stamp)
            for a in read_answers(stored.path)
        ]
        write_answers(stored.path, answers)
        found = report(folder, Models(new=always(WRONG)), stored=stored)
        assert (decision(found), found.previous and found.previous.recall) == ("refuse", 1.0)
        better = report(folder, Models(new=always(RIGHT)), stored=stored)
        assert decide(better, 0.05, strict=True).decision == "hold"


@FEW
@given(st.binary(max_size=60), st.integers(0, 400))
def test_a_file_of_stored_answers_that_is_no_such_file(noise: bytes, at: int) -> None:
    with place() as folder:
        stored = old_run(folder, QUESTIONS, always(WRONG))
        data = stored.path.read_bytes()
        stored.path.write_bytes(data[:at] + b"\xff" + noise)
        assert decision(report(folder, Models(new=always(RIGHT)), stored=stored)) == "hold"


class Faulty(Letters):
    """Gives `wrong` for, or raises at, texts that hold a word."""

    def __init__(self, word: str, value: float | None) -> None:
        self._word, self._value = word, value

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = super().embed(texts)
        for row, text in enumerate(texts):
            if self._word in text:
                if self._value is None:
                    raise RuntimeError("the scorer broke")
                vectors[row] = self._value
        return vectors


UNLABELLED = {"new": "The root cause is the banner.", "old": "The root cause is a window."}


@FEW
@given(
    st.sampled_from(["banner", "window", "reference"]),
    st.sampled_from([float("nan"), float("inf"), None]),
    st.booleans(),
)
def test_a_scorer_that_breaks_or_gives_no_numbers(word: str, value: float | None, one_cause: bool) -> None:
    """By similarity where there is one cause, else by contrast: each rests on the embedder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [plain_row(f"Why {q}?", "reference " + ("" if one_cause else q)) for q in QUESTIONS]
        write_rows(folder / "v2_eval.jsonl", rows)
        models = Models(**{name: always(text) for name, text in UNLABELLED.items()})
        with pytest.raises((RuntimeError, ServingError), match=r"the scorer broke|no numbers"):
            report(folder, models, embedder=Faulty(word, value))


def answers(texts: dict[str, str | None], stamp: str) -> list[Answer]:
    return [
        Answer(question_id=f"v2-{q}", k=0, text=text, score=1.0, method="line", fingerprint=stamp)
        for q, text in texts.items()
    ]


@FEW
@given(SOME, st.sampled_from(["missing", "failed", "renamed"]), st.booleans())
def test_files_of_which_one_lacks_an_answer(gone: set[str], how: str, new_side: bool) -> None:
    texts: list[dict[str, str | None]] = [dict.fromkeys(QUESTIONS, RIGHT), dict.fromkeys(QUESTIONS, WRONG)]
    for q in gone:
        text = texts[not new_side].pop(q)
        if how == "failed":
            texts[not new_side][q] = None
        if how == "renamed":
            texts[not new_side][f"{q} elsewhere"] = text
    with place() as folder:
        for name, side in zip(("A", "B"), texts, strict=True):
            write_answers(folder / f"{name}.jsonl", answers(side, name))
        paths = folder / "A.jsonl", folder / "B.jsonl", folder / "v2_eval.jsonl"
        assert gate_answers(*paths, Letters()).decision == "hold"


@FEW
@given(st.lists(st.text(max_size=12), min_size=2, max_size=2, unique_by=lambda stamp: stamp[:8]))
def test_files_of_answers_that_were_given_in_different_ways(stamps: list[str]) -> None:
    with place() as folder:
        for name, text, stamp in zip(("A", "B"), (RIGHT, WRONG), stamps, strict=True):
            write_answers(folder / f"{name}.jsonl", answers(dict.fromkeys(QUESTIONS, text), stamp))
        paths = folder / "A.jsonl", folder / "B.jsonl", folder / "v2_eval.jsonl"
        assert gate_answers(*paths, Letters()).strength == "weak"
        assert gate_answers(*paths, Letters(), strict=True).decision == "hold"


@FEW
@given(st.integers(1, 4), st.integers(1, 4))
def test_files_with_fewer_answers_than_asked_for(given_answers: int, asked: int) -> None:
    with place() as folder:
        for name, text in (("A", RIGHT), ("B", WRONG)):
            rows = answers(dict.fromkeys(QUESTIONS, text), name)
            repeated = [msgspec.structs.replace(a, k=k) for a in rows for k in range(given_answers)]
            write_answers(folder / f"{name}.jsonl", repeated)
        paths = folder / "A.jsonl", folder / "B.jsonl", folder / "v2_eval.jsonl"
        verdict = gate_answers(*paths, Letters(), answers=asked)
        enough = given_answers >= asked
        assert verdict.decision == ("promote" if enough else "hold")
        assert verdict.answers_per_question == (asked if enough else None)
