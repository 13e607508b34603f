"""A worker that was taken over, and its successor: what one put on record, the other does not do again."""

from __future__ import annotations

import threading
from pathlib import Path

from fine_tune_runner.files import locked
from fine_tune_runner.types import Run
from fine_tune_runner.workflow.database import Database
from fine_tune_runner.workflow.executor import Executor
from fine_tune_runner.workflow.record import Record, StepContext, perform
from tests.workflow.engine_world import Steps, a_run, clock, ran


class Watched(Record):
    """Tells when a run is opened for the first time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, clock)
        self.opened = threading.Event()

    def open(self, run: Run, **words: object) -> StepContext:
        context = super().open(run, **words)  # type: ignore[arg-type]
        self.opened.set()
        return context


def test_a_step_that_another_worker_records_while_this_one_waits_for_it_is_not_done_twice(
    tmp_path: Path,
) -> None:
    run, steps = a_run(), Steps(tmp_path)
    first, second = steps.plan(run)[:2]
    before = Record(tmp_path, clock)
    before.begin(run)
    record = Watched(tmp_path)
    successor = Executor(record, steps.plan, Database(tmp_path / ".fine-tune", None))
    waiting = threading.Thread(target=successor._perform, args=(run, first.name, None))
    with locked(before.folder(run) / "step.lock"):
        waiting.start()
        record.opened.wait(1.0)  # what is on record so far may be known to it now
        perform(before.open(run), first)
        next_step = before.open(run)
    waiting.join(60)
    perform(next_step, second)
    assert ran(tmp_path) == [f"{run.run_id} load", f"{run.run_id} train"]
    assert list(before.open(run).done()) == ["load", "train"]
