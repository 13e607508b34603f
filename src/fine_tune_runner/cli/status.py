"""`fine-tune status`: one table over all clients, from files alone."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import MARKS, echo, echo_json, json_option, notice, reader, table
from fine_tune_runner.status import Row, rows


@click.command("status")
@click.option("--client", "client_id", metavar="ID", help="Only this client.")
@json_option
def status_command(client_id: str | None, as_json: bool) -> int:
    """What is in service for whom, what waits, and what is on its way.

    \b
    Examples:
      fine-tune status
      fine-tune status --client hre --json
    """
    line = reader()
    found = rows(line, client_id, notice)
    if as_json:
        for row in found:
            echo_json(row)
        return 0
    if not found:
        echo(f"No clients in {line.settings.data_dir}. Make one: fine-tune init --client NAME")
        return 0
    header = ("client", "version", "track", "eval score", "model id", "status")
    table(header, [cells(row) for row in found], [MARKS.get(row.status, ("", None))[1] for row in found])
    for row in found:
        if row.warning:
            notice(row.warning)
    return 0


def cells(row: Row) -> tuple[str, ...]:
    """A row as a person reads it."""
    score = "–" if row.version is None or row.model_id is None else "pending"
    return (
        row.client,
        "–" if row.version is None else f"v{row.version}",
        row.track or "–",
        score if row.eval_score is None else f"{row.eval_score:.2f}",
        row.model_id or row.note,
        MARKS.get(row.status, (row.status, None))[0],
    )
