"""Runs in the background: submitted, done by a worker, looked at, stopped; on real processes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.small_client import Result, Workplace


def wait_until(seen: Callable[[], bool], worker: subprocess.Popen[str], limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not seen():
        assert worker.poll() is None, worker.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def end(worker: subprocess.Popen[str]) -> Result:
    """Stop a worker as systemd does."""
    worker.send_signal(signal.SIGTERM)
    out, _ = worker.communicate(timeout=60)
    return Result(worker.returncode, out, out)


@pytest.fixture
def run_id(place: Workplace) -> str:
    """A run that was left to a worker."""
    left = place.submit(1, "--detach")
    assert left.code == 0, left.err
    assert "fine-tune logs -f" in left.err
    return left.out.strip()


@pytest.fixture
def worker(place: Workplace) -> Iterator[subprocess.Popen[str]]:
    running = place.start("worker")
    yield running
    if running.poll() is None:
        end(running)


def state(place: Workplace, run_id: str) -> str:
    return str(json.loads(place.run("runs", "show", run_id, "--json").out)["state"])


def test_a_detached_run_is_done_by_a_worker_and_can_be_looked_at(place: Workplace, run_id: str) -> None:
    assert state(place, run_id) == "queued"
    assert "fine-tune worker" in place.run("runs").out
    worker = place.start("worker")
    followed = place.run("logs", "-f", run_id)
    assert followed.out.splitlines()[-1].endswith("run finished")
    shown = place.run("runs", "show", run_id).out
    assert "State:    finished" in shown
    assert "promote" in shown
    assert [row["active"] for row in place.registry()] == [True]
    # One engine a folder: another worker is turned away by name, another submit is done by this one.
    second = place.run("worker")
    assert (second.code, f"process {worker.pid} has the engine" in second.err) == (1, True)
    assert "Worker ready" not in second.err
    done = end(worker)
    assert done.code == 0
    assert f"{run_id} step started train" in done.out


def test_a_worker_that_is_stopped_leaves_its_run_to_the_next_one(place: Workplace) -> None:
    place.write_config(training=place.config["training"] | {"epochs": 4})
    run_id = place.submit(1, "--detach").out.strip()
    worker = place.start("worker", "--json")
    events = place.client / "runs" / run_id / "events.jsonl"
    wait_until(lambda: events.exists() and "train checkpoint" in events.read_text(), worker)
    assert place.submit(1).code == 1  # alive elsewhere
    assert end(worker).code == 0
    assert state(place, run_id) == "interrupted"
    worker = place.start("worker")
    wait_until(lambda: state(place, run_id) == "finished", worker)
    end(worker)
    steps = [
        json.loads(line)["data"]["step"] for line in events.read_text().splitlines() if '"train step"' in line
    ]
    assert steps == sorted(steps), "training began from the start again"


def test_a_second_signal_ends_a_process_that_does_runs_at_once() -> None:
    code = (
        "import time\nfrom fine_tune_runner.cli.background import stop_event\n"
        "told = stop_event()\nprint('up', flush=True)\ntold.wait()\ntime.sleep(600)"
    )
    words = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    child = subprocess.Popen([sys.executable, "-c", code], **words)  # type: ignore[call-overload]
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    assert "stops where it can go on later" in child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, "goes on with the next worker" in out) == (130, True)


def test_a_signal_is_heard_also_where_it_ended_the_reader_of_the_output() -> None:
    code = (
        "from fine_tune_runner.cli.background import stop_event\n"
        "told = stop_event()\nprint('up', flush=True)\ntold.wait()\nprint('told', flush=True)\n"
        "import time\ntime.sleep(600)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stderr is not None
    child.stderr.close()
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGINT)
    assert child.stdout.readline() == "told\n"
    child.send_signal(signal.SIGINT)
    child.stdout.close()
    assert child.wait(60) == 130


def test_only_failed_runs_are_retried_and_only_waiting_ones_approved(place: Workplace, run_id: str) -> None:
    for command, word in (("retry", "not failed"), ("approve", "does not wait for a yes")):
        refused = place.run(command, run_id)
        assert (refused.code, word in refused.err) == (1, True)
    assert place.run("cancel", run_id).code == 0
    assert state(place, run_id) == "cancelled"


def test_unknown_queues_and_runs_are_named(place: Workplace) -> None:
    assert "gpu is none of registry, hosted" in place.run("worker", "--queues", "gpu").err
    assert "run 'x' is unknown" in place.run("logs", "x").err
    assert place.run("runs").out.startswith("No runs yet")
