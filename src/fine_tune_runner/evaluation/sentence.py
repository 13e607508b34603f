"""The verdict in one sentence that a client's manager understands, and how scores are spelled. Pure."""

from __future__ import annotations

from fine_tune_runner.types import EvalReport, ScoreCard, Verdict, VersionKey

SAID = {
    "recall": "it names the right cause in {} of the answers",
    "contrast": "its diagnosis is nearest to the right reference in {} of the answers (approximate)",
    "similarity": "its answers resemble the references to {}",
}
NAMES = {"recall": "problem recall", "contrast": "contrast (approximate)", "similarity": "cosine similarity"}


def headline(report: EvalReport, verdict: Verdict) -> str:
    """Who may go into service or stays, with both scores and the change between them.

    Scores are the verdict's own where two versions were compared: those of the questions that both have.
    """
    name = f"{report.client_id} v{report.key.version}"
    new = pooled(report.new, report) if verdict.new is None else verdict.new
    said = SAID[report.measure].format(number(new, kind(report)))
    if verdict.decision == "hold":
        stays = f", and v{report.previous_key.version} stays in service" if report.previous_key else ""
        return f"{name} was held back{stays}: {verdict.reason}."
    if report.previous is None or report.previous_key is None:
        beside = ""
        if report.base is not None and (base := pooled(report.base, report)) is not None:
            beside = f"; the untrained base model scores {number(base, kind(report))}"
        return f"{name} may go into service as the first version: {said}{beside}."
    other = f"v{report.previous_key.version}"
    old = pooled(report.previous, report) if verdict.previous is None else verdict.previous
    questions = len(report.shared) or report.new.questions
    compared = (
        f"{said}, {other} scores {number(old, kind(report))} on the same {questions} questions"
        f"{_by_stored_answers(report)}"
    )
    if verdict.decision == "refuse":
        allowed = points(-verdict.tolerance)
        return (
            f"{name} is refused and {other} stays in service: {compared} "
            f"({points(verdict.delta)} points, {allowed} allowed)."
        )
    return f"{name} may replace {other}: {compared} ({points(verdict.delta)} points)."


def _by_stored_answers(report: EvalReport) -> str:
    """That the older version was not asked, but stands by what it said before; "" where it was."""
    if not report.shared:
        return ""
    when = f" of {report.stored_at:%Y-%m-%d}" if report.stored_at else ""
    apart = "" if report.drawn_alike else ", given under another system prompt or decoding (weak evidence)"
    return f" by its stored answers{when}{apart}"


def pooled(card: ScoreCard, report: EvalReport) -> float | None:
    """The score by which the guard compares."""
    value: float | None = getattr(card, report.measure)
    return value


def sampled(report: EvalReport) -> str:
    """Of how many questions the cosines are, where not of all; else ""."""
    held, questions = report.new.similarity_questions, report.new.questions
    if not held or held >= questions:
        return ""
    return (
        f"Answers to {held:,} of the {questions:,} questions, the same for all models, were held against "
        "their references."
    )


def kind(report: EvalReport) -> str:
    """How the score of this report is printed."""
    return "cosine" if report.measure == "similarity" else "percent"


def number(value: float | None, kind: str) -> str:
    """A score as a person reads it."""
    if value is None or value != value:
        return "unknown"
    return {"percent": f"{value:.0%}", "cosine": f"{value:.2f}", "count": f"{value:g}"}[kind]


def points(delta: float | None) -> str:
    """A change in hundredths, with its sign."""
    return "unknown" if delta is None else f"{100 * delta:+.0f}".replace("-", "\u2212")


def shown(key: VersionKey) -> str:
    """A version as the registry's record spells it."""
    return f"v{key.version} (track {key.track})"
