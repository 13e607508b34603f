"""Runs that wait for the very step that one of them is about to do here, so that it can be done for all.

Found by queue, record and plan. It knows no track: what is worth doing together, the step decides.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from fine_tune_runner.errors import RunnerError
from fine_tune_runner.files import locked
from fine_tune_runner.types import Run, Step
from fine_tune_runner.workflow.database import Database, run_of
from fine_tune_runner.workflow.engine import Plan
from fine_tune_runner.workflow.record import Record, StepContext

GATHER_S = 60.0  # how long those that are on their way to the step are waited for: a check takes seconds
LOOK_S = 0.3
ON_QUEUE = ("ENQUEUED", "DELAYED")


@contextlib.contextmanager
def company(
    record: Record,
    plan: Plan,
    database: Database,
    context: StepContext,
    step: Step,
    queue: str,
    open_run: Callable[[Run], StepContext],
) -> Iterator[Sequence[StepContext]]:
    """The other runs whose next step is this one on this queue, oldest first.

    Each is kept from doing the step itself while the block lasts; then it does, and finds what was done for
    it. Those that are on their way are waited for, GATHER_S at most. Raises Interrupted on a cancel.
    """
    deadline = time.monotonic() + GATHER_S
    while True:
        here, coming = _look(record, plan, database, context, step, queue)
        if not coming or time.monotonic() > deadline:
            break
        context.check_cancelled()
        time.sleep(LOOK_S)
    with contextlib.ExitStack() as stack:
        found = []
        for run in sorted(here, key=lambda run: (run.created_at, run.run_id)):
            # Another worker may be at it, and whose record is broken stops by itself.
            with contextlib.suppress(BlockingIOError, RunnerError):
                stack.enter_context(locked(record.folder(run) / "step.lock"))
                other = open_run(run)
                if step.name not in other.done() and not other.cancelled():
                    found.append(other)
        yield found


def _look(
    record: Record, plan: Plan, database: Database, context: StepContext, step: Step, queue: str
) -> tuple[list[Run], bool]:
    """The runs that wait for a step on its queue, and whether others are on their way to it."""
    live = database.live()
    legs = {  # run → the queue that its leg waits on; None: a worker has it
        run_of(workflow.id): workflow.queue if workflow.status in ON_QUEUE else None
        for workflow in live
        if "." in workflow.id.partition("~")[2]
    }
    here, coming, clients = [], False, [context.run.client_id]
    for run_id in sorted({run_of(workflow.id) for workflow in live} - {context.run.run_id}):
        try:
            state = record.find(run_id)
            todo = [one for one in plan(state.run) if one.name not in state.done]
        except RunnerError:
            continue
        clients.append(state.run.client_id)
        wanted = [(one.name, one.place, one.label) == (step.name, step.place, step.label) for one in todo]
        if legs.get(run_id) == queue and wanted[:1] == [True]:
            here.append(state.run)
        elif run_id not in legs and any(wanted):
            # Just queued, and not behind another run of its client, which goes first.
            queued = state.updated_at is not None and clients.count(state.run.client_id) == 1
            since = context.clock() - (state.updated_at or context.clock())
            coming |= state.pid is not None or (queued and since.total_seconds() < GATHER_S)
    return here, coming
