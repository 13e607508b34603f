"""Where record, registry and the engine's database disagree, and what mends each; looking changes nothing.

Model → registry → record of runs → workflows: what stands further left is right. What providers and ledger
have to say besides is doctor.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Literal

import msgspec

from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.registry import edits
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, Settings, client_ids, load_client
from fine_tune_runner.types import RegistryEntry, VersionKey
from fine_tune_runner.workflow.engine import RunState, Waiting

Kind = Literal["model gone", "not registered", "stale workflow", "not queued", "nobody trains"]
POLL_S = 1.0
LET_GO_S = 30.0  # within which a worker that lives lets go of a run that was cancelled


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """What disagrees, and what `mend` would do about it; `how` None: only a person can, by `remedy`."""

    kind: Kind
    client_id: str
    subject: str
    message: str
    remedy: str
    how: Literal["adopt", "clean up", "move"] | None = None
    run_id: str | None = None
    key: VersionKey | None = None


def disagreements(
    runner: FineTuneRunner,
    notice: Callable[[str], None],
    gone: Sequence[tuple[str, VersionKey]] = (),
) -> list[Disagreement]:
    """Look at every client and once at the engine's database; what cannot be read is noticed and left out.

    `gone` are the versions, by client, whose models a provider said it does not have. The Ollama host is
    asked here, once for sensitive clients and once for the others.
    """
    hosts = _Hosts(runner.settings, notice)
    found: list[Disagreement] = []
    states: dict[str, RunState] = {}
    unread: set[str] = set()
    for name in client_ids(runner.settings):
        try:
            client, entries = load_client(runner.settings, name), runner.registry(name).entries()
            runs = runner.engine.runs(name)
        except RunnerError:
            unread.add(name)  # said by `examine`
            continue
        states |= {one.run.run_id: one for one in runs}
        where = {key: "the provider has no such model" for whose, key in gone if whose == name}
        found += _models_gone(client, entries, where | hosts.missing(client, entries))
        found += [text for one in runs if (text := _unregistered(runner, client, entries, one))]
    try:
        live = runner.engine.live()
        found += _stale(runner, live, states, unread)
        found += _unqueued(runner, live, states)
        found += _stranded(runner, states)
    except RunnerError as error:
        notice(str(error))
    return found


def mend(runner: FineTuneRunner, found: Disagreement) -> None:
    """Do what `found.how` says; RunError where there is nothing that could be done by itself."""
    if found.how is None:
        raise RunError(f"{found.subject}: {found.remedy}")
    if found.kind == "stale workflow":
        runner.engine.drop(str(found.run_id))
    elif found.kind == "not queued":
        runner.leave(runner.engine.find(str(found.run_id)).run)
    elif found.kind == "nobody trains":
        _move(runner, str(found.run_id))
    elif found.kind == "model gone" and found.key is not None:
        edit = partial(edits.without_model, key=found.key)
        _change(runner, found, "model gone", edit)
    elif found.kind == "not registered":
        entry = runner.engine.value(str(found.run_id), RegistryEntry)
        # Never back into service by itself: what answers is decided by promote and rollback alone.
        status = "archived" if entry.status == "active" else entry.status
        entry = msgspec.structs.replace(entry, active=False, status=status)
        _change(runner, found, "register", partial(edits.registered, entry=entry))


def _move(runner: FineTuneRunner, run_id: str) -> None:
    """Take a run off the host that it waits for, and leave it to the workers; what it did is kept."""
    if all(run_id != waiting.run_id for waiting in runner.engine.stranded()):
        return  # a worker came to that host since
    runner.engine.cancel(run_id)
    deadline = time.monotonic() + LET_GO_S
    while any(one.run_id == run_id for one in runner.engine.live()):
        if time.monotonic() > deadline:
            raise RunError(
                f"run {run_id} was cancelled, but a worker still holds it; later: fine-tune resume {run_id}"
            )
        time.sleep(POLL_S)
    runner.leave(runner.engine.find(run_id).run)


def _change(
    runner: FineTuneRunner,
    found: Disagreement,
    action: str,
    edit: Callable[[edits.Entries], edits.Entries],
) -> None:
    runner.registry(found.client_id).change(
        action, edit, who=runner.who, why="fine-tune doctor", key=found.key, run_id=found.run_id
    )


def _models_gone(
    client: Client, entries: Sequence[RegistryEntry], gone: Mapping[VersionKey, str]
) -> Iterator[Disagreement]:
    """Registered models whose file is not there, or which are `gone` elsewhere, with the words for it."""
    for entry in entries:
        if entry.model_id is None or not (_without_file(client, entry) or entry.key in gone):
            continue
        where = gone.get(entry.key) or f"no file {client.dir / str(entry.artifact)}"
        again = f"train it again: fine-tune submit --client {client.id} --version {entry.version} --again"
        back = f"go back: fine-tune rollback --client {client.id} --version N, and publish a new version"
        what = "in service" if entry.active else "on record"
        yield Disagreement(
            kind="model gone",
            client_id=client.id,
            subject=f"{client.id} {edits.spell(entry.key)}",
            message=f"its model {entry.model_id} is {what}, but {where}",
            remedy=back if entry.active else f"take the model off the record, or {again}",
            how=None if entry.active else "clean up",
            run_id=entry.run_id,
            key=entry.key,
        )


class _Hosts:
    """What `OLLAMA_HOST` has, looked up when a first version is registered there."""

    def __init__(self, settings: Settings, notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._notice = notice
        self._has: dict[bool, frozenset[str] | None] = {}  # by whether a client is sensitive

    def missing(self, client: Client, entries: Sequence[RegistryEntry]) -> dict[VersionKey, str]:
        """The versions that are registered at this host and not there; none where it was not reached."""
        host = self._settings.ollama_host
        there = [e for e in entries if e.model_id and e.provider == "ollama" and e.endpoint == host]
        if host is None or not there:
            return {}
        from fine_tune_runner.private.ollama import full_name
        from fine_tune_runner.private.served import Served

        sensitive = client.config.is_sensitive
        if sensitive not in self._has:
            try:
                self._has[sensitive] = Served(self._settings, client).has()
            except RunnerError as error:
                self._notice(f"{host} was not asked for its models: {error}")
                self._has[sensitive] = None
        has = self._has[sensitive]
        if has is None:
            return {}
        return {e.key: f"missing at {host}" for e in there if full_name(str(e.model_id)) not in has}


def _without_file(client: Client, entry: RegistryEntry) -> bool:
    return entry.artifact is not None and not (client.dir / entry.artifact).exists()


def _unregistered(
    runner: FineTuneRunner, client: Client, entries: Sequence[RegistryEntry], state: RunState
) -> Disagreement | None:
    """A finished run whose model is there, but whose version stands in no registry."""
    key = VersionKey(version=state.run.version, track=state.run.track)
    if state.state != "finished" or edits.find(entries, key) is not None:
        return None
    entry = runner.engine.value(state.run.run_id, RegistryEntry)
    if entry is None or entry.model_id is None or _without_file(client, entry):
        return None  # a run of which only the record is left
    return Disagreement(
        kind="not registered",
        client_id=client.id,
        subject=state.run.run_id,
        message=f"it finished with {entry.model_id}, but the registry has no {edits.spell(key)}",
        remedy="put the version back on record, not in service",
        how="adopt",
        run_id=state.run.run_id,
        key=key,
    )


def _stale(
    runner: FineTuneRunner, live: Sequence[Waiting], states: Mapping[str, RunState], unread: set[str]
) -> Iterator[Disagreement]:
    """Workflows of runs that are gone or finished; on PostgreSQL only of clients of this data folder."""
    clients = set(client_ids(runner.settings))
    for run_id in dict.fromkeys(one.run_id for one in live):
        client_id, state = run_id.rsplit("-", 4)[0], states.get(run_id)
        shared = runner.settings.database_url is not None and client_id not in clients
        if shared or client_id in unread or (state and not _is_over(state)):
            continue
        if state is not None and run_id not in {one.run_id for one in runner.engine.live()}:
            continue  # it ended between the two looks
        yield Disagreement(
            kind="stale workflow",
            client_id=client_id,
            subject=run_id,
            message="the engine still has it, but "
            + ("it is finished" if state else "its folder is gone, so no worker can do it"),
            remedy="take it out of the engine's database",
            how="clean up",
            run_id=run_id,
        )


def _is_over(state: RunState) -> bool:
    return state.state == "finished" and state.pid is None


def _unqueued(
    runner: FineTuneRunner, live: Sequence[Waiting], states: Mapping[str, RunState]
) -> Iterator[Disagreement]:
    """Runs that wait for a worker, though the engine's database does not know them, so none ever comes."""
    known = {one.run_id for one in live}
    for run_id, state in states.items():
        # A workflow is there before its run is on record as queued; one that was begun since is no more.
        waits = state.state == "queued" and run_id not in known
        if waits and runner.engine.find(run_id).state == "queued":
            yield Disagreement(
                kind="not queued",
                client_id=state.run.client_id,
                subject=run_id,
                message="it waits for a worker, but the engine's database has no workflow of it",
                remedy="put it back on its queue",
                how="adopt",
                run_id=run_id,
            )


def _stranded(runner: FineTuneRunner, states: Mapping[str, RunState]) -> Iterator[Disagreement]:
    """Runs of this data folder whose training waits for a host that may never come back."""
    for one in runner.engine.stranded():
        if (state := states.get(one.run_id)) is None:
            continue
        queue, _, label = one.queue.partition(":")
        how = f"fine-tune worker --label {label}" if label else "fine-tune worker"
        yield Disagreement(
            kind="nobody trains",
            client_id=state.run.client_id,
            subject=one.run_id,
            message=f"its training waits for {queue.partition('@')[2]}, where no worker is now",
            remedy=f"let it train on another host, with what it did; or start one there: {how}",
            how="move",
            run_id=one.run_id,
        )
