"""Tokens, epochs and prices against counts made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from fine_tune_runner.dataset import read
from fine_tune_runner.hosted.cost import ChatTokens, auto_epochs, month_usd, optimizer_steps, training_usd
from fine_tune_runner.hosted.providers import PROVIDERS, Price
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import Message, TokenStats
from tests.contract.openai_server.server import KEY
from tests.hosted.world import BASE, make_settings, write_client


def test_tokens_of_a_row_as_the_cookbook_counts_them() -> None:
    row = (Message(role="user", content="hello world"), Message(role="assistant", content="hello"))
    # o200k: "hello" 1, " world" 1, each role 1; 3 a message, 3 a row.
    assert ChatTokens().count([row]) == [(3 + (3 + 1 + 2) + (3 + 1 + 1), 1)]


def test_weight_0_costs_and_teaches_nothing() -> None:
    muted = Message(role="assistant", content="hello", weight=0)
    row = (Message(role="user", content="hello"), muted, Message(role="user", content="hello"), muted)
    ((tokens, loss),) = ChatTokens().count([row])
    assert (tokens, loss) == (3 + 4 * 5, 0)


def test_special_tokens_in_text_are_counted_as_text() -> None:
    ((tokens, _),) = ChatTokens().count([(Message(role="user", content="<|endoftext|>"),)])
    assert tokens > 3 + 3 + 1 + 1


@pytest.mark.parametrize(
    ("examples", "epochs"),
    [(10, 10), (4, 25), (33, 3), (34, 3), (112, 3), (8333, 3), (8334, 2), (12_501, 1), (30_000, 1)],
)
def test_auto_epochs(examples: int, epochs: int) -> None:
    assert auto_epochs(examples) == epochs


def test_steps_of_small_sets_are_rows_times_epochs() -> None:
    assert optimizer_steps(112, 3, None) == 336
    assert optimizer_steps(112, 3, 8) == 42
    assert optimizer_steps(5000, 2, None) == 1000


def test_prices_are_per_million_tokens() -> None:
    price = PROVIDERS["openai"].prices[BASE]
    assert training_usd(price, 2_000_000) == 6.0
    # 1000 answers of 600 tokens in and 120 out: 0.6 M at 0.30, 0.12 M at 1.20.
    assert month_usd(price, 600, 120, 1000) == pytest.approx(0.18 + 0.144)
    assert month_usd(Price(25.0), 600, 120, 1000) is None


def hosted(tmp_path: Path, **config: object) -> tuple[Hosted, str]:
    write_client(tmp_path, **config)
    settings = make_settings(tmp_path, None, KEY)
    client = load_client(settings, "hre")
    return Hosted(settings, client), read.load(client, 3).sha256


STATS = TokenStats(tokenizer="o200k_base", total=100_000, loss=1, longest=1, longest_line=1, mean=1.0)


def test_an_estimate_of_a_known_price(tmp_path: Path) -> None:
    track, sha256 = hosted(tmp_path)
    dataset = read.load(load_client(make_settings(tmp_path, None, KEY), "hre"), 3)
    estimate = track.estimate(dataset, STATS)
    assert (estimate.epochs, estimate.steps, estimate.cost_usd) == (3, 180, pytest.approx(0.9))
    assert estimate.price_source == "OpenAI's price of 2026-11-22"
    assert estimate.dataset_sha256 == sha256


def test_an_unknown_price_is_not_guessed(tmp_path: Path) -> None:
    track, _ = hosted(tmp_path, provider="nebius", base_model="llama", training={"epochs": 2})
    dataset = read.load(load_client(make_settings(tmp_path, None, KEY), "hre"), 3)
    estimate = track.estimate(dataset, STATS)
    assert estimate.cost_usd is None
    assert estimate.price_source == "no price of llama at Nebius is on record"


def test_the_tokenizer_of_another_family_is_called_an_approximation(tmp_path: Path) -> None:
    track, _ = hosted(tmp_path, provider="nebius", base_model="llama")
    assert track.tokenizer().name == "o200k_base (approximation)"
    assert track.tokenizer().context == 65_536
