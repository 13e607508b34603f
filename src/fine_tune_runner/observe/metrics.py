"""Prometheus metrics of a worker: runs by state, queues, seconds a step, training speed; no client's name.

Counted from the engine's events, but for what the record and the database know, which is read at each scrape.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from fine_tune_runner.errors import ConfigError, RunError, RunnerError
from fine_tune_runner.observe.told import ENDS
from fine_tune_runner.types import State
from fine_tune_runner.workflow.engine import Engine, Event

# A step lasts from a file's reading to a day of training.
BUCKETS_S = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)


@contextlib.contextmanager
def metrics(engine: Engine, host: str, port: int) -> Iterator[Callable[[Event], None]]:
    """Serve `http://host:port/metrics` while the block lasts; what it yields is to hear every event.

    Raises ConfigError where the extra is missing, RunError where the address cannot be listened at.
    """
    try:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
    except ImportError:
        raise ConfigError(
            "prometheus-client is not installed; pip install 'fine-tune-runner[observe]'"
        ) from None

    registry = CollectorRegistry()
    registry.register(_Read(engine))  # type: ignore[arg-type]
    ends = Counter("fine_tune_runs_ended", "Runs that came to an end here", ["state"], registry=registry)
    seconds = Histogram(
        "fine_tune_step_seconds", "Time of a step", ["step"], buckets=BUCKETS_S, registry=registry
    )
    speed = Gauge("fine_tune_training_tokens_per_second", "Speed of the training here", registry=registry)

    def hear(event: Event) -> None:
        if event.event in ENDS:
            ends.labels(ENDS[event.event]).inc()
        elif event.event == "step done":
            seconds.labels(event.data["step"]).observe(event.data["seconds"])
        elif event.event == "train step":
            speed.set(event.data.get("tokens_per_s") or 0.0)
        if event.event in ENDS or event.event == "train finished":
            speed.set(0.0)

    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise RunError(f"--metrics {host}:{port}: {error.strerror or error}; choose another port") from None
    try:
        yield hear
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Read:
    """What is looked up at each scrape."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def describe(self) -> Sequence[object]:
        """Nothing is read when this is registered."""
        return ()

    def collect(self) -> Iterator[object]:
        """Runs by state and workflows by queue; left out where they cannot be read now."""
        from prometheus_client.core import GaugeMetricFamily

        with contextlib.suppress(RunnerError, OSError):
            states = Counter(one.state for one in self._engine.runs())
            runs = GaugeMetricFamily("fine_tune_runs", "Runs on record", labels=["state"])
            for state in get_args(State):
                runs.add_metric([state], states[state])
            yield runs
        with contextlib.suppress(RunnerError, OSError):
            waiting = Counter(one.queue for one in self._engine.live() if one.status != "PENDING")
            length = GaugeMetricFamily("fine_tune_queue_length", "Workflows that wait", labels=["queue"])
            for queue, number in sorted(waiting.items()):
                length.add_metric([queue], number)
            yield length
