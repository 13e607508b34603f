"""Attention over trees as one block-sparse kernel: torch's FlexAttention (Dong et al. 2024), for CUDA.

The same seam and the same numbers as llama.tree_attention, which makes one call a span: many small kernels.
Not run on a GPU yet. Axes: N tokens, M wanted rows, S padded keys, P padded rows, H query heads, K key heads.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fine_tune_runner.private.llama import Attend, Pair, Reaches, TreeAttend, tree_attention

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128  # rows and keys that the kernel takes or leaves together
MIN_HEAD_DIM = 16  # of torch's Triton kernels

# kernel(q_1HPD, k_1KSD, v_1KSD, block_mask=..., enable_gqa=...) -> [1, H, P, D], as flex_attention
Kernel = Callable[..., Tensor]


def attention(
    device: torch.device, head_dim: int, reaches: Reaches, keep: Sequence[int] | None = None
) -> TreeAttend:
    """The way of `reaches` and `keep`, as llama.tree_attention takes them, that suits this device."""
    if device.type == "cuda" and head_dim >= MIN_HEAD_DIM:
        return tried_attention(reaches, keep, device, compiled)
    return tree_attention(reaches, keep)


def tried_attention(
    reaches: Reaches, keep: Sequence[int] | None, device: torch.device, kernel: Callable[[], Kernel]
) -> TreeAttend:
    """block_attention where the kernel runs here with the first call's heads, else tree_attention.

    Spans that are given are for tree_attention alone.
    """
    among = tree_attention(reaches, keep)
    chosen: list[Attend] = []  # at the first layer, for all

    def attend(q: Tensor, k: Tensor, v: Tensor, given: Sequence[Pair] = ()) -> Tensor:
        if given:
            return among(q, k, v, given)
        if not chosen:
            runs = _runs(kernel, device, q.dtype, q.shape[1], k.shape[1], q.shape[2])
            chosen.append(block_attention(reaches, keep, device, kernel()) if runs else among)
        return chosen[0](q, k, v)

    return attend


@cache
def _runs(
    kernel: Callable[[], Kernel], device: torch.device, dtype: torch.dtype, heads: int, keys: int, size: int
) -> bool:
    """Whether the kernel goes forward (both ways of gradients) and backward on a tree of two spans.

    Once a process and layout of heads; where it does not, stderr says so in a line.
    """
    try:
        attend = block_attention([(3, ()), (2, (0,))], None, device, kernel())
        q, k, v = (torch.ones(5, n, size, device=device, dtype=dtype) for n in (heads, keys, keys))
        with torch.no_grad():
            attend(q, k, v)
        with torch.enable_grad():
            out = attend(*(x.requires_grad_() for x in (q, k, v)))
            torch.autograd.grad(out.sum(), (q, k, v))
        # Every value is 1, and so is every mean of them.
        torch.testing.assert_close(out.detach(), torch.ones_like(out), rtol=0.05, atol=0.05)
    except Exception as error:  # noqa: BLE001 - compilers raise anything, and there is another way to the same
        line = str(error).strip().partition("\n")[0]
        sys.stderr.write(
            f"block-sparse attention does not run on {device} ({type(error).__name__}: {line}); "
            "attention goes one call a span, which is slower\n"
        )
        return False
    return True


@cache
def compiled(backend: Any = "inductor") -> Kernel:
    """FlexAttention compiled once a process, for trees of all sizes."""
    # Here, as one is private to torch: where it moves, trainings without a GPU must not notice.
    from torch.fx.experimental import _config
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Kernel = torch.compile(flex_attention, dynamic=True, backend=backend)

    def attend(*args: Tensor, **options: Any) -> Tensor:
        # Else sizes that are equal by chance (blocks and heads) are taken for one, and compiled anew later.
        with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return kernel(*args, **options)

    return attend


def block_attention(
    reaches: Reaches, keep: Sequence[int] | None, device: torch.device, kernel: Kernel
) -> Attend:
    """As llama.tree_attention without `given`; ValueError where the spans do not come depth first.

    Spans that continue nothing begin on a block of their own, keys and rows: a masked NaN times a weight of 0
    is NaN, so blocks must not be shared by two clients (or by rows that share nothing).
    """
    plan = _plan(reaches, keep)
    mask = block_mask(plan, device)
    keys, rows = plan.keys.to(device), plan.rows.to(device)
    wanted = None if keep is None else torch.tensor(keep, device=device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        padded_k, padded_v = (_spread(x, keys, len(plan.ends)) for x in (k, v))
        padded_q = _spread(q if wanted is None else q.index_select(0, wanted), rows, len(plan.sees))
        out = kernel(padded_q, padded_k, padded_v, block_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
        return out[0].transpose(0, 1).index_select(0, rows).flatten(1)

    return attend


def _spread(x_NHD: Tensor, places_N: Tensor, size: int) -> Tensor:
    """[1, H, size, D], zeros in between."""
    padded = x_NHD.new_zeros(size, *x_NHD.shape[1:]).index_copy(0, places_N, x_NHD)
    return padded.transpose(0, 1)[None]


@dataclass(frozen=True)
class Plan:
    """Where flat tokens lie once padded; a row at key place p sees the keys k <= p with `ends[k]` > p.

    That is all of a tree's mask where spans come depth first: the tokens that continue a span, and no others,
    lie between it and its end.
    """

    keys: Tensor  # [N] places among the padded keys
    ends: Tensor  # [S] behind the last token that continues the key's span; 0 for padding
    rows: Tensor  # [M] places of the wanted tokens among the padded rows
    sees: Tensor  # [P] the key place of each row; padding repeats its group's last row


def _plan(reaches: Reaches, keep: Sequence[int] | None) -> Plan:
    lengths = torch.tensor([length for length, _ in reaches])
    roots = torch.tensor([not path for _, path in reaches])
    group_N = torch.repeat_interleave(roots.cumsum(0) - 1, lengths)
    wanted = torch.arange(len(group_N)) if keep is None else torch.tensor(keep)
    keys, size = _places(group_N)
    rows, padded = _places(group_N[wanted])
    stops = lengths.cumsum(0)[torch.tensor(_last(reaches))]  # flat ends of whole subtrees
    ends = torch.zeros(size, dtype=torch.long)
    ends[keys] = torch.repeat_interleave(keys[stops - 1] + 1, lengths)
    before = torch.searchsorted(rows, torch.arange(padded), right=True) - 1
    return Plan(keys=keys, ends=ends, rows=rows, sees=keys[wanted][before])


def _places(group_M: Tensor) -> tuple[Tensor, int]:
    """[M]: tokens one after another, each group from a multiple of BLOCK on; and how long that gets."""
    counts = torch.bincount(group_M)
    sizes = (counts + BLOCK - 1) // BLOCK * BLOCK
    shift = (sizes.cumsum(0) - sizes) - (counts.cumsum(0) - counts)
    # Two blocks at least: torch compiles another graph for a length of one.
    return torch.arange(len(group_M)) + shift[group_M], max(2 * BLOCK, int(sizes.sum()))


def _last(reaches: Reaches) -> list[int]:
    """The last span that continues each span, itself where none does."""
    last, followers = list(range(len(reaches))), [0] * len(reaches)
    for index, (_, path) in enumerate(reaches):
        for span in path:
            last[span] = index
            followers[span] += 1
    if any(end - span != count for span, (end, count) in enumerate(zip(last, followers, strict=True))):
        raise ValueError("the spans of a tree must come depth first")
    return last


def block_mask(plan: Plan, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of rows meets, from bounds alone: no square of tokens is ever made."""
    from torch.nn.attention.flex_attention import BlockMask

    low, high = torch.aminmax(plan.sees.view(-1, BLOCK, 1), dim=1)
    first = torch.arange(0, len(plan.ends), BLOCK)
    end_low, end_high = torch.aminmax(plan.ends.view(-1, BLOCK), dim=1)
    met = (first <= high) & (end_high > low)
    full = (first + BLOCK - 1 <= low) & (end_low > high)
    sees, ends = plan.sees.to(device), plan.ends.to(device)

    def visible(_batch: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (key <= sees[row]) & (sees[row] < ends[key])

    return BlockMask.from_kv_blocks(
        *_listed(met & ~full, device),
        *_listed(full, device),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(len(plan.sees), len(plan.ends)),
    )


def _listed(blocks: Tensor, device: torch.device) -> tuple[Any, Any]:
    """How many blocks a block of rows meets, and which, these first."""
    count = blocks.sum(1, dtype=torch.int32)
    order = blocks.int().argsort(dim=1, descending=True, stable=True).int()
    return count[None, None].to(device), order[None, None].contiguous().to(device)
