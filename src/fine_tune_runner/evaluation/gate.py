"""The regression guard: promote, refuse or hold. Pure; missing evidence never passes.

`judge` is the gate over two sets of scores by question; `decide` applies it to a report; `undecided` says
whether more answers are worth asking for. Certainty is said, and does not decide (facts/evaluation.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from fine_tune_runner.evaluation.bootstrap import p_worse, smallest_visible_drop
from fine_tune_runner.types import Decision, EvalReport, Evaluation, Measure, ScoreCard, Verdict, VersionKey

SCHEDULE = (1, 3, 5, 10)  # answers a question; the next stage is asked while the gate is undecided
FEW = 20  # questions; below it one lost answer alone exceeds the tolerance, so one answer decides nothing
SURE = 0.10  # strong below this P(worse), or above 1 less this
LEAST_SHARED = 5  # fewer questions that both can be compared on say nothing
MOST_FAILED = 0.10  # share of calls; above it the scores rest on chance
DRAWN_APART = "its answers were given under another system prompt or decoding"
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


def schedule(questions: int) -> tuple[int, ...]:
    """Answers a question, stage by stage: below 20 questions it begins with 3 (benchmarks/gate.py)."""
    return SCHEDULE[1:] if questions < FEW else SCHEDULE


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


def card_scores(card: ScoreCard, only: Sequence[str] = ()) -> Scores:
    """A card's means by question as the gate takes them; `only` these, where any are named."""
    return {q: (mean,) for q, mean in card.per_question.items() if not only or q in only}


def undecided(new: Scores, previous: Scores, tolerance: float) -> bool:
    """Whether P(worse than the tolerance) lies between .10 and .90; False where nothing can be compared."""
    compared = compare(new, previous)
    if isinstance(compared, str) or not _is_tolerance(tolerance):
        return False
    return SURE <= p_worse(list(compared.differences.values()), tolerance)[0] <= 1 - SURE


def judge(
    new: Scores,
    previous: Scores,
    tolerance: float,
    *,
    strict: bool = False,
    measure: Measure = "recall",
    than: str = "the previous version",
    drawn_alike: bool = True,
) -> Verdict:
    """The gate on two sets of answers to the same questions; `strict` turns a weak promote into hold.

    The plain rule decides, on the mean over questions. It is strong where P(worse) agrees with it beyond
    .10 or .90 and both sets were drawn under the same system prompt and decoding (`drawn_alike`), else weak.
    Whatever is missing or not a number holds. Raises nothing.
    """
    compared = compare(new, previous)
    if not _is_tolerance(tolerance):
        compared = f"the tolerance {tolerance} is no fraction"
    if isinstance(compared, str):
        return Verdict(decision="hold", reason=compared, measure=measure, tolerance=tolerance, strict=strict)
    differences = list(compared.differences.values())
    worse, low, high = p_worse(differences, tolerance)
    decision: Decision = "promote" if passes(compared.delta, tolerance) else "refuse"
    doubts: tuple[str, ...] = () if drawn_alike else (DRAWN_APART,)
    if not (worse < SURE if decision == "promote" else worse > 1 - SURE):
        doubts += (f"{worse:.0%} likely worse than that",)
    reason = (
        f"{measure} {compared.new:.3f} against {compared.previous:.3f} of {than} "
        f"({compared.delta:+.3f}, tolerance {tolerance:g})"
    )
    if doubts:
        reason += f"; weak: {' and '.join(doubts)}"
        if strict and decision == "promote":
            decision, reason = "hold", f"{reason}, and weak evidence does not promote under --strict"
    return Verdict(
        decision=decision,
        reason=reason,
        measure=measure,
        tolerance=tolerance,
        new=compared.new,
        previous=compared.previous,
        delta=compared.delta,
        lost=compared.lost,
        gained=compared.gained,
        p_worse=worse,
        low=low,
        high=high,
        strength="weak" if doubts else "strong",
        smallest_visible_drop=smallest_visible_drop(differences),
        answers_per_question=max(map(len, [*new.values(), *previous.values()])),
        strict=strict,
    )


def decide(report: EvalReport, tolerance: float, *, strict: bool = False) -> Verdict:
    """Promote, refuse or hold, by the report's measure and the same questions on both sides.

    A first version is promoted once every question of it was answered. Whatever is missing or not a number
    holds. Raises nothing.
    """
    fault = _fault(report, tolerance)
    if fault is None and report.previous is not None:
        new, previous = card_scores(report.new, report.shared), card_scores(report.previous)
        than = _name(report)
        if report.shared:
            when = f" of {report.stored_at:%Y-%m-%d}" if report.stored_at else ""
            than += f", by its stored answers{when} to {len(report.shared)} shared questions"
        verdict = judge(
            new,
            previous,
            tolerance,
            strict=strict,
            measure=report.measure,
            than=than,
            drawn_alike=report.drawn_alike,
        )
        verdict = msgspec.structs.replace(verdict, answers_per_question=report.answers_per_question)
    else:
        verdict = Verdict(
            decision="promote" if fault is None else "hold",
            reason=fault or "first version: nothing in service to compare with",
            measure=report.measure,
            tolerance=tolerance,
            strict=strict,
        )
    return msgspec.structs.replace(
        verdict, compared_with=report.previous_key, holdout_sha256=report.holdout_sha256
    )


def _fault(report: EvalReport, tolerance: float) -> str | None:
    """Why nothing can be compared; None where a first version, or two cards, are sound."""
    if new := card_fault(report.new, report.measure, report.fingerprint):
        return f"the new version cannot be judged: {new}"
    if report.not_comparable:
        return report.not_comparable
    if not _is_tolerance(tolerance):
        return f"the tolerance {tolerance} is no fraction"
    if report.previous is None:
        return f"{_name(report)} could not be asked" if report.previous_key is not None else None
    if previous := card_fault(report.previous, report.measure, report.fingerprint):
        return f"{_name(report)} cannot be judged: {previous}"
    if report.new.fingerprint != report.previous.fingerprint:
        return "the two versions were scored in different ways"
    if report.shared and len(report.shared) < LEAST_SHARED:
        return f"only {len(report.shared)} questions are shared; {LEAST_SHARED} are needed"
    return None


def behind_best(
    key: VersionKey, verdict: Verdict, evaluations: Mapping[VersionKey, Evaluation], tolerance: float
) -> str | None:
    """A warning where small steps down, each within the tolerance, add up to more than it; else None.

    `evaluations` are the registry's. Each stored change was measured on one set of questions by one scorer,
    so the changes from the best version to this one are added up, as far back as they have the same measure;
    scores with different fingerprints are never compared, and the warning says what the sum is.
    """
    total, worst, best = 0.0, 0.0, key
    step, seen = verdict, {key}
    while (
        step.compared_with is not None
        and step.delta is not None
        and step.compared_with not in seen
        and step.measure == verdict.measure
    ):
        total += step.delta
        seen.add(step.compared_with)
        if total < worst:
            worst, best = total, step.compared_with
        if step.compared_with not in evaluations:
            break
        step = evaluations[step.compared_with].verdict
    if best in (key, verdict.compared_with) or passes(worst, tolerance):
        return None
    return (
        f"v{key.version} (track {key.track}) is {100 * -worst:.0f} points below v{best.version} "
        f"(track {best.track}), the best so far, by steps that were measured one by one, each on the holdout "
        "of its day; the two were not compared. Consider a rollback to it"
    )


def card_fault(card: ScoreCard, measure: Measure, fingerprint: str) -> str | None:
    """Why a score card is no evidence under this measure and scorer; None where it is."""
    if card.questions < 1 or not card.per_question:
        return "no question was answered"
    if len(card.per_question) != card.questions:
        missing = card.questions - len(card.per_question)
        return f"{missing} of {card.questions} questions have no answer ({card.failed} calls failed)"
    if card.failed > MOST_FAILED * (card.failed + card.answers):
        return f"{card.failed} of {card.failed + card.answers} calls failed; evaluate again"
    if card.fingerprint != fingerprint:
        was = card.fingerprint or "nobody knows"
        return f"scored as {was}, expected as {fingerprint}; score the answers again"
    pooled = {"recall": card.recall, "contrast": card.contrast, "similarity": card.similarity}[measure]
    if pooled is None or not _is_score(pooled):
        return f"its {measure} is {pooled}"
    broken = sorted(q for q, value in card.per_question.items() if not _is_score(value))
    return f"a score that is no number from 0 to 1: {_some(broken)}" if broken else None


def _name(report: EvalReport) -> str:
    key = report.previous_key
    return f"v{key.version} (track {key.track})" if key else "the previous version"


def _is_score(value: float) -> bool:
    # Cosines may exceed 1 by a rounding error and lie below 0.
    return math.isfinite(value) and -1 - 1e-6 <= value <= 1 + 1e-6


def _is_tolerance(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
