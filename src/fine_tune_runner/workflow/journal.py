"""The engine for tests: every step of a run in this very call, with nothing but the record.

It serves the port of engine.py without a database, queues or other processes; the product runs durable.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.types import Clock, Run
from fine_tune_runner.workflow.engine import Again, Event, Plan, RunState, Waiting
from fine_tune_runner.workflow.record import Record, finish, outcome, perform

T = TypeVar("T")


class Journal:
    """Runs of all clients below `data_dir`; `listener` hears every event as it is written.

    `crash_point` is called between the effects of the record itself; tests end the process there.
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
        self._record = Record(data_dir, clock)
        self._plan = plan
        self._listener = listener
        self._crash_point = crash_point

    def run(self, run: Run) -> None:
        """Run every step that is not on record yet, in order."""
        self._record.made(run)
        with self._record.held(run):
            self._record.begin(run)
            context = self._record.open(run, listener=self._listener)
            with outcome(context):
                for step in self._plan(run):
                    perform(context, step, self._crash_point)
            finish(context)

    def run_all(self, runs: Sequence[Run], again: Again = lambda _stopped: ()) -> Mapping[str, RunnerError]:
        """One after the other; what stopped each that did not come to its end, by run id."""
        stopped: dict[str, RunnerError] = {}
        while runs:
            for run in runs:
                stopped.pop(run.run_id, None)
                try:
                    self.run(run)
                except RunnerError as error:
                    stopped[run.run_id] = error
            runs = again(stopped)
        return stopped

    def enqueue(self, run: Run) -> None:
        """There is nobody to leave it to."""
        raise RunError("this engine runs in the foreground only")

    def work(self, stopped: Callable[[], bool], **_words: Any) -> None:
        """There is nothing that could be queued."""
        raise RunError("this engine runs in the foreground only")

    def find(self, run_id: str) -> RunState:
        """The state of one run; RunError where there is none of that name."""
        return self._record.find(run_id)

    def runs(self, client_id: str | None = None) -> Sequence[RunState]:
        """All runs, or those of one client, oldest first."""
        return self._record.runs(client_id)

    def value(self, run_id: str, kind: type[T]) -> T | None:
        """What the last step of that type gave, None where none is on record."""
        return self._record.value(run_id, kind)

    def events(self, run_id: str) -> Sequence[Event]:
        """Everything that happened in a run, oldest first."""
        return self._record.events(run_id)

    def approve(self, run: Run) -> None:
        """Say yes to what a run costs."""
        self._record.approve(run)

    def cancel(self, run_id: str) -> None:
        """Ask a live run to stop; one that nobody holds is closed at once."""
        state = self.find(run_id)
        if state.state == "finished":
            raise RunError(f"run {run_id} is finished; there is nothing to cancel")
        self._record.ask_to_stop(state.run)
        if state.pid is None:
            self._record.open(state.run, listener=self._listener).emit("run cancelled")

    def live(self) -> Sequence[Waiting]:
        """There is no database."""
        return ()

    def stranded(self) -> Sequence[Waiting]:
        """There are no hosts."""
        return ()

    def drop(self, run_id: str) -> None:
        """There is nothing to take it out of."""

    def resume(self, run_id: str) -> None:
        """Go on where the run stopped; a finished one is left alone."""
        state = self.find(run_id)
        if state.state != "finished":
            self.run(state.run)
