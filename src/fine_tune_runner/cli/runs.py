"""`fine-tune resume` and `fine-tune cancel`: runs by their id."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import (
    confirm,
    echo,
    echo_json,
    json_option,
    poll_option,
    runner,
    settings,
    yes_option,
)
from fine_tune_runner.cli.submit import closing
from fine_tune_runner.cli.transcript import JsonLines, Transcript
from fine_tune_runner.settings import load_client


@click.command("resume")
@click.argument("run_id", metavar="RUN")
@poll_option
@yes_option
@json_option
def resume_command(run_id: str, poll_s: float | None, yes: bool, as_json: bool) -> int:
    """Go on with a run where it stopped.

    A run whose folder was lost is begun again under its own name, and finds the job that it paid for.

    \b
    Examples:
      fine-tune resume teleios-v1-b-1a2b3c4d-1
      fine-tune resume hre-v3-a-1a2b3c4d-1 --poll-interval 30
    """
    return go_on(run_id, poll_s, yes, as_json)


def go_on(run_id: str, poll_s: float | None, yes: bool, as_json: bool) -> int:
    """Go on with a run and show it; the exit code of its verdict."""
    run = runner().named(run_id)
    name = load_client(settings(), run.client_id).name
    listener = JsonLines() if as_json else Transcript(name)
    line = runner(poll_s, listener=listener, confirm=confirm(yes))
    try:
        job = line.start(run)
    finally:
        listener.close()
    return closing(job, line.entry(run.client_id, run.version, run.track), name, as_json)


@click.command("cancel")
@click.argument("run_id", metavar="RUN")
@json_option
def cancel_command(run_id: str, as_json: bool) -> int:
    """Stop a run, and its job at a hosted provider.

    On own hardware what it did is kept, and `resume` goes on with it. A hosted job that was stopped cannot go
    on: its training file is deleted there, and `submit --again` makes another attempt.

    \b
    Examples:
      fine-tune cancel teleios-v1-b-1a2b3c4d-1
      fine-tune cancel hre-v3-a-1a2b3c4d-1
    """
    line = runner()
    said = line.cancel(run_id)
    if as_json:
        echo_json({"status": line.poll(run_id), "message": said})
    else:
        echo(said)
    return 0
