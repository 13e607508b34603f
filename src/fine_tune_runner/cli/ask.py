"""`fine-tune ask`."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import client_option, echo, echo_json, json_option, runner


@click.command("ask")
@client_option
@click.argument("question")
@json_option
def ask_command(client_id: str, question: str, as_json: bool) -> int:
    """Let the model in service answer one question.

    \b
    Examples:
      fine-tune ask --client hre "Purchases count twice since Monday"
    """
    answer = runner().ask(client_id, question)
    if as_json:
        echo_json({"client_id": client_id, "question": question, "answer": answer})
    else:
        echo(answer)
    return 0
