"""A batch through the model: frozen trunk, then the top with adapters, then the loss where there is one.

The prefix goes through once for all rows of a batch, with gradients on (facts/training.md). Below the first
layer with adapters nothing changes during training, so what leaves there is kept for later epochs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fine_tune_runner.private.batches import Batch, Corpus
from fine_tune_runner.private.llama import (
    Llama,
    block,
    causal_attention,
    kept_attention,
    rms_norm,
    rotary,
    shared_attention,
    suffix_attention,
)
from fine_tune_runner.private.lora import Adapter

CACHE_BYTES = 2 << 30
HEAD_ROWS = 256  # positions whose logits exist at once


class Trunk:
    """The layers below `depth`, without adapters: hidden states that enter layer `depth`, each row's once.

    Each row is computed by itself, so that the result does not depend on its batch and a resumed run sees
    the same bits. Rows beyond `cache_bytes` are computed again each time.
    """

    def __init__(self, model: Llama, corpus: Corpus, depth: int, cache_bytes: int = CACHE_BYTES) -> None:
        self._model, self._corpus, self._depth = model, corpus, depth
        self._room = cache_bytes if depth else 0  # the bare embedding is not worth keeping
        self._rows: dict[int, Tensor] = {}
        self._keys: list[tuple[Tensor, Tensor]] = []  # of the prefix, one a layer
        self.prefix_PE = self._run_prefix()

    @torch.no_grad()
    def _run_prefix(self) -> Tensor:
        x = self._embed(self._corpus.prefix)
        rope = self._rope(0, x.shape[0])

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keys.append((k, v.contiguous()))
            return causal_attention(q, k, v)

        for index in range(self._depth):
            x = block(self._model, index, {}, x, rope, attend)
        return x

    @torch.no_grad()
    def row(self, index: int) -> Tensor:
        """[T, E] of suffix `index`, without padding."""
        if index in self._rows:
            return self._rows[index]
        x = self._embed(self._corpus.suffixes[index].inputs)
        rope = self._rope(len(self._corpus.prefix), x.shape[0])
        for layer in range(self._depth):
            keys, values = self._keys[layer]
            attend = partial(suffix_attention, prefix_k_PKD=keys, prefix_v_PKD=values, batch=1)
            x = block(self._model, layer, {}, x, rope, attend)
        size = x.numel() * x.element_size()
        if size <= self._room:
            self._room -= size
            self._rows[index] = x
        return x

    def _embed(self, tokens: tuple[int, ...]) -> Tensor:
        return self._model.embed[torch.tensor(tokens, dtype=torch.long, device=self._model.device)]

    def _rope(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        return rotary(self._model, torch.arange(start, start + length, device=self._model.device))


def top(model: Llama, adapter: Adapter, trunk: Trunk, batch: Batch) -> Tensor:
    """[M, E]: final hidden states, before the last norm, of the positions that predict a target."""
    depth, prefix, size = min(adapter.layers), trunk.prefix_PE.shape[0], len(batch.suffixes)
    rows = torch.nn.utils.rnn.pad_sequence([trunk.row(i) for i in batch.suffixes], batch_first=True)
    x = torch.cat((trunk.prefix_PE, rows.flatten(0, 1)))
    keep = torch.tensor(batch.keep, device=model.device)
    own = torch.arange(prefix, prefix + batch.length, device=model.device).repeat(size)
    rope = rotary(model, torch.cat((torch.arange(prefix, device=model.device), own)))
    last = model.config.layers - 1
    for index in range(depth, last):
        x = block(model, index, adapter.layers[index], x, rope, shared_attention(prefix, size))
    return block(model, last, adapter.layers[last], x, rope, kept_attention(prefix, size, keep), keep)


def batch_loss(model: Llama, adapter: Adapter, trunk: Trunk, batch: Batch) -> Tensor:
    """Cross-entropy of the batch's targets, summed and divided by their number."""
    hidden = rms_norm(top(model, adapter, trunk, batch), model.norm, model.config.norm_eps)
    targets = torch.tensor(batch.targets, device=model.device)
    total: Tensor = _HeadLoss.apply(hidden, model.head, targets)  # type: ignore[no-untyped-call]
    return total / len(batch.targets)


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy through a frozen head, a slice of positions at a time.

    The head gets no gradient, so that of the hidden states can be had in the same pass, and no logits are
    kept: HEAD_ROWS x V floats at most exist.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ME: Tensor, head_VE: Tensor, targets_M: Tensor) -> Tensor:
        grads = torch.empty_like(hidden_ME)
        total = torch.zeros((), device=hidden_ME.device)
        for start in range(0, hidden_ME.shape[0], HEAD_ROWS):
            part = slice(start, start + HEAD_ROWS)
            logits, target = (hidden_ME[part] @ head_VE.T).float(), targets_M[part, None]
            logits.sub_(logits.amax(1, keepdim=True))
            total -= logits.gather(1, target).sum()
            norm = logits.exp_().sum(1, keepdim=True)
            total += norm.log().sum()
            mean = (logits.to(hidden_ME.dtype) @ head_VE).float() / norm  # of the head's rows, by chance
            grads[part] = mean - head_VE[target[:, 0]]
        ctx.save_for_backward(grads)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (grads,) = ctx.saved_tensors
        return grads * outer[0].to(grads.dtype), None, None
