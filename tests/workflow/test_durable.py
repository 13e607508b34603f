"""The engine of the product, rule by rule of what was measured (facts/durability.md), on SQLite."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dbos import DBOSPortableJSONSerializer
from dbos._serialization import deserialize_args

from fine_tune_runner.errors import DataError, NeedsApproval, RunError, TrainingError
from fine_tune_runner.types import RunContext
from fine_tune_runner.workflow.engine import Event
from tests.workflow.engine_world import Number, Steps, a_run, briefly, engine, made, ran, start, wait_until


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.crater),)


ALL = ("load", "train", "score", "promote")
RUN = a_run().run_id


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    """What the engine's database says."""
    connection = sqlite3.connect(folder / ".fine-tune/engine.sqlite")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def change(folder: Path, statement: str) -> None:
    connection = sqlite3.connect(folder / ".fine-tune/engine.sqlite")
    connection.execute(statement)
    connection.commit()
    connection.close()


def died(folder: Path) -> None:
    """A run whose process ended in mid-training."""
    child = start(folder, "die")
    child.communicate(timeout=60)
    assert child.returncode == 9


def test_a_run_goes_through_all_its_places_and_leaves_values(tmp_path: Path) -> None:
    heard: list[Event] = []
    durable = engine(tmp_path, Steps(tmp_path), heard)
    durable.run(a_run())
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ALL]
    assert durable.find(RUN).state == "finished"
    assert durable.value(RUN, Number) == Number(len("promote"))
    assert heard == list(durable.events(RUN))
    queues = {row[0] for row in rows(tmp_path, "SELECT queue_name FROM workflow_status")}
    assert {str(queue).split("@")[0] for queue in queues} == {"registry", "train", "evaluate"}


def test_the_database_is_in_wal_mode_and_for_its_owner_only(tmp_path: Path) -> None:
    engine(tmp_path, Steps(tmp_path)).run(a_run())
    assert rows(tmp_path, "PRAGMA journal_mode") == [("wal",)]
    assert (tmp_path / ".fine-tune/engine.sqlite").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / ".fine-tune").stat().st_mode & 0o777 == 0o700


def test_only_ids_and_outcomes_are_stored_as_json_on_named_queues_under_a_pinned_version(
    tmp_path: Path,
) -> None:
    engine(tmp_path, Steps(tmp_path)).run(a_run())
    found = rows(tmp_path, "SELECT serialization, application_version, queue_name FROM workflow_status")
    assert {row[:2] for row in found} == {("portable_json", "1")}
    assert all(row[2] and not str(row[2]).startswith("_dbos") for row in found)
    inputs = [str(row[0]) for row in rows(tmp_path, "SELECT inputs FROM workflow_input")]
    assert f'{{"namedArgs":{{}},"positionalArgs":["hre","{RUN}"]}}' in inputs
    outputs = rows(tmp_path, "SELECT serialization, output FROM operation_outputs WHERE output IS NOT NULL")
    assert {row[0] for row in outputs} == {"portable_json"}
    assert not any('"number"' in str(row[1]) for row in outputs)


def test_a_pickle_in_the_database_is_never_read(tmp_path: Path) -> None:
    died(tmp_path)
    bomb = base64.b64encode(pickle.dumps(Bomb(tmp_path / "crater"))).decode()
    change(tmp_path, "UPDATE workflow_status SET serialization = 'py_pickle'")
    change(tmp_path, f"UPDATE workflow_input SET inputs = '{bomb}'")
    with pytest.raises(RunError, match=f"{RUN} stopped"):
        engine(tmp_path, Steps(tmp_path)).run(a_run())
    with pytest.raises(RunError, match="pickle, which nothing here wrote"):
        deserialize_args(bomb, "py_pickle", DBOSPortableJSONSerializer())
    assert not (tmp_path / "crater").exists()


def test_a_killed_process_leaves_a_run_that_a_second_submit_ends(tmp_path: Path) -> None:
    died(tmp_path)
    durable = engine(tmp_path, Steps(tmp_path))
    assert durable.find(RUN).state == "interrupted"
    durable.run(a_run())
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ("load", "train", "train", "score", "promote")]


def test_a_lost_database_costs_nothing_that_is_on_record(tmp_path: Path) -> None:
    died(tmp_path)
    for path in (tmp_path / ".fine-tune").glob("engine.sqlite*"):
        path.unlink()
    engine(tmp_path, Steps(tmp_path)).run(a_run())
    assert ran(tmp_path).count(f"{RUN} load") == 1


def test_only_the_run_that_is_asked_for_is_taken_up(tmp_path: Path) -> None:
    died(tmp_path)
    durable = engine(tmp_path, Steps(tmp_path))
    durable.run(a_run("rtt"))
    assert durable.find(RUN).state == "interrupted"
    assert ran(tmp_path).count(f"{RUN} train") == 1


def test_what_belongs_to_another_version_is_named_and_left_alone(tmp_path: Path) -> None:
    died(tmp_path)
    change(tmp_path, "UPDATE workflow_status SET application_version = '0'")
    notices: list[str] = []
    engine(tmp_path, Steps(tmp_path), notices=notices).run(a_run("rtt"))
    assert any(f"workflow {RUN} belongs to application version '0'" in text for text in notices)
    assert ran(tmp_path).count(f"{RUN} train") == 1


def test_an_error_of_a_step_is_raised_on_record_and_can_be_gone_on_from(tmp_path: Path) -> None:
    def fault(context: RunContext) -> None:
        raise DataError("row 7 is wrong")

    durable = engine(tmp_path, Steps(tmp_path, train=fault))
    with pytest.raises(DataError, match="row 7 is wrong"):
        durable.run(a_run())
    state = durable.find(RUN)
    assert (state.state, state.error, state.done) == ("failed", "row 7 is wrong", ("load",))
    engine(tmp_path, Steps(tmp_path)).resume(RUN)
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ("load", "train", "train", "score", "promote")]


def test_a_bug_keeps_its_traceback_and_the_run_can_go_on(tmp_path: Path) -> None:
    def bug(context: RunContext) -> None:
        raise ZeroDivisionError("a bug of ours")

    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        engine(tmp_path, Steps(tmp_path, load=bug)).run(a_run())
    engine(tmp_path, Steps(tmp_path)).run(a_run())
    assert ran(tmp_path).count(f"{RUN} load") == 2


@pytest.mark.parametrize("kind", [TrainingError, ZeroDivisionError])
def test_what_an_error_says_is_kept_out_of_the_database(tmp_path: Path, kind: type[Exception]) -> None:
    def fault(context: RunContext) -> None:
        raise kind("cannot encode 'Hello, my name is JANE DOE'")

    with pytest.raises(kind, match="JANE DOE"):
        engine(tmp_path, Steps(tmp_path, train=fault)).run(a_run())
    assert not [path for path in (tmp_path / ".fine-tune").iterdir() if b"JANE" in path.read_bytes()]
    assert "JANE DOE" in (tmp_path / "hre/runs" / RUN / "stopped.txt").read_text()
    engine(tmp_path, Steps(tmp_path)).run(a_run())
    assert not (tmp_path / "hre/runs" / RUN / "stopped.txt").exists()


def test_a_run_whose_folder_takes_no_more_files_still_says_why_it_stopped(tmp_path: Path) -> None:
    def full(context: RunContext) -> None:
        (context.run_dir / "stopped.txt").mkdir()  # as good as a full disk
        raise DataError("row 7 is wrong")

    with pytest.raises(DataError, match="row 7 is wrong"):
        engine(tmp_path, Steps(tmp_path, train=full)).run(a_run())


def test_a_run_waits_for_a_yes_and_goes_on_with_it(tmp_path: Path) -> None:
    def costs(context: RunContext) -> None:
        if not context.approved():
            raise NeedsApproval("about $12")

    durable = engine(tmp_path, Steps(tmp_path, load=costs))
    with pytest.raises(NeedsApproval, match=r"about \$12"):
        durable.run(a_run())
    assert durable.find(RUN).state == "waiting"
    durable.approve(a_run())
    durable.run(a_run())
    assert durable.find(RUN).state == "finished"


def test_cancel_is_heard_in_mid_step_and_resume_goes_on(tmp_path: Path) -> None:
    child = start(tmp_path, "slow")
    wait_until(lambda: f"{RUN} train" in ran(tmp_path), child)
    durable = engine(tmp_path, Steps(tmp_path))
    durable.cancel(RUN)
    out, _ = child.communicate(timeout=60)
    assert "was cancelled; go on with: fine-tune resume" in out
    assert durable.find(RUN).state == "cancelled"
    durable.resume(RUN)
    assert durable.find(RUN).state == "finished"


def test_a_queued_run_can_be_cancelled_and_is_then_not_begun(tmp_path: Path) -> None:
    durable = engine(tmp_path, Steps(tmp_path))
    durable.enqueue(a_run())
    assert durable.find(RUN).state == "queued"
    durable.cancel(RUN)
    durable.run(a_run("rtt"))
    assert durable.find(RUN).state == "cancelled"
    assert f"{RUN} load" not in ran(tmp_path)


def test_ctrl_c_leaves_the_workflow_pending_and_a_second_submit_goes_on(tmp_path: Path) -> None:
    child = start(tmp_path, "slow")
    wait_until(lambda: f"{RUN} train" in ran(tmp_path), child)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert f"fine-tune resume {RUN}" in out
    assert ("PENDING",) in rows(tmp_path, "SELECT status FROM workflow_status")
    durable = engine(tmp_path, Steps(tmp_path))
    assert durable.find(RUN).state == "interrupted"
    durable.run(a_run())
    assert durable.find(RUN).state == "finished"
    assert ran(tmp_path).count(f"{RUN} load") == 1


def test_a_second_submit_of_a_live_run_names_run_and_process(tmp_path: Path) -> None:
    child = start(tmp_path, "slow")
    wait_until(lambda: f"{RUN} train" in ran(tmp_path), child)
    with pytest.raises(RunError, match=f"{RUN} is alive in process {child.pid}"):
        engine(tmp_path, Steps(tmp_path)).run(a_run())
    child.kill()
    child.communicate()


def test_a_submit_for_another_client_is_done_by_the_process_that_has_the_engine(tmp_path: Path) -> None:
    child = start(tmp_path, "slow")
    wait_until(lambda: f"{RUN} load" in ran(tmp_path), child)
    heard: list[Event] = []
    notices: list[str] = []
    other = engine(tmp_path, Steps(tmp_path), heard, notices)
    thread = threading.Thread(target=other.run, args=(a_run("rtt"),))
    thread.start()
    wait_until(lambda: other.runs("rtt") != [] and "load" in other.find(a_run("rtt").run_id).done, child)
    assert other.find(a_run("rtt").run_id).pid == child.pid
    assert any(f"process {child.pid} has the engine of this folder" in text for text in notices)
    # Whoever looked on takes the engine over when that process ends, and goes on with the very run.
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    thread.join(60)
    assert [event.event for event in heard][-1] == "run finished"
    assert ran(tmp_path).count(f"{a_run('rtt').run_id} load") == 1


def test_a_clients_versions_never_run_side_by_side(tmp_path: Path) -> None:
    running: list[str] = []
    most: list[int] = []

    def alone(context: RunContext) -> None:
        running.append(context.run.run_id)
        most.append(len(running))
        briefly(context)
        running.remove(context.run.run_id)

    durable = engine(tmp_path, Steps(tmp_path, load=alone, score=alone))
    durable.enqueue(a_run(version=2))
    durable.enqueue(a_run(version=3))
    durable.run(a_run(version=4))
    assert set(most) == {1}


def test_one_training_at_a_time_on_a_host(tmp_path: Path) -> None:
    running: list[str] = []
    most: list[int] = []

    def alone(context: RunContext) -> None:
        running.append(context.run.run_id)
        most.append(len(running))
        briefly(context)
        running.remove(context.run.run_id)

    durable = engine(tmp_path, Steps(tmp_path, train=alone))
    made(tmp_path, "a", "b", "c")
    for client in ("a", "b"):
        durable.enqueue(a_run(client))
    durable.run(a_run("c"))
    assert set(most) == {1}


def test_one_training_at_a_time_also_beside_that_of_a_sensitive_client(tmp_path: Path) -> None:
    running: list[str] = []
    most: list[int] = []

    def alone(context: RunContext) -> None:
        running.append(context.run.run_id)
        briefly(context)
        most.append(len(running))
        running.remove(context.run.run_id)

    durable = engine(tmp_path, Steps(tmp_path, label="private", train=alone))
    durable.run_all([a_run("hre"), a_run("rtt")])
    assert most == [1, 1]


def test_a_step_for_private_workers_is_done_by_no_other(tmp_path: Path) -> None:
    steps = Steps(tmp_path, label="private")
    durable = engine(tmp_path, steps)
    durable.enqueue(a_run())
    with durable.database() as database, durable.engine(database, labels=()):
        durable.enqueue(a_run("rtt"))
        wait_until(lambda: durable.find(a_run("rtt").run_id).state == "finished")
    assert f"{RUN} load" not in ran(tmp_path)
    durable.run(a_run())
    assert durable.find(RUN).state == "finished"


def test_the_label_is_checked_again_inside_the_step(tmp_path: Path) -> None:
    steps = Steps(tmp_path)
    durable = engine(tmp_path, steps)
    durable.enqueue(a_run())  # not sensitive yet, so on a queue that every worker serves
    steps.label = "private"
    with durable.database() as database, durable.engine(database, labels=()):
        wait_until(lambda: durable.find(RUN).state == "failed")
    assert "only on workers labelled private" in str(durable.find(RUN).error)
    assert ran(tmp_path) == []


def test_reading_imports_no_dbos(tmp_path: Path) -> None:
    engine(tmp_path, Steps(tmp_path)).enqueue(a_run())
    code = (
        "import sys\nfrom pathlib import Path\nfrom tests.workflow.engine_world import Steps, engine\n"
        "folder = Path(sys.argv[1])\nprint(len(engine(folder, Steps(folder)).runs()))\n"
        "print(sorted({'dbos', 'sqlalchemy', 'sqlite3', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["1", "[]"]
