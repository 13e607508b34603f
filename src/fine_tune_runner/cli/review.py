"""`fine-tune review`: a person decides what no rule could, and the verdict follows from stored answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import click

from fine_tune_runner.cli.common import (
    client_option,
    echo,
    echo_json,
    interactive,
    json_option,
    notice,
    runner,
    track_option,
    version_option,
)
from fine_tune_runner.line import run_dir_of
from fine_tune_runner.rescore import rescore
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, load_client
from fine_tune_runner.types import RegistryEntry, Track

if TYPE_CHECKING:
    from fine_tune_runner.evaluation.review import Asked, Item


@click.command("review")
@client_option
@version_option
@track_option
@click.option(
    "--decisions",
    type=click.File("rb"),
    metavar="FILE",
    help="Decisions as JSON lines (question, answer, right) instead of a dialogue; - is standard input.",
)
@click.option(
    "--again", is_flag=True, help="Also what was decided, or read by a judge; the last word counts."
)
@json_option
def review_command(
    client_id: str, version: int, track: Track | None, decisions: BinaryIO | None, again: bool, as_json: bool
) -> int:
    """Decide the answers that no rule could read, and those to lost and gained questions.

    A decision counts for these words to this question ever after; where an embedding suggests a cause, one
    key takes it. The stored answers are then scored again, without a call; score and verdict are stored,
    nothing is promoted. Without a terminal, or with --json,
    what waits is only listed.

    \b
    Examples:
      fine-tune review --client hre --version 3
      fine-tune review --client hre --version 3 --json | jq -c '. + {right: true}' > said.jsonl
      fine-tune review --client hre --version 3 --decisions said.jsonl
    """
    line = runner()
    client, entry = load_client(line.settings, client_id), line.entry(client_id, version, track)
    if decisions is None and (as_json or not interactive()):
        _list(_asked(client, entry), again, as_json)
        return 0
    if _asked(client, entry).stale:
        _rescore(line, entry, client_id, as_json)  # a label was confirmed, or a session was cut off
        entry = line.entry(client_id, version, entry.track)
    if decisions is not None:
        kept = _take(line, client, _asked(client, entry), decisions)
    else:
        kept = _dialogue(line, client, _asked(client, entry), again)
    if as_json:
        echo_json({"event": "decided", "decisions": kept})
    else:
        echo(f"{kept} decisions kept")
    if _asked(client, entry).stale:
        _rescore(line, entry, client_id, as_json)
    return 0


def _asked(client: Client, entry: RegistryEntry) -> Asked:
    from fine_tune_runner.evaluation.review import last_asked

    return last_asked(client, entry, run_dir_of(client, entry))


def _keep(line: FineTuneRunner, client: Client, question: str, answer: str, right: bool) -> None:
    from fine_tune_runner.evaluation.decisions import Decided, append_decision, decisions_path

    decided = Decided(question=question, answer=answer, right=right, who=line.who, at=line.clock())
    append_decision(decisions_path(client.dir), decided)


def _take(line: FineTuneRunner, client: Client, asked: Asked, decisions: BinaryIO) -> int:
    """Keep the decisions of a file, all or none; returns their number."""
    from fine_tune_runner.evaluation.review import read_words, waiting

    words = read_words(decisions.read().splitlines(), waiting(asked, again=True), "--decisions")
    for word in words:
        _keep(line, client, word.question, word.answer, word.right)
    return len(words)


def _dialogue(line: FineTuneRunner, client: Client, asked: Asked, again: bool) -> int:
    """Ask about each answer; a decision is on disk before the next question. Returns how many were made."""
    from fine_tune_runner.evaluation.review import waiting

    items, kept = waiting(asked, again=again), 0
    if not items:
        echo("Nothing waits: every answer was read by a rule or decided.")
    for number, item in enumerate(items, 1):
        _show(item, f"[{number}/{len(items)}] ")
        words = click.Choice(["r", "w", *"n" * bool(item.nearest), "s", "q"], case_sensitive=False)
        take = f"(n)earest: it means {item.nearest}, " if item.nearest else ""
        word = click.prompt(
            f"Is the answer right? (r)ight, (w)rong, {take}(s)kip, (q)uit", type=words, show_choices=False
        )
        if word == "q":
            break
        if word != "s":
            right = item.nearest_right if word == "n" else word == "r"
            _keep(line, client, item.question, item.answer, right)
            kept += 1
    return kept


def _show(item: Item, head: str = "") -> None:
    echo()
    echo(f"{head}{item.id} · {item.reason} · {', '.join(item.by)}", fg="cyan")
    said = f"{'right' if item.decided.right else 'wrong'}, by {item.decided.who}" if item.decided else ""
    for name, text in (
        ("Question", item.asked),
        ("Reference", item.reference),
        ("Right cause", item.right_cause),
        ("Answer", item.said),
        ("Committed to", f"{item.cause or 'none'} ({item.why})"),
        ("Nearest", f"{item.nearest}, a suggestion; not counted" if item.nearest else ""),
        ("Counts as", "right" if item.counted_right else "wrong"),
        ("Decided", said),
    ):
        if text:
            first, *more = text.splitlines()
            echo(f"  {name + ':':<14}{first}")
            for rest in more:
                echo(f"{'':<16}{rest}")


def _list(asked: Asked, again: bool, as_json: bool) -> None:
    from fine_tune_runner.evaluation.review import waiting

    if asked.stale:
        notice("labels or decisions are newer than these scores; fine-tune review on a terminal scores again")
    items = waiting(asked, again=again)
    for item in items:
        if as_json:
            echo_json(item)
        else:
            _show(item)
    if not as_json:
        echo(f"{len(items)} answers wait; decide them on a terminal, or with --decisions FILE")


def _rescore(line: FineTuneRunner, entry: RegistryEntry, client_id: str, as_json: bool) -> None:
    report, verdict = rescore(line, client_id, entry.version, entry.track)
    if as_json:
        echo_json({"event": "result", "report": report, "verdict": verdict})
        return
    for warning in report.warnings:
        notice(warning)
    echo("The stored answers were scored again; no model was asked.")
    echo(f"Verdict: {verdict.decision} — {verdict.reason}")
    if verdict.decision == "promote" and not entry.active:
        echo(f"Next: fine-tune promote --client {client_id} --version {entry.version}")
