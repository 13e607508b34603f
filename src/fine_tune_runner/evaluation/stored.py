"""Stored answers of a version that cannot be called any more, as replies to the questions of a new holdout.

A question is shared where its turns are the same in both holdouts, whatever its id; knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.answers import read_answers
from fine_tune_runner.evaluation.holdout import Holdout, Question, load_holdout
from fine_tune_runner.types import Answer, Message, Reply


def stored_replies(path: Path, old_holdout: Path, holdout: Holdout, taxonomy: Taxonomy) -> tuple[Reply, ...]:
    """Replies in the file `path`, given to `old_holdout`, to the questions that `holdout` has too.

    Empty where either file is missing or broken: then there is no evidence.
    """
    if not path.is_file() or not old_holdout.is_file():
        return ()
    try:
        answers, old = read_answers(path), load_holdout(old_holdout, taxonomy)
    except DataError:
        return ()
    new_id = {_turns(question): question.id for question in holdout.questions}
    shared = {q.id: new_id[_turns(q)] for q in old.questions if _turns(q) in new_id}
    return as_replies([a for a in answers if a.question_id in shared], shared)


def as_replies(answers: Sequence[Answer], ids: dict[str, str] | None = None) -> tuple[Reply, ...]:
    """Answers as they came from the model, to be scored again; `ids` renames questions."""
    return tuple(
        Reply(
            question_id=ids[a.question_id] if ids else a.question_id,
            k=a.k,
            text=a.text,
            error=a.error if a.text is None else None,
        )
        for a in answers
    )


def _turns(question: Question) -> tuple[Message, ...]:
    return tuple(
        msgspec.structs.replace(message, weight=None)
        for message in question.messages
        if message.role != "system"
    )
