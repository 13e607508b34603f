"""`fine-tune eval`."""

from __future__ import annotations

import click

from fine_tune_runner.cli.common import (
    answers_option,
    client_option,
    echo,
    echo_json,
    json_option,
    runner,
    settings,
    strict_option,
    track_option,
    version_option,
)
from fine_tune_runner.cli.submit import EXIT_CODES
from fine_tune_runner.cli.transcript import RULE, JsonLines, Transcript
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import Track


@click.command("eval")
@client_option
@version_option
@track_option
@answers_option
@strict_option
@json_option
def eval_command(
    client_id: str,
    version: int,
    track: Track | None,
    answers: int | None,
    strict: bool,
    as_json: bool,
) -> int:
    """Score a registered version again on its holdout, beside the version in service.

    Score and verdict are stored; nothing is promoted. Exit code as the verdict: 0, 3 or 4.

    \b
    Examples:
      fine-tune eval --client hre --version 3
      fine-tune eval --client hre --version 3 --track b --json
      fine-tune eval --client hre --version 3 --answers 10 --strict
    """
    listener = JsonLines() if as_json else Transcript(load_client(settings(), client_id).name)
    try:
        report, verdict = runner(listener=listener).evaluate(
            client_id, version, track, strict=strict, answers=answers
        )
    finally:
        listener.close()
    if as_json:
        echo_json({"event": "result", "report": report, "verdict": verdict})
    else:
        echo(RULE)
        echo(f"  Verdict: {verdict.decision} — {verdict.reason}")
        if unread := len(report.new.unresolved):
            words = f"--client {client_id} --version {version}"
            echo(f"  No rule could read answers to {unread} questions; decide them: fine-tune review {words}")
    return EXIT_CODES[verdict.decision]
