"""What `fine-tune doctor` sees over all clients: models in service and their ends, and what nobody watches.

Reads registries, runs and, where a key is there, what the providers list; it changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import msgspec

from fine_tune_runner.errors import RunnerError
from fine_tune_runner.hosted.doctor import Unwatched, in_doubt, in_service, unwatched
from fine_tune_runner.hosted.records import RemoteModel
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, Settings, client_ids, load_client
from fine_tune_runner.types import RegistryEntry, State, Track
from fine_tune_runner.workflow.ledger import Effect, Ledger


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A model in service and when it stops answering; None means that no end is known."""

    client_id: str
    version: int
    track: Track
    model_id: str | None
    shutdown_date: date | None = None
    days_left: int | None = None
    source: Literal["provider", "published", "unknown"] = "unknown"

    def within(self, days: int) -> bool:
        """Whether it stops in fewer than so many days, or has stopped."""
        return self.days_left is not None and self.days_left < days


@dataclass(frozen=True)
class Stray:
    """Something at a provider that no run watches; not `ours`: no client here has it, so it is left alone."""

    found: Unwatched
    hosted: Hosted
    ours: bool


@dataclass(frozen=True)
class Checkup:
    """All that was seen, the soonest end first; `doubts` are calls that were cut off and never settled."""

    serving: Sequence[Serving]
    strays: Sequence[Stray]
    doubts: Sequence[Effect]


def examine(
    runner: FineTuneRunner,
    today: date,
    notice: Callable[[str], None],
    make: Callable[[Settings, Client], Hosted] = Hosted,
) -> Checkup:
    """Look at every client, and once at every provider that a client may use and the key opens.

    What cannot be read or reached is noticed and left out; published dates stand in for a provider's own.
    """
    clients = list(_clients(runner, notice))
    names = {client.id for client in clients}
    entries = {client.id: runner.registry(client.id).entries() for client in clients}
    active = {name: entry for name, of_client in entries.items() for entry in of_client if entry.active}
    registered = {entry.model_id for of_client in entries.values() for entry in of_client if entry.model_id}
    ledger = Ledger(runner.settings.data_dir)
    states = _states(runner, ledger)
    listed: dict[str, Sequence[RemoteModel]] = {}
    strays: list[Stray] = []
    for hosted in _places(runner.settings, clients, make):
        try:
            with hosted.connect() as wire:
                jobs, files = wire.jobs().items, wire.files().items
                listed[hosted.url] = wire.models()
        except RunnerError as error:
            notice(f"{hosted.provider.title} was not asked: {error}")
            continue
        found = unwatched(jobs, files, states, registered)
        strays += [Stray(one, hosted, one.client_id in names) for one in found]
    return Checkup(
        serving=_serving(active, today, listed),
        strays=strays,
        doubts=_doubts(ledger, states) if clients else [],
    )


def _clients(runner: FineTuneRunner, notice: Callable[[str], None]) -> Iterator[Client]:
    for name in client_ids(runner.settings):
        try:
            yield load_client(runner.settings, name)
        except RunnerError as error:
            notice(str(error))


def _states(runner: FineTuneRunner, ledger: Ledger) -> dict[str, State]:
    """The state of every run; one that was closed in the ledger waits for nothing any more."""
    states: dict[str, State] = {}
    for one in runner.engine.runs():
        closed = one.state == "interrupted" and ledger.closed(one.run.run_id) is not None
        states[one.run.run_id] = "failed" if closed else one.state
    return states


def _doubts(ledger: Ledger, states: dict[str, State]) -> list[Effect]:
    """Calls in doubt of runs that can go on; what a closed run may have left shows at the provider."""
    return [one for one in in_doubt(ledger.effects(), states) if ledger.closed(one.run_id) is None]


def _places(
    settings: Settings, clients: Sequence[Client], make: Callable[[Settings, Client], Hosted]
) -> list[Hosted]:
    """Each provider at each address once; none without a key, and none for a sensitive client."""
    if settings.openai_api_key is None:
        return []
    places = [make(settings, client) for client in clients if not client.config.is_sensitive]
    return list({(place.provider.name, place.url): place for place in places if place.url}.values())


def _serving(
    active: dict[str, RegistryEntry], today: date, listed: dict[str, Sequence[RemoteModel]]
) -> list[Serving]:
    lives = {one.client_id: one.life for one in in_service(active, today, listed)}
    found = [
        Serving(
            client_id=name,
            version=entry.version,
            track=entry.track,
            model_id=entry.model_id,
            **(msgspec.structs.asdict(lives[name]) if name in lives else {}),
        )
        for name, entry in active.items()
    ]
    return sorted(found, key=lambda one: one.shutdown_date or date.max)
