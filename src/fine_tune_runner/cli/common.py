"""What every command shares: options, the runner behind them, a table that reads well through a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import msgspec

from fine_tune_runner.driving import Confirm
from fine_tune_runner.erasure import sweep
from fine_tune_runner.errors import RunnerError, UsageError
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import MOST_ANSWERS, Settings, load_settings
from fine_tune_runner.types import Estimate, Track

MARKS = {
    "active": ("● active", "green"),
    "eval": ("◐ eval", "yellow"),
    "training": ("◐ training", "yellow"),
    "interrupted": ("◌ interrupted", "yellow"),
    "refused": ("✗ refused", "red"),
    "failed": ("✗ failed", "red"),
    "held": ("held", "yellow"),
}


def colour() -> bool | None:
    """What click is told about colour: None lets it decide by the terminal, False forbids it."""
    return False if os.environ.get("NO_COLOR") else None


def echo(text: str = "", *, err: bool = False, fg: str | None = None) -> None:
    """Print one line, coloured only on a terminal without NO_COLOR."""
    click.secho(text, err=err, fg=fg, color=colour())


def echo_json(value: object) -> None:
    """Print one JSON object on one line."""
    click.echo(msgspec.json.encode(value).decode())


def notice(text: str) -> None:
    """A warning, on stderr."""
    echo(f"Note: {text}", err=True, fg="yellow")


def settings(poll_s: float | None = None) -> Settings:
    """The machine's settings, from the environment and .env; `poll_s` counts for more where it is given."""
    found = load_settings(os.environ)
    return found if poll_s is None else msgspec.structs.replace(found, poll_s=poll_s)


def reader() -> FineTuneRunner:
    """The library over this machine's settings, for commands that change nothing."""
    return FineTuneRunner(settings(), notice=notice)


def runner(poll_s: float | None = None, **words: Any) -> FineTuneRunner:
    """The library over this machine's settings, once what a crash left of a `forget` is finished."""
    found = settings(poll_s)
    try:
        for client_id in sweep(found):
            notice(f"finished erasing {client_id}, which was cut off")
    except RunnerError as error:
        notice(f"an erasure that was cut off is still to be finished: {error}")
    return FineTuneRunner(found, notice=notice, **words)


def money(estimate: Estimate) -> str:
    """The price of a run as a person reads it."""
    if estimate.cost_usd is None:
        return f"an unknown price ({estimate.price_source})"
    about = "about " if estimate.cost_usd else ""
    return f"{about}${estimate.cost_usd:.2f} ({estimate.price_source})"


def confirm(yes: bool, before: Callable[[], None] = lambda: None) -> Confirm:
    """What is asked before runs that cost money, once for all and on a terminal; `yes` answers.

    `before` is called where somebody is asked.
    """

    def ask(estimates: Mapping[str, Estimate]) -> bool:
        if yes:
            return True
        said, them = costs(estimates), "it" if len(estimates) == 1 else "them"
        if not interactive():
            raise UsageError(f"{said}; say --yes to start {them}")
        before()
        return click.confirm(f"{said[0].upper()}{said[1:]}. Start {them}?")

    return ask


def costs(estimates: Mapping[str, Estimate]) -> str:
    """What runs cost, in words; of several each one's price, and the sum of those that are known."""
    if len(estimates) == 1:
        return f"this run costs {money(next(iter(estimates.values())))}"
    each = "; ".join(f"{run_id} {money(estimate)}" for run_id, estimate in estimates.items())
    known = [estimate.cost_usd for estimate in estimates.values() if estimate.cost_usd is not None]
    more = "" if len(known) == len(estimates) else " and what is not known"
    return f"these {len(estimates)} runs cost about ${sum(known):.2f}{more} together ({each})"


def interactive() -> bool:
    """Whether a person sits at both ends of this command."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def table(header: Sequence[str], rows: Sequence[Sequence[str]], paint: Sequence[str | None] = ()) -> None:
    """Print rows in aligned columns; `paint` colours a whole row."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()

    echo(line(header))
    echo("  ".join("─" * width for width in widths))
    for row, colour_name in zip(rows, [*paint, *[None] * (len(rows) - len(paint))], strict=True):
        echo(line(row), fg=colour_name)


def _track(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Track | None:
    return None if value is None else ("A" if value.lower() == "a" else "B")


Command = Callable[..., Any]


def client_option(command: Command) -> Command:
    """`--client ID`, required."""
    return click.option("--client", "client_id", required=True, metavar="ID", help="The client's id.")(
        command
    )


def version_option(command: Command) -> Command:
    """`--version N`, required, from 1."""
    return click.option(
        "--version", required=True, type=click.IntRange(min=1), metavar="N", help="The version, such as 3."
    )(command)


def track_option(command: Command) -> Command:
    """`--track a|b`."""
    return click.option(
        "--track",
        type=click.Choice(["a", "b"], case_sensitive=False),
        callback=_track,
        help="a: hosted, b: own hardware.",
    )(command)


def yes_option(command: Command) -> Command:
    """`--yes`."""
    return click.option("--yes", is_flag=True, help="Do not ask before a run that costs money.")(command)


def poll_option(command: Command) -> Command:
    """`--poll-interval SECONDS`."""
    return click.option(
        "--poll-interval",
        "poll_s",
        type=click.FloatRange(min=0, max=3600, min_open=True),
        metavar="SECONDS",
        help="How often to look at a hosted job (60).",
    )(command)


def answers_option(command: Command) -> Command:
    """`--answers N`, 1 to MOST_ANSWERS."""
    return click.option(
        "--answers",
        type=click.IntRange(1, MOST_ANSWERS),
        metavar="N",
        help="Answers to each question; else as many as the gate needs, up to 10.",
    )(command)


def strict_option(command: Command) -> Command:
    """`--strict`."""
    return click.option(
        "--strict", is_flag=True, help="Hold (4) where the evidence for a promotion is weak."
    )(command)


def json_option(command: Command) -> Command:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of text.")(
        command
    )
