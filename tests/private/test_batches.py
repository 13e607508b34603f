"""Rows to a trie, and the rows of a step to trees of it: sharing, targets, order, budget."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.batches import (
    MIN_SHARED,
    Corpus,
    Part,
    Row,
    cut,
    epoch_batches,
    lay_out,
    make_batch,
    make_tree,
)

PROMPT = tuple(range(100, 100 + MIN_SHARED))
OTHER = tuple(range(200, 200 + MIN_SHARED))
TURN = tuple(range(300, 300 + MIN_SHARED))


def row(tokens: tuple[int, ...], targets: set[int]) -> Row:
    return Row(tokens=tokens, loss_mask=[i in targets for i in range(len(tokens))])


def chat(*tokens: int, prompt: tuple[int, ...] = PROMPT) -> Row:
    """A prompt, tokens, and the last one as the target."""
    whole = (*prompt, *tokens)
    return row(whole, {len(whole) - 1})


def inputs(corpus: Corpus, index: int) -> tuple[int, ...]:
    """The tokens of a row again, from its segments."""
    return tuple(t for s in corpus.chats[index].path for t in corpus.segments[s].tokens)


def test_what_all_rows_share_is_one_segment() -> None:
    corpus = lay_out([chat(1, 2, 9), chat(1, 3, 9), chat(4, 9)])
    assert corpus.prefix == MIN_SHARED
    assert [corpus.segments[chat.path[0]].tokens for chat in corpus.chats] == [PROMPT] * 3
    assert [inputs(corpus, i)[MIN_SHARED:] for i in range(3)] == [(1, 2), (1, 3), (4,)]


def test_two_prompts_make_two_trees() -> None:
    corpus = lay_out([chat(1, 9), chat(2, 9, prompt=OTHER), chat(3, 9), chat(4, 9, prompt=OTHER)])
    assert corpus.prefix == 0
    roots = {corpus.segments[chat.path[0]].tokens for chat in corpus.chats}
    assert roots == {PROMPT, OTHER}


def test_a_shared_turn_is_a_segment_below_the_prompt() -> None:
    corpus = lay_out([chat(*TURN, 1, 9), chat(*TURN, 2, 9), chat(5, 9)])
    assert [len(chat.path) for chat in corpus.chats] == [3, 3, 2]
    assert corpus.segments[corpus.chats[0].path[1]].tokens == TURN
    assert corpus.segments[corpus.chats[0].path[1]].start == MIN_SHARED


def test_a_short_common_beginning_is_repeated() -> None:
    corpus = lay_out([row((1, 2, 3, 9), {3}), row((1, 2, 4, 9), {3})])
    assert [chat.path for chat in corpus.chats] == [(0,), (1,)]
    assert inputs(corpus, 0) == (1, 2, 3)


def test_a_row_that_is_the_beginning_of_another_ends_inside_it() -> None:
    corpus = lay_out([chat(1, 9), row((*PROMPT, 1, 9, 2, 9), {MIN_SHARED + 1, MIN_SHARED + 3})])
    assert [inputs(corpus, i) for i in range(2)] == [(*PROMPT, 1), (*PROMPT, 1, 9, 2)]


def test_equal_rows_share_everything() -> None:
    corpus = lay_out([chat(1, 9), chat(1, 9)])
    assert corpus.chats[0] == corpus.chats[1]
    assert make_tree(corpus, [0, 1]).size == MIN_SHARED + 1


def test_a_row_ends_where_its_last_target_is_predicted() -> None:
    corpus = lay_out([row((1, 2, 3, 4, 5, 6), {3})])
    assert inputs(corpus, 0) == (1, 2, 3)
    assert (corpus.chats[0].predicts, corpus.chats[0].targets, corpus.chats[0].size) == ((2,), (4,), 6)


def test_rows_without_loss_drop_out() -> None:
    assert len(lay_out([chat(1, 9), row((7, 8), set())]).chats) == 1


def test_the_first_token_is_never_a_target() -> None:
    assert lay_out([row((1, 2, 3), {0, 2})]).chats[0].targets == (3,)


def test_no_loss_at_all_is_refused() -> None:
    with pytest.raises(TrainingError, match="no row has an assistant token with loss"):
        lay_out([row((1, 2), set())])


def test_flat_positions_continue_the_shared_tokens() -> None:
    tree = make_tree(lay_out([chat(1, 2, 9), chat(3, 9)]), [0, 1])
    assert [(span.start, span.end, span.path) for span in tree.spans] == [
        (0, MIN_SHARED, ()),
        (MIN_SHARED, MIN_SHARED + 2, (0,)),
        (MIN_SHARED + 2, MIN_SHARED + 3, (0,)),
    ]
    assert tree.keep == (MIN_SHARED + 1, MIN_SHARED + 2)
    assert (tree.source, tree.targets) == ((0, 1), (9, 9))


def test_one_position_predicts_what_follows_in_each_row() -> None:
    tree = make_tree(lay_out([chat(7), chat(8)]), [0, 1])
    assert tree.size == MIN_SHARED
    assert tree.keep == (MIN_SHARED - 1,)
    assert (tree.source, tree.targets) == ((0, 0), (7, 8))


def many(count: int, prompts: int = 1) -> list[Row]:
    draw = random.Random(5)
    roots = [tuple(1000 * p + i for i in range(200)) for p in range(1, prompts + 1)]
    return [
        chat(*(draw.randrange(3, 90) for _ in range(draw.randrange(3, 90))), 9, prompt=roots[n % prompts])
        for n in range(count)
    ]


def test_an_epoch_has_every_row_once() -> None:
    batches = epoch_batches(lay_out(many(37)), batch_size=8, seed=0, epoch=0)
    assert sorted(i for batch in batches for i in batch.chats) == list(range(37))
    assert sorted(len(batch.chats) for batch in batches) == [5, 8, 8, 8, 8]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    corpus = lay_out(many(37))

    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return [b.chats for b in epoch_batches(corpus, batch_size=4, seed=seed, epoch=epoch)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_rows_of_one_prompt_share_a_batch() -> None:
    corpus = lay_out(many(64, prompts=2))
    batches = epoch_batches(corpus, batch_size=8, seed=0, epoch=0)
    roots = [{corpus.chats[i].path[0] for i in batch.chats} for batch in batches]
    assert sum(len(found) > 1 for found in roots) <= 1


def test_a_batch_beyond_the_budget_is_cut_into_trees_with_the_same_targets() -> None:
    corpus = lay_out(many(12))
    whole, cut = make_batch(corpus, range(12)), make_batch(corpus, range(12), tree_tokens=400)
    assert len(whole.trees) == 1
    assert len(cut.trees) > 1
    assert all(tree.size <= 400 for tree in cut.trees)
    assert sum(len(tree.targets) for tree in cut.trees) == whole.loss_tokens == 12
    assert cut.tokens == whole.tokens == sum(len(r.tokens) for r in many(12))


def test_a_row_longer_than_the_budget_is_a_tree_of_its_own() -> None:
    corpus = lay_out(many(3))
    assert [len(tree.spans) for tree in make_batch(corpus, range(3), tree_tokens=10).trees] == [2, 2, 2]


def parts_of(parts: Sequence[Part], held: int = 0) -> Iterator[tuple[Part, int]]:
    """Every part, with how many spans are held before it."""
    for part in parts:
        yield part, held
        yield from parts_of(part.then, held + 1)


@pytest.mark.parametrize("tokens", [1, 100, 250, 400, 10_000])
def test_parts_hold_every_span_and_target_once(tokens: int) -> None:
    draw = random.Random(3)
    turns = [tuple(draw.randrange(100, 200) for _ in range(40)) for _ in range(3)]  # several rows share these
    rows = [chat(*turns[n % 3], *turns[n % 2], n, 9, prompt=(PROMPT, OTHER)[n % 2]) for n in range(12)]
    tree = make_batch(lay_out(rows), range(12)).trees[0]
    found = list(parts_of(cut(tree, tokens)))
    assert [s.segment for part, _ in found for s in part.tree.spans] == [s.segment for s in tree.spans]
    assert sorted(t for part, _ in found for t in part.tree.targets) == sorted(tree.targets)
    for part, held in found:
        spans = part.tree.spans
        assert part.tree.size <= tokens or len(spans) == 1
        assert not part.then or len(spans) == 1
        assert [span.path[:held] for span in spans] == [tuple(range(held))] * len(spans)
        assert all(above < held + place for place, span in enumerate(spans) for above in span.path)
        assert len(part.tree.source) == len(part.tree.targets)
    if tokens == 10_000:
        assert found == [(Part(tree), 0)]


def test_a_held_span_predicts_what_follows_in_each_row() -> None:
    rows = [row((*PROMPT, *own), {MIN_SHARED, MIN_SHARED + 1}) for own in ((7, 3), (8, 4))]
    (root,) = cut(make_tree(lay_out(rows), [0, 1]), MIN_SHARED)
    assert (root.tree.keep, root.tree.source, root.tree.targets) == ((MIN_SHARED - 1,), (0, 0), (7, 8))
    (rest,) = root.then
    assert (rest.tree.keep, rest.tree.source, rest.tree.targets) == ((0, 1), (0, 1), (3, 4))
