"""`fine-tune runs`, `resume`, `retry`, `approve` and `cancel`: runs by their id."""

from __future__ import annotations

from collections.abc import Sequence

import click

from fine_tune_runner.cli.background import log_option, waited_for
from fine_tune_runner.cli.common import (
    confirm,
    echo,
    echo_json,
    json_option,
    notice,
    poll_option,
    reader,
    runner,
    settings,
    table,
    yes_option,
)
from fine_tune_runner.cli.submit import closing, queued
from fine_tune_runner.cli.transcript import JsonLines, Transcript
from fine_tune_runner.errors import RunError, RunnerError
from fine_tune_runner.observe.log import Log
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import client_ids, load_client
from fine_tune_runner.workflow.engine import RunState

PAINT = {"running": "yellow", "finished": "green", "failed": "red", "waiting": "yellow"}
NEXT = {
    "waiting": "fine-tune approve {}",
    "failed": "fine-tune retry {}",
    "interrupted": "fine-tune resume {}",
    "cancelled": "fine-tune resume {}",
    "queued": "fine-tune worker",
    "running": "fine-tune logs -f {}",
}


@click.group("runs", invoke_without_command=True)
@click.option("--client", "client_id", metavar="ID", help="Only this client.")
@json_option
@click.pass_context
def runs_command(context: click.Context, client_id: str | None, as_json: bool) -> int:
    """All runs, oldest first: how far each is, and what it waits for.

    \b
    Examples:
      fine-tune runs
      fine-tune runs --client hre --json
      fine-tune runs show hre-v3-a-1a2b3c4d-1
    """
    if context.invoked_subcommand is not None:
        return 0
    states = known(reader(), client_id)
    if as_json:
        for state in states:
            echo_json(state)
    elif not states:
        echo("No runs yet. Begin one: fine-tune submit --client NAME --version N")
    else:
        header = ("run", "state", "last step", "updated", "next")
        table(header, [cells(state) for state in states], [PAINT.get(state.state) for state in states])
    return 0


def known(line: FineTuneRunner, client_id: str | None) -> list[RunState]:
    """The runs, oldest first; a client whose runs cannot be read is noticed and the others still show."""
    if client_id is not None:
        return list(line.engine.runs(load_client(line.settings, client_id).id))
    found: list[RunState] = []
    for name in client_ids(line.settings):
        try:
            found += line.engine.runs(name)
        except (RunnerError, OSError) as error:
            notice(f"{name}: {error}")
    return sorted(found, key=lambda state: (state.run.created_at, state.run.run_id))


@runs_command.command("show")
@click.argument("run_id", metavar="RUN")
@json_option
def show_command(run_id: str, as_json: bool) -> int:
    """One run: what it is, its steps so far, and what became of it.

    \b
    Examples:
      fine-tune runs show hre-v3-a-1a2b3c4d-1
      fine-tune runs show hre-v3-a-1a2b3c4d-1 --json
    """
    engine = reader().engine
    state = engine.find(run_id)
    if as_json:
        echo_json(state)
        return 0
    run = state.run
    echo(f"Run:      {run.run_id}")
    echo(f"What:     {run.client_id} v{run.version}, track {run.track} ({run.track_reason})")
    echo(f"Begun:    {run.created_at:%Y-%m-%d %H:%M:%S} UTC by {run.who}")
    alive = f", in process {state.pid}" if state.pid is not None else ""
    echo(f"State:    {state.state}{alive}", fg=PAINT.get(state.state))
    echo(f"Steps:    {', '.join(state.done) or 'none yet'}")
    if state.error:
        echo(f"Error:    {state.error}", fg="red")
    if state.state in NEXT:
        echo(f"Next:     {NEXT[state.state].format(run_id)}")
    return 0


def cells(state: RunState) -> Sequence[str]:
    """A run as a person reads it."""
    updated = f"{state.updated_at:%Y-%m-%d %H:%M}" if state.updated_at else "–"
    last = state.done[-1] if state.done else "–"
    return state.run.run_id, state.state, last, updated, NEXT.get(state.state, "–").format(state.run.run_id)


@click.command("retry")
@click.argument("run_ids", metavar="RUN...", nargs=-1, required=True)
@json_option
def retry_command(run_ids: Sequence[str], as_json: bool) -> int:
    """Put failed runs back on the queue; a worker goes on with the step that failed.

    \b
    Examples:
      fine-tune retry hre-v3-a-1a2b3c4d-1
      fine-tune retry hre-v3-a-1a2b3c4d-1 rtt-v2-b-5e6f7a8b-1
    """
    line = runner()
    states = [line.engine.find(run_id) for run_id in run_ids]
    for state in states:
        if state.state != "failed":
            raise RunError(f"run {state.run.run_id} is {state.state}, not failed; nothing was put back")
    for state in states:
        line.leave(state.run)
        queued(state.run.run_id, as_json)
    return 0


@click.command("approve")
@click.argument("run_id", metavar="RUN")
@json_option
def approve_command(run_id: str, as_json: bool) -> int:
    """Say yes to what a run costs; a worker then goes on with it.

    \b
    Examples:
      fine-tune approve hre-v3-a-1a2b3c4d-1
    """
    line = runner()
    state = line.engine.find(run_id)
    if state.state != "waiting":
        raise RunError(f"run {run_id} is {state.state}; it does not wait for a yes")
    line.leave(state.run, approved=True)
    queued(run_id, as_json)
    return 0


@click.command("resume")
@click.argument("run_id", metavar="RUN")
@log_option
@poll_option
@yes_option
@json_option
def resume_command(run_id: str, log: Log | None, poll_s: float | None, yes: bool, as_json: bool) -> int:
    """Go on with a run where it stopped.

    A run whose folder was lost is begun again under its own name, and finds the job that it paid for.
    With OTEL_EXPORTER_OTLP_ENDPOINT it sends spans as `fine-tune worker` does.

    \b
    Examples:
      fine-tune resume teleios-v1-b-1a2b3c4d-1
      fine-tune resume hre-v3-a-1a2b3c4d-1 --poll-interval 30
    """
    return go_on(run_id, poll_s, yes, as_json, log)


def go_on(run_id: str, poll_s: float | None, yes: bool, as_json: bool, log: Log | None = None) -> int:
    """Go on with a run and show it; the exit code of its verdict."""
    run = runner().named(run_id)
    name = load_client(settings(), run.client_id).name
    listener = JsonLines() if as_json else Transcript(name)
    with waited_for(poll_s, log, listener=listener, confirm=confirm(yes)) as line:
        try:
            if yes:
                line.engine.approve(run)
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
