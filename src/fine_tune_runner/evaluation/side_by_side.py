"""Every question of a report with the answers to it side by side: what differs, what each commits to, and
why it counted.

Pure; every text in a row has gone through `dataset.secrets.mask`. Knows no page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from fine_tune_runner.dataset.secrets import mask
from fine_tune_runner.evaluation.differ import Piece, Span, pieces, spans
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.types import Answer, EvalReport, Verdict

WHY = {
    "line": "its own line \u201cRoot cause:\u201d decides",
    "committed": "a sentence commits to it",
    "nearest": "nearest cause by wording or embedding, which earlier releases counted",
    "contrast": "nearness to the references (approximate)",
    "review": "a person decided",
    "judge": "a judge read it",
    "unresolved": "no rule could read a cause; counted as not recalled",
}
CHANGES = ("lost", "gained", "same", "", "left out")  # in the order of the page; "" = not compared

Answers = Mapping[str, Sequence[Answer]]  # label of a score card → its answers, as they were kept


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one question: its first answer, and how all its answers counted.

    `only` are the (start, end) of the parts of `text` that the other side lacks, in characters.
    """

    label: str
    text: str
    only: tuple[Span, ...] = ()
    right: str
    cause: str
    why: str
    others: str

    @property
    def pieces(self) -> Sequence[Piece]:
        """The text in order, each part with whether only this side has it."""
        return pieces(self.text, self.only)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One question; `expected` is the right cause, `change` one of CHANGES. Those that changed are open."""

    id: str
    change: str
    text: str
    reference: str
    expected: str
    sides: tuple[Side, ...]
    opened: bool


def question_rows(
    report: EvalReport,
    verdict: Verdict,
    questions: Sequence[Question],
    answers: Answers,
    cards: Sequence[tuple[str, str]],
) -> tuple[Row, ...]:
    """Lost questions first, then gained ones, then the rest in the order of the holdout.

    `cards` are (name shown, label of the score card), the older version first; ids of `report` and `verdict`
    are masked already.
    """
    # By masked ids, for those of a report that is made again are masked.
    known = {mask(question.id): question for question in questions}
    scored = [card.per_question for card in (report.new, report.previous, report.base) if card]
    asked = dict.fromkeys([*known, *(name for card in scored for name in card)])
    change_of = {
        **dict.fromkeys(report.left_out, "left out"),
        **dict.fromkeys(verdict.lost, "lost"),
        **dict.fromkeys(verdict.gained, "gained"),
    }
    compared = set(report.shared or report.new.per_question) if verdict.delta is not None else set()
    by_label = {label: _by_question(found) for label, found in answers.items()}
    rows = []
    for name in asked:
        question, change = known.get(name), change_of.get(name, "same" if name in compared else "")
        given = [(shown, by_label.get(label, {}).get(name, [])) for shown, label in cards]
        rows.append(
            Row(
                id=name,
                change=change,
                text=mask(question.text) if question else "",
                reference=mask(question.reference) if question else "",
                expected=_expected(question),
                sides=_sides(given),
                opened=change in ("lost", "gained"),
            )
        )
    return tuple(sorted(rows, key=lambda row: CHANGES.index(row.change)))


def _sides(answers: Sequence[tuple[str, list[Answer]]]) -> tuple[Side, ...]:
    firsts = [next((a for a in found if a.text is not None), None) for _, found in answers]
    texts = [mask(first.text) if first and first.text is not None else "" for first in firsts]
    only: Sequence[tuple[Span, ...]] = [() for _ in texts]
    if len(texts) == 2 and all(texts):
        only = spans(*texts)
    return tuple(
        _side(label, found, first, text, marks)
        for (label, found), first, text, marks in zip(answers, firsts, texts, only, strict=True)
    )


def _side(label: str, answers: list[Answer], first: Answer | None, text: str, only: tuple[Span, ...]) -> Side:
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
        text=text,
        only=only,
        right=right + (f", {failed} call{'s' * (failed > 1)} failed" if failed else ""),
        cause=mask(first.cause or "none") if first and first.method else "",
        why=why(first),
        others=mask(others) if len(answers) > 1 and scores else "",
    )


def why(answer: Answer | None) -> str:
    """What decided about an answer, masked; "" where nothing did."""
    if answer is None or answer.method is None:
        return ""
    if answer.decided_by and answer.method == "judge":
        return mask(f"read by judge {answer.decided_by}")
    if answer.decided_by:
        return mask(f"decided by {answer.decided_by}")
    if answer.method == "committed" and answer.cause is None:
        return "it commits to several causes; counted as not recalled"
    suggested = mask(f"; nearest: {answer.nearest}, not counted") if answer.nearest else ""
    return WHY.get(answer.method, answer.method) + suggested


def _expected(question: Question | None) -> str:
    if question is None:
        return ""
    return mask(" or ".join(sorted(question.right, key=lambda label: label != question.label)))


def _by_question(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}
    for answer in answers:
        found.setdefault(answer.question_id, []).append(answer)
    return {mask(name): of_question for name, of_question in found.items()}
