"""The nearest cause by embedding, a suggestion to a person and never counted; and contrast, without labels.

Reads only what an answer committed to (recall.py), never the whole answer: that is nearly blind to the
cause (facts/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.evaluation.holdout import Holdout, Question, cause_key
from fine_tune_runner.evaluation.recall import Commitment, committed_sentences
from fine_tune_runner.evaluation.stance import denies
from fine_tune_runner.types import Answer, Embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray


MARGIN = 0.05  # cosine by which the nearest cause must lead (facts/evaluation.md)
ECHO = ""  # the key under which an index gives the cosine to the question's own text


class CauseIndex:
    """Every cause of a taxonomy by definition and by each name, embedded at the first text."""

    def __init__(self, taxonomy: Taxonomy, embedder: Embedder) -> None:
        self._embedder = embedder
        self._labels: list[str] = []
        self._texts: list[str] = []
        for cause in taxonomy.causes.values():
            for text in (cause.label.replace("_", " "), cause.definition, *cause.aliases):
                if text:
                    self._labels.append(cause.label)
                    self._texts.append(text)

    @cached_property
    def _vectors(self) -> NDArray[np.float32]:
        return self._embedder.embed(self._texts)

    def __call__(self, text: str, question: Question) -> Mapping[str, float]:
        """Cosine to the nearest text of each cause, and under ECHO to the question's own words."""
        own = [question.text, *question.aliases] if question.label else [question.text]
        vectors = self._embedder.embed([text, *own])
        nearest = {ECHO: float(vectors[0] @ vectors[1])}
        labels = self._labels + [question.label or ""] * (len(own) - 1)
        cosines = np.concatenate([self._vectors @ vectors[0], vectors[2:] @ vectors[0]])
        for label, cosine in zip(labels, cosines, strict=True):
            nearest[label] = max(nearest.get(label, -1.0), float(cosine))
        return nearest

    def suggested(self, answer: str, question: Question) -> str | None:
        """The cause nearest to what an answer commits to without a "not"; None where none is clearly so."""
        plain = [text for text in committed_sentences(answer) if not denies(text)]
        if not plain:
            return None
        cosines = dict(self(" ".join(plain), question))
        echo = cosines.pop(ECHO)
        ranked = sorted(cosines.items(), key=lambda pair: (-pair[1], pair[0]))
        if not ranked or ranked[0][1] <= echo:
            return None
        lead = ranked[0][1] - (ranked[1][1] if len(ranked) > 1 else 0.0)
        return ranked[0][0] if lead >= MARGIN else None


def with_suggestions(answers: Sequence[Answer], holdout: Holdout, index: CauseIndex) -> tuple[Answer, ...]:
    """The answers, each unresolved one with the nearest cause beside it; nothing is counted by it."""
    asked = {question.id: question for question in holdout.questions}
    return tuple(
        msgspec.structs.replace(a, nearest=index.suggested(a.text, asked[a.question_id]))
        if a.method == "unresolved" and a.text
        else a
        for a in answers
    )


def contrast(
    texts: Sequence[str],
    rows: Sequence[int],
    questions: Sequence[Question],
    references_MD: NDArray[np.float32],
    embedder: Embedder,
) -> list[Commitment]:
    """For each answer to question `rows[i]`: is what it commits to nearer to its own reference than to every
    reference with another cause? `cause` is then the row's own (`cause_key`), else None.

    An answer that commits to nothing is unresolved. Approximate, and never mixed into recall.
    """
    said = [" ".join(committed_sentences(text)) for text in texts]
    vectors = embedder.embed([text for text in said if text])
    keys = np.array([cause_key(q) for q in questions])
    read: list[Commitment] = []
    at = 0
    for text, row in zip(said, rows, strict=True):
        if not text:
            read.append(Commitment(None, "unresolved", ""))
            continue
        cosines = references_MD @ vectors[at]
        at += 1
        others = cosines[keys != keys[row]]
        own = len(others) == 0 or float(cosines[row]) > float(others.max())
        read.append(Commitment(str(keys[row]) if own else None, "contrast", text[:240]))
    return read
