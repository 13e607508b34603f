"""Log lines, spans and metrics of runs, and that no word of a client's data is in any of them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
import pytest

from fine_tune_runner.errors import RunError
from fine_tune_runner.observe.log import Log
from fine_tune_runner.observe.metrics import metrics
from fine_tune_runner.observe.spans import Spans, ended
from fine_tune_runner.observe.told import client_of, facts
from fine_tune_runner.settings import Settings, load_settings
from fine_tune_runner.types import RunContext, Step
from fine_tune_runner.workflow.engine import Event
from fine_tune_runner.workflow.journal import Journal
from tests.observe.collector import Collector, attributes, collecting
from tests.workflow.engine_world import Number, a_run

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
RUN = a_run().run_id
WORDS = ("Purchase", "doubled", "anna@client.example")  # of the client's data
TEXT = "Purchase event doubled since anna@client.example changed it"


def event(name: str, at_s: float, run_id: str = RUN, **data: Any) -> Event:
    return Event(at=START + timedelta(seconds=at_s), event=name, run_id=run_id, data=data)


def chatty(context: RunContext) -> Number:
    """A step that puts the client's text wherever an event has room for it."""
    context.emit("warning", message=TEXT)
    context.emit("evaluated", report={"questions": [TEXT]}, verdict={"reason": TEXT}, step=TEXT)
    context.emit("job status", status=TEXT, model_id="ft:x:hre-v1:abc", tokens=7, **{TEXT: TEXT})
    context.emit("train step", step=3, total=9, loss=0.25, tokens_per_s=120.0)
    return Number(1)


def fails(context: RunContext) -> Number:
    raise RunError(f"line 7: {TEXT}")


def run_of(folder: Path, hear: Callable[[Event], None], do: Callable[[RunContext], Any] = chatty) -> Journal:
    steps = [Step(name="load", gives=Number, do=chatty), Step(name="train", gives=Number, do=do)]
    (folder / "hre").mkdir(exist_ok=True)
    engine = Journal(folder, lambda run: steps, lambda: datetime.now(UTC), listener=hear)
    if do is fails:
        with pytest.raises(RunError):
            engine.run(a_run())
    else:
        engine.run(a_run())
    return engine


def at_endpoint(folder: Path, url: str, **config: Any) -> Settings:
    """Settings of a data folder with the client hre, and an OTLP endpoint."""
    (folder / "hre").mkdir(parents=True, exist_ok=True)
    config = {"client_id": "hre"} | config
    (folder / "hre" / "config.json").write_bytes(msgspec.json.encode(config))
    key = "OTEL_EXPORTER_OTLP_HEADERS"
    env = {"CLIENT_DATA_DIR": str(folder), "OTEL_EXPORTER_OTLP_ENDPOINT": url, key: "x-api-key=a%20b"}
    return load_settings(env, folder)


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as server:
        yield server


def traced(settings: Settings, do: Callable[[RunContext], Any] = chatty) -> list[str]:
    """Run once with spans; the notices."""
    notices: list[str] = []
    engines: list[Journal] = []
    spans = Spans(settings, lambda run_id: engines[0].events(run_id), notices.append)
    engines.append(Journal(settings.data_dir, lambda run: (), lambda: START))
    run_of(settings.data_dir, spans, do)
    spans.close()
    return notices


def test_a_log_line_names_run_client_and_step(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    run_of(tmp_path, Log(path, lambda _text: None))
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    (trained, *_) = [line for line in lines if line["event"] == "train step" and line["step"] == "train"]
    assert (trained["run_id"], trained["client"]) == (RUN, "hre")
    assert trained["data"] == {"step": 3, "total": 9, "loss": 0.25, "tokens_per_s": 120.0}
    assert lines[-1]["event"] == "run finished"
    assert "step" not in lines[-1]


def test_a_log_that_cannot_be_written_stops_no_run_and_is_said_once(tmp_path: Path) -> None:
    notices: list[str] = []
    engine = run_of(tmp_path, Log(tmp_path / "missing" / "log.jsonl", notices.append))
    assert engine.find(RUN).state == "finished"
    assert notices == [
        f"{tmp_path}/missing/log.jsonl: No such file or directory; runs go on without log lines"
    ]


def test_a_rotated_log_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, lambda _text: None)
    log(event("run queued", 0))
    path.rename(tmp_path / "log.1")
    log(event("run finished", 1))
    assert msgspec.json.decode(path.read_bytes())["event"] == "run finished"


def test_only_numbers_and_named_words_may_leave() -> None:
    found = facts(event("x", 0, done=3, status="running", message="m", code="two words", key={"version": 3}))
    assert found == {"done": 3, "status": "running"}
    assert client_of("conversion-tracking-x-v12-a-1a2b3c4d-3") == "conversion-tracking-x"


def test_a_step_ends_a_span_of_its_own_time_below_its_run() -> None:
    so_far = [event("run queued", 0), event("step started", 9, step="load")]
    assert ended(so_far) == []
    so_far.append(event("step done", 10, step="load", seconds=0.5))
    (step,) = ended(so_far)
    assert (step.name, (step.end - step.start).total_seconds()) == ("load", 0.5)
    so_far.append(event("run finished", 12))
    (run,) = ended(so_far)
    assert (run.id, run.parent, (run.end - run.start).total_seconds()) == (step.parent, 0, 12)


def test_a_failure_ends_step_and_run_and_going_on_is_another_span() -> None:
    so_far = [event("step started", 0, step="load"), event("run failed", 4, code="data", message=TEXT)]
    step, run = ended(so_far)
    assert [(one.name, one.failed) for one in (step, run)] == [("load", "data"), ("run", "data")]
    so_far += [event("run queued", 100), event("step started", 101, step="load")]
    so_far += [event("step done", 102, step="load", seconds=1.0), event("run finished", 103)]
    (again,) = ended(so_far)
    assert again.id != run.id
    assert (again.end - again.start).total_seconds() == 3


def test_a_span_a_step_and_one_for_the_run_reach_the_endpoint(tmp_path: Path, collector: Collector) -> None:
    assert traced(at_endpoint(tmp_path, collector.url)) == []
    load, train, run = sorted(collector.spans, key=lambda span: span.name == "run")
    assert [load.name, train.name, run.name] == ["load", "train", "run"]
    assert {load.parent_span_id, train.parent_span_id} == {run.span_id}
    assert {load.trace_id, train.trace_id} == {run.trace_id}
    ids = {"fine_tune.run_id": RUN, "fine_tune.client": "hre"}
    assert attributes(run) == ids
    assert attributes(train) == ids | {"fine_tune.step": "train"}
    assert run.start_time_unix_nano <= load.start_time_unix_nano < run.end_time_unix_nano
    assert set(collector.keys) == {"a b"}
    assert collector.bodies[0].startswith(b"/v1/traces")


def test_spans_of_a_sensitive_client_stay_within_the_private_network(
    tmp_path: Path, collector: Collector
) -> None:
    assert traced(at_endpoint(tmp_path, collector.url, sensitive=True)) == []
    assert len(collector.spans) == 3  # loopback is within it
    (notice,) = traced(at_endpoint(tmp_path / "other", "http://192.0.2.1:4318", sensitive=True))
    assert notice.startswith("spans are left out: http://192.0.2.1:4318/v1/traces: ")
    assert "outside loopback, the private ranges" in notice


def test_an_endpoint_that_is_away_is_said_and_stops_no_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    (notice,) = traced(at_endpoint(tmp_path, f"http://127.0.0.1:{port}"))
    assert notice.startswith("spans are left out: ")


def scrape(port: int) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return int(closed.getsockname()[1])


def test_prometheus_reads_runs_by_state_steps_and_speed(tmp_path: Path) -> None:
    engine, port = Journal(tmp_path, lambda run: (), lambda: START), free_port()
    with metrics(engine, "127.0.0.1", port) as hear:
        hear(event("train step", 0, tokens_per_s=120.0))
        assert "fine_tune_training_tokens_per_second 120.0" in scrape(port)
        run_of(tmp_path, hear, fails)
        said = scrape(port)
    assert 'fine_tune_runs{state="failed"} 1.0' in said
    assert 'fine_tune_runs{state="running"} 0.0' in said
    assert 'fine_tune_runs_ended_total{state="failed"} 1.0' in said
    assert 'fine_tune_step_seconds_count{step="load"} 1.0' in said
    assert "fine_tune_training_tokens_per_second 0.0" in said


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(RunError, match=f"--metrics 127.0.0.1:{port}: Address already in use"),
            metrics(Journal(tmp_path, lambda run: (), lambda: START), "127.0.0.1", port),
        ):
            pass


@pytest.mark.parametrize("do", [chatty, fails])
def test_no_word_of_the_clients_data_is_in_anything_that_is_emitted(
    tmp_path: Path, collector: Collector, do: Callable[[RunContext], Any]
) -> None:
    settings, port = at_endpoint(tmp_path, collector.url), free_port()
    log = Log(tmp_path / "log.jsonl", lambda _text: None)
    reader = Journal(tmp_path, lambda run: (), lambda: START)
    spans = Spans(settings, reader.events, lambda _text: None)
    with metrics(reader, "127.0.0.1", port) as hear:
        run_of(tmp_path, lambda one: [each(one) for each in (log, spans, hear)] and None, do)
        scraped = scrape(port).encode()
    spans.close()
    record = (tmp_path / "hre" / "runs" / RUN / "events.jsonl").read_bytes()
    for word in WORDS:
        assert word.encode() in record  # the record has it
        for emitted in ((tmp_path / "log.jsonl").read_bytes(), scraped, *collector.bodies):
            assert word.encode() not in emitted
