"""A real worker with everything switched on: what it emits of a whole run, and that no text is in it."""

from __future__ import annotations

import json
import signal
import time
from urllib.request import urlopen

from tests.observe.collector import collecting
from tests.observe.test_observe import free_port
from tests.small_client import CAUSES, HOLDOUT_WORDS, PROMPT, WORDS, Workplace


def test_a_worker_emits_log_lines_spans_and_metrics_without_the_clients_text(place: Workplace) -> None:
    run_id, port, log = place.submit(1, "--detach").out.strip(), free_port(), place.folder / "log.jsonl"
    with collecting() as collector:
        place.env["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
        worker = place.start("worker", "--metrics", f"127.0.0.1:{port}", "--log-json", str(log))
        deadline = time.monotonic() + 200
        while not log.exists() or '"run finished"' not in log.read_text():
            assert worker.poll() is None, worker.communicate()[0]
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.1)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            scraped = str(answer.read().decode())
        worker.send_signal(signal.SIGTERM)
        said, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0, said
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(line["run_id"], line["client"]) for line in lines} == {(run_id, "small")}
    steps = [line["step"] for line in lines if line["event"] == "step done"]
    assert steps[:3] == ["load", "check", "estimate"]
    assert 'fine_tune_step_seconds_count{step="train"} 1.0' in scraped
    assert 'fine_tune_runs_ended_total{state="finished"} 1.0' in scraped
    assert sorted(span.name for span in collector.spans) == sorted([*steps, "run"])
    emitted = log.read_bytes() + scraped.encode() + b"".join(collector.bodies)
    words = (*WORDS, *HOLDOUT_WORDS, *CAUSES, *PROMPT.split("\n"), "Trouble", "verify with one")
    assert [word for word in words if word.encode() in emitted] == []
