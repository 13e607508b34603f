"""What a person sees of all clients: registry entries, and what waits or runs beside them.

Reads files only; starts no engine and loads no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.errors import RunnerError
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, client_ids, load_client
from fine_tune_runner.types import Track


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the status table; `note` stands where a version has no model yet."""

    client: str
    version: int | None = None
    track: Track | None = None
    eval_score: float | None = None
    model_id: str | None = None
    status: str
    active: bool = False
    note: str = "–"


def rows(runner: FineTuneRunner, client_id: str | None, notice: Callable[[str], None]) -> list[Row]:
    """The table, newest version first; a client that cannot be read is noticed and the others still show."""
    if client_id is not None:
        return list(_client_rows(runner, load_client(runner.settings, client_id)))
    found: list[Row] = []
    for name in client_ids(runner.settings):
        try:
            found += _client_rows(runner, load_client(runner.settings, name))
        except (RunnerError, OSError) as error:
            notice(str(error))
            found.append(Row(client=name, status="failed", note="cannot be read"))
    return found


def _client_rows(runner: FineTuneRunner, client: Client) -> Iterable[Row]:
    entries = runner.registry(client.id).entries()
    registered = {entry.version for entry in entries}
    running = {s.run.version: s for s in runner.engine.runs(client.id) if s.state == "running"}
    for version, state in running.items():
        if version not in registered:
            yield Row(
                client=client.id,
                version=version,
                track=state.run.track,
                status="training",
                note=state.run.run_id,
            )
    newest = max(read.versions(client.dir), default=0)
    if newest == 0:
        yield Row(client=client.id, status="queued", note="awaiting a first version")
    elif newest > max(registered, default=0) and newest not in running:
        count = read.count_rows(read.train_path(client.dir, newest))
        if count < read.GATE_ROWS:
            note = f"awaiting {read.GATE_ROWS} examples (has {count})"
            yield Row(client=client.id, status="queued", note=note)
        else:
            note = f"fine-tune submit --client {client.id} --version {newest}"
            yield Row(client=client.id, version=newest, status="ready", note=note)
    for entry in reversed(entries):
        yield Row(
            client=client.id,
            version=entry.version,
            track=entry.track,
            eval_score=entry.eval_score,
            model_id=entry.model_id,
            status=entry.status,
            active=entry.active,
        )
