"""The frozen layers below the first adapter: what leaves them does not change, so it is computed once.

Kept in memory up to a budget, beyond it in a file that is mapped into memory. Knows one base and one
client's trie; no adapters, no optimizer.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fine_tune_runner.private.batches import TRUNK_BYTES, Corpus, Span, Tree, make_batch
from fine_tune_runner.private.flex import attention
from fine_tune_runner.private.llama import Llama, Pair, block, rotary, tree_attention

CHUNK_TOKENS = 1536
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
        memory_bytes: int = TRUNK_BYTES,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        self._model, self._corpus, self._depth = model, corpus, depth
        self._kept: dict[int, Tensor] = {}
        count = sum(len(segment.tokens) for segment in corpus.segments)
        store = _room(count, model, scratch, memory_bytes) if depth else None
        if store is not None:  # the bare embedding is not worth keeping
            self._fill(store, chunk_tokens)

    @property
    def kept(self) -> bool:
        """Whether hidden states are kept; False also where all layers have adapters."""
        return bool(self._kept)

    def states(self, tree: Tree) -> Mapping[int, Tensor]:
        """[T, E] of each of the tree's segments, others possibly among them."""
        return self._kept or self._run(tree)

    @torch.no_grad()
    def _run(self, tree: Tree) -> Mapping[int, Tensor]:
        x, rope = self._enter(tree.spans)
        attend = attention(self._model.device, self._model.config.head_dim, tree.reaches)
        for index in range(self._depth):
            x = block(self._model, index, (), x, rope, attend)
        return dict(zip((span.segment for span in tree.spans), _split(x, tree.spans), strict=True))

    @torch.no_grad()
    def _fill(self, store: Tensor, chunk_tokens: int) -> None:
        """Every segment once; what later ones continue stays as keys and values until this is done."""
        inner = {parent for segment in self._corpus.segments for parent in segment.path}
        keys: dict[int, list[Pair]] = {segment: [] for segment in inner}
        at = 0
        for tree in make_batch(self._corpus, range(len(self._corpus.chats)), chunk_tokens).trees:
            new = [span for span in tree.spans if span.segment not in self._kept]
            x = self._run_on(new, keys) if new else torch.empty(0)
            for span, part in zip(new, _split(x, new), strict=True):
                self._kept[span.segment] = store[at : at + len(part)]
                self._kept[span.segment].copy_(part)
                at += len(part)

    def _run_on(self, new: Sequence[Span], keys: dict[int, list[Pair]]) -> Tensor:
        """[N, E] of spans whose ancestors are among them or in `keys`; fills `keys` for later spans."""
        segments = [span.segment for span in new]
        known = sorted({s for segment in segments for s in self._corpus.segments[segment].path} - {*segments})
        place = {segment: i for i, segment in enumerate([*known, *segments])}
        lengths = [span.end - span.start for span in new]
        paths = [tuple(place[s] for s in self._corpus.segments[segment].path) for segment in segments]
        reaches = list(zip(lengths, paths, strict=True))
        x, rope = self._enter(new)
        attend = tree_attention(reaches)
        for index in range(self._depth):
            given = [keys[segment][index] for segment in known]

            def keeping(q: Tensor, k: Tensor, v: Tensor, given: Sequence[Pair] = given) -> Tensor:
                for segment, *pair in zip(segments, *(torch.split(t, lengths) for t in (k, v)), strict=True):
                    if segment in keys:
                        keys[segment].append((pair[0].clone(), pair[1].clone()))
                return attend(q, k, v, given)

            x = block(self._model, index, (), x, rope, keeping)
        return x

    def _enter(self, spans: Sequence[Span]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Embeddings and rotations of flat tokens."""
        tokens = [token for span in spans for token in self._corpus.segments[span.segment].tokens]
        device = self._model.device
        x = self._model.embed[torch.tensor(tokens, dtype=torch.long, device=device)]
        return x, rotary(self._model, positions(self._corpus, spans).to(device))


def _split(x_NE: Tensor, spans: Sequence[Span]) -> tuple[Tensor, ...]:
    return torch.split(x_NE, [span.end - span.start for span in spans])


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
