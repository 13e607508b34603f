"""Hosted providers as data: where they are, how their requests differ, what they cost and when they close.

A provider is one entry of `PROVIDERS`. Nothing here opens a socket. What the entries say was read from the
vendors' pages on the dates given and tried against no real account.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import date
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from fine_tune_runner.errors import ConfigError
from fine_tune_runner.settings import TrainingConfig

Phase = Literal["validating", "queued", "running", "paused", "succeeded", "failed", "cancelled"]

ENDS = ("succeeded", "failed", "cancelled")  # the phases in which nothing more happens or costs

# What the statuses of all providers mean; a word that is not here is taken for "running" and shown as it is.
STATUSES: Mapping[str, Phase] = {
    "validating_files": "validating",
    "queued": "queued",
    "pending": "queued",
    "running": "running",
    "paused": "paused",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
    "canceled": "cancelled",
}


class Price(msgspec.Struct, frozen=True):
    """USD per million tokens: training, and input and output of the fine-tuned model."""

    training: float
    input: float | None = None
    output: float | None = None


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint that speaks OpenAI's fine-tuning paths.

    `hosts` are the provider's own: published dates hold there only. `base_url` None must be configured.
    `inference_url` is where its models answer, where that is not `base_url`.
    `trains` are the models it takes, empty for any. `served_as` "deployment": a person deploys the finished
    model under the job's suffix before it answers. `suffix_limit` 0: it takes no suffix.
    """

    name: str
    title: str
    base_url: str | None = None
    inference_url: str | None = None
    hosts: tuple[str, ...] = ()
    request: Literal["method", "hyperparameters"] = "method"
    extra_body: dict[str, str] = {}
    aliases: dict[str, str] = {}
    trains: tuple[str, ...] = ()
    default_model: str | None = None
    suffix_limit: int = 64
    served_as: Literal["model id", "deployment"] = "model id"
    learning_rate: Literal["multiplier", "absolute"] = "multiplier"
    statuses: dict[str, Phase] = {}
    prices: dict[str, Price] = {}
    prices_read: date | None = None
    closes: date | None = None  # no new jobs from this day on
    ends: dict[str, date] = {}  # base model: no answers from this day on, its fine-tunes included


_MINI, _4O = "gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06"
_41, _41_MINI, _41_NANO = "gpt-4.1-2025-04-14", "gpt-4.1-mini-2025-04-14", "gpt-4.1-nano-2025-04-14"
_OPENAI_ALIASES = {
    "gpt-4o-mini": _MINI,
    "gpt-4o": _4O,
    "gpt-4.1": _41,
    "gpt-4.1-mini": _41_MINI,
    "gpt-4.1-nano": _41_NANO,
}
_LAST_DAY = date(2027, 1, 14)

PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider
    for provider in (
        Provider(
            name="openai",
            title="OpenAI",
            base_url="https://api.openai.com/v1",
            hosts=("api.openai.com",),
            aliases=_OPENAI_ALIASES,
            trains=(_MINI, _4O, _41, _41_MINI, _41_NANO),
            default_model=_MINI,
            prices={
                _MINI: Price(3.0, 0.30, 1.20),
                _41_MINI: Price(5.0, 0.80, 3.20),
                _4O: Price(25.0),
                _41: Price(25.0),
            },
            prices_read=date(2026, 11, 22),
            # developers.openai.com/api/docs/deprecations, read 2026-11-22
            closes=date(2027, 1, 6),
            ends=dict.fromkeys((_MINI, _4O, _41, _41_MINI), _LAST_DAY) | {_41_NANO: date(2026, 10, 23)},
        ),
        Provider(
            name="azure",
            title="Azure Foundry",
            hosts=("services.ai.azure.com",),
            extra_body={"trainingType": "globalStandard"},
            aliases=_OPENAI_ALIASES,
            default_model=_MINI,
            suffix_limit=18,
            served_as="deployment",
        ),
        Provider(
            name="nebius",
            title="Nebius",
            base_url="https://api.tokenfactory.nebius.com/v1",
            hosts=("api.tokenfactory.nebius.com",),
            request="hyperparameters",
            learning_rate="absolute",
            suffix_limit=18,
        ),
        Provider(
            name="crusoe",
            title="Crusoe",
            base_url="https://api.intelligence.crusoecloud.com/v1",
            # docs.crusoecloud.com/quickstart/getting-started-with-serverless-inference, read 2026-11-22
            inference_url="https://api.inference.crusoecloud.com/v1",
            hosts=("api.intelligence.crusoecloud.com", "api.inference.crusoecloud.com"),
            suffix_limit=18,
        ),
        Provider(name="custom", title="custom endpoint", aliases=_OPENAI_ALIASES, default_model=_MINI),
    )
}


def provider_named(name: str | None) -> Provider:
    """The entry of that name, OpenAI where none is named; ConfigError where there is none."""
    provider = PROVIDERS.get(name or "openai")
    if provider is None:
        raise ConfigError(f'config.json: provider is "{name}"; name one of {", ".join(PROVIDERS)}')
    return provider


def is_own_host(provider: Provider, url: str) -> bool:
    """Whether `url` is an address of the provider itself, so that its published dates hold."""
    host = urlsplit(url).hostname or ""
    return any(host == own or host.endswith(f".{own}") for own in provider.hosts)


def base_model(provider: Provider, configured: str | None) -> str | None:
    """The id by which the provider knows the base model; None where none is configured and none is usual."""
    name = configured or provider.default_model
    return None if name is None else provider.aliases.get(name, name)


def phase(provider: Provider, status: str) -> Phase:
    """What a status means; an unknown word means that the job still runs."""
    return provider.statuses.get(status) or STATUSES.get(status, "running")


def job_suffix(provider: Provider, client_id: str, version: int) -> str | None:
    """`{client_id}-v{N}`, cut with a 6-digit hash where it is over the limit; None where none is taken."""
    whole = f"{client_id}-v{version}"
    limit = provider.suffix_limit
    if limit == 0 or len(whole) <= limit:
        return whole if limit else None
    return f"{whole[: limit - 7]}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def job_body(
    provider: Provider, model: str, file_id: str, suffix: str | None, training: TrainingConfig, run_id: str
) -> dict[str, Any]:
    """The request that creates a job, in the provider's shape; only hyperparameters that are set are named.

    A learning rate is left out where the provider takes a multiplier of its own rate instead.
    """
    absolute = provider.learning_rate == "absolute"
    given = {
        "n_epochs": training.epochs,
        "batch_size": training.batch_size,
        "learning_rate_multiplier": training.learning_rate if absolute else None,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    body: dict[str, Any] = {"model": model, "training_file": file_id, "seed": training.seed}
    body["metadata"] = {"run_id": run_id}
    if suffix is not None:
        body["suffix"] = suffix
    if provider.request == "method":
        body["method"] = {"type": "supervised", "supervised": {"hyperparameters": chosen}}
    elif chosen:
        body["hyperparameters"] = chosen
    return body | provider.extra_body
