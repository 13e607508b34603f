"""What is on record of runs: plain files under `runs/{run_id}/`, written by steps, read by everybody.

`run.json`, one file a step under `steps/`, `events.jsonl`, and the marks `cancel` and `approved`. Whoever
drives the steps (durable.py, journal.py) goes by this record; it knows no engine and no database.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DatabaseAway, Interrupted, NeedsApproval, RunError, RunnerError
from fine_tune_runner.files import fsync_dir, lock_owner, locked, write_atomic
from fine_tune_runner.types import Clock, Run, Step
from fine_tune_runner.workflow.engine import Event, RunState

T = TypeVar("T")
GENESIS = "0" * 64
STOPPED = "stopped.txt"  # why a run stopped; not in the engine's database, for it may quote a client's text
FORGETTING = "erasure.json"  # in a client's folder while it is being forgotten (erasure.py)
END_BYTES = 8192  # of an events file: several of its lines
NAME = re.compile(r"[a-z0-9-]+")
OWNED = re.compile(r"(.+)-v[0-9]+-[ab]-[0-9a-f]{8}-[0-9]+")  # what names its client
# The last event of a run that nobody holds → its state; any other one means `interrupted`.
ENDS = {
    "run finished": "finished",
    "run failed": "failed",
    "run cancelled": "cancelled",
    "run queued": "queued",
    "approval needed": "waiting",
}


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A step's file; `previous` is the sha256 of the step file before (64 zeros for the first)."""

    name: str
    gives: str
    started_at: str
    ended_at: str
    previous: str
    value: msgspec.Raw


class Record:
    """The runs of all clients below `data_dir`."""

    def __init__(self, data_dir: Path, clock: Clock) -> None:
        self._data_dir = data_dir
        self._clock = clock
        self._unwritten: dict[str, str] = {}  # why runs stopped whose folders take no more files

    def find(self, run_id: str) -> RunState:
        """The state of one run; RunError where there is none of that name."""
        owner = OWNED.fullmatch(run_id)
        where = f"{owner[1] if owner else '*'}/runs/{run_id}/run.json"
        if not NAME.fullmatch(run_id) or not (found := list(self._data_dir.glob(where))):
            raise RunError(f"run {run_id!r} is unknown; `fine-tune status` lists clients and their runs")
        return _state(found[0].parent)

    def runs(self, client_id: str | None = None) -> Sequence[RunState]:
        """All runs, or those of one client, oldest first."""
        states = [_state(folder) for folder in self._folders(client_id)]
        return sorted(states, key=lambda state: (state.run.created_at, state.run.run_id))

    def value(self, run_id: str, kind: type[T]) -> T | None:
        """What the last step of that type gave, None where none is on record."""
        records = _records(self.folder(self.find(run_id).run))
        found = [record for record, _ in records if record.gives == kind.__name__]
        return msgspec.json.decode(found[-1].value, type=threadsafe(kind)) if found else None

    def events(self, run_id: str) -> Sequence[Event]:
        """Everything that happened in a run, oldest first."""
        return Tail(self.folder(self.find(run_id).run) / "events.jsonl").read()

    def folder(self, run: Run) -> Path:
        """Where a run's files are."""
        return self._data_dir / run.client_id / "runs" / run.run_id

    def made(self, run: Run) -> Path:
        """`folder`, made where it is missing; RunError where that of its client is gone.

        That one is never made here: a client that was forgotten since the run was planned would be back.
        """
        folder = self.folder(run)
        try:
            for path in (folder.parent, folder, folder / "steps"):
                path.mkdir(exist_ok=True)
        except FileNotFoundError:
            raise RunError(
                f"{folder.parent.parent} is gone: client {run.client_id} was forgotten, or its folder moved "
                f"away, since {run.run_id} was planned. Nothing was begun; put it back and submit again"
            ) from None
        return folder

    def load(self, client_id: str, run_id: str) -> Run:
        """A run as it was submitted."""
        return _run(self._data_dir / client_id / "runs" / run_id)

    def begin(self, run: Run) -> None:
        """Put a run on record, with the words of the newest command; an earlier `cancel` is forgotten.

        RunError where its client is being forgotten: seen last, when who forgets can see the run.
        """
        folder = self.made(run)
        (folder / "cancel").unlink(missing_ok=True)
        (folder / STOPPED).unlink(missing_ok=True)
        self._unwritten.pop(run.run_id, None)
        path = folder / "run.json"
        if not path.exists() or path.read_bytes() != _pretty(run):
            write_atomic(path, _pretty(run))
        self._check_kept(run)

    def approve(self, run: Run) -> None:
        """A person's yes to what a run costs, also before it begins; it stays on record."""
        write_atomic(self.made(run) / "approved", b"")

    def ask_to_stop(self, run: Run) -> None:
        """Let the steps of a live run hear that it shall end."""
        write_atomic(self.folder(run) / "cancel", b"")

    def say_why(self, run: Run, message: str) -> None:
        """Keep why a run stopped in its own folder, until it is begun again."""
        try:
            write_atomic(self.folder(run) / STOPPED, message.encode(errors="replace"))
        except OSError:
            self._unwritten[run.run_id] = message

    def why(self, run: Run) -> str:
        """Why a run stopped."""
        path = self.folder(run) / STOPPED
        try:
            return self._unwritten.get(run.run_id) or path.read_text()
        except OSError as error:
            return (
                f"run {run.run_id} stopped, and {path} does not say why ({error.strerror}); make sure that "
                f"its disk has room and may be written to, then: fine-tune resume {run.run_id}"
            )

    @contextlib.contextmanager
    def held(self, run: Run) -> Iterator[None]:
        """Hold a run, so that it is `running` in this process.

        RunError where another one holds it, or where its client is being forgotten.
        """
        try:
            with locked(self.folder(run) / "lock"):
                self._check_kept(run)
                yield
        except BlockingIOError as error:
            raise alive(run.run_id, str(error)) from None

    def open(
        self,
        run: Run,
        *,
        listener: Callable[[Event], None] = lambda _event: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> StepContext:
        """A run with the values of its steps so far; RunError where their files do not follow each other."""
        return StepContext(
            run, self._data_dir / run.client_id, self.folder(run), self._clock, listener, stopping
        )

    def _check_kept(self, run: Run) -> None:
        note = self._data_dir / run.client_id / FORGETTING
        if note.exists():
            raise RunError(
                f"client {run.client_id} is being forgotten, so nothing begins; where that was cut off, "
                f"fine-tune forget --client {run.client_id} goes on with it; to keep the client delete {note}"
            )

    def _folders(self, client_id: str | None) -> list[Path]:
        return [path.parent for path in self._data_dir.glob(f"{client_id or '*'}/runs/*/run.json")]


class StepContext:
    """What a step sees of its run; values are found by their type.

    `stopping` tells that the process shall end: steps then stop as for a cancel, and go on another time.
    """

    def __init__(
        self,
        run: Run,
        client_dir: Path,
        run_dir: Path,
        clock: Clock,
        listener: Callable[[Event], None],
        stopping: Callable[[], bool],
    ) -> None:
        self.run = run
        self.client_dir = client_dir
        self.run_dir = run_dir
        self.attempt_dir = run_dir / f"attempt-{run.attempt}"
        self.clock = clock
        self._listener = listener
        self._stopping = stopping
        # How runs that wait for the same step are found; set by an engine that has queues.
        self.company: Callable[[], AbstractContextManager[Sequence[StepContext]]] = lambda: nullcontext(())
        self._records = _chain(run_dir)
        self._values: dict[str, Any] = {}

    def value(self, kind: type[T]) -> T:
        """The newest value of that type; KeyError where no earlier step gave one."""
        for value in reversed(self._values.values()):
            if isinstance(value, kind):
                return value
        for record, _ in reversed(self._records):
            if record.gives == kind.__name__:
                return msgspec.json.decode(record.value, type=threadsafe(kind))
        raise KeyError(kind.__name__)

    def done(self) -> dict[str, str]:
        """The steps on record in the order they were done: name → sha256 of the file."""
        return {record.name: digest for record, digest in self._records}

    def write(self, step: Step, value: object, started_at: str) -> str:
        """Put a step's value on record; the sha256 of its file."""
        previous = self._records[-1][1] if self._records else GENESIS
        record = StepRecord(
            name=step.name,
            gives=step.gives.__name__,
            started_at=started_at,
            ended_at=self.clock().isoformat(),
            previous=previous,
            value=msgspec.Raw(msgspec.json.encode(value)),
        )
        data = _pretty(record)
        write_atomic(self.run_dir / "steps" / f"{len(self._records) + 1:02}-{step.name}.json", data)
        digest = hashlib.sha256(data).hexdigest()
        self._records.append((record, digest))
        self._values[step.name] = value
        return digest

    def emit(self, event: str, **data: object) -> None:
        """Append to `events.jsonl` and tell the listener; never earlier than the event before it."""
        with (self.run_dir / "events.jsonl").open("a+b") as file:
            torn, before = _end(file)
            now = self.clock()
            entry = Event(at=max(now, before or now), event=event, run_id=self.run.run_id, data=data)
            # One write a line, begun on a line of its own: a crash may have torn the one before.
            file.write((b"\n" if torn else b"") + msgspec.json.encode(entry) + b"\n")
        self._listener(entry)

    def approved(self) -> bool:
        """Whether somebody said yes to what this run costs."""
        return (self.run_dir / "approved").exists()

    def asked_to_stop(self) -> bool:
        """Whether `cancel` was asked for."""
        return (self.run_dir / "cancel").exists()

    def cancelled(self) -> bool:
        """Whether the step shall stop now: by `cancel`, or because its process ends."""
        return self._stopping() or self.asked_to_stop()

    def check_cancelled(self) -> None:
        """Raise Interrupted where `cancelled()`."""
        if self.cancelled():
            raise Interrupted(f"run {self.run.run_id} was {'stopped' if self._stopping() else 'cancelled'}")

    def others(self) -> AbstractContextManager[Sequence[StepContext]]:
        """Other runs that wait here for this very step, kept from doing it while the block lasts."""
        return self.company()


class Tail:
    """Reads the whole lines of an events file that another process may be writing, each once."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def read(self) -> list[Event]:
        """The events since the last look; torn lines are left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # torn by a crash
                found.append(msgspec.json.decode(line, type=threadsafe(Event)))
        return found


def perform(
    context: StepContext, step: Step, crash_point: Callable[[str], None] = lambda _point: None
) -> str:
    """Do a step, or nothing where it is on record; the sha256 of its file."""
    if (digest := context.done().get(step.name)) is not None:
        return digest
    context.check_cancelled()
    context.emit("step started", step=step.name)
    started = context.clock()
    value = step.do(context)
    crash_point(f"after {step.name}")
    digest = context.write(step, value, started.isoformat())
    crash_point(f"recorded {step.name}")
    seconds = (context.clock() - started).total_seconds()
    context.emit("step done", step=step.name, seconds=seconds)
    return digest


@contextlib.contextmanager
def outcome(context: StepContext) -> Iterator[None]:
    """Put on record why a run stops; a stopping process leaves no word, for its runs go on elsewhere."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        if context.asked_to_stop():
            context.emit("run cancelled")
        elif not context.cancelled():
            context.emit("run interrupted")
        raise interrupted(context.run.run_id, str(error)) from None
    except NeedsApproval:
        context.emit("approval needed")
        raise
    except DatabaseAway:
        raise  # no end of the run: it goes on when the database is back
    except RunnerError as error:
        with contextlib.suppress(OSError):
            context.emit("run failed", code=error.code, message=str(error))
        raise
    except BrokenPipeError:
        raise  # the reader of our output left; the run goes on when it is asked to
    except OSError as error:
        place = error.filename or context.run_dir
        raise RunError(
            f"{place}: {error.strerror or error}; mend that, then: fine-tune resume {context.run.run_id}"
        ) from error


def finish(context: StepContext) -> None:
    """The last word of a run whose steps are all on record."""
    context.emit("run finished")
    fsync_dir(context.run_dir)


def alive(run_id: str, owner: str | int) -> RunError:
    """What a second command for a live run is told."""
    return RunError(f"run {run_id} is alive in process {owner}; wait, or stop it: fine-tune cancel {run_id}")


def interrupted(run_id: str, what: str = "") -> Interrupted:
    """What somebody is told whose run stopped before its end."""
    return Interrupted(f"{what or 'stopped; what was done is kept'}; go on with: fine-tune resume {run_id}")


def _run(folder: Path) -> Run:
    try:
        return msgspec.json.decode((folder / "run.json").read_bytes(), type=threadsafe(Run))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{folder / 'run.json'}: {error}; restore it, or move this folder away") from None


def _state(folder: Path) -> RunState:
    run = _run(folder)
    pid = lock_owner(folder / "lock")
    events = Tail(folder / "events.jsonl").read()
    last = events[-1] if events else None
    ended = ENDS.get(last.event) if last else None
    return RunState(
        run=run,
        state="running" if pid is not None else (ended or "interrupted"),  # type: ignore[arg-type]
        done=tuple(record.name for record, _ in _records(folder)),
        pid=pid,
        updated_at=last.at if last else None,
        error=last.data.get("message") if last and ended == "failed" else None,
    )


def _records(folder: Path) -> list[tuple[StepRecord, str]]:
    """The step files in order, each with the sha256 of its bytes."""
    found = []
    for path in sorted((folder / "steps").glob("[0-9]*.json")):
        data = path.read_bytes()
        try:
            record = msgspec.json.decode(data, type=threadsafe(StepRecord))
            found.append((record, hashlib.sha256(data).hexdigest()))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}; start a new attempt with --again") from None
    return found


def _chain(folder: Path) -> list[tuple[StepRecord, str]]:
    """The step files in order; RunError where one does not name the hash of the one before it."""
    records = _records(folder)
    previous = GENESIS
    for record, digest in records:
        if record.previous != previous:
            raise RunError(
                f"{folder}: step {record.name} does not follow from the one before; "
                "its files were changed. Start a new attempt with --again"
            )
        previous = digest
    return records


def _end(file: BinaryIO) -> tuple[bool, datetime | None]:
    """Whether the last line of an events file is torn, and when the last whole event near it was."""
    file.seek(max(0, file.seek(0, 2) - END_BYTES))
    data = file.read()
    for line in reversed(data.splitlines()):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            return not data.endswith(b"\n"), msgspec.json.decode(line, type=threadsafe(Event)).at
    return bool(data) and not data.endswith(b"\n"), None


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
