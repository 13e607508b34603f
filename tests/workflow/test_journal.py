"""The engine of files: each step once, whatever ends the process in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from fine_tune_runner.errors import DataError, Interrupted, RunError
from fine_tune_runner.types import Run, RunContext, Step
from fine_tune_runner.workflow.engine import Event
from fine_tune_runner.workflow.journal import Journal


class First(msgspec.Struct, frozen=True):
    number: int


class Second(msgspec.Struct, frozen=True):
    number: int


class Crash(BaseException):
    """The end of the process."""


def clock() -> datetime:
    return datetime.now(UTC)


def a_run(run_id: str = "hre-v1-b-00000000-1") -> Run:
    return Run(
        run_id=run_id,
        client_id="hre",
        version=1,
        track="B",
        track_reason="test",
        attempt=1,
        dataset_sha256="0" * 64,
        created_at=clock(),
        who="anna",
    )


class Counting:
    """Two steps that count how often they ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fault: Callable[[RunContext], None] = lambda context: None

    def plan(self, run: Run) -> Sequence[Step]:
        return (
            Step(name="first", gives=First, do=self.first),
            Step(name="second", gives=Second, do=self.second),
        )

    def first(self, context: RunContext) -> First:
        self.ran.append("first")
        return First(41)

    def second(self, context: RunContext) -> Second:
        self.ran.append("second")
        self.fault(context)
        return Second(context.value(First).number + 1)


def journal(
    folder: Path, steps: Counting, crash_at: str | None = None, events: list[Event] | None = None
) -> Journal:
    def crash(point: str) -> None:
        if point == crash_at:
            raise Crash

    heard = events if events is not None else []
    (folder / "hre").mkdir(exist_ok=True)
    return Journal(folder, steps.plan, clock, listener=heard.append, crash_point=crash)


def test_values_flow_from_step_to_step_and_stay_on_record(tmp_path: Path) -> None:
    steps = Counting()
    engine = journal(tmp_path, steps)
    engine.run(a_run())
    assert engine.value(a_run().run_id, Second) == Second(42)
    assert engine.find(a_run().run_id).state == "finished"
    assert engine.find(a_run().run_id).done == ("first", "second")


@pytest.mark.parametrize(
    ("point", "ran"),
    [
        ("after first", ["first", "first", "second"]),
        ("recorded first", ["first", "second"]),
        ("after second", ["first", "second", "second"]),
        ("recorded second", ["first", "second"]),
    ],
)
def test_a_step_on_record_is_not_run_again(tmp_path: Path, point: str, ran: list[str]) -> None:
    steps = Counting()
    with pytest.raises(Crash):
        journal(tmp_path, steps, crash_at=point).run(a_run())
    assert journal(tmp_path, steps).find(a_run().run_id).state == "interrupted"
    journal(tmp_path, steps).resume(a_run().run_id)
    assert steps.ran == ran
    assert journal(tmp_path, steps).value(a_run().run_id, Second) == Second(42)


def test_a_changed_step_file_stops_the_run(tmp_path: Path) -> None:
    steps = Counting()
    with pytest.raises(Crash):
        journal(tmp_path, steps, crash_at="recorded second").run(a_run())
    path = tmp_path / "hre/runs" / a_run().run_id / "steps/01-first.json"
    path.write_text(path.read_text().replace("41", "40"))
    with pytest.raises(RunError, match="second does not follow from the one before"):
        journal(tmp_path, steps).resume(a_run().run_id)


def test_an_error_of_a_step_is_the_state_of_the_run_and_can_be_resumed(tmp_path: Path) -> None:
    steps = Counting()

    def fault(context: RunContext) -> None:
        raise DataError("row 7 is wrong")

    steps.fault = fault
    with pytest.raises(DataError):
        journal(tmp_path, steps).run(a_run())
    state = journal(tmp_path, steps).find(a_run().run_id)
    assert (state.state, state.error, state.done) == ("failed", "row 7 is wrong", ("first",))
    steps.fault = lambda context: None
    journal(tmp_path, steps).resume(a_run().run_id)
    assert steps.ran == ["first", "second", "second"]


def test_cancel_stops_before_the_next_step_and_resume_goes_on(tmp_path: Path) -> None:
    steps = Counting()
    engine = journal(tmp_path, steps)
    steps.fault = lambda context: (engine.cancel(context.run.run_id), context.check_cancelled())[1]
    with pytest.raises(Interrupted, match="fine-tune resume"):
        engine.run(a_run())
    assert engine.find(a_run().run_id).state == "cancelled"
    steps.fault = lambda context: None
    engine.resume(a_run().run_id)
    assert engine.find(a_run().run_id).state == "finished"


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    steps = Counting()

    def fault(context: RunContext) -> None:
        raise KeyboardInterrupt

    steps.fault = fault
    with pytest.raises(Interrupted, match=f"fine-tune resume {a_run().run_id}"):
        journal(tmp_path, steps).run(a_run())
    assert journal(tmp_path, steps).find(a_run().run_id).state == "interrupted"


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    steps = Counting()
    journal(tmp_path, steps).run(a_run())
    journal(tmp_path, steps).resume(a_run().run_id)
    assert steps.ran == ["first", "second"]
    with pytest.raises(RunError, match="nothing to cancel"):
        journal(tmp_path, steps).cancel(a_run().run_id)


CHILD = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from tests.workflow.test_journal import Counting, a_run, journal
    steps = Counting()
    steps.fault = lambda context: (print("in second", flush=True), time.sleep(60))
    journal(Path(sys.argv[1]), steps).run(a_run())
    """
)


def test_a_run_alive_elsewhere_is_named_and_a_killed_one_is_taken_up(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, cwd=root, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "in second\n"
        steps = Counting()
        engine = journal(tmp_path, steps)
        assert engine.find(a_run().run_id).pid == child.pid
        with pytest.raises(RunError, match=rf"{a_run().run_id} is alive in process {child.pid}"):
            engine.run(a_run())
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        assert engine.find(a_run().run_id).state == "interrupted"
        engine.resume(a_run().run_id)
        assert steps.ran == ["second"]
    finally:
        child.kill()
        child.communicate()


def test_an_unknown_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="'x' is unknown"):
        journal(tmp_path, Counting()).find("x")


def test_events_are_heard_and_written_in_order(tmp_path: Path) -> None:
    heard: list[Event] = []
    engine = journal(tmp_path, Counting(), events=heard)
    engine.run(a_run())
    each = ["step started", "step done"]
    assert [event.event for event in heard] == [*each, *each, "run finished"]
    assert list(engine.events(a_run().run_id)) == heard
