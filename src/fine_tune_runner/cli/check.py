"""`fine-tune check`."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import (
    client_option,
    echo,
    echo_json,
    json_option,
    runner,
    table,
    track_option,
    version_option,
)
from fine_tune_runner.types import Track

COLOURS = {"fail": "red", "warn": "yellow"}


@click.command("check")
@client_option
@version_option
@track_option
@json_option
def check_command(client_id: str, version: int, track: Track | None, as_json: bool) -> int:
    """Check a version and its holdout, and list all findings at once; exit 1 where one forbids training.

    \b
    Examples:
      fine-tune check --client hre --version 3
      fine-tune check --client hre --version 3 --json
    """
    findings = runner().findings(client_id, version, track)
    if as_json:
        echo_json(findings)
        return int(findings.failed)
    rows = [
        (
            item.level,
            item.check,
            f"{item.path}:{item.line}" if item.line else item.path,
            item.message + (f"; {item.remedy}" if item.remedy else ""),
        )
        for item in findings.items
    ]
    if rows:
        table(("level", "check", "where", "finding"), rows, [COLOURS.get(row[0]) for row in rows])
        echo()
    levels = [item.level for item in findings.items]
    counts = ", ".join(f"{levels.count(level)} {level}" for level in ("fail", "warn", "info"))
    if findings.tokens:
        tokens = findings.tokens
        text = (
            f"{tokens.total} ({tokens.loss} with loss), longest row {tokens.longest}, by {tokens.tokenizer}"
        )
        echo(f"Tokens: {text}")
    verdict = "✗ not ready to train" if findings.failed else "✓ ready to train"
    echo(f"{verdict}: {counts}", fg="red" if findings.failed else "green")
    return int(findings.failed)
