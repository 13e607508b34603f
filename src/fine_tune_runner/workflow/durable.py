"""The engine of the product: runs that survive their process, on SQLite beside the data or on PostgreSQL.

Serves the port of engine.py. Reading goes to the record alone; dbos is imported by what runs something. On
SQLite exactly one process per data folder has the engine; others leave their runs to it and look on.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.files import locked
from fine_tune_runner.types import PLACES, Clock, Place, Run
from fine_tune_runner.workflow.awaited import Awaited
from fine_tune_runner.workflow.engine import PATIENCE, Again, Event, Patience, Plan, RunState, Waiting
from fine_tune_runner.workflow.record import Record

if TYPE_CHECKING:
    from fine_tune_runner.workflow.database import Database
    from fine_tune_runner.workflow.executor import Executor

T = TypeVar("T")
LOOK_S = 0.1
FOREGROUND, BACKGROUND = 1, 10  # priorities: somebody waits for it, nobody does


class Durable:
    """Runs of all clients below `data_dir`; `listener` hears the events of runs that are waited for.

    `observe` hears only what this process does while it waits, for another one reports what it does itself.
    """

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
        observe: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self.folder = data_dir / ".fine-tune"
        self.record = Record(data_dir, clock)
        self.plan = plan
        self.url = url
        self.notice = notice
        self._listener = listener
        self._labels = labels
        self._patience = patience
        self._observe = observe
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
        """`run_all` for one; raises what stopped it."""
        if error := self.run_all([run]).get(run.run_id):
            raise error

    def run_all(self, runs: Sequence[Run], again: Again = lambda _stopped: ()) -> Mapping[str, RunnerError]:
        """Run what is left of runs and wait for them, in this process or in the one that has the engine."""
        with self.database() as database:
            enqueue = functools.partial(self._enqueue, database, priority=FOREGROUND)
            awaited = Awaited(self.record, database, enqueue, self._listener, again, self._observe)
            for run in runs:
                awaited.begin(run)
            self._wait(database, awaited)
        return awaited.stopped

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

    def stranded(self) -> Sequence[Waiting]:
        """Training that waits for a host where no worker is now; on SQLite all of it is this machine's."""
        if self.url is None:
            return ()
        with self.database() as database:
            return database.stranded()

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

    def _wait(self, database: Database, awaited: Awaited) -> None:
        """Until every run has ended, and the listener heard it; this process has the engine if it can."""
        told = False
        while awaited.left:
            try:
                with self.engine(database, listener=self._observe) as executor:
                    if database.embedded:  # whoever had the engine before is dead
                        database.recover(dead=lambda _id: True, wanted=awaited.has)
                    self._here(database, executor, awaited)
                    return
            except BlockingIOError as error:
                if not told:
                    self.notice(f"process {error} has the engine of this folder; the run goes on there")
                    told = True
            awaited.look()
            time.sleep(LOOK_S)

    def _here(self, database: Database, executor: Executor, awaited: Awaited) -> None:
        try:
            while awaited.left:
                time.sleep(LOOK_S)
                with self._patient(database):
                    executor.sweep()
                    awaited.look()
        except KeyboardInterrupt:
            try:
                with contextlib.suppress(OSError):  # Ctrl-C also ends who reads our output
                    self.notice("stopping where it can go on; Ctrl-C again ends at once")
                executor.stop()
            except KeyboardInterrupt:
                executor.stop(wait_s=0.0)
            awaited.interrupt()
        for bug in (executor.bugs[run_id] for run_id in awaited.stopped if run_id in executor.bugs):
            raise bug

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
