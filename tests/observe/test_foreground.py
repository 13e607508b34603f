"""A command that waits for its runs: what it does itself is observed as a worker's is, and nothing else."""

from __future__ import annotations

import _thread
import json
import threading
from pathlib import Path

import pytest

from fine_tune_runner.errors import Interrupted
from fine_tune_runner.types import RunContext
from fine_tune_runner.workflow.durable import Durable
from fine_tune_runner.workflow.engine import Event
from tests.observe.collector import collecting
from tests.small_client import Workplace
from tests.workflow.engine_world import Steps, a_run, clock, ran, slowly, start, wait_until


def test_a_submit_writes_log_lines_and_sends_spans_as_a_worker_does(place: Workplace) -> None:
    log = place.folder / "log.jsonl"
    with collecting() as collector:
        place.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        done = place.submit(1, "--log-json", str(log))
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["client"] for line in lines} == {"small"}
    steps = [line["step"] for line in lines if line["event"] == "step done"]
    assert (steps[0], steps[-1], lines[-1]["event"]) == ("load", "promote", "run finished")
    assert sorted(span.name for span in collector.spans) == sorted([*steps, "run"])


def test_what_another_process_does_is_left_to_it_to_report(tmp_path: Path) -> None:
    child = start(tmp_path, "slow")
    wait_until(lambda: f"{a_run().run_id} load" in ran(tmp_path), child)
    heard: list[Event] = []
    seen: list[Event] = []
    run = a_run("rtt")
    durable = Durable(tmp_path, Steps(tmp_path).plan, clock, listener=heard.append, observe=seen.append)
    thread = threading.Thread(target=durable.run, args=(run,))
    thread.start()
    wait_until(lambda: f"{run.run_id} load" in ran(tmp_path), child)
    queued = (run.run_id, "train", "ENQUEUED")
    wait_until(lambda: queued in [(w.run_id, w.queue, w.status) for w in durable.live()], child)
    child.kill()
    child.communicate()
    thread.join(60)
    done = [[event.data["step"] for event in told if event.event == "step done"] for told in (heard, seen)]
    assert done == [["load", "train", "score", "promote"], ["train", "score", "promote"]]


def test_ctrl_c_is_reported_by_the_process_that_did_the_run(tmp_path: Path) -> None:
    seen: list[Event] = []

    def pressed(context: RunContext) -> None:
        _thread.interrupt_main()
        slowly(context)

    durable = Durable(tmp_path, Steps(tmp_path, train=pressed).plan, clock, observe=seen.append)
    with pytest.raises(Interrupted):
        durable.run(a_run())
    assert [event.event for event in seen][-1] == "run interrupted"
