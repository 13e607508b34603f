"""The report as one HTML file: no script, no outside resource, light and dark, printable.

Every text of a Content is masked already; here it is escaped. The template only lays out.
"""

from __future__ import annotations

import functools

import jinja2

from fine_tune_runner.evaluation.content import Content, card_list, score_of
from fine_tune_runner.evaluation.pictures import Axis, change_axis, curve, interval, score_axis
from fine_tune_runner.evaluation.sentence import number, sampled

TEMPLATE = "report.html.jinja"


def page(whole: Content) -> str:
    """The whole file; parts that the run left nothing for are not shown. Pure."""
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            whole=whole,
            report=whole.report,
            verdict=whole.verdict,
            scores=_scores(whole),
            change=change_axis(whole.verdict),
            curve=curve(whole.losses),
            sampled=sampled(whole.report),
            number=number,
        )
    )


def _scores(whole: Content) -> Axis:
    report, verdict = whole.report, whole.verdict
    dots = []
    for name, card in card_list(report):
        score = score_of(card, report)
        if verdict.previous is not None and verdict.new is not None and card is not report.base:
            score = verdict.new if card is report.new else verdict.previous
        shared = [v for q, v in card.per_question.items() if not report.shared or q in report.shared]
        if score is not None:
            dots.append((name, score, interval(shared)))
    return score_axis(dots, percent=report.measure != "similarity")


@functools.cache  # compiling the template is half of the time of a run without training
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("fine_tune_runner.evaluation", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
