"""Runs that are begun together and waited for: side by side to their ends, one question for their costs.

Knows the engine's port and how a yes is asked for; neither tracks nor what is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import Interrupted, NeedsApproval, RunnerError
from fine_tune_runner.types import Estimate, Run
from fine_tune_runner.workflow.engine import Engine

# Asked with the estimate of each run that costs money, by its id.
Confirm = Callable[[Mapping[str, Estimate]], bool]


def drive(engine: Engine, runs: Sequence[Run], confirm: Confirm) -> dict[str, RunnerError]:
    """Run all to their ends; what stopped each that did not come to it, by run id.

    Once every run has come to its price, `confirm` is asked for those that wait for a yes; a no, and what
    `confirm` raises, stops these and no other.
    """
    declined: dict[str, RunnerError] = {}

    def again(stopped: Mapping[str, RunnerError]) -> Sequence[Run]:
        waits = [
            run
            for run in runs
            if isinstance(stopped.get(run.run_id), NeedsApproval) and run.run_id not in declined
        ]
        on_the_way = (run.run_id for run in runs if run.run_id not in stopped)
        if not waits or any(engine.value(run_id, Estimate) is None for run_id in on_the_way):
            return ()
        try:
            yes = confirm({run.run_id: _price(engine, run) for run in waits})
            refusal: RunnerError = Interrupted("not started; nothing was sent")
        except RunnerError as error:
            yes, refusal = False, error
        if not yes:
            declined.update((run.run_id, refusal) for run in waits)
            return ()
        for run in waits:
            engine.approve(run)
        return waits

    return {**engine.run_all(runs, again), **declined}


def _price(engine: Engine, run: Run) -> Estimate:
    """The estimate that a run announced before it stopped for a yes: its step is not on record yet."""
    said = [event.data for event in engine.events(run.run_id) if event.event == "estimated"]
    return msgspec.convert(said[-1], threadsafe(Estimate))
