"""Frozen hidden states: those of a plain pass, kept in memory or in a file, or computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.private.test_shared_prefix import CASES
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.private.batches import Corpus, Tree, lay_out, make_tree
from fine_tune_runner.private.llama import Llama, block, load_llama, rotary, tree_attention
from fine_tune_runner.private.trunk import Trunk, positions

DEPTH = 2


@pytest.fixture
def model(tmp_path: Path) -> Llama:
    return load_llama(make_tiny_llama(tmp_path / "base", layers=3))


def whole(corpus: Corpus) -> Tree:
    return make_tree(corpus, range(len(corpus.chats)))


def flat(trunk: Trunk, tree: Tree) -> torch.Tensor:
    """[N, E] of a tree's tokens."""
    states = trunk.states(tree)
    return torch.cat([states[span.segment] for span in tree.spans])


def row_by_row(model: Llama, corpus: Corpus, chat: int) -> torch.Tensor:
    tokens = torch.tensor([t for s in corpus.chats[chat].path for t in corpus.segments[s].tokens])
    x, rope = model.embed[tokens], rotary(model, torch.arange(len(tokens)))
    for index in range(DEPTH):
        x = block(model, index, (), x, rope, tree_attention([(len(tokens), ())]))
    return x


@pytest.mark.parametrize("chunk_tokens", [4096, 60], ids=["at once", "in chunks"])
@pytest.mark.parametrize("name", list(CASES))
def test_states_are_those_of_each_row_by_itself(model: Llama, name: str, chunk_tokens: int) -> None:
    corpus = lay_out(CASES[name])
    tree = whole(corpus)
    states = flat(Trunk(model, corpus, DEPTH, chunk_tokens=chunk_tokens), tree)
    place = {span.segment: span for span in tree.spans}
    for chat in range(len(corpus.chats)):
        own = torch.cat([states[place[s].start : place[s].end] for s in corpus.chats[chat].path])
        torch.testing.assert_close(own, row_by_row(model, corpus, chat), rtol=0, atol=1e-5)


def test_without_room_in_memory_they_lie_in_a_file_that_has_no_name(model: Llama, tmp_path: Path) -> None:
    corpus = lay_out(CASES["several lengths"])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    kept, mapped = Trunk(model, corpus, DEPTH), Trunk(model, corpus, DEPTH, scratch=scratch, memory_bytes=0)
    assert mapped.kept
    assert torch.equal(flat(kept, whole(corpus)), flat(mapped, whole(corpus)))
    assert list(scratch.iterdir()) == []


def test_without_room_anywhere_they_are_computed_when_asked_for(model: Llama) -> None:
    corpus = lay_out(CASES["several lengths"])
    kept, fresh = Trunk(model, corpus, DEPTH), Trunk(model, corpus, DEPTH, memory_bytes=0)
    assert not fresh.kept
    torch.testing.assert_close(flat(kept, whole(corpus)), flat(fresh, whole(corpus)), rtol=0, atol=1e-5)


def test_with_adapters_everywhere_the_embedding_enters(model: Llama) -> None:
    corpus = lay_out(CASES["one row"])
    trunk = Trunk(model, corpus, 0)
    tokens = [t for segment in corpus.segments for t in segment.tokens]
    assert not trunk.kept
    assert torch.equal(flat(trunk, whole(corpus)), model.embed[torch.tensor(tokens)])


def test_positions_go_on_after_what_is_shared() -> None:
    corpus = lay_out(CASES["two prompts"])
    tree = make_tree(corpus, [0, 2])
    shared, first, second = (span.end - span.start for span in tree.spans)
    assert positions(corpus, tree.spans).tolist() == [
        *range(shared),
        *range(shared, shared + first),
        *range(shared, shared + second),
    ]
