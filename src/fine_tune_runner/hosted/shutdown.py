"""When a hosted model dies: published dates, the provider's own `shutdown_date`, days left.

Published dates hold at the provider's own hosts only. The clock is handed in; nothing here opens a socket.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

import msgspec

from fine_tune_runner.errors import PolicyError
from fine_tune_runner.hosted.providers import PROVIDERS, Provider, is_own_host

WARN_DAYS = 90


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """From which day on a model no longer answers, and who says so; None means that no end is known."""

    shutdown_date: date | None = None
    days_left: int | None = None
    source: Literal["provider", "published", "unknown"] = "unknown"


def day(text: str | None) -> date | None:
    """A `shutdown_date` as a date; None where it is absent or no date."""
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        return None


def base_of(model_id: str) -> str:
    """The base of `ft:<base>:<org>:<suffix>:<id>`; any other id is its own base."""
    parts = model_id.split(":")
    return parts[1] if parts[0] == "ft" and len(parts) > 1 else model_id


def life(provider: Provider, url: str, model: str, today: date, served: date | None = None) -> Life:
    """The earlier of the date the provider served for the model or its base, and the published one."""
    known: list[tuple[date, Literal["provider", "published"]]] = []
    if served is not None:
        known.append((served, "provider"))
    published = provider.ends.get(base_of(model)) if is_own_host(provider, url) else None
    if published is not None:
        known.append((published, "published"))
    if not known:
        return Life()
    end, source = min(known)
    return Life(shutdown_date=end, days_left=(end - today).days, source=source)


def check_alive(model: str, life: Life) -> str | None:
    """A warning where the model has fewer than 90 days to live; PolicyError where it is dead."""
    if life.days_left is None or life.shutdown_date is None or life.days_left >= WARN_DAYS:
        return None
    if life.days_left <= 0:
        raise PolicyError(
            f"{model} stopped answering on {life.shutdown_date}; name another base_model in config.json, "
            "or use --track b"
        )
    return (
        f"{model} and everything trained on it stops answering on {life.shutdown_date} "
        f"({life.days_left} days left); fine-tune migrate moves a client to Track B"
    )


def closed(provider: Provider, url: str, today: date) -> str | None:
    """Why the provider takes no new jobs today, with the remedy; None where it does."""
    if provider.closes is None or today < provider.closes or not is_own_host(provider, url):
        return None
    return f"{provider.title} takes no new fine-tuning jobs since {provider.closes}; {elsewhere(provider)}"


def elsewhere(provider: Provider) -> str:
    """Where else a version can be trained."""
    others = ", ".join(name for name in PROVIDERS if name not in (provider.name, "custom"))
    return f'use --track b, or another "provider" in config.json ({others})'
