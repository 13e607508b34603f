"""Runs that somebody waits for: their events are heard as they come, and how each ended is known.

Looks on through the record and the engine's database, whichever process does the runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.files import lock_owner
from fine_tune_runner.types import Run
from fine_tune_runner.workflow.engine import Again, Event
from fine_tune_runner.workflow.record import Record, Tail, alive, interrupted

if TYPE_CHECKING:
    from fine_tune_runner.workflow.database import Database


class Awaited:
    """The runs of one command; `enqueue` sets one going and gives the id of its workflow.

    `observe` hears what is put on record here, by nobody's step.
    """

    def __init__(
        self,
        record: Record,
        database: Database,
        enqueue: Callable[[Run], str],
        listener: Callable[[Event], None],
        again: Again,
        observe: Callable[[Event], None],
    ) -> None:
        self._record, self._database, self._enqueue = record, database, enqueue
        self._listener, self._again, self._observe = listener, again, observe
        self._left: dict[str, tuple[Run, str]] = {}
        self._tails: dict[str, Tail] = {}
        self.stopped: dict[str, RunnerError] = {}

    @property
    def left(self) -> bool:
        """Whether one of them is not at its end."""
        return bool(self._left)

    def has(self, run_id: str) -> bool:
        """Whether this run is one of those."""
        return run_id in self._left

    def begin(self, run: Run) -> None:
        """Set a run going; one that is alive elsewhere, or cannot be planned, is stopped by that."""
        folder = self._record.folder(run)
        self.stopped.pop(run.run_id, None)
        try:
            if (pid := lock_owner(folder / "lock")) is not None:
                raise alive(run.run_id, pid)
            self._tails.setdefault(run.run_id, Tail(folder / "events.jsonl", from_end=True))
            self._left[run.run_id] = run, self._enqueue(run)
        except RunnerError as error:
            self.stopped[run.run_id] = error

    def look(self) -> None:
        """Hear what is new and who has ended; `again` may set some of those going once more."""
        self._hear()
        looks = {run_id: self._database.outcome(workflow) for run_id, (_, workflow) in self._left.items()}
        ended = {run_id: how for run_id, how in looks.items() if how is not None}
        if ended:
            self._hear()  # what it said before its end
        for run_id, how in ended.items():
            run, _ = self._left.pop(run_id)
            if how["state"] != "finished":
                self.stopped[run_id] = self._error(run, how)
        for run in self._again(self.stopped):
            self.begin(run)

    def interrupt(self) -> None:
        """Put on record that somebody stopped those that are left; told last, for no reader may be left."""
        said: list[Event] = []
        for run_id, (run, _) in self._left.items():
            self._record.open(run, listener=said.append).emit("run interrupted")
            self.stopped[run_id] = interrupted(run_id)
        self._left.clear()
        with contextlib.suppress(OSError):
            for event in said:
                self._observe(event)
        with contextlib.suppress(OSError):
            self._hear()

    def _error(self, run: Run, how: dict[str, Any]) -> RunnerError:
        """What stopped a run; its words are in the run's folder, the database has none."""
        if how["state"] == "cancelled":
            return interrupted(run.run_id, f"run {run.run_id} was cancelled")
        kinds = {kind.code: kind for kind in RunnerError.__subclasses__()}
        return kinds.get(how["code"], RunError)(how.get("message") or self._record.why(run))

    def _hear(self) -> None:
        events = [event for tail in self._tails.values() for event in tail.read()]
        for event in sorted(events, key=lambda event: event.at):
            self._listener(event)
