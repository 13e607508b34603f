"""Runs that are done in the background of a command: their events as lines, alerts for those that ended.

What operators asked for beside that hears the same events: log lines, spans, metrics.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from fine_tune_runner.alerts import ENDS
from fine_tune_runner.cli.common import Command, echo, echo_json, notice, runner
from fine_tune_runner.errors import Interrupted
from fine_tune_runner.observe.log import Log
from fine_tune_runner.runner import FineTuneRunner, durable
from fine_tune_runner.workflow.engine import Event

QUIET: Sequence[str] = ("train step", "evaluation progress", "job status", "train checkpoint")


def do_runs(
    line: FineTuneRunner,
    stop: threading.Event,
    *,
    as_json: bool,
    hear: Callable[[Event], None] = lambda _event: None,
    ready: str | None = None,
    **words: Any,
) -> None:
    """Do queued runs until `stop`; `words` are those of `Engine.work`. `hear` is told of every event too.

    `ready` is said once this process has the engine.
    """
    ended: list[str] = []
    unsaid = [] if ready is None else [ready]

    def say(event: Event) -> None:
        hear(event)
        if event.event in ENDS:
            ended.append(event.run_id)
        if as_json:
            echo_json(event)
        elif event.event not in QUIET:
            step = f" {event.data['step']}" if event.event == "step started" else ""
            echo(f"{event.at:%Y-%m-%d %H:%M:%S} {event.run_id} {event.event}{step}")

    def stopped() -> bool:
        while unsaid:  # asked for the first time when the engine is up
            echo(unsaid.pop(), err=True)
        # Who must hear of a run is told once it is let go, for until then it counts as running.
        for run_id in [one for one in ended if line.engine.find(one).pid is None]:
            ended.remove(run_id)
            line.alerts.run_ended(line.engine, run_id)
        return stop.is_set()

    line.engine.work(stopped, listener=say, **words)


def stop_event() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM from now on; a second one ends the process there and then.

    Nothing is lost by that: what is done is on record, and whoever has the engine next goes on from there.
    """
    told = threading.Event()

    def hear(_number: int, _frame: object) -> None:
        # Written past the buffers, in whose middle a signal may have come; the same one may end the reader.
        if told.is_set():
            with contextlib.suppress(OSError):
                os.write(2, b"Ended at once; what was under way goes on with the next worker\n")
            os._exit(Interrupted.exit_code)
        told.set()
        with contextlib.suppress(OSError):
            os.write(2, b"Stopping; what is under way stops where it can go on later. Again: at once\n")

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hear)
    return told


def log_option(command: Command) -> Command:
    """`--log-json FILE`."""
    return click.option(
        "--log-json",
        "log",
        type=click.Path(dir_okay=False, path_type=Path),
        callback=lambda _ctx, _param, path: None if path is None else Log(path, notice),
        metavar="FILE",
        help="Append each event as a JSON line with run, client and step; /dev/stderr is a file too.",
    )(command)


@contextlib.contextmanager
def waited_for(poll_s: float | None, log: Log | None, **words: Any) -> Iterator[FineTuneRunner]:
    """The library for a command that waits for its runs; what it does itself is observed as a worker's is.

    `words` are those of `FineTuneRunner`.
    """
    heard: list[Callable[[Event], None]] = []

    def observe(event: Event) -> None:
        for one in heard:
            one(event)

    line = runner(poll_s, engine=functools.partial(durable, observe=observe), **words)
    with observed(line, log) as hear:
        heard.append(hear)
        yield line


@contextlib.contextmanager
def observed(
    line: FineTuneRunner, log: Log | None, metrics_at: tuple[str, int] | None = None
) -> Iterator[Callable[[Event], None]]:
    """What is to hear every event for whoever was asked for: a log, the OTLP endpoint, Prometheus."""
    with contextlib.ExitStack() as stack:
        heard: list[Callable[[Event], None]] = [] if log is None else [log]
        if line.settings.otlp_endpoint is not None:
            from fine_tune_runner.observe.spans import Spans

            spans = Spans(line.settings, line.engine.events, notice)
            stack.callback(spans.close)
            heard.append(spans)
        if metrics_at is not None:
            from fine_tune_runner.observe.metrics import metrics

            heard.append(stack.enter_context(metrics(line.engine, *metrics_at)))

        def hear(event: Event) -> None:
            for one in heard:
                one(event)

        yield hear
