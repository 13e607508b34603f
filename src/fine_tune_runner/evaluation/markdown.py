"""A report as Markdown: what the page shows, for a terminal, a pull request or a ticket. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from fine_tune_runner.evaluation.content import Content
from fine_tune_runner.evaluation.sentence import number, sampled
from fine_tune_runner.evaluation.side_by_side import Row, Side


def markdown(whole: Content) -> str:
    """The whole report; words that only one of two answers has are ~~struck~~ left and **bold** right."""
    report, verdict = whole.report, whole.verdict
    strength = f" ({verdict.strength} evidence)" if verdict.strength else ""
    lines = [f"# {report.client_id} v{report.key.version} (track {report.key.track})", ""]
    lines += [_plain(whole.headline), ""]
    lines += [f"Verdict: **{verdict.decision}**{strength}. {_plain(verdict.reason)}.", ""]
    lines += [*(f"- {name}: {value}" for name, value in whole.certainty), ""]
    lines += [*(f"> {_plain(warning)}" for warning in report.warnings), "", "## Scores", ""]
    lines += _table(["", *whole.names], [[name, *values] for name, values in whole.scores])
    if whole.history:
        lines += ["", "## Versions", "", *_history(whole)]
    lines += ["", "## Questions", "", *_lists(whole), ""]
    for row in whole.questions:
        lines += _question(row)
    lines += ["## How the answers were read", "", *_facts(whole.reading)]
    lines += [f"- {said}" for said in (sampled(report),) if said]
    lines += ["", "## Data findings", "", *_findings(whole)]
    if whole.losses:
        lines += ["", "## Training curve", "", *_curve(whole.losses)]
    lines += ["", "## Tokens, time, cost", "", *(_facts(whole.usage) or ["Not on record for this run."])]
    lines += ["", "## Provenance", ""]
    lines += [f"- {name}: `{value}`" for name, value in whole.provenance]
    lines += [
        f"- {act.at:%Y-%m-%d %H:%M} {act.action} by {_plain(act.who)}: {_plain(act.why)}"
        for act in whole.record
    ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that Markdown and HTML leave as it is."""
    return re.sub(r"([\\`*_\[\]<>~|#])", r"\\\1", text)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _facts(facts: Sequence[tuple[str, str]]) -> list[str]:
    return [f"- {name}: {_plain(value)}" for name, value in facts]


def _history(whole: Content) -> list[str]:
    rows = []
    for past in whole.history:
        kind = "cosine" if past.measure.startswith("cosine") else "percent"
        score = "" if past.score is None else number(past.score, kind)
        name = f"**{past.name}**" if past.here else past.name
        cells = (past.measure, past.change, past.holdout, f"{past.at:%Y-%m-%d}", past.cost)
        rows.append([name, past.status, score, *map(_plain, cells)])
    header = ["version", "status", "score", "by", "change", "holdout", "evaluated", "cost"]
    note = "Scores compare only where the holdout is the same; a change was measured on one set of questions."
    return [*_table(header, rows), "", note]


def _lists(whole: Content) -> list[str]:
    groups = (
        ("Lost", whole.verdict.lost),
        ("Gained", whole.verdict.gained),
        ("Not read by any rule (counted as not recalled)", whole.report.new.unresolved),
        ("Left out, because the other version was trained on them", whole.report.left_out),
    )
    return [f"- {name}: {len(ids)}{': ' + ', '.join(ids) if ids else ''}" for name, ids in groups]


def _question(row: Row) -> list[str]:
    lines = [f"### {_plain(row.id)}{f' ({row.change})' if row.change else ''}", ""]
    if row.text:
        lines += [*_quoted(_plain(row.text)), ""]
    if row.expected:
        lines += [f"Right cause: {_plain(row.expected)}", ""]
    for place, side in enumerate(row.sides):
        cause = f"; cause committed to: **{_plain(side.cause)}**" if side.cause else ""
        why = f" ({_plain(side.why)})" if side.why else ""
        others = f"; all answers: {_plain(side.others)}" if side.others else ""
        lines += [f"{side.label}: {side.right}{cause}{why}{others}", ""]
        if side.text:
            lines += [*_quoted(_marked(side, "~~" if place + 1 < len(row.sides) else "**")), ""]
    if row.reference:
        lines += ["Reference:", "", *_quoted(_plain(row.reference)), ""]
    return lines


def _marked(side: Side, mark: str) -> str:
    """Marks never cross a line end, nor touch white space: Markdown would print them as they are."""
    return "".join(
        re.sub(r"\S+(?: +\S+)*", lambda m: f"{mark}{m[0]}{mark}", _plain(text)) if only else _plain(text)
        for text, only in side.pieces
    )


def _quoted(text: str) -> Iterator[str]:
    return (f"> {line}  " if line else ">" for line in text.split("\n"))


def _findings(whole: Content) -> list[str]:
    if not whole.findings:
        return ["None: every check passed." if whole.checked else "Not on record for this run."]
    return [
        f"- {f.level}: {_plain(f.path.rsplit('/', 1)[-1])}{f' line {f.line}' if f.line else ''}: "
        f"{_plain(f.message)}{f'; {_plain(f.remedy)}' if f.remedy else ''}"
        for f in whole.findings
    ]


def _curve(losses: Sequence[tuple[int, float]]) -> list[str]:
    """At most twelve points, the first and the last among them."""
    last = len(losses) - 1
    kept = sorted({round(i * last / 11) for i in range(12)}) if last > 11 else range(len(losses))
    return _table(["step", "loss"], [[str(losses[i][0]), f"{losses[i][1]:.3f}"] for i in kept])
