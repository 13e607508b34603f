"""Asking in stages, repeats that end early, and stored answers of a version that was switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.scripted_track import Letters

from fine_tune_runner.errors import ServingError
from fine_tune_runner.evaluation.answers import read_answers
from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.harness import measure, stages_of
from fine_tune_runner.settings import Client, ClientConfig
from fine_tune_runner.types import (
    Answerer,
    Dataset,
    Decoding,
    EvalReport,
    Model,
    Prompt,
    Reply,
    VersionKey,
)

RIGHT, WRONG = "Root cause: consent_update_missing", "Root cause: consent_default_missing_or_late"
Say = Callable[[str, int], str | None]  # (question id, repeat) → what the model says


class Models:
    """Answers as told; a model that is not there cannot be loaded. Keeps what it was asked."""

    def __init__(self, **say: Say) -> None:
        self.say = say
        self.asked: list[tuple[str, str, int, int]] = []  # model, question, repeat, max_tokens

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Mapping[str, Answerer]]:
        for model in models:
            if model.model_id not in self.say:
                raise ServingError(f"{model.model_id} was switched off")
        yield {model.model_id: self for model in models}

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        for prompt in prompts:
            self.asked.append((model_id, prompt.question_id, prompt.k, decoding.max_tokens))
            text = self.say[model_id](prompt.question_id, prompt.k)
            if text is None:
                yield Reply(question_id=prompt.question_id, k=prompt.k, error="no answer")
                continue
            words = text.split(" ")
            cut = " ".join(words[: decoding.max_tokens])
            yield Reply(question_id=prompt.question_id, k=prompt.k, text=cut, tokens=len(words))


def write_holdout(folder: Path, version: int, questions: Sequence[str]) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Why {q}?"}, {"role": "assistant", "content": RIGHT}],
            "eval": {"id": f"v{version}-{q}"},
        }
        for q in questions
    ]
    path = folder / f"v{version}_eval.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))


def model(name: str) -> Model:
    return Model(model_id=name, track="B", provider="told", base_model="none", dataset_sha256="d")


def report(folder: Path, models: Models, **changes: Any) -> EvalReport:
    client = Client(id="small", dir=folder, config=ClientConfig(client_id="small"))
    dataset = Dataset(
        client_id="small",
        version=2,
        train_path="v2.jsonl",
        holdout_path="v2_eval.jsonl",
        sha256="d",
        holdout_sha256="h",
        examples=50,
        holdout_examples=10,
        account_state_version="1",
        system_prompt="You are an expert.",
    )
    words: dict[str, Any] = {
        "new": model("new"),
        "key": VersionKey(version=2, track="B"),
        "previous": (VersionKey(version=1, track="B"), model("old")),
        "base": None,
        "serve": models.serve,
        "embedder": Letters(),
        "decoding": Decoding(),
        "answers_dir": folder / "answers",
        "on_reply": lambda label, done, total: None,
    }
    return measure(client, dataset, **words | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_holdout(tmp_path, 2, [f"q{i}" for i in range(10)])
    return tmp_path


def always(text: str) -> Say:
    return lambda question, k: text


def first(count: int, *, wrong: str = WRONG) -> Say:
    """Right on the first `count` questions."""
    return lambda question, k: RIGHT if int(question.split("q")[1]) < count else wrong


def test_a_clear_case_is_decided_by_one_answer_a_question(folder: Path) -> None:
    found = report(folder, Models(new=always(WRONG), old=always(RIGHT)))
    assert found.answers_per_question == 1
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
    found = report(folder, Models(new=first(9), old=lambda q, k: RIGHT if k == 0 else WRONG))
    assert found.answers_per_question == 3


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
    assert list(stages_of(None, Decoding(temperature=0.0))) == [1]
    assert list(stages_of(None, Decoding())) == [1, 3, 5, 10]


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


def old_run(folder: Path, questions: Sequence[str], say: Say) -> Path:
    """Version 1 was evaluated on its own holdout, while it could still be called."""
    write_holdout(folder, 1, questions)
    run = folder / "runs" / "one"
    models = Models(old=say)
    client = Client(id="small", dir=folder, config=ClientConfig(client_id="small"))
    dataset = Dataset(
        client_id="small",
        version=1,
        train_path="v1.jsonl",
        holdout_path="v1_eval.jsonl",
        sha256="d",
        holdout_sha256="h",
        examples=50,
        holdout_examples=len(questions),
        account_state_version="1",
        system_prompt="You are another expert.",
    )
    measure(
        client,
        dataset,
        new=model("old"),
        key=VersionKey(version=1, track="B"),
        previous=None,
        base=None,
        serve=models.serve,
        embedder=Letters(),
        decoding=Decoding(),
        answers_dir=run / "answers",
        on_reply=lambda label, done, total: None,
    )
    return run


def test_stored_answers_stand_in_for_a_version_that_was_switched_off(folder: Path) -> None:
    run = old_run(folder, ["q1", "q3", "q5", "q7", "q8", "elsewhere"], always(RIGHT))
    found = report(folder, Models(new=first(6)), previous_run_dir=run)
    assert found.shared == ("v2-q1", "v2-q3", "v2-q5", "v2-q7", "v2-q8")
    verdict = decide(found, 0.05)
    # q1, q3, q5 right, q7 and q8 wrong, against five right ones.
    assert (verdict.decision, verdict.new, verdict.previous) == ("refuse", pytest.approx(0.6), 1.0)
    assert found.new.recall == 0.6  # over all ten questions
    assert "old was switched off; its stored answers to 5 shared questions" in found.warnings[0]


def test_stored_answers_are_used_where_every_call_fails(folder: Path) -> None:
    run = old_run(folder, [f"q{i}" for i in range(10)], first(5))
    found = report(folder, Models(new=always(RIGHT), old=lambda q, k: None), previous_run_dir=run)
    assert len(found.shared) == 10
    assert decide(found, 0.05).decision == "promote"


def test_under_five_shared_questions_it_holds(folder: Path) -> None:
    run = old_run(folder, ["q1", "q3", "q5", "q7"], always(WRONG))
    found = report(folder, Models(new=always(RIGHT)), previous_run_dir=run)
    verdict = decide(found, 0.05)
    assert (found.previous, verdict.decision) == (None, "hold")
    assert "cover only 4 of the questions" in verdict.reason


def test_a_broken_file_of_stored_answers_holds(folder: Path) -> None:
    run = old_run(folder, [f"q{i}" for i in range(10)], always(WRONG))
    (run / "answers" / "1-B.jsonl").write_text("{}\n")
    verdict = decide(report(folder, Models(new=always(RIGHT)), previous_run_dir=run), 0.05)
    assert (verdict.decision, verdict.reason) == (
        "hold",
        "the version in service cannot be called: old was switched off",
    )


def test_a_version_that_answers_nothing_and_left_nothing_holds(folder: Path) -> None:
    found = report(folder, Models(new=always(RIGHT), old=lambda q, k: None))
    assert decide(found, 0.05).reason == "old answered no question"


class Broken(Letters):
    """An embedder that fails once answers are to be scored."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if any("late" in text for text in texts):
            raise RuntimeError("the embedder broke")
        return super().embed(texts)


def test_an_exception_in_the_scorer_gives_no_report_to_decide_on(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="the embedder broke"):
        report(folder, Models(new=always("late"), old=always("late")), embedder=Broken())
