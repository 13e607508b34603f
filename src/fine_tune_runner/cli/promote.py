"""`fine-tune promote` and `fine-tune rollback`: what is in service changes here and nowhere else."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import (
    client_option,
    echo,
    echo_json,
    json_option,
    runner,
    track_option,
    version_option,
)
from fine_tune_runner.cli.submit import EXIT_CODES
from fine_tune_runner.types import Track


@click.command("promote")
@client_option
@version_option
@track_option
@click.option("--override", metavar="REASON", help="Promote against the verdict; the reason stays on record.")
@json_option
def promote_command(
    client_id: str, version: int, track: Track | None, override: str | None, as_json: bool
) -> int:
    """Put a version into service as its stored verdict says.

    Exit code: 0 promoted, 3 refused, 4 held, 1 never evaluated.

    \b
    Examples:
      fine-tune promote --client hre --version 3
      fine-tune promote --client hre --version 3 --override "holdout row 7 is wrong, see ticket 412"
    """
    entry, verdict = runner().promote(client_id, version, track, override=override)
    code = 0 if entry.active or verdict is None else EXIT_CODES[verdict.decision]
    if as_json:
        echo_json({"event": "result", "entry": entry, "verdict": verdict, "exit_code": code})
    elif entry.active:
        echo(f"✓ {client_id} → {entry.model_id} (v{entry.version}, track {entry.track})", fg="green")
    elif verdict is not None:
        echo(f"✗ v{version} {entry.status}: {verdict.reason}", err=True, fg="red")
        echo("  The version in service stays. Against the verdict: --override 'reason'", err=True)
    return code


@click.command("rollback")
@client_option
@version_option
@track_option
@click.option("--why", default="rollback", metavar="REASON", help="Goes on record.")
@json_option
def rollback_command(client_id: str, version: int, track: Track | None, why: str, as_json: bool) -> int:
    """Reactivate an earlier version at once; one that was in service before.

    \b
    Examples:
      fine-tune rollback --client hre --version 2
      fine-tune rollback --client hre --version 2 --why "v3 invents tag names"
    """
    entry = runner().rollback(client_id, version, track, why=why)
    if as_json:
        echo_json({"event": "result", "entry": entry})
    else:
        echo(f"✓ {client_id} → {entry.model_id} (v{entry.version}, track {entry.track})", fg="green")
    return 0
