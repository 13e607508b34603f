"""What `fine-tune doctor` sees over all clients: models in service and their ends, and what nobody watches.

Reads registries, runs and, where a key is there, what the providers list; looking changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal

import msgspec

from fine_tune_runner.errors import RunnerError
from fine_tune_runner.hosted.doctor import Unwatched, exposed, in_doubt, in_service, unwatched
from fine_tune_runner.hosted.leftovers import left_model, left_run
from fine_tune_runner.hosted.records import RemoteModel
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.registry import edits
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, Settings, client_ids, load_client
from fine_tune_runner.types import RegistryEntry, State, Track, VersionKey
from fine_tune_runner.workflow.engine import RunState
from fine_tune_runner.workflow.ledger import Effect, Ledger

if TYPE_CHECKING:
    from fine_tune_runner.hosted.wire import Wire


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """A model in service and when it stops answering; None means that no end is known.

    `exposed`: its client is sensitive now, and it answers at a hosted provider all the same.
    """

    client_id: str
    version: int
    track: Track
    model_id: str | None
    shutdown_date: date | None = None
    days_left: int | None = None
    source: Literal["provider", "published", "unknown"] = "unknown"
    exposed: bool = False

    def within(self, days: int) -> bool:
        """Whether it stops in fewer than so many days, or has stopped."""
        return self.days_left is not None and self.days_left < days


@dataclass(frozen=True)
class Stray:
    """Something at a provider that no run watches; without a client of ours it is left alone.

    `entry` is the registry entry of a model that its client, sensitive by now, should have there no more.
    """

    found: Unwatched
    hosted: Hosted
    client_id: str | None
    entry: RegistryEntry | None = None

    @property
    def ours(self) -> bool:
        return self.client_id is not None


@dataclass(frozen=True)
class Checkup:
    """All that was seen, the soonest end first; `doubts` are calls that were cut off and never settled.

    `warnings` say what clients that are sensitive now still have at a hosted provider; `gone` are versions by
    client whose models a provider does not have.
    """

    serving: Sequence[Serving]
    strays: Sequence[Stray]
    doubts: Sequence[Effect]
    warnings: Sequence[str] = ()
    gone: Sequence[tuple[str, VersionKey]] = ()


@dataclass(frozen=True)
class _Known:
    """A client, its registry and its runs."""

    client: Client
    entries: Sequence[RegistryEntry]
    runs: Sequence[RunState]

    @property
    def sensitive(self) -> bool:
        return self.client.config.is_sensitive

    @property
    def was_hosted(self) -> bool:
        return any(e.track == "A" for e in self.entries) or any(one.run.track == "A" for one in self.runs)

    @property
    def left(self) -> list[RegistryEntry]:
        """Its hosted models that it should have no more, but for the one in service."""
        serving = {e.model_id for e in self.entries if e.active}
        return [e for e in self.entries if left_model(self.client, e) and e.model_id not in serving]


def examine(
    runner: FineTuneRunner,
    today: date,
    notice: Callable[[str], None],
    make: Callable[[Settings, Client], Hosted] = Hosted,
) -> Checkup:
    """Look at every client, and once at every provider that a client may use and the key opens.

    What cannot be read or reached is noticed and left out; published dates stand in for a provider's own.
    For a sensitive client, which may have been hosted before, nothing but ids is sent.
    """
    known = {one.client.id: one for one in _known(runner, notice)}
    ledger = Ledger(runner.settings.data_dir, url=runner.settings.database)
    states = _states(known.values(), ledger)
    registered = {e.model_id for one in known.values() for e in one.entries if e.model_id}
    listed: dict[str, Sequence[RemoteModel]] = {}
    strays: list[Stray] = []
    gone: list[tuple[str, VersionKey]] = []
    for hosted, users in _places(runner.settings, list(known.values()), make):
        try:
            with hosted.connect("ids") as wire:
                jobs, files = wire.jobs().items, wire.files().items
                models = wire.models()
                gone += _gone(wire, users, hosted, {model.id for model in models})
        except RunnerError as error:
            notice(f"{hosted.provider.title} was not asked: {error}")
            continue
        listed |= {hosted.place.url: models, hosted.place.answers_url: models}
        found = unwatched(jobs, files, states, registered)
        strays += [_stray(one, hosted, known.get(one.client_id or "")) for one in found]
        strays += [Stray(exposed(e), hosted, one.client.id, e) for one in users for e in one.left]
    offered = {stray.entry.model_id for stray in strays if stray.entry}
    return Checkup(
        serving=_serving(known, today, listed),
        strays=strays,
        doubts=_doubts(ledger, states) if known else [],
        warnings=[text for one in known.values() for text in _warnings(one, offered)],
        gone=gone,
    )


def delete(runner: FineTuneRunner, stray: Stray) -> None:
    """Delete a stray at its provider; a registry entry whose model goes says so, on record."""
    stray.hosted.discard(stray.found)
    entry = stray.entry
    if entry is not None and stray.client_id is not None:
        runner.registry(stray.client_id).change(
            "deleted at the provider",
            lambda entries: edits.without_model(entries, entry.key),
            who=runner.who,
            why="the client is sensitive",
            key=entry.key,
            run_id=entry.run_id,
        )


def _gone(
    wire: Wire, users: Sequence[_Known], hosted: Hosted, listed: set[str]
) -> Iterator[tuple[str, VersionKey]]:
    """Versions whose models are there no more; a list may leave out some, so each is asked for.

    Only OpenAI answers by a model's own id where it trains; elsewhere this connection cannot tell.
    """
    for one in users:
        for entry in one.entries:
            here = entry.provider == "openai" and entry.endpoint == hosted.place.url
            if (
                here
                and entry.model_id
                and entry.model_id not in listed
                and wire.model(entry.model_id) is None
            ):
                yield one.client.id, entry.key


def _known(runner: FineTuneRunner, notice: Callable[[str], None]) -> Iterator[_Known]:
    for name in client_ids(runner.settings):
        try:
            client = load_client(runner.settings, name)
            yield _Known(client, runner.registry(name).entries(), runner.engine.runs(name))
        except RunnerError as error:
            notice(str(error))


def _states(known: Iterable[_Known], ledger: Ledger) -> dict[str, State]:
    """The state of every run that may watch something; one that was closed in the ledger waits for nothing.

    No run of a sensitive client can go on on a hosted track, so what it left is watched by nobody.
    """
    states: dict[str, State] = {}
    for one in known:
        for state in one.runs:
            if one.sensitive and state.state != "running":
                continue
            stopped = state.state in ("interrupted", "failed")
            closed = stopped and ledger.closed(state.run.run_id) is not None
            states[state.run.run_id] = "cancelled" if closed else state.state
    return states


def _stray(found: Unwatched, hosted: Hosted, owner: _Known | None) -> Stray:
    if owner is not None and owner.sensitive:
        found = msgspec.structs.replace(found, adopt=None)
    return Stray(found, hosted, None if owner is None else owner.client.id)


def _warnings(known: _Known, offered: set[str | None]) -> Iterator[str]:
    for entry in known.entries:
        if entry.model_id not in offered and (text := left_model(known.client, entry)):
            yield text
    for state in known.runs:
        if text := left_run(known.client, state):
            yield text


def _doubts(ledger: Ledger, states: Mapping[str, State]) -> list[Effect]:
    """Calls in doubt of runs that can go on; what a closed run may have left shows at the provider."""
    return [one for one in in_doubt(ledger.effects(), states) if ledger.closed(one.run_id) is None]


def _places(
    settings: Settings, known: Sequence[_Known], make: Callable[[Settings, Client], Hosted]
) -> list[tuple[Hosted, list[_Known]]]:
    """Each provider at each address once, with the clients that use it; none without a key.

    A sensitive client counts only where it was hosted before.
    """
    if settings.openai_api_key is None:
        return []
    places: dict[tuple[str, str], tuple[Hosted, list[_Known]]] = {}
    for one in known:
        if one.sensitive and not one.was_hosted:
            continue
        hosted = make(settings, one.client)
        if hosted.place.url:
            places.setdefault((hosted.provider.name, hosted.place.url), (hosted, []))[1].append(one)
    return list(places.values())


def _serving(
    known: Mapping[str, _Known], today: date, listed: Mapping[str, Sequence[RemoteModel]]
) -> list[Serving]:
    active = {name: e for name, one in known.items() for e in one.entries if e.active}
    lives = {one.client_id: one.life for one in in_service(active, today, listed)}
    found = [
        Serving(
            client_id=name,
            version=entry.version,
            track=entry.track,
            model_id=entry.model_id,
            exposed=left_model(known[name].client, entry) is not None,
            **(msgspec.structs.asdict(lives[name]) if name in lives else {}),
        )
        for name, entry in active.items()
    ]
    return sorted(found, key=lambda one: one.shutdown_date or date.max)
