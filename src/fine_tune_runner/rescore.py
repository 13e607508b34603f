"""Scoring an evaluation's stored answers again, once people confirmed labels or decided answers.

No model is asked: what a client's people say costs nothing and changes no answer.
"""

from __future__ import annotations

from fine_tune_runner.line import run_dir_of, trained_on
from fine_tune_runner.policy.held import held
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import EvalReport, Track, Verdict


@held
def rescore(
    runner: FineTuneRunner, client_id: str, version: int, track: Track | None = None
) -> tuple[EvalReport, Verdict]:
    """Score a version's last answers by labels and decisions of today; store and report the verdict.

    Promotes nothing. Raises DataError where more than those changed since (`Line.measure_again`).
    """
    client, entry = load_client(runner.settings, client_id), runner.entry(client_id, version, track)
    dataset, run_dir = trained_on(client, entry), run_dir_of(client, entry)
    line = runner.line(client, entry.track)
    report = line.measure_again(dataset, entry, run_dir)
    strict = entry.evaluation is not None and entry.evaluation.verdict.strict

    def emit(event: str, **data: object) -> None:
        """Nobody listens: the caller has report and verdict."""

    return report, line.record(report, run_dir, runner.who, emit, strict=strict)
