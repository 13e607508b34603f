"""The nearest cause by embedding: the marked fallback of recall, and contrast where there are no labels.

Reads only what an answer committed to (recall.py), never the whole answer: that is nearly blind to the
cause (facts/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.evaluation.holdout import Question, cause_key
from fine_tune_runner.evaluation.recall import ECHO, Commitment, committed_sentences
from fine_tune_runner.types import Embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CauseIndex:
    """Every cause of a taxonomy by definition and by each name, embedded at the first answer that no rule
    could read; implements recall.Nearest.
    """

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
