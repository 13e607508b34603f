"""Providers as data: request shapes against the wire description, suffixes, statuses, dates."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from fine_tune_runner.errors import ConfigError, PolicyError
from fine_tune_runner.hosted.providers import (
    PROVIDERS,
    base_model,
    is_own_host,
    job_body,
    job_suffix,
    phase,
    provider_named,
)
from fine_tune_runner.hosted.shutdown import Life, base_of, check_alive, closed, day, life
from fine_tune_runner.settings import Settings, TrainingConfig, load_client
from tests.contract.openai_server.description import description
from tests.contract.openai_server.server import KEY
from tests.hosted.world import BASE, Time, make_settings, write_client

OPENAI = PROVIDERS["openai"]
SET = TrainingConfig(epochs=4, batch_size=2, learning_rate=0.0002, seed=7)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("training", [TrainingConfig(), SET])
def test_every_provider_asks_for_a_job_by_the_description(name: str, training: TrainingConfig) -> None:
    body = job_body(PROVIDERS[name], "m", "file-1", "hre-v3", training, "run-1")
    assert description().request_faults("POST", "/fine_tuning/jobs", [], body) == []
    assert body["metadata"] == {"run_id": "run-1"}


def test_openai_takes_the_method_and_no_absolute_rate() -> None:
    body = job_body(OPENAI, "m", "file-1", "s", SET, "r")
    chosen = {"n_epochs": 4, "batch_size": 2}
    assert body["method"] == {"type": "supervised", "supervised": {"hyperparameters": chosen}}
    assert body["seed"] == 7


def test_nebius_takes_hyperparameters_at_the_top_and_the_rate_itself() -> None:
    body = job_body(PROVIDERS["nebius"], "m", "file-1", "s", SET, "r")
    assert body["hyperparameters"] == {"n_epochs": 4, "batch_size": 2, "learning_rate_multiplier": 0.0002}
    assert "method" not in body


def test_azure_names_its_training_type() -> None:
    assert job_body(PROVIDERS["azure"], "m", "f", None, SET, "r")["trainingType"] == "globalStandard"


def test_what_is_not_set_is_not_named() -> None:
    body = job_body(OPENAI, "m", "file-1", None, TrainingConfig(), "r")
    assert body["method"]["supervised"]["hyperparameters"] == {}
    assert "suffix" not in body


@pytest.mark.parametrize(
    ("provider", "client", "suffix"),
    [
        ("openai", "hre", "hre-v3"),
        ("openai", "a" * 61, "a" * 61 + "-v3"),
        ("nebius", "x" * 15, "x" * 15 + "-v3"),
    ],
)
def test_a_suffix_within_the_limit_is_whole(provider: str, client: str, suffix: str) -> None:
    assert job_suffix(PROVIDERS[provider], client, 3) == suffix


def test_a_long_suffix_is_cut_and_stays_distinct() -> None:
    one, other = (job_suffix(PROVIDERS["nebius"], f"agency-client-{name}", 3) for name in ("one", "two"))
    assert one is not None
    assert other is not None
    assert len(one) == len(other) == 18
    assert one[:11] == other[:11] == "agency-clie"
    assert one != other


def test_an_unknown_status_still_runs() -> None:
    assert [phase(OPENAI, word) for word in ("validating_files", "paused", "canceled", "warming")] == [
        "validating",
        "paused",
        "cancelled",
        "running",
    ]


def test_an_unknown_provider_is_named() -> None:
    with pytest.raises(ConfigError, match=r'"acme"; name one of openai, azure, nebius, crusoe, custom'):
        provider_named("acme")


def test_aliases_and_defaults_of_the_base_model() -> None:
    assert base_model(OPENAI, None) == base_model(OPENAI, "gpt-4o-mini") == BASE
    assert base_model(PROVIDERS["nebius"], None) is None
    assert base_model(PROVIDERS["nebius"], "meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"


def test_only_the_providers_own_hosts_are_its_own() -> None:
    azure = PROVIDERS["azure"]
    assert is_own_host(OPENAI, "https://api.openai.com/v1")
    assert is_own_host(azure, "https://res.services.ai.azure.com/api/projects/p/openai/v1/")
    assert not is_own_host(OPENAI, "https://api.openai.com.evil.example/v1")
    assert not is_own_host(OPENAI, "http://127.0.0.1:8000/v1")


def test_openai_closes_on_its_day_at_its_own_host_only() -> None:
    own = "https://api.openai.com/v1"
    assert closed(OPENAI, own, date(2027, 1, 5)) is None
    assert "2027-01-06" in (closed(OPENAI, own, date(2027, 1, 6)) or "")
    assert closed(OPENAI, "http://127.0.0.1/v1", date(2027, 1, 6)) is None


@pytest.mark.parametrize(
    ("served", "left", "source"),
    [(None, 53, "published"), (date(2026, 12, 2), 10, "provider"), (date(2028, 1, 1), 53, "published")],
)
def test_the_earlier_date_counts(served: date | None, left: int, source: str) -> None:
    known = life(OPENAI, "https://api.openai.com/v1", f"ft:{BASE}:o::x", date(2026, 11, 22), served)
    assert (known.days_left, known.source) == (left, source)


def test_ninety_days_warn_and_none_refuse() -> None:
    end = date(2027, 1, 14)
    assert check_alive("m", Life(shutdown_date=end, days_left=90)) is None
    assert check_alive("m", Life()) is None
    assert "89 days left" in (check_alive("m", Life(shutdown_date=end, days_left=89)) or "")
    with pytest.raises(PolicyError, match="2027-01-14"):
        check_alive("m", Life(shutdown_date=end, days_left=0))


def test_dates_and_ids_that_are_none() -> None:
    assert (day(None), day("soon"), day("2027-01-14")) == (None, None, date(2027, 1, 14))
    assert (base_of("ft:b:o:s:i"), base_of("gpt-4o")) == ("b", "gpt-4o")


def unavailable(
    data_dir: Path,
    *,
    url: str | None = None,
    key: str | None = KEY,
    day: date = date(2026, 11, 22),
    **config: str,
) -> str:
    from fine_tune_runner.hosted.track import Hosted

    write_client(data_dir, **config)
    settings: Settings = make_settings(data_dir, url, key)
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    return Hosted(settings, load_client(settings, "hre"), clock=Time(noon)).unavailable() or ""


def test_it_says_what_is_missing_and_what_to_do(tmp_path: Path) -> None:
    assert unavailable(tmp_path / "1") == ""
    assert "OPENAI_API_KEY is not set" in unavailable(tmp_path / "2", key=None)
    assert "set OPENAI_BASE_URL" in unavailable(tmp_path / "3", provider="azure")
    assert 'set "base_model"' in unavailable(tmp_path / "4", provider="nebius")
    assert "does not train smollm2" in unavailable(tmp_path / "5", base_model="smollm2")
    assert "2026-10-23" in unavailable(tmp_path / "6", base_model="gpt-4.1-nano")


def test_it_knows_the_closing_day_by_the_clock_it_is_given(tmp_path: Path) -> None:
    assert unavailable(tmp_path / "1", day=date(2027, 1, 5)) == ""
    refusal = unavailable(tmp_path / "2", day=date(2027, 1, 6))
    assert "no new fine-tuning jobs since 2027-01-06" in refusal
    assert "--track b" in refusal
    assert "nebius" in refusal
    assert unavailable(tmp_path / "3", day=date(2027, 1, 6), url="http://127.0.0.1:1/v1") == ""
