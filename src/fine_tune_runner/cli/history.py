"""`fine-tune history` and `fine-tune verify`: the record behind a registry."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from fine_tune_runner.cli.common import client_option, echo, echo_json, json_option, notice, reader, table
from fine_tune_runner.errors import RunnerError, UsageError
from fine_tune_runner.registry import edits
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import client_ids


@click.command("history")
@client_option
@click.option("--at", "at", metavar="TIME", help="Only say what was in service then (ISO 8601).")
@json_option
def history_command(client_id: str, at: str | None, as_json: bool) -> int:
    """Who promoted or rolled back what, when and why.

    \b
    Examples:
      fine-tune history --client hre
      fine-tune history --client hre --at 2026-11-20T12:00
    """
    registry = reader().registry(client_id)
    if at is not None:
        time = parse_time(at)
        active = edits.active(registry.at(time))
        if as_json:
            echo_json({"client_id": client_id, "at": time, "active": active})
        elif active is None:
            echo(f"{client_id} had no version in service at {time:%Y-%m-%d %H:%M:%S} UTC")
        else:
            echo(
                f"{client_id} → {active.model_id} ({edits.spell(active.key)}) at {time:%Y-%m-%d %H:%M:%S} UTC"
            )
        return 0
    lines = registry.history()
    if as_json:
        for line in lines:
            echo_json(
                {k: getattr(line, k) for k in ("seq", "at", "who", "action", "subject", "why", "run_id")}
            )
        return 0
    header = ("when (UTC)", "who", "what", "version", "why")
    table(header, [(f"{x.at:%Y-%m-%d %H:%M:%S}", x.who, x.action, x.subject or "–", x.why) for x in lines])
    return 0


@click.command("verify")
@click.option("--client", "client_id", metavar="ID", help="Only this client.")
@json_option
def verify_command(client_id: str | None, as_json: bool) -> int:
    """Check each registry against its record and the record against itself; exit 1 where one is wrong.

    \b
    Examples:
      fine-tune verify
      fine-tune verify --client hre --json
    """
    line = reader()
    names = [client_id] if client_id else client_ids(line.settings)
    wrong = []
    for name in names:
        changes, faults = _verified(line, name)
        wrong += [name] if faults else []
        if as_json:
            echo_json({"client_id": name, "changes": changes, "faults": faults})
            continue
        known = "cannot be read" if changes is None else f"{changes} changes on record"
        echo(f"{'✗' if faults else '✓'} {name}: {known}", fg="red" if faults else None)
        for fault in faults:
            echo(f"    {fault}")
    if not names and not as_json:
        echo(f"No clients in {line.settings.data_dir}, so nothing was verified.")
    if wrong and len(names) > 1:
        notice(f"wrong: {', '.join(wrong)}")
    return int(bool(wrong))


def _verified(line: FineTuneRunner, name: str) -> tuple[int | None, list[str]]:
    """How many changes a client's record has, None where it cannot be read, and what is wrong."""
    try:
        registry = line.registry(name)
        return len(registry.history()), registry.verify()
    except (RunnerError, OSError) as error:
        return None, [str(error)]


def parse_time(text: str) -> datetime:
    """ISO 8601; without a zone it is UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--at {text!r}: give an ISO 8601 time, such as 2026-11-20T12:00") from None
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
