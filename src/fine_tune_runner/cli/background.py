"""Runs that are done in the background of a command: their events as lines, alerts for those that ended."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from fine_tune_runner.alerts import ENDS
from fine_tune_runner.cli.common import echo, echo_json
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.workflow.engine import Event

QUIET: Sequence[str] = ("train step", "evaluation progress", "job status", "train checkpoint")


def do_runs(
    line: FineTuneRunner,
    stop: threading.Event,
    *,
    as_json: bool,
    hear: Callable[[Event], None] = lambda _event: None,
    **words: Any,
) -> None:
    """Do queued runs until `stop`; `words` are those of `Engine.work`. `hear` is told of every event too."""
    ended: list[str] = []

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
        # Who must hear of a run is told once it is let go, for until then it counts as running.
        for run_id in [one for one in ended if line.engine.find(one).pid is None]:
            ended.remove(run_id)
            line.alerts.run_ended(line.engine, run_id)
        return stop.is_set()

    line.engine.work(stopped, listener=say, **words)
