"""Track A as the runner sees it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from fine_tune_runner.errors import ProviderError
from fine_tune_runner.settings import Client, Settings
from fine_tune_runner.types import Answerer, Dataset, Estimate, Model, Step, Tokenizer, TokenStats

NOT_YET = "this version trains on Track B only; use --track b"


class Hosted:
    """Says that hosted training is not available, so that nobody is switched to another track silently."""

    title = "Track A (OpenAI)"

    def __init__(self, settings: Settings, client: Client) -> None:
        self._settings = settings
        self._client = client

    def unavailable(self) -> str | None:
        """Always the same reason."""
        return NOT_YET

    def tokenizer(self) -> Tokenizer:
        """None here: raises ProviderError."""
        raise ProviderError(NOT_YET)

    def estimate(self, dataset: Dataset, tokens: TokenStats) -> Estimate:
        """None here: raises ProviderError."""
        raise ProviderError(NOT_YET)

    def steps(self) -> Sequence[Step]:
        """None here: raises ProviderError."""
        raise ProviderError(NOT_YET)

    def base(self) -> Model:
        """None here: raises ProviderError."""
        raise ProviderError(NOT_YET)

    def serve(self, models: Sequence[Model]) -> AbstractContextManager[Answerer]:
        """None here: raises ProviderError."""
        raise ProviderError(NOT_YET)
