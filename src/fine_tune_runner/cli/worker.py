"""`fine-tune worker`: does queued runs until it is told to stop; systemd and launchd keep it up."""

from __future__ import annotations

from collections.abc import Sequence

import click

from fine_tune_runner.cli.background import do_runs, log_option, observed, stop_event
from fine_tune_runner.cli.common import json_option, poll_option, runner
from fine_tune_runner.errors import UsageError
from fine_tune_runner.observe.log import Log
from fine_tune_runner.types import PLACES, Place


def _places(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Sequence[Place] | None:
    if value is None:
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if unknown := sorted(set(names) - set(PLACES)):
        raise UsageError(f"--queues: {', '.join(unknown)} is none of {', '.join(PLACES)}")
    return [place for place in PLACES if place in names]


def _address(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, int] | None:
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--metrics {value}: give an address to listen at, such as 127.0.0.1:9464")
    return host.strip("[]"), int(port)


@click.command("worker")
@click.option(
    "--queues",
    callback=_places,
    metavar="NAMES",
    help="Which of registry, hosted, evaluate, train it serves (all); registry: at the home host only.",
)
@click.option("--label", "labels", multiple=True, metavar="NAME", help="What it is trusted with: private.")
@click.option(
    "--metrics",
    "metrics_at",
    callback=_address,
    metavar="HOST:PORT",
    help="Serve Prometheus metrics there, at /metrics.",
)
@log_option
@poll_option
@json_option
def worker_command(
    queues: Sequence[Place] | None,
    labels: Sequence[str],
    metrics_at: tuple[str, int] | None,
    log: Log | None,
    poll_s: float | None,
    as_json: bool,
) -> int:
    """Do queued runs, in this process, until Ctrl-C or SIGTERM.

    What is under way then stops where it can go on later; a worker that is started again, or another one,
    goes on with it. A second Ctrl-C ends it at once, as a crash would: what is done stays done.

    Alone on SQLite a worker is trusted with sensitive clients; with FINE_TUNE_DATABASE_URL only one that is
    labelled private is.

    With OTEL_EXPORTER_OTLP_ENDPOINT it sends a span a run and a step there, over HTTP; those of sensitive
    clients only within the private network. Log lines, spans and metrics hold ids, times and numbers, never
    a client's text.

    \b
    Examples:
      fine-tune worker
      fine-tune worker --queues train,evaluate --label private
      fine-tune worker --metrics 127.0.0.1:9464 --log-json /var/log/fine-tune.jsonl
    """
    told = stop_event()
    line = runner(poll_s)
    with observed(line, log, metrics_at) as hear:
        ready = "Worker ready; stop it with Ctrl-C"
        do_runs(line, told, as_json=as_json, hear=hear, ready=ready, places=queues, labels=labels or None)
    return 0
