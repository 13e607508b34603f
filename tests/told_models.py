"""Models that answer as told, on a holdout of questions `q0`, `q1` and so on: for tests of the harness."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fine_tune_runner.dataset.read import holdout_path
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import ServingError
from fine_tune_runner.evaluation.harness import measure
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.evaluation.stored import StoredAnswers
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
from tests.scripted_track import Letters
from tests.small_client import plain_row, write_rows

RIGHT, WRONG = "Root cause: consent_update_missing", "Root cause: consent_default_missing_or_late"
SYSTEM_PROMPT, DECODING = "You are an expert.", Decoding()
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
    rows = [plain_row(f"Why {q}?", RIGHT, id=f"v{version}-{q}") for q in questions]
    write_rows(folder / f"v{version}_eval.jsonl", rows)


def model(name: str) -> Model:
    return Model(model_id=name, track="B", provider="told", base_model="none", dataset_sha256="d")


def client_in(folder: Path) -> Client:
    return Client(id="small", dir=folder, config=ClientConfig(client_id="small"))


def dataset(version: int, system_prompt: str = SYSTEM_PROMPT) -> Dataset:
    return Dataset(
        client_id="small",
        version=version,
        train_path=f"v{version}.jsonl",
        holdout_path=f"v{version}_eval.jsonl",
        sha256="d",
        holdout_sha256="h",
        examples=50,
        holdout_examples=10,
        account_state_version="1",
        system_prompt=system_prompt,
    )


def report(folder: Path, models: Models, **changes: Any) -> EvalReport:
    words: dict[str, Any] = {
        "new": model("new"),
        "key": VersionKey(version=2, track="B"),
        "previous": (VersionKey(version=1, track="B"), model("old")),
        "base": None,
        "serve": models.serve,
        "embedder": Letters(),
        "decoding": DECODING,
        "answers_dir": folder / "answers",
        "on_reply": lambda label, done, total: None,
    }
    return measure(client_in(folder), dataset(2), **words | changes)


def always(text: str) -> Say:
    return lambda question, k: text


def first(count: int, *, wrong: str = WRONG) -> Say:
    """Right on the first `count` questions."""
    return lambda question, k: RIGHT if int(question.split("q")[1]) < count else wrong


def old_run(
    folder: Path,
    questions: Sequence[str],
    say: Say,
    *,
    system_prompt: str = SYSTEM_PROMPT,
    decoding: Decoding = DECODING,
) -> StoredAnswers:
    """Version 1 was evaluated on its own holdout, while it could still be called."""
    write_holdout(folder, 1, questions)
    answers = folder / "runs" / "one" / "answers"
    measure(
        client_in(folder),
        dataset(1, system_prompt),
        new=model("old"),
        key=VersionKey(version=1, track="B"),
        previous=None,
        base=None,
        serve=Models(old=say).serve,
        embedder=Letters(),
        decoding=decoding,
        answers_dir=answers,
        on_reply=lambda label, done, total: None,
    )
    path = holdout_path(folder, 1)
    return StoredAnswers(
        path=answers / "1-B.jsonl",
        holdout=path,
        holdout_sha256=load_holdout(path, load_taxonomy(folder)).sha256,
        at=datetime(2026, 11, 20, 9, tzinfo=UTC),
    )
