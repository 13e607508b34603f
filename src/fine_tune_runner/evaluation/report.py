"""An EvalReport and its Verdict as `report.json`, `report.md` and `report.html`: the verdict, then the proof.

JSON and Markdown hold numbers and ids only; the page (page.py) shows client text, masked.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from fine_tune_runner.files import write_atomic
from fine_tune_runner.types import EvalReport, ScoreCard, Verdict, VersionKey

SCORE_NAMES = {
    "recall": "it names the right cause in {} of the answers",
    "contrast": "its diagnosis is nearest to the right reference in {} of the answers (approximate)",
    "similarity": "its answers resemble the references to {}",
}
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


def write_report(run_dir: Path, report: EvalReport, verdict: Verdict) -> tuple[Path, Path, Path]:
    """Write `report.json`, `report.md` and `report.html` into the run's folder, each all or nothing."""
    from fine_tune_runner.evaluation.page import page

    said = headline(report, verdict)
    html = page(
        run_dir,
        report,
        verdict,
        headline=said,
        cards=_cards(report),
        table=score_table(report),
        provenance=_provenance(report, verdict),
    )
    data = {"headline": said, "report": report, "verdict": verdict}
    paths = (run_dir / "report.json", run_dir / "report.md", run_dir / "report.html")
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(paths[0], msgspec.json.format(msgspec.json.encode(data), indent=2) + b"\n")
    write_atomic(paths[1], markdown(report, verdict).encode())
    write_atomic(paths[2], html.encode())
    return paths


def headline(report: EvalReport, verdict: Verdict) -> str:
    """The verdict in one sentence that a client's manager understands."""
    name = f"{report.client_id} v{report.key.version}"
    score = pooled(report.new, report)
    shown = SCORE_NAMES[report.measure].format(_number(score, _kind(report)))
    if verdict.decision == "hold":
        stays = f", and v{report.previous_key.version} stays in service" if report.previous_key else ""
        return f"{name} was held back{stays}: {verdict.reason}."
    if report.previous is None or report.previous_key is None:
        beside = ""
        if report.base is not None and (base := pooled(report.base, report)) is not None:
            beside = f"; the untrained base model scores {_number(base, _kind(report))}"
        return f"{name} may go into service as the first version: {shown}{beside}."
    other = f"v{report.previous_key.version}"
    compared = (
        f"{shown}, {other} scores {_number(pooled(report.previous, report), _kind(report))} on the same "
        f"{report.new.questions} questions"
    )
    if verdict.decision == "refuse":
        allowed = _points(-verdict.tolerance)
        return (
            f"{name} is refused and {other} stays in service: {compared} "
            f"({_points(verdict.delta)} points, {allowed} allowed)."
        )
    return f"{name} may replace {other}: {compared} ({_points(verdict.delta)} points)."


def markdown(report: EvalReport, verdict: Verdict) -> str:
    """The whole report as Markdown."""
    lines = [f"# {report.client_id} v{report.key.version} (track {report.key.track})", ""]
    lines += [headline(report, verdict), ""]
    strength = f" ({verdict.strength} evidence)" if verdict.strength else ""
    lines += [f"Verdict: **{verdict.decision}**{strength}. {verdict.reason}.", ""]
    lines += [*(f"- {name}: {value}" for name, value in certainty(verdict)), ""]
    lines += [*(f"> {warning}" for warning in report.warnings), "", "## Scores", ""]
    lines += [*_table(report), "", "## Questions", ""]
    lines += _questions(report, verdict)
    lines += ["", "## How the answers were read", "", *_methods(report), "", "## Provenance", ""]
    lines += [f"- {name}: `{value}`" for name, value in _provenance(report, verdict)]
    return "\n".join(lines) + "\n"


def pooled(card: ScoreCard, report: EvalReport) -> float | None:
    """The score by which the guard compares."""
    value: float | None = getattr(card, report.measure)
    return value


def _cards(report: EvalReport) -> list[tuple[str, ScoreCard]]:
    cards = [(_key(report.key), report.new)]
    if report.previous is not None and report.previous_key is not None:
        cards.append((_key(report.previous_key), report.previous))
    if report.base is not None:
        cards.append(("base model", report.base))
    return cards


def certainty(verdict: Verdict) -> list[tuple[str, str]]:
    """How sure the verdict is; empty where nothing was compared."""
    if verdict.p_worse is None or verdict.low is None or verdict.high is None:
        return []
    return [
        (f"P(lost more than {100 * verdict.tolerance:g} points)", f"{verdict.p_worse:.0%}"),
        ("80 % interval of the change", f"{_points(verdict.low)} to {_points(verdict.high)} points"),
        ("Smallest visible drop", f"{100 * (verdict.smallest_visible_drop or 0):.0f} points"),
        ("Answers a question", f"{verdict.answers_per_question}"),
    ]


def score_table(report: EvalReport) -> list[tuple[str, list[str]]]:
    """(name of the score, its value for each card), only those that some card has."""
    cards = [card for _, card in _cards(report)]
    return [
        (name, [_number(getattr(card, field), kind) for card in cards])
        for name, field, kind in ROWS
        if any(getattr(card, field) is not None for card in cards)
    ]


def _table(report: EvalReport) -> list[str]:
    names = [name for name, _ in _cards(report)]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(values) + " |" for name, values in score_table(report)]


def _questions(report: EvalReport, verdict: Verdict) -> list[str]:
    groups = (
        ("Lost", verdict.lost),
        ("Gained", verdict.gained),
        ("Not read by any rule (counted as not recalled)", report.new.unresolved),
        ("Left out, because the other version was trained on them", report.left_out),
    )
    return [f"- {name}: {len(ids)}{': ' + ', '.join(ids) if ids else ''}" for name, ids in groups]


def _methods(report: EvalReport) -> list[str]:
    lines = []
    for name, card in _cards(report):
        counts = ", ".join(f"{method} {count}" for method, count in sorted(card.methods.items()))
        lines.append(f"- {name}: {counts or 'by similarity alone'}")
    return lines


def _provenance(report: EvalReport, verdict: Verdict) -> list[tuple[str, str]]:
    models = [(f"model of {name}", card.model_id) for name, card in _cards(report)]
    return [
        ("measure", report.measure),
        ("tolerance", f"{verdict.tolerance:g}"),
        *models,
        ("data set", report.dataset_sha256),
        ("holdout", report.holdout_sha256),
        ("scorer fingerprint", report.fingerprint),
    ]


def _kind(report: EvalReport) -> str:
    return "cosine" if report.measure == "similarity" else "percent"


def _number(value: float | None, kind: str) -> str:
    if value is None or value != value:
        return "unknown"
    return {"percent": f"{value:.0%}", "cosine": f"{value:.2f}", "count": f"{value:g}"}[kind]


def _points(delta: float | None) -> str:
    return "unknown" if delta is None else f"{100 * delta:+.0f}".replace("-", "\u2212")


def _key(key: VersionKey) -> str:
    return f"v{key.version} ({key.track})"
