"""Trees of several clients through the layers that have adapters, and loss where there is one.

Whatever rows share goes through once, with gradients on (facts/training.md), and on the CPU only a part of a
tree at a time, so that little has to be kept for the way back. No operation adds up over clients, so one
client's numbers never reach another's adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from fine_tune_runner.private.activations import RmsNorm
from fine_tune_runner.private.batches import CPU_TOKENS, HEAD_ROWS, TREE_TOKENS, Corpus, Part, Tree, cut
from fine_tune_runner.private.flex import attention
from fine_tune_runner.private.llama import Attend, Kept, Llama, Pair, TreeAttend, block, rotary
from fine_tune_runner.private.lora import Adapter
from fine_tune_runner.private.trunk import positions


@dataclass(frozen=True)
class Branch:
    """One client's tree, and what it goes through; all branches of a pass share base and first layer.

    `states` are what leaves the frozen layers, [T, E] by segment.
    """

    tree: Tree
    corpus: Corpus
    states: Mapping[int, Tensor]
    adapter: Adapter


# Keys and values of spans that are held for those that continue them: by layer, then outermost first
Held = Sequence[Sequence[Pair]]


def tokens_at_once(device: torch.device) -> int:
    """How many tokens `backward` sends through a model on this device together."""
    return CPU_TOKENS if device.type == "cpu" else TREE_TOKENS


def backward(model: Llama, branches: Sequence[Branch], shares: Sequence[float], tokens: int) -> list[float]:
    """For each branch the cross-entropy of its targets, summed, times its share; adds up the gradients of it.

    At most `tokens` go through at once, a longer span excepted: beyond that each branch goes alone, in parts.
    A part's way back comes right after its loss, but for a span that later parts continue: these take its
    keys and values as given and collect the gradients of them, with which its own way back begins.
    """
    if sum(branch.tree.size for branch in branches) <= tokens:
        return _forward_backward(model, branches, shares, (), ())
    return [
        sum(
            _forward_backward(model, [replace(branch, tree=part.tree)], [share], (), part.then)[0]
            for part in cut(branch.tree, tokens)
        )
        for branch, share in zip(branches, shares, strict=True)
    ]


def _forward_backward(
    model: Llama, branches: Sequence[Branch], shares: Sequence[float], held: Held, then: Sequence[Part]
) -> list[float]:
    """As `backward`; `then` continue the only span of the only branch, and count in its loss."""
    keys: list[Pair] = []
    totals = losses(model, branches, held, keys if then else None)
    values = [total * share for total, share in zip(totals, shares, strict=True)]
    found = [float(value.detach()) for value in values]
    if not then:
        torch.autograd.backward(values)
        return found
    leaves = [(k.detach().requires_grad_(), v.detach().requires_grad_()) for k, v in keys]
    below = [(*above, own) for above, own in zip(held or [()] * len(leaves), leaves, strict=True)]
    for part in then:
        (value,) = _forward_backward(model, [replace(branches[0], tree=part.tree)], shares, below, part.then)
        found[0] += value
    ends = [x for pair in keys for x in pair]
    torch.autograd.backward([*values, *ends], [*[None] * len(values), *(x.grad for p in leaves for x in p)])
    return found


def losses(
    model: Llama, branches: Sequence[Branch], held: Held = (), keys: list[Pair] | None = None
) -> list[Tensor]:
    """For each branch the cross-entropy of its targets, summed.

    A branch that continues `held` is alone. `keys` gets the keys and values of all tokens, a pair a layer.
    """
    hidden = predicting(model, branches, held, keys)
    return [_loss(model, branch.tree, own) for branch, own in zip(branches, hidden, strict=True)]


def _loss(model: Llama, tree: Tree, hidden_ME: Tensor) -> Tensor:
    targets = torch.tensor(tree.targets, device=model.device)
    total: Tensor = _HeadLoss.apply(hidden_ME, model.head, targets)  # type: ignore[no-untyped-call]
    return total


def predicting(
    model: Llama, branches: Sequence[Branch], held: Held = (), keys: list[Pair] | None = None
) -> list[Tensor]:
    """For each branch [len(targets), E]: hidden states, after the last norm, that predict its targets.

    `held` and `keys` as in `losses`.
    """
    hidden = RmsNorm(model.norm, model.config.norm_eps).forward(_top(model, branches, held, keys))
    rows = torch.split(hidden, [len(branch.tree.keep) for branch in branches])
    return [_spread(branch.tree, kept) for branch, kept in zip(branches, rows, strict=True)]


def _spread(tree: Tree, hidden_ME: Tensor) -> Tensor:
    """One row a target: where rows part behind a position, it predicts several tokens."""
    if tree.source == tuple(range(len(tree.keep))):
        return hidden_ME
    return hidden_ME[torch.tensor(tree.source, device=hidden_ME.device)]


def _top(model: Llama, branches: Sequence[Branch], held: Held, keys: list[Pair] | None) -> Tensor:
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
    x = torch.cat([b.states[span.segment].to(model.device) for b in branches for span in b.tree.spans])
    first, last = min(branches[0].adapter.layers), model.config.layers - 1
    rows = torch.tensor(keep, dtype=torch.long, device=model.device)
    kept = Kept(rows, [(len(b.tree.keep), b.adapter.layers[last]) for b in branches])
    inner, outer = (
        attention(model.device, model.config.head_dim, reaches, wanted) for wanted in (None, keep)
    )
    for index, given in zip(range(first, last + 1), held or repeat(()), strict=False):
        attend = _attend(outer if index == last else inner, given, keys)
        loras = [(b.tree.size, b.adapter.layers[index]) for b in branches]
        x = block(model, index, loras, x, rope, attend, kept if index == last else None)
    return x


def _attend(among: TreeAttend, given: Sequence[Pair], keys: list[Pair] | None) -> Attend:
    """One layer's: it sees what is given, and adds its own to `keys`."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if keys is not None:
            keys.append((k, v))
        return among(q, k, v, given)

    return attend


class _HeadLoss(torch.autograd.Function):
    """Summed cross-entropy through a frozen head, a slice of positions at a time.

    The head gets no gradient, so that of the hidden states can be had in the same pass, and no logits are
    kept: HEAD_ROWS x V floats at most exist.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ME: Tensor, head_VE: Tensor, targets_M: Tensor) -> Tensor:
        grads = torch.empty_like(hidden_ME)
        total = torch.zeros((), device=hidden_ME.device)
        rows = hidden_ME.shape[0]
        slices = -(-rows // HEAD_ROWS)  # of one size: a last one of a few rows costs almost as much
        for number in range(slices):
            part = slice(rows * number // slices, rows * (number + 1) // slices)
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
