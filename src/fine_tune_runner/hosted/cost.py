"""What hosted training and answering cost: tokens, epochs, price. Opens no socket and reads no file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from fine_tune_runner.hosted.providers import Price
from fine_tune_runner.types import Message

if TYPE_CHECKING:
    from bpe_openai import Encoding  # type: ignore[import-untyped,unused-ignore]

LIMIT = 65_536  # tokens an example; longer ones are cut at the end, which is the answer
# OpenAI cookbook, "Data preparation and analysis for chat model fine-tuning": num_tokens_from_messages.
PER_MESSAGE = 3
PER_ROW = 3
MILLION = 1_000_000


class ChatTokens:
    """Tokens of chat rows under o200k_base, the encoding of the gpt-4o and gpt-4.1 families.

    `exact` False marks a base model of another family: the count is then an approximation, and named so.
    """

    context = LIMIT

    def __init__(self, *, exact: bool = True) -> None:
        self.name = "o200k_base" if exact else "o200k_base (approximation)"

    def count(self, rows: Sequence[tuple[Message, ...]]) -> list[tuple[int, int]]:
        """(tokens, tokens with loss) of each row; loss falls on assistant content whose weight is not 0."""
        lengths: dict[str, int] = {}
        encoding = _encoding()

        def length(text: str) -> int:
            if text not in lengths:
                lengths[text] = len(encoding.encode_ordinary(text))
            return lengths[text]

        return [
            (
                PER_ROW + sum(PER_MESSAGE + length(m.role) + length(m.content) for m in row),
                sum(length(m.content) for m in row if m.role == "assistant" and m.weight != 0),
            )
            for row in rows
        ]


@cache
def _encoding() -> Encoding:
    # It carries its vocabulary (tiktoken downloads one), and opens it by a deprecated call on Python 3.11.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from bpe_openai import get_encoding

        return get_encoding("o200k_base")


def auto_epochs(examples: int) -> int:
    """OpenAI's "auto" (facts/openai.md, "Data rules")."""
    if examples * 3 < 100:
        return min(25, 100 // examples)
    if examples * 3 > 25_000:
        return max(1, 25_000 // examples)
    return 3


def optimizer_steps(examples: int, epochs: int, batch_size: int | None) -> int:
    """Steps of a job; an unset batch size is guessed as 0.2 % of the examples, as "auto" was described."""
    return epochs * math.ceil(examples / (batch_size or max(1, examples // 500)))


def training_usd(price: Price, tokens: int) -> float:
    """Price of training on that many tokens, all epochs counted."""
    return price.training * tokens / MILLION


def month_usd(price: Price, input_tokens: float, output_tokens: float, answers: int) -> float | None:
    """Price of a month of answers by the mean tokens of one; None where the provider's price is not known."""
    if price.input is None or price.output is None:
        return None
    return answers * (price.input * input_tokens + price.output * output_tokens) / MILLION
