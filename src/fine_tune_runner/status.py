"""What a person sees of all clients: registry entries, and what waits or runs beside them.

Reads files only; starts no engine and loads no model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.errors import RunnerError
from fine_tune_runner.hosted.leftovers import left_model, left_run
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, client_ids, load_client
from fine_tune_runner.types import Track
from fine_tune_runner.workflow.engine import RunState

STOPPED = ("interrupted", "failed")  # states of a run that goes on only when told to


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the status table; `note` stands where a version has no model yet.

    `run_id` and `error` are those of a run that is at work or stopped; `warning` is for a person to act on.
    """

    client: str
    version: int | None = None
    track: Track | None = None
    eval_score: float | None = None
    model_id: str | None = None
    status: str
    active: bool = False
    note: str = "–"
    run_id: str | None = None
    error: str | None = None
    warning: str | None = None


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
    registered = max((entry.version for entry in entries), default=0)
    runs = list(_unsettled(runner.engine.runs(client.id), registered))
    for state in runs:
        run = state.run
        stopped = state.state in STOPPED
        yield Row(
            client=client.id,
            version=run.version,
            track=run.track,
            status="training" if state.state == "running" else state.state,
            note=f"fine-tune resume {run.run_id}" if stopped else run.run_id,
            run_id=run.run_id,
            error=state.error,
            warning=left_run(client, state),
        )
    newest = max(read.versions(client.dir), default=0)
    if newest == 0:
        yield Row(client=client.id, status="queued", note="awaiting a first version")
    elif newest > max([registered, *(state.run.version for state in runs)]):
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
            warning=left_model(client, entry),
        )


def _unsettled(states: Sequence[RunState], registered: int) -> Iterator[RunState]:
    """The newest attempt at each version and track, newest version first, where it did not come to its end.

    A failed one shows until a version as new is registered; one that is interrupted may still cost elsewhere.
    """
    newest = {(state.run.version, state.run.track): state for state in states}
    for (version, _track), state in sorted(newest.items(), key=lambda item: item[0], reverse=True):
        if state.state not in ("finished", "cancelled") and (
            state.state != "failed" or version >= registered
        ):
            yield state
