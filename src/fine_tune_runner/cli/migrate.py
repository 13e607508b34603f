"""`fine-tune migrate`: the version in service, on the other track."""

from __future__ import annotations

import click

from fine_tune_runner.cli.background import log_option, waited_for
from fine_tune_runner.cli.common import (
    client_option,
    confirm,
    echo,
    echo_json,
    json_option,
    notice,
    poll_option,
    settings,
    table,
    yes_option,
)
from fine_tune_runner.cli.submit import closing
from fine_tune_runner.cli.transcript import JsonLines, Transcript
from fine_tune_runner.migrate import Parity, Side, moving, parity
from fine_tune_runner.observe.log import Log
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import Track


@click.command("migrate")
@client_option
@click.option(
    "--to", type=click.Choice(["a", "b"], case_sensitive=False), required=True, help="The other track."
)
@click.option(
    "--answers-per-month",
    "answers",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    metavar="N",
    help="For the price of a month.",
)
@click.option("--max-cost", type=click.FloatRange(min=0), metavar="USD", help="Refuse above this estimate.")
@click.option("--again", is_flag=True, help="Another attempt, where one was refused, held or failed.")
@log_option
@poll_option
@yes_option
@json_option
def migrate_command(
    client_id: str,
    to: str,
    answers: int,
    max_cost: float | None,
    again: bool,
    log: Log | None,
    poll_s: float | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Retrain the version in service on the other track, from the same data set, and compare both.

    Both models answer the same holdout while both can be called. The guard decides as always: promoted where
    the new model is not worse, else the old one stays in service. A sensitive client cannot go to Track A.

    With OTEL_EXPORTER_OTLP_ENDPOINT it sends spans as `fine-tune worker` does.

    \b
    Examples:
      fine-tune migrate --client hre --to b
      fine-tune migrate --client hre --to b --answers-per-month 20000
    """
    track: Track = "A" if to.lower() == "a" else "B"
    client = load_client(settings(), client_id)
    listener = JsonLines() if as_json else Transcript(client.name)
    with waited_for(poll_s, log, listener=listener, confirm=confirm(yes)) as line:
        try:
            job = line.start(moving(line, client_id, track, max_cost_usd=max_cost, again=again))
        finally:
            listener.close()
    found = parity(line, job, answers)
    if as_json:
        echo_json({"event": "parity", "parity": found})
    else:
        show(found)
    entry = line.entry(client_id, job.version, track)
    if entry.active and client.config.preferred_track not in (None, track):
        notice(f'config.json says "track_preference": "{client.config.track_preference}": change it to stay')
    return closing(job, entry, client.name, as_json)


def show(found: Parity) -> None:
    """The parity report as a table, the model in service so far first."""
    sides = [found.old, found.new] if found.old else [found.new]
    rows = (
        ("model", [side.model_id for side in sides]),
        ("problem recall", [_number(side.recall, "{:.0%}") for side in sides]),
        ("solution accuracy", [_number(side.similarity, "{:.2f}") for side in sides]),
        ("tokens an answer", [_number(side.tokens_per_answer, "{:.0f}") for side in sides]),
        (f"price of {found.answers_per_month} answers", [_month(side) for side in sides]),
    )
    echo(f"\nParity on the same {found.questions} questions:")
    header = ("", *(f"v{side.key.version} (track {side.key.track})" for side in sides))
    table(header, [(name, *values) for name, values in rows])
    verdict = found.verdict
    for name, ids in (("lost", verdict.lost), ("gained", verdict.gained)):
        echo(f"{name}: {len(ids)}{': ' + ', '.join(ids) if ids else ''}")
    echo(f"verdict: {verdict.decision}: {verdict.reason}")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _month(side: Side) -> str:
    return "own hardware" if side.month_usd == 0 else _number(side.month_usd, "${:.2f} a month")
