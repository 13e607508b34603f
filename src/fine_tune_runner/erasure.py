"""Forgetting a client: its models at a provider and its folder go, one line stays: when, and by whom.

The folder is renamed out of the data folder first, which is the moment from which the client is forgotten;
what a crash leaves after that is finished by `sweep`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec

from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.files import fsync_dir, lock_owner, locked, write_atomic
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, Settings, load_client
from fine_tune_runner.workflow.engine import RUN_ID
from fine_tune_runner.workflow.record import FORGETTING

NOTE = FORGETTING  # in the client's folder: the line to be left behind; while it is there no run begins
SET_ASIDE = "erasing-"
LOCK_WAIT_S = 600.0


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What forgetting a client erases, or has erased."""

    client_id: str
    folder: str
    files: int
    bytes: int
    models: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()  # models that were deleted at a provider


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `forgotten.jsonl`, all that stays."""

    client_id: str
    at: datetime
    who: str
    files: int


def forgetting(runner: FineTuneRunner, client_id: str) -> Erasure:
    """What `forget` would erase; RunError while a run of this client is alive."""
    client = load_client(runner.settings, client_id)
    if client.dir.is_symlink():
        target = client.dir.resolve()
        raise RunError(f"{client.dir} is a link to {target}; put the folder itself in its place, then forget")
    states = runner.engine.runs(client_id)
    # Also one that was cancelled while another client's step trains it, until that step lets go of it.
    steps = {state.run.run_id: client.dir / "runs" / state.run.run_id / "step.lock" for state in states}
    if alive := [s for s in states if s.state == "running" or lock_owner(steps[s.run.run_id]) is not None]:
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


def forget(
    runner: FineTuneRunner,
    client_id: str,
    *,
    here_only: bool = False,
    crash_point: Callable[[str], None] = lambda _point: None,
) -> Erasure:
    """Erase a client at its providers, then here; what stays is one line in `.fine-tune/forgotten.jsonl`.

    Where a provider cannot be reached nothing is erased, unless `here_only` leaves it alone. `crash_point` is
    called between two effects; tests end there.
    """
    data_dir = runner.settings.data_dir
    sweep(runner.settings)
    plan = forgetting(runner, client_id)
    client = load_client(runner.settings, client_id)
    crash_point("looked")
    shared = data_dir / ".fine-tune"
    shared.mkdir(mode=0o700, exist_ok=True)
    line = Forgotten(client_id=client_id, at=runner.clock(), who=runner.who, files=plan.files)
    write_atomic(client.dir / NOTE, msgspec.json.encode(line))
    try:
        forgetting(runner, client_id)  # again: a run that began before the note is alive now
        elsewhere = () if here_only else _forget_elsewhere(runner, client)
    except BaseException:
        (client.dir / NOTE).unlink(missing_ok=True)  # the client is kept
        raise
    crash_point("noted")
    client.dir.rename(shared / f"{SET_ASIDE}{client_id}")
    fsync_dir(data_dir)
    crash_point("set aside")
    sweep(runner.settings, wait_s=LOCK_WAIT_S, crash_point=crash_point)
    return msgspec.structs.replace(plan, elsewhere=elsewhere)


def sweep(
    settings: Settings, *, wait_s: float = 0.0, crash_point: Callable[[str], None] = lambda _point: None
) -> tuple[str, ...]:
    """Finish every erasure that was begun, and name its clients; none while another process does it.

    RunError where the ledger or the engine's database cannot be written; the next sweep goes on.
    """
    shared = settings.data_dir / ".fine-tune"
    if not any(shared.glob(f"{SET_ASIDE}*")):
        return ()
    try:
        with locked(shared / "erasing.lock", wait_s=wait_s):
            folders = sorted(shared.glob(f"{SET_ASIDE}*"))
            for folder in folders:
                _finish(settings, folder, crash_point)
            return tuple(folder.name.removeprefix(SET_ASIDE) for folder in folders)
    except BlockingIOError:
        return ()


def _finish(settings: Settings, folder: Path, crash_point: Callable[[str], None]) -> None:
    """Line, ledger, engine, folder, in this order: the note goes last, so that what was done is known."""
    from fine_tune_runner.workflow.ledger import Ledger  # SQLite, only where there is something to finish

    client_id, note = folder.name.removeprefix(SET_ASIDE), folder / NOTE
    if note.is_file():
        record, line = folder.parent / "forgotten.jsonl", note.read_bytes() + b"\n"
        before = record.read_bytes() if record.is_file() else b""
        if line not in before.splitlines(keepends=True):
            write_atomic(record, before + line)
    crash_point("recorded")

    def mine(run_id: str) -> bool:
        name = RUN_ID.fullmatch(run_id)
        return name is not None and name[1] == client_id

    Ledger(settings.data_dir, url=settings.database).erase(mine)
    crash_point("off the ledger")
    _off_the_engine(settings, client_id, mine)
    shutil.rmtree(folder)


def _off_the_engine(settings: Settings, client_id: str, mine: Callable[[str], bool]) -> None:
    """Its database holds ids and outcomes of runs; nothing is made where there is none."""
    url = settings.database
    if url is None and not (settings.data_dir / ".fine-tune" / "engine.sqlite").is_file():
        return
    from fine_tune_runner.workflow.database import Database  # loads dbos

    database = Database(settings.data_dir / ".fine-tune", url)
    with contextlib.closing(database), database.one_line():
        database.prepare()
        database.erase(client_id, mine)


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
