"""`fine-tune resume` and `fine-tune cancel`: runs by their id."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import echo, echo_json, json_option, runner, settings
from fine_tune_runner.cli.submit import closing
from fine_tune_runner.cli.transcript import JsonLines, Transcript
from fine_tune_runner.settings import load_client


@click.command("resume")
@click.argument("run_id", metavar="RUN")
@json_option
def resume_command(run_id: str, as_json: bool) -> int:
    """Go on with a run where it stopped.

    \b
    Examples:
      fine-tune resume teleios-v1-b-1a2b3c4d-1
    """
    run = runner().engine.find(run_id).run
    name = load_client(settings(), run.client_id).name
    listener = JsonLines() if as_json else Transcript(name)
    line = runner(listener=listener)
    try:
        job = line.start(run)
    finally:
        listener.close()
    return closing(job, line.entry(run.client_id, run.version, run.track), name, as_json)


@click.command("cancel")
@click.argument("run_id", metavar="RUN")
@json_option
def cancel_command(run_id: str, as_json: bool) -> int:
    """Stop a run; what it did is kept, and `resume` goes on with it.

    \b
    Examples:
      fine-tune cancel teleios-v1-b-1a2b3c4d-1
    """
    line = runner()
    line.engine.cancel(run_id)
    if as_json:
        echo_json(line.poll(run_id))
    else:
        echo(f"{run_id} was asked to stop; go on with it: fine-tune resume {run_id}")
    return 0
