"""Trees of several clients through the model: frozen trunk, the top with adapters, loss where there is one.

Whatever rows share goes through once, with gradients on (facts/training.md). No operation adds up over
clients, so one client's numbers never reach another's adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fine_tune_runner.private.activations import RmsNorm
from fine_tune_runner.private.batches import HEAD_ROWS, Corpus, Tree
from fine_tune_runner.private.flex import attention
from fine_tune_runner.private.llama import Kept, Llama, block, rotary
from fine_tune_runner.private.lora import Adapter
from fine_tune_runner.private.trunk import Trunk, positions


@dataclass(frozen=True)
class Branch:
    """One client's tree, and what it goes through; all branches of a pass share base and first layer."""

    tree: Tree
    corpus: Corpus
    trunk: Trunk
    adapter: Adapter


def losses(model: Llama, branches: Sequence[Branch]) -> list[Tensor]:
    """For each branch the cross-entropy of its targets, summed."""
    return [
        _loss(model, branch.tree, hidden)
        for branch, hidden in zip(branches, predicting(model, branches), strict=True)
    ]


def _loss(model: Llama, tree: Tree, hidden_ME: Tensor) -> Tensor:
    targets = torch.tensor(tree.targets, device=model.device)
    total: Tensor = _HeadLoss.apply(hidden_ME, model.head, targets)  # type: ignore[no-untyped-call]
    return total


def predicting(model: Llama, branches: Sequence[Branch]) -> list[Tensor]:
    """For each branch [len(targets), E]: hidden states, after the last norm, that predict its targets."""
    hidden = RmsNorm(model.norm, model.config.norm_eps).forward(_top(model, branches))
    rows = torch.split(hidden, [len(branch.tree.keep) for branch in branches])
    return [_spread(branch.tree, kept) for branch, kept in zip(branches, rows, strict=True)]


def _spread(tree: Tree, hidden_ME: Tensor) -> Tensor:
    """One row a target: where rows part behind a position, it predicts several tokens."""
    if tree.source == tuple(range(len(tree.keep))):
        return hidden_ME
    return hidden_ME[torch.tensor(tree.source, device=hidden_ME.device)]


def _top(model: Llama, branches: Sequence[Branch]) -> Tensor:
    """[M, E]: final hidden states, before the last norm, of the positions that predict a target."""
    reaches: list[tuple[int, tuple[int, ...]]] = []
    keep: list[int] = []
    at = 0
    for branch in branches:
        before = len(reaches)
        reaches += [(length, tuple(s + before for s in path)) for length, path in branch.tree.reaches]
        keep += [at + position for position in branch.tree.keep]
        at += branch.tree.size
    rope = rotary(model, torch.cat([positions(b.corpus, b.tree.spans) for b in branches]).to(model.device))
    x = torch.cat([branch.trunk.states(branch.tree) for branch in branches])
    attend = attention(model.device, model.config.head_dim, reaches)
    last = model.config.layers - 1
    for index in range(min(branches[0].adapter.layers), last):
        x = block(model, index, [(b.tree.size, b.adapter.layers[index]) for b in branches], x, rope, attend)
    loras = [(b.tree.size, b.adapter.layers[last]) for b in branches]
    kept = Kept(
        rows=torch.tensor(keep, device=model.device),
        loras=[(len(b.tree.keep), b.adapter.layers[last]) for b in branches],
    )
    attend = attention(model.device, model.config.head_dim, reaches, keep)
    return block(model, last, loras, x, rope, attend, kept)


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
