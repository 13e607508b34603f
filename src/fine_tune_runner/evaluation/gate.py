"""The regression guard: promote, refuse or hold. Pure; missing evidence never passes.

`compare` works on two sets of scores by question, so that more answers a question and statements of
certainty can be added without touching the rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from fine_tune_runner.types import Decision, EvalReport, ScoreCard, Verdict

EPSILON = 1e-9  # 0.35 >= 0.40 - 0.05 is False in floating point

Scores = Mapping[str, Sequence[float]]  # question id → the scores of its answers, each in 0..1


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two models on the same questions; `differences` is new minus previous by question."""

    new: float
    previous: float
    delta: float
    differences: dict[str, float]

    @property
    def lost(self) -> tuple[str, ...]:
        """Questions on which the new model scores lower."""
        return tuple(q for q, d in self.differences.items() if d < -EPSILON)

    @property
    def gained(self) -> tuple[str, ...]:
        """Questions on which the new model scores higher."""
        return tuple(q for q, d in self.differences.items() if d > EPSILON)


def compare(new: Scores, previous: Scores) -> Comparison | str:
    """Mean over questions of (mean answers new - mean answers previous), or why there is none.

    Both sets must hold the same questions, each with at least one answer, all scores finite.
    """
    if not new or not previous:
        return "no question was answered"
    if new.keys() != previous.keys():
        apart = sorted(new.keys() ^ previous.keys())
        return f"not both models answered: {_some(apart)}"
    empty = sorted(q for q in new if not new[q] or not previous[q])
    if empty:
        return f"no answer to: {_some(empty)}"
    broken = sorted(q for q in new if not all(_is_score(s) for s in (*new[q], *previous[q])))
    if broken:
        return f"a score that is no number from 0 to 1: {_some(broken)}"
    differences = {q: _mean(new[q]) - _mean(previous[q]) for q in new}
    return Comparison(
        new=_mean([_mean(new[q]) for q in new]),
        previous=_mean([_mean(previous[q]) for q in new]),
        delta=_mean(list(differences.values())),
        differences=differences,
    )


def passes(delta: float, tolerance: float) -> bool:
    """The plain rule of spec.md; False for NaN."""
    return delta >= -tolerance - EPSILON


def decide(report: EvalReport, tolerance: float) -> Verdict:
    """Promote, refuse or hold, by the report's measure and the same questions on both sides.

    A first version is promoted once every question of it was answered. Whatever is missing or not a number
    holds. Raises nothing.
    """
    new = _card_fault(report.new, report)
    if new:
        return _verdict(report, tolerance, "hold", f"the new version cannot be judged: {new}")
    if report.not_comparable:
        return _verdict(report, tolerance, "hold", report.not_comparable)
    if not math.isfinite(tolerance) or tolerance < 0:
        return _verdict(report, tolerance, "hold", f"the tolerance {tolerance} is no fraction")
    if report.previous is None and report.previous_key is not None:
        return _verdict(report, tolerance, "hold", f"{_name(report)} could not be asked")
    if report.previous is None:
        return _verdict(report, tolerance, "promote", "first version: nothing in service to compare with")
    previous = _card_fault(report.previous, report)
    if previous:
        return _verdict(report, tolerance, "hold", f"{_name(report)} cannot be judged: {previous}")
    if report.new.fingerprint != report.previous.fingerprint:
        return _verdict(report, tolerance, "hold", "the two versions were scored in different ways")
    compared = compare(_as_scores(report.new), _as_scores(report.previous))
    if isinstance(compared, str):
        return _verdict(report, tolerance, "hold", compared)
    passed = passes(compared.delta, tolerance)
    reason = (
        f"{report.measure} {compared.new:.3f} against {compared.previous:.3f} of {_name(report)} "
        f"({compared.delta:+.3f}, tolerance {tolerance:g})"
    )
    return _verdict(report, tolerance, "promote" if passed else "refuse", reason, compared)


def _as_scores(card: ScoreCard) -> Scores:
    return {question: (value,) for question, value in card.per_question.items()}


def _card_fault(card: ScoreCard, report: EvalReport) -> str | None:
    """Why a score card is not evidence; None where it is."""
    if card.questions < 1 or not card.per_question:
        return "no question was answered"
    if len(card.per_question) != card.questions:
        missing = card.questions - len(card.per_question)
        return f"{missing} of {card.questions} questions have no answer ({card.failed} calls failed)"
    if card.fingerprint and card.fingerprint != report.fingerprint:
        return f"scored as {card.fingerprint}, the report as {report.fingerprint}; score the answers again"
    pooled = {"recall": card.recall, "contrast": card.contrast, "similarity": card.similarity}[report.measure]
    if pooled is None or not _is_score(pooled):
        return f"its {report.measure} is {pooled}"
    broken = sorted(q for q, value in card.per_question.items() if not _is_score(value))
    return f"a score that is no number from 0 to 1: {_some(broken)}" if broken else None


def _verdict(
    report: EvalReport, tolerance: float, decision: Decision, reason: str, compared: Comparison | None = None
) -> Verdict:
    return Verdict(
        decision=decision,
        reason=reason,
        measure=report.measure,
        tolerance=tolerance,
        new=compared.new if compared else None,
        previous=compared.previous if compared else None,
        delta=compared.delta if compared else None,
        compared_with=report.previous_key,
        lost=compared.lost if compared else (),
        gained=compared.gained if compared else (),
        holdout_sha256=report.holdout_sha256,
    )


def _name(report: EvalReport) -> str:
    key = report.previous_key
    return f"v{key.version} (track {key.track})" if key else "the previous version"


def _is_score(value: float) -> bool:
    # Cosines may exceed 1 by a rounding error and lie below 0.
    return math.isfinite(value) and -1 - 1e-6 <= value <= 1 + 1e-6


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
