"""`fine-tune prune`."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import client_option, echo, echo_json, json_option, runner
from fine_tune_runner.prune import KEEP, prunable, prune
from fine_tune_runner.registry import edits


@click.command("prune")
@client_option
@click.option(
    "--keep",
    type=click.IntRange(min=0),
    default=KEEP,
    show_default=True,
    metavar="N",
    help="How many archived versions stay, the newest, to roll back to.",
)
@click.option("--dry-run", is_flag=True, help="Only list what would be deleted.")
@json_option
def prune_command(client_id: str, keep: int, dry_run: bool, as_json: bool) -> int:
    """Delete the models of archived versions, in Ollama or at the provider and in the client's folder.

    The version in service stays, and so do the newest archived ones. Answers, reports and history stay; a
    pruned version can be trained again, not rolled back to.

    \b
    Examples:
      fine-tune prune --client hre --dry-run
      fine-tune prune --client hre --keep 1
    """
    line = runner()
    found = prunable(line.registry(client_id).entries(), keep) if dry_run else prune(line, client_id, keep)
    if as_json:
        echo_json(
            {
                "client_id": client_id,
                "deleted": not dry_run,
                "models": [
                    {"version": e.version, "track": e.track, "model_id": e.model_id or e.artifact}
                    for e in found
                ],
            }
        )
        return 0
    verb = "would delete" if dry_run else "deleted"
    for entry in found:
        echo(f"{verb} {entry.model_id or entry.artifact} ({edits.spell(entry.key)})")
    if not found:
        echo(f"nothing to prune: {client_id} has no archived versions beyond the newest {keep}")
    return 0
