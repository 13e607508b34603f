"""The engine of the product: runs that survive their process, on SQLite beside the data or on PostgreSQL.

Serves the port of engine.py. Reading goes to the record alone; dbos is imported by what runs something. On
SQLite exactly one process per data folder has the engine; others leave their runs to it and look on.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.files import lock_owner, locked
from fine_tune_runner.types import PLACES, Clock, Place, Run
from fine_tune_runner.workflow.engine import PATIENCE, Event, Patience, Plan, RunState, Waiting
from fine_tune_runner.workflow.record import Record, Tail, alive, interrupted

if TYPE_CHECKING:
    from fine_tune_runner.workflow.database import Database
    from fine_tune_runner.workflow.executor import Executor

T = TypeVar("T")
LOOK_S = 0.1
FOREGROUND, BACKGROUND = 1, 10  # priorities: somebody waits for it, nobody does


class Durable:
    """Runs of all clients below `data_dir`; `listener` hears the events of runs that are waited for."""

    def __init__(
        self,
        data_dir: Path,
        plan: Plan,
        clock: Clock,
        *,
        url: str | None = None,
        listener: Callable[[Event], None] = lambda _event: None,
        notice: Callable[[str], None] = lambda _text: None,
        labels: Sequence[str] = ("private",),
        patience: Patience = PATIENCE,
    ) -> None:
        self.folder = data_dir / ".fine-tune"
        self.record = Record(data_dir, clock)
        self.plan = plan
        self.url = url
        self.notice = notice
        self._listener = listener
        self._labels = labels
        self._patience = patience
        self._away = False

    def find(self, run_id: str) -> RunState:
        """The state of one run; RunError where there is none of that name."""
        return self.record.find(run_id)

    def runs(self, client_id: str | None = None) -> Sequence[RunState]:
        """All runs, or those of one client, oldest first."""
        return self.record.runs(client_id)

    def value(self, run_id: str, kind: type[T]) -> T | None:
        """What the last step of that type gave, None where none is on record."""
        return self.record.value(run_id, kind)

    def events(self, run_id: str) -> Sequence[Event]:
        """Everything that happened in a run, oldest first."""
        return self.record.events(run_id)

    def approve(self, run: Run) -> None:
        """Say yes to what a run costs."""
        self.record.approve(run)

    def enqueue(self, run: Run) -> None:
        """Leave a run to the workers and return at once; one that is queued or alive is left alone."""
        with self.database() as database:
            self._enqueue(database, run, BACKGROUND)

    def run(self, run: Run) -> None:
        """Run what is left of a run and wait for it, in this process or in the one that has the engine."""
        if (pid := lock_owner(self.record.folder(run) / "lock")) is not None:
            raise alive(run.run_id, pid)
        tail = Tail(self.record.folder(run) / "events.jsonl", from_end=True)
        with self.database() as database:
            workflow_id = self._enqueue(database, run, FOREGROUND)
            ended = self._wait(database, run, workflow_id, tail)
        if ended["state"] == "cancelled":
            raise interrupted(run.run_id, f"run {run.run_id} was cancelled")
        if ended["state"] != "finished":
            kinds = {kind.code: kind for kind in RunnerError.__subclasses__()}
            raise kinds.get(ended["code"], RunError)(ended["message"])

    def resume(self, run_id: str) -> None:
        """Go on where the run stopped; a finished one is left alone."""
        state = self.find(run_id)
        if state.state != "finished":
            self.run(state.run)

    def cancel(self, run_id: str) -> None:
        """Ask a live run to stop; one that nobody holds is closed at once, also on its queue."""
        state = self.find(run_id)
        if state.state == "finished":
            raise RunError(f"run {run_id} is finished; there is nothing to cancel")
        self.record.ask_to_stop(state.run)
        if self._has_database():
            with self.database() as database:
                database.cancel(run_id, waiting_only=state.pid is not None)
        if state.pid is None:
            self.record.open(state.run).emit("run cancelled")

    def live(self) -> Sequence[Waiting]:
        """The workflows that wait or are under way; none where nothing was ever run."""
        if not self._has_database():
            return ()
        with self.database() as database:
            return database.live()

    def drop(self, run_id: str) -> None:
        """Take a run's workflows out of the database, also where its folder is gone."""
        if self._has_database():
            with self.database() as database:
                database.cancel(run_id, waiting_only=False)

    def work(
        self,
        stopped: Callable[[], bool],
        *,
        places: Sequence[Place] | None = None,
        labels: Sequence[str] | None = None,
        listener: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        """Do the queued runs of these places until `stopped`; what is under way then goes on another time.

        RunError where another process has the engine of this folder already.
        """
        while True:
            with self.database() as database:
                try:
                    with self.engine(database, places, labels, listener) as executor:
                        if database.embedded:  # whoever had the engine before is dead
                            database.recover(dead=lambda _id: True, wanted=executor.wanted)
                        while not executor.lost.is_set():
                            if stopped():
                                return
                            with self._patient(database):
                                executor.sweep()
                            time.sleep(LOOK_S)
                except BlockingIOError as error:
                    raise RunError(
                        f"process {error} has the engine of {self.folder.parent} already; one is enough"
                    ) from None

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """The engine's database, made where it is missing; RunError where it cannot be reached."""
        from fine_tune_runner.workflow.database import Database

        database = Database(self.folder, self.url)
        database.prepare()
        try:
            with database.one_line():
                yield database
        finally:
            database.close()

    @contextlib.contextmanager
    def engine(
        self,
        database: Database,
        places: Sequence[Place] | None = None,
        labels: Sequence[str] | None = None,
        listener: Callable[[Event], None] = lambda _event: None,
    ) -> Iterator[Executor]:
        """Be the process that does runs; BlockingIOError, its text the pid, where another one is (SQLite)."""
        from fine_tune_runner.workflow.executor import Executor

        with locked(self.folder / "engine.lock") if database.embedded else contextlib.nullcontext():
            executor = Executor(
                self.record,
                self.plan,
                database,
                places=PLACES if places is None else places,
                labels=self._labels if labels is None else labels,
                notice=self.notice,
                listener=listener,
                patience=self._patience,
            )
            executor.start()
            try:
                yield executor
            finally:
                executor.stop()

    def _has_database(self) -> bool:
        return self.url is not None or (self.folder / "engine.sqlite").exists()

    def _enqueue(self, database: Database, run: Run, priority: int) -> str:
        self.record.begin(run)
        label = self.plan(run)[0].label
        if label is not None and label not in self._labels:
            self.notice(f"{run.run_id} waits for a worker that is trusted: fine-tune worker --label {label}")
        goes = len(database.goes(run.run_id))
        workflow_id = database.enqueue_run(run.client_id, run.run_id, label, priority)
        if len(database.goes(run.run_id)) > goes and self.find(run.run_id).pid is None:
            self.record.open(run).emit("run queued")
        return workflow_id

    def _wait(self, database: Database, run: Run, workflow_id: str, tail: Tail) -> dict[str, Any]:
        """How a run ended; until then the listener hears it, and this process has the engine if it can."""
        told = False
        while True:
            try:
                with self.engine(database) as executor:
                    if database.embedded:  # whoever had the engine before is dead
                        database.recover(dead=lambda _id: True, wanted=lambda name: name == run.run_id)
                    return self._here(database, executor, run, workflow_id, tail)
            except BlockingIOError as error:
                if not told:
                    self.notice(f"process {error} has the engine of this folder; the run goes on there")
                    told = True
            self._hear(tail)
            if (ended := database.outcome(workflow_id)) is not None:
                self._hear(tail)
                return ended
            time.sleep(LOOK_S)

    def _here(
        self, database: Database, executor: Executor, run: Run, workflow_id: str, tail: Tail
    ) -> dict[str, Any]:
        try:
            ended = None
            while ended is None:
                self._hear(tail)
                time.sleep(LOOK_S)
                with self._patient(database):
                    executor.sweep()
                    ended = database.outcome(workflow_id)
        except KeyboardInterrupt:
            executor.stop()
            self._hear(tail)
            self.record.open(run).emit("run interrupted")
            raise interrupted(run.run_id) from None
        self._hear(tail)
        if bug := executor.bugs.get(run.run_id):
            raise bug
        return ended

    @contextlib.contextmanager
    def _patient(self, database: Database) -> Iterator[None]:
        """Wait for a database that is away; it is said once."""
        try:
            with database.one_line():
                yield
            self._away = False
        except RunError as error:
            if not self._away:
                self.notice(str(error))
            self._away = True
            time.sleep(1.0)

    def _hear(self, tail: Tail) -> None:
        for event in tail.read():
            self._listener(event)
