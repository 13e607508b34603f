"""`fine-tune logs`: what happened in a run, from its file of events, which has none of the client's text."""

from __future__ import annotations

import time

import click
import msgspec

from fine_tune_runner.cli.common import echo, echo_json, json_option, notice, reader
from fine_tune_runner.workflow.engine import Event

ENDS = ("finished", "failed", "cancelled", "waiting")
LOOK_S = 0.5


@click.command("logs")
@click.argument("run_id", metavar="RUN")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is at its end.")
@json_option
def logs_command(run_id: str, follow: bool, as_json: bool) -> int:
    """What happened in a run, one event a line.

    \b
    Examples:
      fine-tune logs hre-v3-a-1a2b3c4d-1
      fine-tune logs -f hre-v3-a-1a2b3c4d-1
      fine-tune logs hre-v3-a-1a2b3c4d-1 --json
    """
    engine = reader().engine
    shown, state = 0, "running"
    while True:
        before, state = state, engine.find(run_id).state
        events = engine.events(run_id)
        for event in events[shown:]:
            say(event, as_json)
        shown = len(events)
        if not follow or state in ENDS:
            return 0
        if before == state == "interrupted":  # twice: not between two workers
            notice(f"nobody works on {run_id}, it was interrupted; go on with: fine-tune resume {run_id}")
            return 0
        time.sleep(LOOK_S)


def say(event: Event, as_json: bool) -> None:
    """One event on one line."""
    if as_json:
        echo_json(event)
        return
    words = [f"{key}={text(value)}" for key, value in event.data.items()]
    echo(" ".join([f"{event.at:%Y-%m-%d %H:%M:%S}", event.event, *words]))


def text(value: object) -> str:
    """A value of an event, short enough for a line."""
    whole = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return whole if len(whole) <= 80 else f"{whole[:79]}…"
