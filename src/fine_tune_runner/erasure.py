"""Forgetting a client: its models at a provider and its folder go, one line stays: when, and by whom."""

from __future__ import annotations

import os
import shutil
from datetime import datetime
from pathlib import Path

import msgspec

from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, load_client


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What forgetting a client erases, or has erased."""

    client_id: str
    folder: str
    files: int
    bytes: int
    models: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()  # models that were deleted at a provider


def forgetting(runner: FineTuneRunner, client_id: str) -> Erasure:
    """What `forget` would erase; RunError while a run of this client is alive."""
    client = load_client(runner.settings, client_id)
    if alive := [state for state in runner.engine.runs(client_id) if state.state == "running"]:
        run_id = alive[0].run.run_id
        raise RunError(f"run {run_id} is alive; first: fine-tune cancel {run_id}")
    files = [path for path in client.dir.rglob("*") if path.is_file() and not path.is_symlink()]
    return Erasure(
        client_id=client.id,
        folder=str(client.dir),
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        models=tuple(entry.model_id for entry in runner.registry(client_id).entries() if entry.model_id),
    )


def forget(runner: FineTuneRunner, client_id: str, *, here_only: bool = False) -> Erasure:
    """Erase a client at its providers, then here; what stays is one line in `.fine-tune/forgotten.jsonl`.

    Where a provider cannot be reached nothing is erased, unless `here_only` leaves it alone.
    """
    plan = forgetting(runner, client_id)
    elsewhere = () if here_only else _forget_elsewhere(runner, load_client(runner.settings, client_id))
    _erase(plan, runner.settings.data_dir, runner.who, runner.clock())
    return msgspec.structs.replace(plan, elsewhere=elsewhere)


def _forget_elsewhere(runner: FineTuneRunner, client: Client) -> tuple[str, ...]:
    entries, states = runner.registry(client.id).entries(), runner.engine.runs(client.id)
    gone: tuple[str, ...] = ()
    for track in runner.tracks:
        runs = [state.run.run_id for state in states if state.run.track == track]
        models = [entry.model_id for entry in entries if entry.track == track and entry.model_id]
        if runs or models:
            try:
                gone += runner.port(client, track).forget(runs, models)
            except RunnerError as error:
                raise RunError(
                    f"nothing was erased here, for the other side was not reached: {error}; "
                    "to leave what is there: --here-only"
                ) from None
    return gone


def _erase(erasure: Erasure, data_dir: Path, who: str, at: datetime) -> None:
    """Put the erasure on record, then do it; a crash in between is finished by doing it again."""
    shared = data_dir / ".fine-tune"
    shared.mkdir(mode=0o700, exist_ok=True)
    line = {"client_id": erasure.client_id, "at": at, "who": who, "files": erasure.files}
    with (shared / "forgotten.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(erasure.folder)
