"""The frozen layers below the first adapter: what leaves them does not change, so it is computed once.

Kept in memory up to a budget, beyond it in a file that is mapped into memory. Knows one base and one
client's trie; no adapters, no optimizer.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fine_tune_runner.private.batches import Corpus, Span, Tree, make_batch
from fine_tune_runner.private.llama import Llama, block, rotary, tree_attention

MEMORY_BYTES = 2 << 30
CHUNK_TOKENS = 4096  # enough rows for the matrix products to run at full speed
SPARE_BYTES = 2 << 30  # what a file of hidden states leaves free on the disk


class Trunk:
    """Hidden states that enter layer `depth`, [T, E] a segment of the trie.

    All segments go through the frozen layers when this is made, in chunks that depend on the corpus alone, so
    that a resumed training sees the same bits. Where neither memory nor disk has room (`memory_bytes`,
    `scratch` None or too full) nothing is kept, and each tree is computed when it is asked for.
    """

    def __init__(
        self,
        model: Llama,
        corpus: Corpus,
        depth: int,
        *,
        scratch: Path | None = None,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self._model, self._corpus, self._depth = model, corpus, depth
        self._kept: dict[int, Tensor] = {}
        count = sum(len(segment.tokens) for segment in corpus.segments)
        if depth:  # the bare embedding is not worth keeping
            self._fill(_room(count, model, scratch, memory_bytes))

    @property
    def kept(self) -> bool:
        """Whether hidden states are kept; False also where all layers have adapters."""
        return bool(self._kept)

    def states(self, tree: Tree) -> Tensor:
        """[N, E] of a tree's flat tokens."""
        if self._kept:
            device = self._model.device
            return torch.cat([self._kept[span.segment].to(device) for span in tree.spans])
        return self._run(tree)

    @torch.no_grad()
    def _run(self, tree: Tree) -> Tensor:
        tokens = [token for span in tree.spans for token in self._corpus.segments[span.segment].tokens]
        x = self._model.embed[torch.tensor(tokens, dtype=torch.long, device=self._model.device)]
        if self._depth == 0:
            return x
        rope = rotary(self._model, positions(self._corpus, tree.spans).to(self._model.device))
        attend = tree_attention(tree.reaches)
        for index in range(self._depth):
            x = block(self._model, index, (), x, rope, attend)
        return x

    def _fill(self, store: Tensor | None) -> None:
        if store is None:
            return
        at = 0
        whole = make_batch(self._corpus, range(len(self._corpus.chats)), CHUNK_TOKENS)
        for tree in whole.trees:
            x = self._run(tree)
            for span in tree.spans:
                if span.segment not in self._kept:
                    part = store[at : at + span.end - span.start]
                    part.copy_(x[span.start : span.end])
                    self._kept[span.segment] = part
                    at += len(part)


def positions(corpus: Corpus, spans: Sequence[Span]) -> Tensor:
    """[N]: the place of each flat token in its row."""
    starts = [corpus.segments[span.segment].start for span in spans]
    return torch.cat([torch.arange(s.end - s.start) + at for s, at in zip(spans, starts, strict=True)])


def _room(tokens: int, model: Llama, scratch: Path | None, memory_bytes: int) -> Tensor | None:
    """[tokens, E] in memory, in a file of `scratch` that has no name any more, or nowhere."""
    hidden, dtype = model.config.hidden, model.embed.dtype
    size = tokens * hidden * model.embed.element_size()
    if size <= memory_bytes:
        return torch.empty(tokens, hidden, dtype=dtype)
    if scratch is None or shutil.disk_usage(scratch).free < size + SPARE_BYTES:
        return None
    path = scratch / "hidden-states.bin"
    try:
        flat = torch.from_file(str(path), shared=True, size=tokens * hidden, dtype=dtype)
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    return flat.view(tokens, hidden)
