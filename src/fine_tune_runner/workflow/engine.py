"""The port that runs go through, and what a reader can know of a run without an engine.

An engine is handed the steps of a run by a plan and runs each of them once. It knows neither the runner
nor a track. durable.py serves this port on DBOS; journal.py serves it for tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from fine_tune_runner.errors import RunnerError
from fine_tune_runner.types import Place, Run, State, Step

Plan = Callable[[Run], Sequence[Step]]
# What a run id says: client, version, track, the beginning of the content's sha256, attempt
RUN_ID = re.compile(r"([a-z0-9][a-z0-9-]*)-v([1-9][0-9]*)-([ab])-([0-9a-f]{8})-([1-9][0-9]*)")
# Handed what stopped each run so far, by run id; names those that are to be set going once more, at once.
Again = Callable[[Mapping[str, RunnerError]], Sequence[Run]]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `events.jsonl`: what happened in a run, without a word of the client's text."""

    at: datetime
    event: str
    run_id: str
    data: dict[str, Any] = {}


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that a worker must be gone before another one does its runs, or hang to count as gone."""

    grace_s: float = 5.0
    hang_s: float = 15.0


PATIENCE = Patience()


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is: steps on record, the last thing that happened, and who holds it.

    `pid` is set while a process works on it. `queued` waits for a worker, `waiting` for a yes to its cost;
    any other run that nobody holds and that is not at an end is `interrupted`.
    """

    run: Run
    state: State
    done: tuple[str, ...]
    pid: int | None = None
    updated_at: datetime | None = None
    error: str | None = None


class Waiting(NamedTuple):
    """A workflow of the engine's database that is not at its end."""

    id: str
    status: str
    queue: str
    executor_id: str | None
    app_version: str | None

    @property
    def run_id(self) -> str:
        """The run that it does, or a part of."""
        return self.id.partition("~")[0]


class Engine(Protocol):
    """Run, find, list, cancel, resume; a list of runs is called `runs`."""

    def run(self, run: Run) -> None:
        """Run every step that is not on record yet, and wait for the last.

        RunError where the run is alive already; what its steps raise; NeedsApproval where it waits for a yes.
        """
        ...

    def run_all(self, runs: Sequence[Run], again: Again = lambda _stopped: ()) -> Mapping[str, RunnerError]:
        """`run` for several, side by side; what stopped each that did not come to its end, by run id."""
        ...

    def enqueue(self, run: Run) -> None:
        """Leave a run to the workers and return at once; one that is queued or alive is left alone."""
        ...

    def approve(self, run: Run) -> None:
        """Say yes to what a run costs, on record; one that waits goes on when it is run or enqueued again."""
        ...

    def work(
        self,
        stopped: Callable[[], bool],
        *,
        places: Sequence[Place] | None = None,
        labels: Sequence[str] | None = None,
        listener: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        """Do queued runs of these places until `stopped`; None: all places, and this machine's labels."""
        ...

    def find(self, run_id: str) -> RunState:
        """RunError where no such run exists."""
        ...

    def runs(self, client_id: str | None = None) -> Sequence[RunState]:
        """Oldest first."""
        ...

    def value(self, run_id: str, kind: type[Any]) -> Any:
        """What the last step of that type gave, None where none is on record."""
        ...

    def events(self, run_id: str) -> Sequence[Event]:
        """Everything that happened in a run, oldest first."""
        ...

    def cancel(self, run_id: str) -> None:
        """Ask a live run to stop at the next opportunity, or close one that nobody holds."""
        ...

    def resume(self, run_id: str) -> None:
        """Go on with a run where it stopped."""
        ...

    def live(self) -> Sequence[Waiting]:
        """The workflows that wait or are under way, of all runs, whatever the record says of these."""
        ...

    def stranded(self) -> Sequence[Waiting]:
        """Of those, training that waits for a host where no worker is now."""
        ...

    def drop(self, run_id: str) -> None:
        """Take a run's workflows out of the database, also where its folder is gone; no file is touched."""
        ...
