"""`fine-tune gate`: the regression guard on two files of answers."""

from __future__ import annotations

from pathlib import Path

import click

from fine_tune_runner.cli.common import echo, echo_json, json_option, settings, strict_option
from fine_tune_runner.cli.submit import EXIT_CODES
from fine_tune_runner.runner import minilm
from fine_tune_runner.settings import MOST_ANSWERS
from fine_tune_runner.types import Verdict

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("gate")
@click.option("--new", required=True, type=FILE, metavar="A.jsonl", help="Answers of the new version.")
@click.option(
    "--previous", required=True, type=FILE, metavar="B.jsonl", help="Answers of the one in service."
)
@click.option("--holdout", required=True, type=FILE, metavar="H.jsonl", help="The questions both answered.")
@click.option("--tolerance", type=click.FloatRange(0, 1), metavar="X", help="The drop allowed, such as 0.05.")
@click.option(
    "--answers",
    type=click.IntRange(1, MOST_ANSWERS),
    metavar="N",
    help="Count the first N answers to each question, and hold where one has fewer.",
)
@strict_option
@click.option("--leave-out", multiple=True, metavar="ID", help="A question not to count; may be repeated.")
@json_option
def gate_command(
    new: Path,
    previous: Path,
    holdout: Path,
    tolerance: float | None,
    answers: int | None,
    strict: bool,
    leave_out: tuple[str, ...],
    as_json: bool,
) -> int:
    """Compare two files of answers to one holdout; asks no model, changes nothing.

    Both are scored again by the rules of today; stored scores are not looked at. Exit code: 0 promote,
    3 refuse, 4 hold.

    \b
    Examples:
      fine-tune gate --new A.jsonl --previous B.jsonl --holdout H.jsonl
      fine-tune gate --new A.jsonl --previous B.jsonl --holdout H.jsonl --answers 5 --strict --json
    """
    from fine_tune_runner.evaluation.answer_sets import gate_answers

    machine = settings()
    verdict = gate_answers(
        new,
        previous,
        holdout,
        minilm(machine),
        tolerance=machine.tolerance if tolerance is None else tolerance,
        strict=strict,
        answers=answers,
        leave_out=leave_out,
    )
    code = EXIT_CODES[verdict.decision]
    if as_json:
        echo_json({"event": "result", "verdict": verdict, "exit_code": code})
    else:
        _show(verdict)
    return code


def _show(verdict: Verdict) -> None:
    strength = f" ({verdict.strength})" if verdict.strength else ""
    colour = {"promote": "green", "refuse": "red", "hold": "yellow"}[verdict.decision]
    echo(f"{verdict.decision}{strength}: {verdict.reason}", fg=colour)
    if verdict.p_worse is None or verdict.low is None or verdict.high is None:
        return
    echo(f"  P(worse than {-verdict.tolerance:+g}):      {verdict.p_worse:.0%}")
    echo(f"  80 % interval of change: {verdict.low:+.3f} to {verdict.high:+.3f}")
    echo(f"  Smallest visible drop:   {verdict.smallest_visible_drop:.3f}")
    echo(f"  Answers a question:      {verdict.answers_per_question}")
    echo(f"  Lost:   {', '.join(verdict.lost) or 'none'}")
    echo(f"  Gained: {', '.join(verdict.gained) or 'none'}")
