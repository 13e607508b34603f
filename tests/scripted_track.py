"""A track that trains in no time and answers as told: the seam `TrackPort`, for tests of the line itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fine_tune_runner.errors import ServingError
from fine_tune_runner.settings import Client, Settings
from fine_tune_runner.types import (
    Answerer,
    Clock,
    Dataset,
    Decoding,
    Estimate,
    Message,
    Model,
    Prompt,
    RegistryEntry,
    Reply,
    Run,
    RunContext,
    Step,
    Tokenizer,
    TokenStats,
)
from fine_tune_runner.workflow.engine import Event, Plan
from fine_tune_runner.workflow.journal import Journal


def in_process(
    settings: Settings,
    plan: Plan,
    clock: Clock,
    listener: Callable[[Event], None],
    notice: Callable[[str], None],
) -> Journal:
    """The engine without a database, as `FineTuneRunner` wants it: steps run in the test itself."""
    return Journal(settings.data_dir, plan, clock, listener=listener)


class Words:
    """Counts white-space separated words."""

    name = "words"
    context = 100_000

    def count(self, rows: Sequence[tuple[Message, ...]]) -> list[tuple[int, int]]:
        """(words, words of the last message)."""
        return [(sum(len(m.content.split()) for m in r), len(r[-1].content.split())) for r in rows]


class Letters:
    """Unit vectors of letter counts: near for alike texts, and the same everywhere."""

    fingerprint = "letters"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n, 26]."""
        counts = np.zeros((len(texts), 26), np.float32)
        for row, text in enumerate(texts):
            for letter in text.lower():
                if "a" <= letter <= "z":
                    counts[row, ord(letter) - ord("a")] += 1
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


# What model `m{version}` says to a question, by its id; a version that is missing cannot be called.
Script = Mapping[int, Callable[[str], str | None]]


class Scripted:
    """Implements TrackPort; `trained` lists the versions that were trained, in order.

    The model of version N is `m{first + N}`.
    """

    title = "Track B (scripted)"

    def __init__(
        self, script: Script, cost_usd: float | None = 0.0, track: str = "B", first: int = 0
    ) -> None:
        self.script = script
        self.cost_usd = cost_usd
        self.first = first
        self.track = track
        self.trained: list[int] = []
        self.reason: str | None = None
        self.end: str | None = None
        self.elsewhere: str | None = None
        self.cancelled: list[str] = []
        self.forgotten: list[str] = []
        self.followed: list[str | None] = []
        self.alias_fault: str | None = None
        self.forget_fault: str | None = None

    def maker(self) -> Callable[[Settings, Client], Scripted]:
        """As `runner.TRACKS` wants it."""
        return lambda settings, client: self

    def unavailable(self) -> str | None:
        return self.reason

    def tokenizer(self) -> Tokenizer:
        return Words()

    def estimate(self, dataset: Dataset, tokens: TokenStats) -> Estimate:
        return Estimate(
            dataset_sha256=dataset.sha256,
            tokens_per_epoch=tokens.total,
            epochs=1,
            steps=1,
            cost_usd=self.cost_usd,
            price_source="made up",
        )

    def steps(self) -> Sequence[Step]:
        return (Step(name="train", gives=Model, do=self.train),)

    def train(self, context: RunContext) -> Model:
        """A model that exists at once."""
        self.trained.append(context.run.version)
        return Model(
            model_id=f"m{self.first + context.run.version}",
            track=context.run.track,
            provider="scripted",
            base_model="none",
            dataset_sha256=context.value(Dataset).sha256,
        )

    def base(self) -> Model:
        return Model(model_id="m0", track="B", provider="scripted", base_model="none", dataset_sha256="")

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Answerer]:
        for model in models:
            if int(model.model_id[1:]) not in self.script:
                raise ServingError(f"{model.model_id} was switched off")
        yield self

    def month_usd(
        self,
        model: Model,
        prompts: Sequence[tuple[Message, ...]],
        tokens_per_answer: float,
        answers: int,
    ) -> float | None:
        return 0.0 if self.cost_usd == 0 else answers * tokens_per_answer / 1000

    def ended(self, run: Run) -> str | None:
        return self.end

    def pending(self, run: Run) -> str | None:
        return self.elsewhere

    def cancel(self, run: Run) -> str | None:
        self.cancelled.append(run.run_id)
        return "stopped elsewhere"

    def follow(self, active: RegistryEntry | None) -> str | None:
        self.followed.append(active.model_id if active else None)
        if self.alias_fault is not None:
            raise ServingError(self.alias_fault)
        return None

    def forget(self, run_ids: Sequence[str], model_ids: Sequence[str]) -> tuple[str, ...]:
        if self.forget_fault is not None:
            raise ServingError(self.forget_fault)
        self.forgotten += [*run_ids, *model_ids]
        return tuple(model_ids)

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """As the script says; None is a call that failed."""
        say = self.script[int(model_id[1:])]
        for prompt in prompts:
            text = say(prompt.question_id)
            error = "no answer" if text is None else None
            tokens = len((text or "").split())
            yield Reply(question_id=prompt.question_id, k=prompt.k, text=text, error=error, tokens=tokens)


def folder_of(path: Path) -> Path:
    """The client's folder below a fresh data folder."""
    client = path / "clients" / "small"
    client.mkdir(parents=True)
    return client
