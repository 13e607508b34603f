"""Stored answers of a version that cannot be called any more, as replies to the questions of a new holdout.

A question is shared where its turns are the same in both holdouts, whatever its id. Scores are never taken
over: the caller scores the texts again. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.read import published_sha256
from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.answers import drawn_as, read_answers
from fine_tune_runner.evaluation.holdout import Holdout, load_holdout
from fine_tune_runner.types import Answer, Reply


class StoredAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """The file of a version's answers, the holdout of that content that they were given to, and when."""

    path: Path
    holdout: Path
    holdout_sha256: str | None
    at: datetime


class StandIn(msgspec.Struct, frozen=True, kw_only=True):
    """Replies that may stand in for a model, by the ids of the new holdout; `fault` is why there are none.

    `drawn` says under which system prompt and decoding they were given (`answers.drawn_as`).
    """

    replies: tuple[Reply, ...] = ()
    fault: str = "nothing it answered is stored"
    drawn: frozenset[str] = frozenset()


def stand_in(stored: StoredAnswers, holdout: Holdout, taxonomy: Taxonomy) -> StandIn:
    """The stored replies to the questions that `holdout` has too; failed calls are no answers.

    None where a file is missing or broken, or where the old holdout is not the one that was answered: an id
    may stand for another question by now. Raises nothing.
    """
    if not stored.path.is_file() or not stored.holdout.is_file():
        return StandIn()
    try:
        answers, old = read_answers(stored.path), load_holdout(stored.holdout, taxonomy)
    except DataError as error:
        return StandIn(fault=f"its stored answers cannot be read: {error}")
    # Labels that were confirmed since change no question.
    if stored.holdout_sha256 not in (old.sha256, published_sha256(stored.holdout)):
        return StandIn(fault=f"{stored.holdout} was changed since its stored answers were given")
    new_id = {question.turns: question.id for question in holdout.questions}
    shared = {q.id: new_id[q.turns] for q in old.questions if q.turns in new_id}
    kept = [a for a in answers if a.question_id in shared and a.text is not None]
    return StandIn(
        replies=as_replies(kept, shared),
        fault=f"its stored answers cover only {len({shared[a.question_id] for a in kept})} of the questions",
        drawn=frozenset(drawn_as(a.fingerprint) for a in kept),
    )


def as_replies(answers: Sequence[Answer], ids: dict[str, str] | None = None) -> tuple[Reply, ...]:
    """Answers as they came from the model, to be scored again; `ids` renames questions."""
    return tuple(
        Reply(
            question_id=ids[a.question_id] if ids else a.question_id,
            k=a.k,
            text=a.text,
            error=a.error if a.text is None else None,
            tokens=a.tokens,
        )
        for a in answers
    )
