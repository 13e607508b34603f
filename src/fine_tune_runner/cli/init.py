"""`fine-tune init`."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import client_option, echo, echo_json, json_option, settings
from fine_tune_runner.scaffold import scaffold


@click.command("init")
@client_option
@click.option("--name", metavar="TEXT", help="What people call the client.")
@click.option("--sensitive", is_flag=True, help="The client's data may not leave the private network.")
@json_option
def init_command(client_id: str, name: str | None, sensitive: bool, as_json: bool) -> int:
    """Make a client's folder with its config and a template of each file that upstream writes.

    Existing files are left as they are.

    \b
    Examples:
      fine-tune init --client hre --name "HRE Retail"
      fine-tune init --client teleios --sensitive
    """
    written = scaffold(settings(), client_id, name, sensitive)
    if as_json:
        echo_json({"client_id": client_id, "written": [str(path) for path in written]})
        return 0
    for path in written:
        echo(f"✓ {path}")
    echo("Next: publish v1.jsonl and v1_eval.jsonl there, then:")
    echo(f"  fine-tune check --client {client_id} --version 1")
    return 0
