"""The gate on two files of answers to one holdout, whoever made them: `fine-tune gate`.

Stored scores are not trusted: both sets are scored again here and now, by one scorer. Calls no model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation import gate
from fine_tune_runner.evaluation.answers import drawn_as, read_answers, score
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.evaluation.similarity import Remembered
from fine_tune_runner.evaluation.stored import as_replies
from fine_tune_runner.types import Answer, Decoding, Embedder, Verdict


def gate_answers(
    new: Path,
    previous: Path,
    holdout: Path,
    embedder: Embedder,
    *,
    tolerance: float = 0.05,
    strict: bool = False,
    answers: int | None = None,
    leave_out: Collection[str] = (),
) -> Verdict:
    """Promote, refuse or hold `new` against `previous`, each a file of `types.Answer` lines.

    Every question of the holdout that is not named in `leave_out` needs an answer in both sets, else it
    holds; `answers` counts that many of them, and holds where a question has fewer. The taxonomy is that of
    the holdout's folder. Raises DataError for a file or line that is wrong.
    """
    taxonomy = load_taxonomy(holdout.parent)
    questions = load_holdout(holdout, taxonomy).without(leave_out)
    remembered = Remembered(embedder)
    cards, sets = [], []
    ways: set[str] = set()
    for path in (new, previous):
        given = counted(unique(read_answers(path), path), answers)
        card, scored = score(
            as_replies(given), questions, taxonomy, remembered, Decoding(), label=path.stem, model_id=""
        )
        if fault := gate.card_fault(card, questions.measure, card.fingerprint):
            reason = f"{path} is no evidence: {fault}"
            return Verdict(
                decision="hold",
                reason=reason,
                measure=questions.measure,
                tolerance=tolerance,
                holdout_sha256=questions.sha256,
            )
        cards.append(card)
        sets.append(scores_of(scored))
        ways |= {drawn_as(answer.fingerprint) for answer in given}
    verdict = gate.judge(
        sets[0],
        sets[1],
        tolerance,
        strict=strict,
        measure=questions.measure,
        than=cards[1].label,
        drawn_alike=len(ways) == 1,
    )
    return msgspec.structs.replace(verdict, holdout_sha256=questions.sha256)


def scores_of(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """The scores of each question's answers (cosines where there are no others); failed calls have none."""
    found: dict[str, list[float]] = {}
    for answer in answers:
        value = answer.similarity if answer.score is None else answer.score
        if value is not None:
            found.setdefault(answer.question_id, []).append(value)
    return found


def counted(answers: Sequence[Answer], most: int | None) -> Sequence[Answer]:
    """The first `most` answers to each question by `k`, without those to a question that has fewer."""
    if most is None:
        return answers
    by_question: dict[str, list[Answer]] = {}
    for answer in sorted(answers, key=lambda a: a.k):
        by_question.setdefault(answer.question_id, []).append(answer)
    return [a for given in by_question.values() if len(given) >= most for a in given[:most]]


def unique(answers: Sequence[Answer], path: Path) -> Sequence[Answer]:
    """The answers themselves; DataError where a question has two with the same `k`."""
    seen: set[tuple[str, int]] = set()
    for line, answer in enumerate(answers, 1):
        if (answer.question_id, answer.k) in seen:
            raise DataError(f"{path} line {line}: a second answer k={answer.k} to {answer.question_id}")
        seen.add((answer.question_id, answer.k))
    return answers
