"""Several workers on one PostgreSQL: each step once, dead ones' work taken over, the server lost and back."""

from __future__ import annotations

import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.workflow.engine_world import Steps, a_run, engine, made, ran, start
from tests.workflow.postgres import Cluster

STEPS = ("load", "train", "score", "promote")


@pytest.fixture
def workers() -> Iterator[list[subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []
    yield running
    for worker in running:
        worker.send_signal(signal.SIGCONT)
        worker.kill()
        worker.communicate()


def wait_until(seen: Callable[[], bool], limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not seen():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def states(folder: Path, url: str) -> Counter[str]:
    return Counter(state.state for state in engine(folder, Steps(folder), url=url).runs())


def left(folder: Path, url: str, clients: list[str]) -> None:
    durable = engine(folder, Steps(folder), url=url)
    made(folder, *clients)
    for client in clients:
        durable.enqueue(a_run(client))


def test_three_workers_do_every_step_once(
    tmp_path: Path, postgres: Cluster, workers: list[subprocess.Popen[str]]
) -> None:
    clients = [f"three{number}" for number in range(9)]
    left(tmp_path, postgres.url, clients)
    workers += [start(tmp_path, "work", postgres.url) for _ in range(3)]
    wait_until(lambda: states(tmp_path, postgres.url) == {"finished": 9})
    assert Counter(ran(tmp_path)) == {f"{a_run(c).run_id} {step}": 1 for c in clients for step in STEPS}


def test_a_dead_workers_run_is_taken_over_and_what_is_done_is_not_done_again(
    tmp_path: Path, postgres: Cluster, workers: list[subprocess.Popen[str]]
) -> None:
    left(tmp_path, postgres.url, ["dead"])
    run_id = a_run("dead").run_id
    workers.append(start(tmp_path, "work-slow", postgres.url))
    wait_until(lambda: f"{run_id} train" in ran(tmp_path))
    workers.append(start(tmp_path, "work", postgres.url))
    workers[0].kill()
    wait_until(lambda: states(tmp_path, postgres.url) == {"finished": 1})
    assert ran(tmp_path) == [f"{run_id} {step}" for step in ("load", "train", "train", "score", "promote")]


def test_a_worker_that_was_stopped_and_goes_on_does_nothing_beside_its_successor(
    tmp_path: Path, postgres: Cluster, workers: list[subprocess.Popen[str]]
) -> None:
    left(tmp_path, postgres.url, ["frozen"])
    run_id = a_run("frozen").run_id
    workers.append(start(tmp_path, "work-slow", postgres.url))
    wait_until(lambda: f"{run_id} train" in ran(tmp_path))
    workers[0].send_signal(signal.SIGSTOP)
    workers.append(start(tmp_path, "work", postgres.url))
    # Its session is ended after 3 s without a beat here; its step holds the run's folder as long as it lives.
    time.sleep(10)
    assert ran(tmp_path)[1:] == [f"{run_id} train"]
    workers[0].send_signal(signal.SIGCONT)
    wait_until(lambda: states(tmp_path, postgres.url) == {"finished": 1})
    assert ran(tmp_path) == [f"{run_id} {step}" for step in ("load", "train", "train", "score", "promote")]


def test_the_server_goes_away_at_once_and_nothing_is_lost(
    tmp_path: Path, postgres: Cluster, workers: list[subprocess.Popen[str]]
) -> None:
    clients = [f"away{number}" for number in range(6)]
    left(tmp_path, postgres.url, clients)
    workers += [start(tmp_path, "work", postgres.url) for _ in range(2)]
    assert [worker.stdout.readline() for worker in workers if worker.stdout] == ["ready\n"] * 2
    for number in range(3):
        wait_until(lambda number=number: len(ran(tmp_path)) > 3 * number)
        postgres.stop("immediate")
        time.sleep(0.5)
        postgres.start()
    wait_until(lambda: states(tmp_path, postgres.url) == {"finished": 6})
    values = [engine(tmp_path, Steps(tmp_path)).find(a_run(client).run_id).done for client in clients]
    assert values == [STEPS] * 6
    assert all(worker.poll() is None for worker in workers)
