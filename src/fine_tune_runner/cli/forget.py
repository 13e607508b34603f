"""`fine-tune forget`."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import client_option, echo, echo_json, interactive, json_option, runner
from fine_tune_runner.erasure import forget, forgetting
from fine_tune_runner.errors import Interrupted, UsageError


@click.command("forget")
@client_option
@click.option("--dry-run", is_flag=True, help="Only list what would be erased.")
@click.option("--here-only", is_flag=True, help="Leave what a hosted provider has of this client.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def forget_command(client_id: str, dry_run: bool, here_only: bool, yes: bool, as_json: bool) -> int:
    """Erase a client: data, holdouts, runs, models, registry and record, here and at its hosted provider.

    This cannot be undone. What stays is one line that says when and by whom, in .fine-tune/forgotten.jsonl.
    The folder is set aside first: an erasure that was cut off is finished by the next command that writes.

    \b
    Examples:
      fine-tune forget --client hre --dry-run
      fine-tune forget --client hre
    """
    line = runner()
    plan = forgetting(line, client_id)
    if not dry_run and not yes:
        if not interactive():
            raise UsageError(f"this erases {plan.files} files of {client_id} for good; say --yes to do it")
        typed = click.prompt(
            f"This erases {plan.files} files for good. Type {client_id!r} to go on", default=""
        )
        if typed != client_id:
            raise Interrupted("nothing was erased")
    if not dry_run:
        plan = forget(line, client_id, here_only=here_only)
    if as_json:
        echo_json({"client_id": client_id, "plan": plan, "erased": not dry_run})
    else:
        verb = "would erase" if dry_run else "erased"
        models = ", ".join(plan.models) or "none"
        echo(f"{verb} {plan.folder}: {plan.files} files, {plan.bytes / 1e6:.1f} MB; models: {models}")
        for model_id in plan.elsewhere:
            echo(f"deleted at the provider: {model_id}")
    return 0
