"""`fine-tune watch` as a process: it takes up what is published, does the run, and ends when told to."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fine_tune_runner.watching import MEMORY
from tests.small_client import Workplace, holdout_rows, train_rows, write_rows, write_version


def wait_until(seen: Callable[[], bool], watch: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 180
    while not seen():
        assert watch.poll() is None, watch.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def publish(folder: Path, version: int) -> None:
    """By rename, the holdout first."""
    write_rows(folder / ".holdout", holdout_rows())
    write_rows(folder / ".train", train_rows())
    (folder / ".holdout").replace(folder / f"v{version}_eval.jsonl")
    (folder / ".train").replace(folder / f"v{version}.jsonl")


def begun(place: Workplace) -> bool:
    """Whether a step of a run has begun."""
    return any("step started" in path.read_text() for path in place.client.glob("runs/*/events.jsonl"))


def test_what_is_published_goes_into_service_by_itself_once_also_where_the_watch_is_killed(
    place: Workplace,
) -> None:
    for path in place.client.glob("v1*.jsonl"):
        path.unlink()
    watch = place.start("watch")
    wait_until((place.client / MEMORY).exists, watch)  # it said what is missing
    second = place.run("watch")
    assert (second.code, f"process {watch.pid} watches" in second.err) == (1, True)
    publish(place.client, 1)
    wait_until(lambda: begun(place), watch)
    watch.kill()
    first, _ = watch.communicate(timeout=60)
    watch = place.start("watch")
    registry = place.client / "model_registry.json"
    wait_until(lambda: registry.exists() and place.registry()[0]["active"], watch)
    watch.send_signal(signal.SIGTERM)
    out, _ = watch.communicate(timeout=120)
    assert watch.returncode == 0, out
    assert "Watching 1 clients" in first
    assert "small queued: awaiting 50 examples (has 0)" in first
    assert (first + out).count("small v1 submitted: small-v1-b-") == 1
    assert "promoted" in out
    assert (len(list(place.client.glob("runs/*"))), len(place.registry())) == (1, 1)


def test_once_leaves_what_is_ready_to_a_worker_and_tells_of_faults_once(place: Workplace) -> None:
    first = place.run("watch", "--once", "--settle", "0.1s", "--json")
    assert first.code == 0, first.err
    (submitted,) = first.events
    assert (submitted["event"], submitted["client"], submitted["version"]) == ("submitted", "small", 1)
    assert json.loads(place.run("runs", "--json").out)["state"] == "queued"
    rows = train_rows(60)
    write_version(place.client, 2, [{"messages": rows[0]["messages"][:2]}, *rows])
    codes = [place.run("watch", "--once", "--settle", "0").code for _ in range(2)]
    assert codes == [1, 0]


def test_beside_a_worker_it_leaves_the_runs_to_it(place: Workplace) -> None:
    worker = place.start("worker")
    engine = place.data / ".fine-tune/engine.lock"
    wait_until(lambda: engine.exists() and engine.read_text() == str(worker.pid), worker)
    watch = place.start("watch", "--settle", "0.1")
    wait_until(lambda: begun(place), watch)
    for process in (watch, worker):
        process.send_signal(signal.SIGINT)
    out, _ = watch.communicate(timeout=60)
    assert watch.returncode == 0
    assert f"process {worker.pid} has the engine" in out
    assert "step started" not in out
    assert "step started" in worker.communicate(timeout=120)[0]


def test_wrong_words_are_named(place: Workplace) -> None:
    assert "give seconds, such as 5s" in place.run("watch", "--settle", "soon").err
    gone = place.run("watch", "--once", env={"CLIENT_DATA_DIR": str(place.folder / "none")})
    assert (gone.code, "is no folder; make the first client" in gone.err) == (1, True)
    assert place.run("watch", "--client", "nobody").code == 1
