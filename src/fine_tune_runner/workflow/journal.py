"""The engine of files: one file a step under `runs/{run_id}/steps/`, its name last.

A step's file appears by rename, so its existence means that the step is done; it carries the hash of the
file before it. A run is held by a flock, which dies with the process. Nothing here knows what the steps do.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fine_tune_runner.errors import Interrupted, RunError, RunnerError
from fine_tune_runner.files import fsync_dir, lock_owner, locked, write_atomic
from fine_tune_runner.types import Clock, Run
from fine_tune_runner.workflow.engine import Event, Plan, RunState

T = TypeVar("T")
GENESIS = "0" * 64
ENDS = {"run finished": "finished", "run failed": "failed", "run cancelled": "cancelled"}


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A step's file; `previous` is the sha256 of the step file before (64 zeros for the first)."""

    name: str
    gives: str
    started_at: str
    ended_at: str
    previous: str
    value: msgspec.Raw


class Journal:
    """Runs of all clients below `data_dir`; `listener` hears every event as it is written.

    `crash_point` is called between the effects of the journal itself; tests end the process there.
    """

    def __init__(
        self,
        data_dir: Path,
        plan: Plan,
        clock: Clock,
        *,
        listener: Callable[[Event], None] = lambda _event: None,
        crash_point: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self._data_dir = data_dir
        self._plan = plan
        self._clock = clock
        self._listener = listener
        self._crash_point = crash_point

    def run(self, run: Run) -> None:
        """Run every step that is not on record yet, in order."""
        folder = self._folder(run.client_id, run.run_id)
        (folder / "steps").mkdir(parents=True, exist_ok=True)
        with self._held(folder, run.run_id):
            (folder / "cancel").unlink(missing_ok=True)
            if not (folder / "run.json").exists():
                write_atomic(folder / "run.json", _pretty(run))
            context = JournalContext(run, self._data_dir / run.client_id, folder, self._clock, self._listener)
            with _outcome(context):
                self._steps(context)

    def find(self, run_id: str) -> RunState:
        """The state of one run; RunError where there is none of that name."""
        found = [folder for folder in self._folders(None) if folder.name == run_id]
        if not found:
            raise RunError(f"run {run_id!r} is unknown; `fine-tune status` lists clients and their runs")
        return self._state(found[0])

    def runs(self, client_id: str | None = None) -> Sequence[RunState]:
        """All runs, or those of one client, oldest first."""
        states = [self._state(folder) for folder in self._folders(client_id)]
        return sorted(states, key=lambda state: (state.run.created_at, state.run.run_id))

    def value(self, run_id: str, kind: type[T]) -> T | None:
        """What the last step of that type gave, None where none is on record."""
        folder = self._folder(self.find(run_id).run.client_id, run_id)
        records = [record for record, _ in _records(folder) if record.gives == kind.__name__]
        return msgspec.json.decode(records[-1].value, type=kind) if records else None

    def events(self, run_id: str) -> Sequence[Event]:
        """Everything that happened in a run, oldest first."""
        return _events(self._folder(self.find(run_id).run.client_id, run_id) / "events.jsonl")

    def cancel(self, run_id: str) -> None:
        """Ask a live run to stop; one that nobody holds is closed at once."""
        state = self.find(run_id)
        if state.state == "finished":
            raise RunError(f"run {run_id} is finished; there is nothing to cancel")
        folder = self._folder(state.run.client_id, run_id)
        write_atomic(folder / "cancel", b"")
        if state.pid is None:
            JournalContext(state.run, folder.parent.parent, folder, self._clock, self._listener).emit(
                "run cancelled"
            )

    def resume(self, run_id: str) -> None:
        """Go on where the run stopped; a finished one is left alone."""
        state = self.find(run_id)
        if state.state != "finished":
            self.run(state.run)

    def _steps(self, context: JournalContext) -> None:
        records = {record.name: (record, digest) for record, digest in _records(context.run_dir)}
        previous = GENESIS
        for number, step in enumerate(self._plan(context.run), 1):
            if step.name in records:
                record, digest = records[step.name]
                if record.previous != previous:
                    raise RunError(
                        f"{context.run_dir}: step {step.name} does not follow from the one before; "
                        "its files were changed. Start a new attempt with --again"
                    )
                context.remember(step.name, msgspec.json.decode(record.value, type=step.gives))
                previous = digest
                continue
            context.check_cancelled()
            context.emit("step started", step=step.name)
            started = self._clock()
            value = step.do(context)
            self._crash_point(f"after {step.name}")
            data = _pretty(
                StepRecord(
                    name=step.name,
                    gives=step.gives.__name__,
                    started_at=started.isoformat(),
                    ended_at=self._clock().isoformat(),
                    previous=previous,
                    value=msgspec.Raw(msgspec.json.encode(value)),
                )
            )
            write_atomic(context.run_dir / "steps" / f"{number:02}-{step.name}.json", data)
            previous = hashlib.sha256(data).hexdigest()
            self._crash_point(f"recorded {step.name}")
            context.remember(step.name, value)

    @contextlib.contextmanager
    def _held(self, folder: Path, run_id: str) -> Iterator[None]:
        try:
            with locked(folder / "lock"):
                yield
        except BlockingIOError as error:
            raise RunError(
                f"run {run_id} is alive in process {error}; wait, or stop it: fine-tune cancel {run_id}"
            ) from None

    def _folder(self, client_id: str, run_id: str) -> Path:
        return self._data_dir / client_id / "runs" / run_id

    def _folders(self, client_id: str | None) -> list[Path]:
        return [path.parent for path in self._data_dir.glob(f"{client_id or '*'}/runs/*/run.json")]

    def _state(self, folder: Path) -> RunState:
        try:
            run = msgspec.json.decode((folder / "run.json").read_bytes(), type=Run)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{folder / 'run.json'}: {error}; restore it, or move this folder away") from None
        pid = lock_owner(folder / "lock")
        events = _events(folder / "events.jsonl")
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


class JournalContext:
    """What a step sees of its run; values are found by their type."""

    def __init__(
        self, run: Run, client_dir: Path, run_dir: Path, clock: Clock, listener: Callable[[Event], None]
    ) -> None:
        self.run = run
        self.client_dir = client_dir
        self.run_dir = run_dir
        self.attempt_dir = run_dir / f"attempt-{run.attempt}"
        self._clock = clock
        self._listener = listener
        self._values: dict[str, Any] = {}

    def value(self, kind: type[T]) -> T:
        """The newest value of that type; KeyError where no earlier step gave one."""
        for value in reversed(self._values.values()):
            if isinstance(value, kind):
                return value
        raise KeyError(kind.__name__)

    def remember(self, name: str, value: object) -> None:
        """Make a step's value visible to the steps after it."""
        self._values[name] = value

    def emit(self, event: str, **data: object) -> None:
        """Append to `events.jsonl` and tell the listener."""
        entry = Event(at=self._clock(), event=event, run_id=self.run.run_id, data=data)
        with (self.run_dir / "events.jsonl").open("ab") as file:
            # One write a line, begun on a line of its own: a crash may have torn the one before.
            torn = file.tell() > 0 and not _ends_in_newline(self.run_dir / "events.jsonl")
            file.write((b"\n" if torn else b"") + msgspec.json.encode(entry) + b"\n")
        self._listener(entry)

    def cancelled(self) -> bool:
        """Whether `cancel` was asked for."""
        return (self.run_dir / "cancel").exists()

    def check_cancelled(self) -> None:
        """Raise Interrupted where `cancel` was asked for."""
        if self.cancelled():
            raise Interrupted(f"run {self.run.run_id} was cancelled")


@contextlib.contextmanager
def _outcome(context: JournalContext) -> Iterator[None]:
    """Put on record how a run ended; Ctrl-C leaves it to be resumed."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted) as error:
        context.emit("run cancelled" if context.cancelled() else "run interrupted")
        what = str(error) or "stopped; what was done is kept"
        raise Interrupted(f"{what}; go on with: fine-tune resume {context.run.run_id}") from None
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
    context.emit("run finished")
    fsync_dir(context.run_dir)


def _records(folder: Path) -> list[tuple[StepRecord, str]]:
    """The step files in order, each with the sha256 of its bytes."""
    found = []
    for path in sorted((folder / "steps").glob("[0-9]*.json")):
        data = path.read_bytes()
        try:
            found.append((msgspec.json.decode(data, type=StepRecord), hashlib.sha256(data).hexdigest()))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path}: {error}; start a new attempt with --again") from None
    return found


def _events(path: Path) -> list[Event]:
    """The whole lines of an events file that another process may be writing."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # torn by a crash
            found.append(msgspec.json.decode(line, type=Event))
    return found


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _pretty(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
