"""Rows to batches: the common prefix, its cap, targets, order, padding."""

from __future__ import annotations

import random

import pytest

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.batches import Row, epoch_batches, lay_out, make_batch


def row(tokens: list[int], targets: set[int]) -> Row:
    return Row(tokens=tokens, loss_mask=[i in targets for i in range(len(tokens))])


def test_prefix_is_the_longest_common_token_prefix() -> None:
    corpus = lay_out([row([1, 2, 3, 4, 9], {4}), row([1, 2, 5, 9, 9], {4}), row([1, 2, 3, 6, 9], {4})])
    assert corpus.prefix == (1, 2)


def test_prefix_leaves_each_row_a_token_before_its_first_target() -> None:
    corpus = lay_out([row([1, 2, 3, 4], {3}), row([1, 2, 3, 5], {2, 3})])
    assert corpus.prefix == (1,)
    assert corpus.suffixes[1].inputs == (2, 3)
    assert corpus.suffixes[1].predicts == (0, 1)
    assert corpus.suffixes[1].targets == (3, 5)


def test_a_suffix_ends_where_its_last_target_is_predicted() -> None:
    corpus = lay_out([row([1, 2, 3, 4, 5, 6], {3})])
    assert corpus.prefix == (1, 2)
    assert corpus.suffixes[0].inputs == (3,)
    assert corpus.suffixes[0].size == 6


def test_rows_without_loss_drop_out_and_do_not_shorten_the_prefix() -> None:
    corpus = lay_out([row([1, 2, 3, 4], {3}), row([7, 8], set())])
    assert corpus.prefix == (1, 2)
    assert len(corpus.suffixes) == 1


def test_the_first_token_is_never_a_target() -> None:
    corpus = lay_out([row([1, 2, 3], {0, 2})])
    assert corpus.suffixes[0].targets == (3,)


def test_no_loss_at_all_is_refused() -> None:
    with pytest.raises(TrainingError, match="no row has an assistant token with loss"):
        lay_out([row([1, 2], set())])


def test_flat_positions_count_prefix_and_padding() -> None:
    corpus = lay_out([row([1, 2, 3, 4], {3}), row([1, 5, 6, 7, 8], {3, 4})])
    batch = make_batch(corpus, [0, 1])
    assert (corpus.prefix, batch.length) == ((1,), 3)
    assert batch.keep == (1 + 1, 1 + 3 + 1, 1 + 3 + 2)
    assert batch.targets == (4, 7, 8)
    assert batch.tokens == 4 + 5


def lengths(count: int) -> list[Row]:
    draw = random.Random(5)
    return [row([1, *range(2, 3 + draw.randrange(3, 90)), 9], {2}) for _ in range(count)]


def test_an_epoch_has_every_row_once() -> None:
    batches = epoch_batches(lay_out(lengths(37)), batch_size=8, seed=0, epoch=0)
    assert sorted(i for batch in batches for i in batch.suffixes) == list(range(37))
    assert sorted(len(batch.suffixes) for batch in batches) == [5, 8, 8, 8, 8]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    corpus = lay_out(lengths(37))

    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return [b.suffixes for b in epoch_batches(corpus, batch_size=4, seed=seed, epoch=epoch)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_near_lengths_share_a_batch() -> None:
    rows = [row([n, *range(400, 400 + 10 * (n % 20)), 8, 9], {11 * (n % 2)}) for n in range(1, 65)]
    rows = [row([*r.tokens], {len(r.tokens) - 1}) for r in rows]
    corpus = lay_out(rows)
    batches = epoch_batches(corpus, batch_size=8, seed=0, epoch=0)
    padded = sum(batch.length * len(batch.suffixes) for batch in batches)
    assert padded < 1.2 * sum(len(s.inputs) for s in corpus.suffixes)
