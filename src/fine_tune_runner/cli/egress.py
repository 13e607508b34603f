"""`fine-tune egress`: what a run reached, and what it was refused."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import echo, echo_json, json_option, runner, table
from fine_tune_runner.policy.record import RECORD, EgressRecord, Reached, summary
from fine_tune_runner.settings import load_client


@click.command("egress")
@click.argument("run_id", metavar="RUN")
@json_option
def egress_command(run_id: str, as_json: bool) -> int:
    """What a run reached: host, port, bytes; and what it was refused, with the code that asked.

    Bytes are those of HTTP before encryption, counted where a connection is the runner's own; "–" stands
    where a library opened it. Native code that opens a socket itself is not seen.

    \b
    Examples:
      fine-tune egress teleios-v1-b-1a2b3c4d-1
      fine-tune egress hre-v3-a-1a2b3c4d-1 --json
    """
    line = runner()
    run = line.engine.find(run_id).run
    folder = load_client(line.settings, run.client_id).dir / "runs" / run_id
    rows = summary(EgressRecord(folder / RECORD).read())
    if as_json:
        for row in rows:
            echo_json(row)
        return 0
    reached = [row for row in rows if not row.refused]
    refused = [row for row in rows if row.refused]
    if reached:
        header = ("host", "port", "address", "what", "times", "sent", "received")
        table(header, [_cells(row) for row in reached])
    else:
        echo("Reached nothing.")
    if refused:
        echo()
        echo("Refused:")
    for row in refused:
        place = row.host if row.port is None else f"{row.host}:{row.port}"
        times = "once" if row.attempts == 1 else f"{row.attempts} times"
        echo(f"✗ {row.what} {place}, {times}: {row.refused}", fg="red")
        for by in row.by:
            echo(f"    by {by}")
    return 0


def _cells(row: Reached) -> tuple[str, ...]:
    address = ", ".join(a for a in row.addresses if a != row.host) or "–"
    sent, received = (size(count) for count in (row.sent, row.received))
    port = "–" if row.port is None else str(row.port)
    return (row.host, port, address, row.what, str(row.attempts), sent, received)


def size(count: int | None) -> str:
    """Bytes as a person reads them; "–" where nobody counted."""
    if count is None:
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
