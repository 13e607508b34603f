"""Labels proposed for holdout rows that have none, each with where it came from; a person confirms them.

The reference is read by the same rules as an answer. Pure; writes nothing.
"""

from __future__ import annotations

import msgspec

from fine_tune_runner.dataset.labels import Source
from fine_tune_runner.dataset.secrets import mask
from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.evaluation.holdout import Holdout, Question
from fine_tune_runner.evaluation.nearest import ECHO, CauseIndex
from fine_tune_runner.evaluation.recall import committed
from fine_tune_runner.types import Embedder

NEXT = 3  # nearest causes that are named
SURE: tuple[Source, ...] = ("line", "committed")


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A row and the label proposed for it, None where nothing was found; texts are masked.

    `nearest` are (label, cosine) of the nearest causes, where only an embedding could tell.
    """

    row: str
    id: str
    line: int
    asked: str
    reference: str
    label: str | None = None
    source: Source | None = None
    nearest: tuple[tuple[str, float], ...] = ()

    @property
    def sure(self) -> bool:
        """Whether the reference itself commits to it; anything else is a guess that a person must take."""
        return self.source in SURE


def proposals(holdout: Holdout, taxonomy: Taxonomy, embedder: Embedder | None) -> tuple[Proposal, ...]:
    """One for each row without a label, in file order; without an embedder nothing is guessed by nearness."""
    index = CauseIndex(taxonomy, embedder) if embedder is not None and taxonomy.causes else None
    return tuple(_proposal(q, taxonomy, index) for q in holdout.questions if q.label is None)


def _proposal(question: Question, taxonomy: Taxonomy, index: CauseIndex | None) -> Proposal:
    plain = Proposal(
        row=question.row_sha256,
        id=mask(question.id),
        line=question.line,
        asked=mask(question.text),
        reference=mask(question.reference),
    )
    read = committed(question.reference, question, taxonomy)
    if read.cause is not None:
        source: Source = "line" if read.method == "line" else "committed"
        return msgspec.structs.replace(plain, label=read.cause, source=source)
    named = taxonomy.mentions(question.reference)
    if len(named) == 1:
        return msgspec.structs.replace(plain, label=named[0], source="mentioned")
    if index is None:
        return plain
    cosines = dict(index(question.reference, question))
    del cosines[ECHO]
    ranked = sorted(cosines.items(), key=lambda pair: (-pair[1], pair[0]))[:NEXT]
    nearest = tuple((label, round(cosine, 3)) for label, cosine in ranked)
    return msgspec.structs.replace(plain, label=nearest[0][0], source="nearest", nearest=nearest)
