"""`fine-tune submit`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import click

from fine_tune_runner.cli import say_error
from fine_tune_runner.cli.background import log_option, waited_for
from fine_tune_runner.cli.common import (
    answers_option,
    confirm,
    echo,
    echo_json,
    json_option,
    money,
    notice,
    poll_option,
    runner,
    settings,
    strict_option,
    track_option,
    yes_option,
)
from fine_tune_runner.cli.transcript import RULE, JsonLines, Transcripts
from fine_tune_runner.dataset import read
from fine_tune_runner.errors import RunnerError
from fine_tune_runner.observe.log import Log
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import Job, Purpose, RegistryEntry, Request, Run, Track

EXIT_CODES = {"promote": 0, "refuse": 3, "hold": 4}
Version = int | Literal["latest"]


def _version(_ctx: click.Context, _param: click.Parameter, value: str) -> Version:
    if value == "latest":
        return "latest"
    if not (value.isascii() and value.isdigit() and int(value) >= 1):
        raise click.BadParameter(f"{value!r} is no version; give a number from 1, or latest")
    return int(value)


@click.command("submit")
@click.option(
    "--client",
    "client_ids",
    required=True,
    multiple=True,
    metavar="ID",
    help="A client's id; may be repeated.",
)
@click.option(
    "--version",
    required=True,
    callback=_version,
    metavar="N|latest",
    help="The version, such as 3; latest: the highest with both files, of each client.",
)
@track_option
@click.option("--purpose", type=click.Choice(["iteration", "production"]), help="Helps to choose the track.")
@click.option("--max-cost", type=click.FloatRange(min=0), metavar="USD", help="Refuse above this estimate.")
@click.option("--again", is_flag=True, help="A new attempt at a version that was refused, held or failed.")
@click.option("--dry-run", is_flag=True, help="Check and estimate only: nothing is sent, trained or written.")
@click.option("--detach", is_flag=True, help="Leave the run to a worker and return at once.")
@answers_option
@strict_option
@log_option
@poll_option
@yes_option
@json_option
def submit_command(
    client_ids: tuple[str, ...],
    version: Version,
    track: Track | None,
    purpose: Purpose | None,
    max_cost: float | None,
    again: bool,
    dry_run: bool,
    detach: bool,
    answers: int | None,
    strict: bool,
    log: Log | None,
    poll_s: float | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Train a version, evaluate it, and promote it or refuse it.

    An unfinished run of the same version goes on where it stopped. A run that is at its end is only reported.

    Several clients run side by side; on own hardware those with the same base and settings train together.
    What stops one stops no other, costs are asked for once, and the highest exit code counts.

    With OTEL_EXPORTER_OTLP_ENDPOINT it sends spans as `fine-tune worker` does.

    \b
    Examples:
      fine-tune submit --client teleios --version 1
      fine-tune submit --client hre --version 3 --track b --dry-run
      fine-tune submit --client hre --version 3 --track a --max-cost 15 --yes
      fine-tune submit --client hre --version 3 --again --json
      fine-tune submit --client hre --version 3 --answers 10 --strict
      fine-tune submit --client hre --version 3 --detach
      fine-tune submit --client teleios --client rtt --version latest
    """

    def request(client_id: str) -> Request:
        latest = read.latest(load_client(settings(), client_id).dir) if version == "latest" else version
        return Request(
            client_id=client_id,
            version=latest,
            track=track,
            purpose=purpose,
            max_cost_usd=max_cost,
            again=again,
            strict=strict,
            answers=answers,
        )

    names = list(dict.fromkeys(client_ids))
    if dry_run:
        return each(names, lambda name: preview(request(name), as_json), as_json)
    if detach:
        return each(names, lambda name: leave(request(name), yes, as_json), as_json)
    return follow(names, request, poll_s, yes, as_json, log)


def follow(
    client_ids: Sequence[str],
    request: Callable[[str], Request],
    poll_s: float | None,
    yes: bool,
    as_json: bool,
    log: Log | None = None,
) -> int:
    """Run what is asked for of each client, side by side, and show it; the highest exit code."""
    names: dict[str, str] = {}
    listener: Any = None
    runs: dict[str, Run] = {}

    def begin(line: FineTuneRunner, client_id: str) -> int:
        run = line.run_for(request(client_id))
        names[client_id] = load_client(settings(), client_id).name
        if not as_json:
            whose = f"{client_id}: " if len(client_ids) > 1 else ""
            echo(f"{whose}Track {run.track}: {run.track_reason}", err=True)
        if yes:
            line.engine.approve(run)
        runs[client_id] = run
        return 0

    ask = confirm(yes, before=lambda: listener.close())
    with waited_for(poll_s, log, listener=lambda event: listener(event), confirm=ask) as line:
        code = each(client_ids, functools.partial(begin, line), as_json)
        listener = JsonLines() if as_json else Transcripts(names)
        try:
            ended = dict(zip(runs, line.start_all(list(runs.values())), strict=True))
        finally:
            listener.close()

    def end(client_id: str) -> int:
        job = ended.get(client_id)
        if job is None:
            return 0  # told already
        if isinstance(job, RunnerError):
            raise job
        entry = line.entry(client_id, job.version, job.track)
        return closing(job, entry, names[client_id], as_json)

    return max(code, each(client_ids, end, as_json))


def each(client_ids: Sequence[str], do: Callable[[str], int], as_json: bool) -> int:
    """Do something for each client; what stops one is told and stops no other. The highest exit code."""
    code = 0
    for client_id in client_ids:
        try:
            code = max(code, do(client_id))
        except RunnerError as error:
            say_error(error.code, str(error), as_json, client_id if len(client_ids) > 1 else None)
            code = max(code, error.exit_code)
    return code


def leave(request: Request, approved: bool, as_json: bool) -> int:
    """Leave a run to the workers; its id is all that goes to stdout. One that is at its end is reported."""
    line = runner()
    run = line.run_for(request)
    if not line.leave(run, approved=approved):
        name = load_client(line.settings, run.client_id).name
        return closing(line.job(run.run_id), line.entry(run.client_id, run.version, run.track), name, as_json)
    queued(run.run_id, as_json)
    return 0


def queued(run_id: str, as_json: bool) -> None:
    """Say that a run was left to the workers."""
    if as_json:
        echo_json({"event": "queued", "run_id": run_id})
        return
    echo(run_id)
    echo(f"Queued for a worker (fine-tune worker); look on: fine-tune logs -f {run_id}", err=True)


def preview(request: Request, as_json: bool) -> int:
    """Print what a run would do; 1 where a finding forbids it."""
    found = runner().preview(request)
    if as_json:
        echo_json(found)
        return int(found.findings.failed)
    echo(f"Track {found.choice.track}: {found.choice.reason}")
    dataset = found.dataset
    echo(f"Data:     {dataset.train_path} ({dataset.examples} records), sha256 {dataset.sha256[:8]}")
    fails, warns = (sum(f.level == level for f in found.findings.items) for level in ("fail", "warn"))
    echo(f"Findings: {fails} faults, {warns} warnings")
    estimate = found.estimate
    if estimate is not None:
        minutes = (
            "not known before a first run here"
            if estimate.duration_s is None
            else f"{estimate.duration_s / 60:.1f} min"
        )
        tokens = f"{estimate.tokens_per_epoch} an epoch, {estimate.epochs} epochs"
        echo(f"Tokens:   {tokens}, {estimate.steps} steps")
        echo(f"Cost:     {money(estimate)}")
        echo(f"Time:     {minutes}")
    echo("Dry run: nothing was sent, trained or written.")
    return int(found.findings.failed)


def closing(job: Job, entry: RegistryEntry, name: str, as_json: bool) -> int:
    """The last lines of a run, and its exit code by the verdict and by what is in service."""
    decision = job.verdict.decision if job.verdict else "hold"
    # An override or an earlier promotion counts for more than the verdict of the day.
    code = 0 if entry.active else EXIT_CODES[decision]
    if as_json:
        echo_json({"event": "result", "job": job, "entry": entry, "exit_code": code})
        return code
    echo(RULE)
    title = f"{name} v{entry.version}"
    if entry.active:
        echo(f"  ✓ {title} live — ready for routing", fg="green")
        echo(f"  Next: openclaw register --client {job.client_id} --model {entry.model_id}")
    elif entry.status == "archived":
        back = f"fine-tune rollback --client {job.client_id} --version {entry.version}"
        echo(f"  {title} was in service before; back to it: {back}")
    else:
        word = {"refuse": "refused", "hold": "held"}.get(decision, entry.status)
        echo(f"  ✗ {title} {word} — the version in service stays", fg="red")
        notice("a new attempt: the same command with --again")
        which = f"--client {job.client_id} --version {entry.version}"
        notice(f"against the verdict: fine-tune promote {which} --override 'reason'")
    return code
