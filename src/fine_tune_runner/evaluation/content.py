"""Everything a report says, as one frozen value: JSON is this value, Markdown and the page print it.

A pure function of a report, its verdict and what the run left behind; every text in it is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.dataset.secrets import mask
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.evaluation.proof import Proof
from fine_tune_runner.evaluation.sentence import NAMES, headline, kind, number, points, pooled, shown
from fine_tune_runner.evaluation.side_by_side import Row, question_rows
from fine_tune_runner.types import EvalReport, Finding, ScoreCard, T, TokenStats, Verdict, VersionKey

# (row of the table, field of ScoreCard, how it is printed)
ROWS = (
    ("Problem recall", "recall", "percent"),
    ("Contrast (approximate)", "contrast", "percent"),
    ("Solution accuracy (mean cosine)", "similarity", "cosine"),
    ("Floor (cosine between references)", "similarity_floor", "cosine"),
    ("Nearest to own reference", "own_reference_share", "percent"),
    ("Questions", "questions", "count"),
    ("Answers", "answers", "count"),
    ("Failed calls", "failed", "count"),
)

Facts = tuple[tuple[str, str], ...]  # (name, value)


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """One version of the client, as the registry has it; `change` was measured on one set of questions."""

    name: str
    status: str
    active: bool
    here: bool
    score: float | None
    measure: str
    change: str
    model_id: str
    holdout: str
    at: datetime
    cost: str


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the registry's record about this version."""

    at: datetime
    who: str
    action: str
    why: str


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A report in the order in which it is read; `names` are the versions compared, the older one first."""

    headline: str
    report: EvalReport
    verdict: Verdict
    certainty: Facts
    names: tuple[str, ...]
    scores: tuple[tuple[str, tuple[str, ...]], ...]
    history: tuple[Past, ...]
    questions: tuple[Row, ...]
    reading: Facts
    findings: tuple[Finding, ...]
    checked: bool
    losses: tuple[tuple[int, float], ...]
    usage: Facts
    provenance: Facts
    record: tuple[Act, ...]


def content(report: EvalReport, verdict: Verdict, proof: Proof) -> Content:
    """All of it; what the run did not leave behind is empty."""
    cards = card_list(report)
    report, verdict = masked(report, EvalReport), masked(verdict, Verdict)
    labels = [(name, card.label) for name, card in cards]
    return Content(
        headline=headline(report, verdict),
        report=report,
        verdict=verdict,
        certainty=certainty(verdict),
        names=tuple(name for name, _ in cards),
        scores=_scores(report, verdict, [card for _, card in cards]),
        history=_history(proof, report.key),
        questions=question_rows(report, verdict, proof.questions, proof.answers, labels),
        reading=tuple((name, _methods(card, report.judge)) for name, card in cards),
        findings=tuple(masked(f, Finding) for f in proof.findings if f.level != "info"),
        checked=proof.tokens is not None or bool(proof.findings),
        losses=proof.losses,
        usage=_masked_facts(_usage(proof)),
        provenance=_masked_facts(_provenance(report, verdict, cards, proof)),
        record=tuple(
            Act(at=line.at, who=mask(line.who), action=line.action, why=mask(line.why))
            for line in proof.record
            if line.subject == shown(report.key)
        ),
    )


def card_list(report: EvalReport) -> list[tuple[str, ScoreCard]]:
    """(name, score card) of all that were asked, the oldest first."""
    cards = [(_short(report.key), report.new)]
    if report.previous is not None and report.previous_key is not None:
        cards.insert(0, (_short(report.previous_key), report.previous))
    if report.base is not None:
        cards.insert(0, ("base model", report.base))
    return cards


def masked(value: T, shape: type[T]) -> T:
    """The same value with every text in it masked, keys too, so that ids still match."""
    return msgspec.convert(_masked(msgspec.to_builtins(value)), threadsafe(shape))


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {_masked(k): _masked(v) for k, v in value.items()}
    return [_masked(v) for v in value] if isinstance(value, list | tuple) else value


def _masked_facts(facts: Sequence[tuple[str, str]]) -> Facts:
    return tuple((mask(name), mask(value)) for name, value in facts)


def certainty(verdict: Verdict) -> Facts:
    """How sure the verdict is; empty where nothing was compared."""
    if verdict.p_worse is None or verdict.low is None or verdict.high is None:
        return ()
    return (
        (f"Probability of a loss over {100 * verdict.tolerance:g} points", f"{verdict.p_worse:.0%}"),
        ("80 % interval of the change", f"{points(verdict.low)} to {points(verdict.high)} points"),
        ("Smallest visible drop", f"{100 * (verdict.smallest_visible_drop or 0):.0f} points"),
        ("Answers a question", f"{verdict.answers_per_question}"),
    )


def _scores(
    report: EvalReport, verdict: Verdict, cards: Sequence[ScoreCard]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Only the rows that some card has; first the scores compared, where those are not of all questions."""
    compared: tuple[tuple[str, tuple[str, ...]], ...] = ()
    if report.shared and verdict.previous is not None and len(cards) == 2:
        values = tuple(number(value, kind(report)) for value in (verdict.previous, verdict.new))
        compared = ((f"On the {len(report.shared)} questions that both have", values),)
    return compared + tuple(
        (name, tuple(number(getattr(card, field), how) for card in cards))
        for name, field, how in ROWS
        if any(getattr(card, field) is not None for card in cards)
    )


def _methods(card: ScoreCard, judge: str | None) -> str:
    named = {"judge": f"read by judge {judge}:"}
    counts = ", ".join(
        f"{named.get(method, method)} {count}" for method, count in sorted(card.methods.items())
    )
    return counts or "by similarity alone"


def _history(proof: Proof, here: VersionKey) -> tuple[Past, ...]:
    found = []
    for entry in reversed(proof.history):
        evaluation = entry.evaluation
        verdict = evaluation.verdict if evaluation else None
        change = ""
        if verdict and verdict.delta is not None and verdict.compared_with is not None:
            change = f"{points(verdict.delta)} against {_short(verdict.compared_with)}"
        score = entry.eval_score
        if score is None and verdict is not None:
            score = verdict.new
        found.append(
            Past(
                name=_short(entry.key),
                status=entry.status,
                active=entry.active,
                here=entry.key == here,
                score=score,
                measure=NAMES.get(evaluation.method, evaluation.method) if evaluation else "",
                change=change,
                model_id=mask(entry.model_id or ""),
                holdout=(entry.holdout_sha256 or "")[:8],
                at=evaluation.at if evaluation else entry.created_at,
                cost="" if entry.cost_usd is None else f"${entry.cost_usd:.2f}",
            )
        )
    return tuple(found)


def _usage(proof: Proof) -> list[tuple[str, str]]:
    """Tokens, time and cost, as far as they are on record."""
    found: list[tuple[str, str]] = []
    if proof.tokens:
        found.append(("Training file", _file(proof.tokens)))
    training = proof.training
    if training:
        found += [
            ("Tokens trained", f"{training.tokens:,} in {training.steps} steps, {training.epochs:g} epochs"),
            ("Loss", f"{training.first_loss:.3f} \u2192 {training.final_loss:.3f}"),
            ("Training", f"{training.seconds:,.0f} s"),
        ]
        if training.peak_memory_bytes:
            found.append(("Memory at its peak", f"{training.peak_memory_bytes / 1e9:.1f} GB"))
    answers = [answer for of_model in proof.answers.values() for answer in of_model]
    if answers:
        tokens = sum(answer.tokens for answer in answers)
        found.append(("Evaluation", f"{len(answers):,} answers, {tokens:,} tokens"))
    found += [
        (f"Step {timing.step}", f"{timing.seconds:,.1f} s") for timing in proof.timings if timing.seconds >= 1
    ]
    if proof.timings:
        found.append(("All steps", f"{sum(timing.seconds for timing in proof.timings):,.1f} s"))
    if proof.model and proof.model.cost_usd is not None:
        found.append(("Cost", f"${proof.model.cost_usd:.2f}"))
    elif proof.estimate:
        cost = "unknown" if proof.estimate.cost_usd is None else f"${proof.estimate.cost_usd:.2f}"
        found.append(("Cost (estimated)", f"{cost}, {proof.estimate.price_source}"))
    return found


def _file(tokens: TokenStats) -> str:
    return f"{tokens.total:,} tokens an epoch, longest row {tokens.longest:,} ({tokens.tokenizer})"


def _provenance(
    report: EvalReport, verdict: Verdict, cards: Sequence[tuple[str, ScoreCard]], proof: Proof
) -> list[tuple[str, str]]:
    found = [
        ("compared by", f"{NAMES[report.measure]}, tolerance {verdict.tolerance:g}"),
        *((f"model of {name}", card.model_id) for name, card in cards),
        ("data set", report.dataset_sha256),
        ("holdout", report.holdout_sha256),
        ("scorer fingerprint", report.fingerprint),
        ("answers drawn", _drawn(report)),
        ("strict", "weak evidence holds" if verdict.strict else ""),
        ("judge", report.judge or ""),
    ]
    if proof.dataset:
        found.append(
            ("training examples", f"{proof.dataset.examples:,} ({Path(proof.dataset.train_path).name})")
        )
        found.append(("account state", proof.dataset.account_state_version))
    if proof.model:
        found.append(("base model", f"{proof.model.base_model} ({proof.model.provider})"))
        if proof.model.artifact_sha256:
            found.append(("artifact", proof.model.artifact_sha256))
        if proof.model.shutdown_date:
            found.append(("stops answering", str(proof.model.shutdown_date)))
    if proof.run:
        found += [
            ("run", proof.run.run_id),
            ("who", proof.run.who),
            ("created", f"{proof.run.created_at:%Y-%m-%d %H:%M:%S %Z}"),
            ("track, because", f"{proof.run.track}: {proof.run.track_reason}"),
        ]
    if proof.training:
        settings = proof.training.settings
        found.append(("training settings", ", ".join(f"{k} {v}" for k, v in settings.items())))
    found.append(("report by", f"fine-tune-runner {installed('fine-tune-runner')}"))
    return [(name, value) for name, value in found if value]


def _drawn(report: EvalReport) -> str:
    decoding = report.decoding
    if decoding is None:
        return ""
    return (
        f"temperature {decoding.temperature:g}, at most {decoding.max_tokens} tokens, seed {decoding.seed}, "
        f"{report.answers_per_question} a question"
    )


def _short(key: VersionKey) -> str:
    return f"v{key.version} ({key.track})"


def score_of(card: ScoreCard, report: EvalReport) -> float | None:
    """The score by which the guard compares, where it is a number."""
    value = pooled(card, report)
    return value if value is not None and value == value else None
