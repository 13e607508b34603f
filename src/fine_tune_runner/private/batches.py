"""Tokenised rows become batches in the shared-prefix layout (facts/training.md, "The shared prefix").

The prefix is the longest token sequence with which every row begins. Knows tokens, not text or models.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from fine_tune_runner.errors import TrainingError

# Rows are sorted by length among this many batches, so that padding stays small and batches stay mixed.
SORT_WINDOW = 8


@dataclass(frozen=True)
class Row:
    """One chat as tokens; `loss_mask[i]` says that token i is to be predicted."""

    tokens: Sequence[int]
    loss_mask: Sequence[bool]


@dataclass(frozen=True)
class Suffix:
    """What of a row follows the prefix, up to the token that predicts its last target.

    Token `predicts[j]` of `inputs` predicts `targets[j]`. `size` is the whole row's length, prefix included.
    """

    inputs: tuple[int, ...]
    predicts: tuple[int, ...]
    targets: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Corpus:
    """A client's training rows: the prefix once, and a suffix for each row that has loss."""

    prefix: tuple[int, ...]
    suffixes: tuple[Suffix, ...]


@dataclass(frozen=True)
class Batch:
    """Suffixes of one optimizer step, by their index in `Corpus.suffixes`, and what they predict.

    Laid out flat as [P + B * T], right-padded to the longest: flat position `keep[j]` predicts `targets[j]`.
    `tokens` counts data-set tokens: whole rows, the prefix counted in each, padding not.
    """

    suffixes: tuple[int, ...]
    length: int
    keep: tuple[int, ...]
    targets: tuple[int, ...]
    tokens: int


def lay_out(rows: Sequence[Row]) -> Corpus:
    """Take the common prefix off all rows; rows without loss drop out, as they move no weight.

    Every row keeps at least one token before its first target, so that a suffix token predicts it.
    Raises TrainingError where no row has loss.
    """
    firsts = [(row, first) for row in rows if (first := _first_target(row)) is not None]
    if not firsts:
        raise TrainingError("no row has an assistant token with loss; set weight 1 on an assistant message")
    cap = min(first for _, first in firsts) - 1
    prefix = _common([tuple(row.tokens) for row, _ in firsts])[:cap]
    return Corpus(prefix=prefix, suffixes=tuple(_suffix(row, len(prefix)) for row, _ in firsts))


def _first_target(row: Row) -> int | None:
    """The first token has nothing before it that could predict it, so it is never a target."""
    return next((i for i, target in enumerate(row.loss_mask) if target and i), None)


def _common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    low, high = min(rows), max(rows)  # in lexical order all others share what these two share
    end = next(
        (i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high))
    )
    return low[:end]


def _suffix(row: Row, start: int) -> Suffix:
    targets = [i for i, target in enumerate(row.loss_mask) if target and i]
    return Suffix(
        inputs=tuple(row.tokens[start : targets[-1]]),
        predicts=tuple(i - 1 - start for i in targets),
        targets=tuple(row.tokens[i] for i in targets),
        size=len(row.tokens),
    )


def epoch_batches(corpus: Corpus, *, batch_size: int, seed: int, epoch: int) -> list[Batch]:
    """All rows once, in an order that depends on (seed, epoch) alone: shuffled, near lengths together."""
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(corpus.suffixes)))
    draw.shuffle(order)
    window = batch_size * SORT_WINDOW
    for start in range(0, len(order), window):
        order[start : start + window] = sorted(
            order[start : start + window], key=lambda i: len(corpus.suffixes[i].inputs)
        )
    cuts = [*range(0, len(order), batch_size), len(order)]
    batches = [make_batch(corpus, order[start:end]) for start, end in pairwise(cuts)]
    draw.shuffle(batches)
    return batches


def make_batch(corpus: Corpus, indices: Sequence[int]) -> Batch:
    """The batch of these rows, in this order."""
    suffixes = [corpus.suffixes[i] for i in indices]
    length = max(len(suffix.inputs) for suffix in suffixes)
    starts = [len(corpus.prefix) + place * length for place in range(len(suffixes))]
    return Batch(
        suffixes=tuple(indices),
        length=length,
        keep=tuple(start + at for start, s in zip(starts, suffixes, strict=True) for at in s.predicts),
        targets=tuple(target for s in suffixes for target in s.targets),
        tokens=sum(s.size for s in suffixes),
    )
