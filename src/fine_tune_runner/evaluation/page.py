"""The report as one HTML file: no outside resources, light and dark, printable.

Every text that is printed goes through `dataset.secrets.mask` and is escaped; the template only lays out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from fine_tune_runner.dataset.secrets import mask
from fine_tune_runner.evaluation.differ import Piece, marked, plain
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.pictures import curve, scale
from fine_tune_runner.evaluation.proof import Proof, read_proof
from fine_tune_runner.types import Answer, EvalReport, ScoreCard, Verdict

TEMPLATE = "report.html.jinja"
OPEN_ALL = 30  # up to so many questions all are shown open, beyond it only those that changed
WHY = {
    "line": "its own line \u201cRoot cause:\u201d decides",
    "committed": "a sentence commits to it",
    "nearest": "nearest cause by embedding; no rule could read the sentence",
    "contrast": "nearness to the references (approximate)",
    "review": "a person decided",
    "unresolved": "no rule could read a cause; counted as not recalled",
}
CHANGES = ("lost", "gained", "same", "", "left out")  # in the order of the page; "" = not compared


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one question: its first answer in pieces, and how all its answers counted."""

    label: str
    pieces: Sequence[Piece]
    right: str
    cause: str
    why: str
    others: str


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One question of the report."""

    id: str
    change: str
    text: str
    reference: str
    expected: str
    sides: tuple[Side, ...]
    opened: bool


def page(
    run_dir: Path,
    report: EvalReport,
    verdict: Verdict,
    *,
    headline: str,
    cards: Sequence[tuple[str, ScoreCard]],
    table: Sequence[tuple[str, Sequence[str]]],
    provenance: Sequence[tuple[str, str]],
) -> str:
    """The whole file; reads the run's folder, and what is not there is not shown."""
    proof = read_proof(run_dir, report)
    percent = report.measure != "similarity"
    scores = [(name, getattr(card, report.measure)) for name, card in reversed(cards)]
    if verdict.new is not None and verdict.previous is not None and len(scores) > 1:
        scores = [(scores[0][0], verdict.previous), (scores[-1][0], verdict.new)]
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            report=report,
            verdict=verdict,
            headline=headline,
            names=[name for name, _ in cards],
            table=table,
            scale=scale([(n, s) for n, s in scores if s is not None and s == s], verdict, percent=percent),
            rows=question_rows(report, verdict, proof, cards),
            findings=[finding for finding in proof.findings if finding.level != "info"],
            proof=proof,
            curve=curve(proof.losses),
            usage=usage(proof),
            provenance=[*provenance, *_run_provenance(proof)],
        )
    )


def question_rows(
    report: EvalReport, verdict: Verdict, proof: Proof, cards: Sequence[tuple[str, ScoreCard]]
) -> list[Row]:
    """Every question, lost ones first, then gained ones, then the rest in the order of the holdout."""
    known = {question.id: question for question in proof.questions}
    asked = dict.fromkeys([*known, *(q for _, card in cards for q in card.per_question)])
    change_of = {
        **dict.fromkeys(report.left_out, "left out"),
        **dict.fromkeys(verdict.lost, "lost"),
        **dict.fromkeys(verdict.gained, "gained"),
    }
    compared = set(report.shared or report.new.per_question) if verdict.delta is not None else set()
    by_label = {label: _by_question(answers) for label, answers in proof.answers.items()}
    rows = []
    for name in asked:
        question, change = known.get(name), change_of.get(name, "same" if name in compared else "")
        answers = [(shown, by_label.get(card.label, {}).get(name, [])) for shown, card in reversed(cards)]
        rows.append(
            Row(
                id=name,
                change=change,
                text=question.text if question else "",
                reference=question.reference if question else "",
                expected=_expected(question),
                sides=_sides(answers),
                opened=len(asked) <= OPEN_ALL or change in ("lost", "gained"),
            )
        )
    return sorted(rows, key=lambda row: CHANGES.index(row.change))


def _sides(answers: Sequence[tuple[str, list[Answer]]]) -> tuple[Side, ...]:
    firsts = [next((a for a in found if a.text is not None), None) for _, found in answers]
    texts = [mask(first.text) if first and first.text is not None else None for first in firsts]
    pieces: list[Sequence[Piece]] = [plain(text or "") for text in texts]
    if len(texts) == 2 and texts[0] is not None and texts[1] is not None:
        pieces = list(marked(texts[0], texts[1]))
    return tuple(
        _side(label, found, first, parts)
        for (label, found), first, parts in zip(answers, firsts, pieces, strict=True)
    )


def _side(label: str, answers: list[Answer], first: Answer | None, pieces: Sequence[Piece]) -> Side:
    scores = [answer.score for answer in answers if answer.score is not None]
    failed = sum(answer.text is None for answer in answers)
    if scores:
        right = f"{sum(scores):g} of {len(scores)} right"
    elif first is not None and first.similarity is not None:
        right = f"cosine {first.similarity:.2f}"
    else:
        right = "not asked" if not answers else "no answer"
    causes = Counter(answer.cause or "none" for answer in answers if answer.text is not None)
    others = ", ".join(f"{cause} \u00d7 {count}" for cause, count in causes.most_common())
    return Side(
        label=label,
        pieces=pieces,
        right=right + (f", {failed} calls failed" if failed else ""),
        cause=(first.cause or "none") if first and first.method else "",
        why=_why(first),
        others=others if len(answers) > 1 and scores else "",
    )


def _why(answer: Answer | None) -> str:
    if answer is None or answer.method is None:
        return ""
    if answer.method == "committed" and answer.cause is None:
        return "it commits to several causes; counted as not recalled"
    return WHY[answer.method]


def _expected(question: Question | None) -> str:
    if question is None:
        return ""
    return " or ".join(sorted(question.right, key=lambda label: label != question.label))


def _by_question(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.question_id, []).append(answer)
    return found


def usage(proof: Proof) -> list[tuple[str, str]]:
    """Tokens, time and cost, as far as they are on record."""
    found: list[tuple[str, str]] = []
    if proof.tokens:
        found.append(("Training file", f"{proof.tokens.total:,} tokens an epoch ({proof.tokens.tokenizer})"))
    training = proof.model.training if proof.model else None
    if training:
        found += [
            ("Tokens trained", f"{training.tokens:,} in {training.steps} steps, {training.epochs:g} epochs"),
            ("Loss", f"{training.first_loss:.3f} \u2192 {training.final_loss:.3f}"),
            ("Training", f"{training.seconds:,.0f} s"),
        ]
    found += [
        (f"Step {timing.step}", f"{timing.seconds:,.1f} s") for timing in proof.timings if timing.seconds >= 1
    ]
    if proof.model and proof.model.cost_usd is not None:
        found.append(("Cost", f"${proof.model.cost_usd:.2f}"))
    elif proof.estimate:
        cost = "unknown" if proof.estimate.cost_usd is None else f"${proof.estimate.cost_usd:.2f}"
        found.append(("Cost (estimated)", f"{cost}, {proof.estimate.price_source}"))
    return found


def _run_provenance(proof: Proof) -> list[tuple[str, str]]:
    found = [("base model", proof.model.base_model)] if proof.model else []
    if proof.run:
        found += [
            ("run", proof.run.run_id),
            ("who", proof.run.who),
            ("created", f"{proof.run.created_at:%Y-%m-%d %H:%M:%S %Z}"),
            ("track, because", f"{proof.run.track}: {proof.run.track_reason}"),
        ]
    if proof.model and proof.model.training:
        settings = proof.model.training.settings
        found.append(("training settings", ", ".join(f"{k} {v}" for k, v in settings.items())))
    return found


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fine_tune_runner.evaluation", "."),
        autoescape=True,
        finalize=_masked,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _masked(value: Any) -> Any:
    """Everything printed passes here; constants of the template come as Markup and stay."""
    return mask(value) if isinstance(value, str) and not isinstance(value, Markup) else value
