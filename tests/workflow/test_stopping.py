"""How a process that does runs ends: nothing is taken off a queue any more, and nothing is lost by it."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from fine_tune_runner.types import RunContext
from tests.workflow.engine_world import Steps, a_run, engine, made, ran, start, wait_until


def test_what_is_being_taken_off_a_queue_while_the_engine_stops_is_left_whole(tmp_path: Path) -> None:
    notices: list[str] = []
    durable = engine(tmp_path, Steps(tmp_path), notices=notices)
    runs = [a_run(f"client{number}") for number in range(60)]
    made(tmp_path, *(run.client_id for run in runs))
    with durable.database() as database:
        for run in runs:
            durable.record.begin(run)
            database.enqueue_run(run.client_id, run.run_id, None, 10)
        # They are taken all at once and begun one by one, which lasts for longer than the first step of one.
        with durable.engine(database):
            wait_until(lambda: ran(tmp_path) != [])
        gc.collect()  # what was made and never awaited is an error here
        assert [text for text in notices if text.startswith("engine:")] == []
        assert [one.name for one in threading.enumerate() if one.name.startswith("queue-worker")] == []
        assert {one.status for one in database.live()} <= {"ENQUEUED", "PENDING"}
        assert {run.run_id for run in runs} >= {one.run_id for one in database.live()} != set()


def test_a_second_ctrl_c_ends_at_once_and_the_run_goes_on_where_it_was(tmp_path: Path) -> None:
    run_id = a_run().run_id
    child = start(tmp_path, "stubborn")
    wait_until(lambda: f"{run_id} train" in ran(tmp_path), child)
    child.send_signal(signal.SIGINT)
    assert child.stdout is not None
    assert "Ctrl-C again ends at once" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)  # its step lasts for longer
    assert f"fine-tune resume {run_id}" in out
    durable = engine(tmp_path, Steps(tmp_path))
    assert durable.events(run_id)[-1].event == "run interrupted"
    durable.resume(run_id)
    assert ran(tmp_path) == [f"{run_id} {name}" for name in ("load", "train", "train", "score", "promote")]


def test_who_starts_again_trains_only_after_what_it_gave_up_has_ended(tmp_path: Path) -> None:
    may_end, ended = threading.Event(), threading.Event()
    first, second = a_run(), a_run("rtt")
    seen: list[bool] = []

    def train(context: RunContext) -> None:
        """The first one hears nothing."""
        if context.run.run_id == first.run_id:
            may_end.wait(60)
            ended.set()
            context.check_cancelled()
        else:
            seen.append(ended.is_set())

    durable = engine(tmp_path, Steps(tmp_path, train=train))
    with durable.database() as database:
        durable.enqueue(first)
        with durable.engine(database) as executor:
            wait_until(lambda: f"{first.run_id} train" in ran(tmp_path))
            executor.give_up()
        durable.enqueue(second)
        with durable.engine(database) as executor:
            leg = f"{second.run_id}~"
            wait_until(lambda: any(name.startswith(leg) for name in executor.active()))
            may_end.wait(1.0)  # time enough to do it wrong
            may_end.set()
            wait_until(lambda: durable.find(second.run_id).state == "finished")
    assert seen == [True]


def test_ctrl_c_is_on_record_also_where_it_ended_the_reader_of_the_output(tmp_path: Path) -> None:
    run_id = a_run().run_id
    child = start(tmp_path, "slow")
    wait_until(lambda: f"{run_id} train" in ran(tmp_path), child)
    assert child.stdout is not None
    child.stdout.close()
    child.send_signal(signal.SIGINT)
    child.wait(60)
    assert engine(tmp_path, Steps(tmp_path)).events(run_id)[-1].event == "run interrupted"


@pytest.mark.parametrize(
    ("words", "goes_on"),
    [
        (("step started", "train checkpoint"), True),
        (("step started", "run interrupted", "train checkpoint"), False),
        (("run interrupted", "run queued", "placed"), True),
        (("run interrupted", "step started", "step done"), True),
    ],
)
def test_what_a_step_says_behind_a_ctrl_c_does_not_set_its_run_going(
    tmp_path: Path, words: Sequence[str], goes_on: bool
) -> None:
    durable = engine(tmp_path, Steps(tmp_path))
    durable.record.begin(a_run())
    for word in words:
        durable.record.open(a_run()).emit(word)
    with durable.database() as database, durable.engine(database) as executor:
        assert executor.wanted(a_run().run_id) is goes_on
