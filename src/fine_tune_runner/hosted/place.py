"""Where one client's hosted versions are trained and where they answer; opens no socket."""

from __future__ import annotations

from typing import Literal

import msgspec

from fine_tune_runner.addresses import plain_to_public
from fine_tune_runner.hosted.providers import Provider, is_own_host, provider_named
from fine_tune_runner.settings import ClientConfig, Settings

# What a connection is for. "ids" carries nothing but ids (lists, looks, cancels, deletes), so that a client
# that became sensitive can still be cleaned up after; "train" and "answer" carry the client's text.
Errand = Literal["train", "answer", "ids"]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A provider at its addresses; "" is one that is not known."""

    provider: Provider
    url: str
    answers_url: str

    def at(self, errand: Errand) -> str:
        """The address for an errand."""
        return self.answers_url if errand == "answer" else self.url

    def refusal(self, errand: Errand) -> str | None:
        """Why nothing may be sent there, with the remedy; None where it may."""
        url, title = self.at(errand), self.provider.title
        if not self.url:
            return f"the address of {title} is not known; set OPENAI_BASE_URL"
        if not url:
            return (
                f"{title} answers at another address than it trains at, and for {self.url} that one is not "
                'known; set "inference_url" in config.json'
            )
        return insecure(url)


def place_of(settings: Settings, config: ClientConfig) -> Place:
    """The provider that config.json names; ConfigError where there is none of that name.

    OPENAI_BASE_URL changes where it trains. Where it answers is `inference_url` of config.json, else the
    provider's own address for that, which goes with its own address for training only, else the same address.
    """
    provider = provider_named(config.provider)
    url = settings.openai_base_url or provider.base_url or ""
    answers_url = url
    if provider.inference_url is not None:
        answers_url = provider.inference_url if is_own_host(provider, url) else ""
    return Place(provider=provider, url=url, answers_url=(config.inference_url or answers_url).rstrip("/"))


def insecure(url: str) -> str | None:
    """Why nothing may be sent to a URL in the clear; None where it may."""
    if not plain_to_public(url):
        return None
    return f"{url} is plain http to a public host: key and data could be read on the way; use https"
