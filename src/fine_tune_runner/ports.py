"""What a track offers: the seam above which nobody asks which track it is.

A track trains, serves and asks one client's versions. Files of runs and registries are not its business. A
judge reads what no rule of the evaluation could.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from fine_tune_runner.types import (
    Answerer,
    Dataset,
    Estimate,
    Message,
    Model,
    RegistryEntry,
    Run,
    Step,
    Tokenizer,
    TokenStats,
)


class TrackPort(Protocol):
    """One client on one track; `title` is what the header says, such as "Track B (embedded)"."""

    title: str

    def unavailable(self) -> str | None:
        """Why this track cannot take a new run now, with the remedy; None where it can."""
        ...

    def tokenizer(self) -> Tokenizer:
        """The base model's own."""
        ...

    def estimate(self, dataset: Dataset, tokens: TokenStats) -> Estimate:
        """Epochs, steps, price and time of a run on this track."""
        ...

    def steps(self) -> Sequence[Step]:
        """The steps from a checked data set to a `Model`, which the last one gives."""
        ...

    def base(self) -> Model:
        """The bare base model, to be asked beside a first version."""
        ...

    def serve(self, models: Sequence[Model]) -> AbstractContextManager[Answerer]:
        """Load models for asking; ServingError where one of them cannot be called any more."""
        ...

    def month_usd(
        self,
        model: Model,
        prompts: Sequence[tuple[Message, ...]],
        tokens_per_answer: float,
        answers: int,
    ) -> float | None:
        """Price of so many answers to such prompts; 0 on own hardware, None where it is not known."""
        ...

    def ended(self, run: Run) -> str | None:
        """Why an unfinished run can never go on, so that only another attempt can; None where it can."""
        ...

    def pending(self, run: Run) -> str | None:
        """What of a run that did not finish may still go on elsewhere and cost; None where nothing does."""
        ...

    def cancel(self, run: Run) -> str | None:
        """Stop what of a run goes on elsewhere, and say what that means; None where nothing does."""
        ...

    def follow(self, active: RegistryEntry | None) -> str | None:
        """Let names that others ask by mean what is in service; what that changed, None for nothing."""
        ...

    def forget(self, run_ids: Sequence[str], model_ids: Sequence[str]) -> tuple[str, ...]:
        """Delete what a client's runs and models left elsewhere; the models that were there."""
        ...


class Judge(Protocol):
    """A model that reads answers; `identity` is its name and digest, where there is one."""

    identity: str

    def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> str | None:
        """The one of `choices` that it says, drawn at temperature 0; None where it says none of them.

        ProviderError or ServingError where it cannot be asked.
        """
        ...


OpenJudge = Callable[[], AbstractContextManager[Judge]]
