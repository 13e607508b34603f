"""What a run outlives besides a crash: a reboot, a deploy, a clock set back, a database that is away."""

from __future__ import annotations

import os
import signal
import threading
from datetime import timedelta
from pathlib import Path

from fine_tune_runner.errors import DatabaseAway
from fine_tune_runner.types import RunContext
from fine_tune_runner.workflow.durable import Durable
from fine_tune_runner.workflow.engine import Event
from tests.workflow.engine_world import (
    Steps,
    a_run,
    checkpointed,
    clock,
    engine,
    ran,
    start,
    wait_until,
    work_until_finished,
)
from tests.workflow.postgres import Cluster

RUN = a_run().run_id


def trained(folder: Path) -> list[int]:
    """The training steps that were done, in every process."""
    return [int(line) for line in (folder / "hre/runs" / RUN / "attempt-1/done.txt").read_text().split()]


def test_a_reboot_in_mid_training_goes_on_by_itself_from_the_last_checkpoint(tmp_path: Path) -> None:
    child = start(tmp_path, "checkpointed")
    wait_until(lambda: (tmp_path / "hre/runs" / RUN / "attempt-1/done.txt").exists(), child)
    wait_until(lambda: len(trained(tmp_path)) >= 4, child)
    child.kill()
    child.communicate()
    # After a reboot the numbers in lock files belong to anybody.
    for lock in (tmp_path / ".fine-tune/engine.lock", tmp_path / "hre/runs" / RUN / "lock"):
        lock.write_text(str(os.getpid()))
    before = trained(tmp_path)
    work_until_finished(engine(tmp_path, Steps(tmp_path, train=checkpointed)))
    after = trained(tmp_path)[len(before) :]
    assert after[0] in (before[-1], before[-1] + 1), "training began from the start again"
    assert after[-1] == 40
    assert ran(tmp_path).count(f"{RUN} load") == 1


def test_a_run_begun_under_another_patch_of_the_engine_is_not_stranded(tmp_path: Path) -> None:
    child = start(tmp_path, "older")
    wait_until(lambda: f"{RUN} train" in ran(tmp_path), child)
    child.kill()
    out, _ = child.communicate()
    # What DBOS would have made the application version of differs between the two processes.
    assert "dbos 3.0.1" in out
    notices: list[str] = []
    durable = engine(tmp_path, Steps(tmp_path), notices=notices)
    work_until_finished(durable)
    assert not [text for text in notices if "another" in text or "application version" in text]
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ("load", "train", "train", "score", "promote")]


def test_a_step_added_by_a_deploy_is_done_by_a_worker_that_takes_the_run_up(tmp_path: Path) -> None:
    child = start(tmp_path, "slow")
    wait_until(lambda: f"{RUN} train" in ran(tmp_path), child)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    steps = Steps(tmp_path)
    steps.names[3:3] = [("inspect", "evaluate")]
    durable = engine(tmp_path, steps)
    work_until_finished(durable)
    assert durable.find(RUN).done == ("load", "train", "score", "inspect", "promote")


def test_a_clock_set_back_by_an_hour_loses_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    back = timedelta()

    def set_back(context: RunContext) -> None:
        nonlocal back
        back = timedelta(hours=1)

    heard: list[Event] = []
    steps = Steps(tmp_path, train=set_back)
    durable = Durable(tmp_path, steps.plan, lambda: clock() - back, listener=heard.append)
    durable.run(a_run())
    events = durable.events(RUN)
    assert [e.data["step"] for e in events if e.event == "step started"] == [
        "load",
        "train",
        "score",
        "promote",
    ]
    assert [e.at for e in events] == sorted(e.at for e in events)
    assert heard == list(events)
    assert (durable.find(RUN).state, events[-1].event) == ("finished", "run finished")


def test_a_ledger_that_is_away_is_one_line_and_the_step_is_done_when_it_is_back(tmp_path: Path) -> None:
    away = [DatabaseAway("PostgreSQL: connection refused")]

    def pay(context: RunContext) -> None:
        if away:
            raise away.pop()

    notices: list[str] = []
    durable = engine(tmp_path, Steps(tmp_path, train=pay), notices=notices)
    durable.run(a_run())
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ("load", "train", "train", "score", "promote")]
    assert notices == [f"{RUN} waits for the database: PostgreSQL: connection refused"]
    assert "run failed" not in [event.event for event in durable.events(RUN)]


def test_a_server_that_is_away_for_a_while_is_said_and_waited_for(tmp_path: Path, postgres: Cluster) -> None:
    durable = engine(tmp_path, Steps(tmp_path), url=postgres.url)
    durable.enqueue(a_run())
    worker = start(tmp_path, "work-awhile", postgres.url)
    said: list[str] = []
    assert worker.stdout is not None
    reader = threading.Thread(target=lambda: said.extend(worker.stdout or ()))
    reader.start()
    try:
        wait_until(lambda: f"{RUN} train" in ran(tmp_path), worker)
        postgres.stop("immediate")
        wait_until(lambda: any("PostgreSQL does not answer" in line for line in said), worker)
        postgres.start()
        wait_until(lambda: durable.find(RUN).state == "finished", worker)
    finally:
        worker.kill()
        reader.join()
        worker.communicate()
    assert sum("PostgreSQL does not answer" in line for line in said) == 1
    assert not [line for line in said if "Traceback" in line or "  File" in line]
    assert [
        step for step in ("load", "train", "score", "promote") if f"{RUN} {step}" not in ran(tmp_path)
    ] == []
