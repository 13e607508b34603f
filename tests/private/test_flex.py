"""Block-sparse attention over trees against the plain one: numbers, blocks, isolation, graphs.

FlexAttention refuses gradients on the CPU, so these come from torch's reference of the same operator, and
from a kernel that walks the listed blocks and nothing else. The CUDA kernel itself is not run here.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tests.private.test_shared_prefix import CASES
from tests.tiny_llama import make_tiny_llama
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._higher_order_ops.flex_attention import flex_attention as reference_operator
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from fine_tune_runner.private.batches import lay_out, make_tree
from fine_tune_runner.private.flex import (
    BLOCK,
    Kernel,
    attention,
    block_attention,
    compiled,
    tried_attention,
)
from fine_tune_runner.private.llama import Reaches, load_llama, tree_attention
from fine_tune_runner.private.lora import new_adapter
from fine_tune_runner.private.shared_prefix import Branch, losses
from fine_tune_runner.private.trunk import Trunk

CPU = torch.device("cpu")
HEADS, KEY_HEADS, HEAD_DIM = 4, 2, 16
TREES: dict[str, Reaches] = {
    "one prefix": [(300, ()), (40, (0,)), (150, (0,)), (7, (0,))],
    "several prefixes": [(150, ()), (40, (0,)), (60, ()), (130, (2,)), (9, (2,))],
    "turns of turns": [(150, ()), (40, (0,)), (70, (0, 1)), (9, (0, 1)), (33, (0,)), (200, (0, 4))],
    "no prefix": [(90, ()), (300, ()), (5, ())],
}
KEEPS = {"all rows": False, "some rows": True}


def kept(reaches: Reaches, some: bool) -> list[int] | None:
    """The last third of the tokens of each second span."""
    ends = torch.tensor([length for length, _ in reaches]).cumsum(0).tolist()
    spans = zip(reaches, ends, strict=True)
    return (
        [at for (n, _), end in list(spans)[1::2] for at in range(end - (n + 2) // 3, end)] if some else None
    )


def heads(reaches: Reaches) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    count = sum(length for length, _ in reaches)
    q, k, v = (torch.randn(count, n, HEAD_DIM, generator=draw) for n in (HEADS, KEY_HEADS, KEY_HEADS))
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def by_torch(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, enable_gqa: bool) -> Tensor:
    """torch's own reference of the operator, with gradients; it looks at the mask, not at the blocks."""
    assert enable_gqa
    options = {"OUTPUT_LOGSUMEXP": True, "OUTPUT_MAX": False, "BACKEND": "AUTO"}
    out, _, _ = reference_operator(
        q, k, v, lambda score, *_: score, block_mask.as_tuple(), HEAD_DIM**-0.5, options
    )
    result: Tensor = out
    return result


def by_blocks(q: Tensor, k: Tensor, v: Tensor, *, block_mask: BlockMask, enable_gqa: bool) -> Tensor:
    """Only the listed blocks, and the mask only in those that are not listed as full."""
    assert enable_gqa
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, dim=1) for x in (k, v))
    out, zero = [], torch.tensor(0)
    for block, rows in enumerate(torch.arange(q.shape[2]).split(BLOCK)):
        met, visible = [], []
        for count, order, full in (
            (block_mask.kv_num_blocks, block_mask.kv_indices, False),
            (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, True),
        ):
            assert count is not None
            assert order is not None
            for at in order[0, 0, block, : int(count[0, 0, block])].tolist():
                keys = torch.arange(at * BLOCK, (at + 1) * BLOCK)
                shown = block_mask.mask_mod(zero, zero, rows[:, None], keys[None])
                met.append(keys)
                visible.append(torch.ones_like(shown) if full else shown)
        seen = torch.cat(met)
        scores = q[:, :, rows] @ k[:, :, seen].transpose(2, 3) * HEAD_DIM**-0.5
        weights = scores.masked_fill(~torch.cat(visible, dim=1), -math.inf).softmax(-1)
        out.append(weights @ v[:, :, seen])
    return torch.cat(out, dim=2)


@pytest.mark.parametrize("kernel", [by_torch, by_blocks])
@pytest.mark.parametrize("some", KEEPS.values(), ids=list(KEEPS))
@pytest.mark.parametrize("reaches", TREES.values(), ids=list(TREES))
def test_outputs_and_gradients_are_those_of_plain_attention(
    reaches: Reaches, some: bool, kernel: Kernel
) -> None:
    qkv, keep = heads(reaches), kept(reaches, some)
    own = block_attention(reaches, keep, CPU, kernel)(*qkv)
    plain = tree_attention(reaches, keep)(*qkv)
    torch.testing.assert_close(own, plain, rtol=0, atol=1e-5)
    outer = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1))
    for mine, theirs in zip(
        torch.autograd.grad(own, qkv, outer), torch.autograd.grad(plain, qkv, outer), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@torch.no_grad()
def test_flex_attention_itself_takes_the_blocks() -> None:
    reaches = TREES["turns of turns"]
    own = block_attention(reaches, None, CPU, flex_attention)(*heads(reaches))
    torch.testing.assert_close(own, tree_attention(reaches)(*heads(reaches)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_trees_of_all_sizes_need_one_graph() -> None:
    counter = CompileCounter()
    kernel = compiled(counter)
    for reaches in (TREES["one prefix"], [(20, ())]):
        for some in (False, True):  # as many rows as keys, and fewer
            keep = [3] if some else None
            own = block_attention(reaches, keep, CPU, kernel)(*heads(reaches))
            torch.testing.assert_close(own, tree_attention(reaches, keep)(*heads(reaches)), rtol=0, atol=1e-5)
    assert counter.frame_count == 1


def test_what_is_not_finite_in_one_tree_moves_no_bit_of_the_others() -> None:
    reaches = TREES["several prefixes"]  # flat tokens 0 to 189 are the first tree, the rest the second
    found = []
    for poison in (0.0, math.nan, math.inf):
        qkv = heads(reaches)
        with torch.no_grad():
            for x in qkv:
                x[:190] += poison
        out = block_attention(reaches, None, CPU, by_blocks)(*qkv)
        found.append([out[190:], *(g[190:] for g in torch.autograd.grad(out.sum(), qkv))])
    for poisoned in found[1:]:
        assert all(torch.equal(mine, clean) for mine, clean in zip(poisoned, found[0], strict=True))


def test_spans_that_do_not_come_depth_first_are_refused() -> None:
    with pytest.raises(ValueError, match="depth first"):
        block_attention([(9, ()), (9, ()), (9, (0,))], None, CPU, by_blocks)


def test_the_cpu_keeps_to_one_call_a_span() -> None:
    reaches = TREES["one prefix"]
    own = attention(CPU, HEAD_DIM, reaches)(*heads(reaches))
    assert torch.equal(own, tree_attention(reaches)(*heads(reaches)))


def test_a_kernel_that_fails_is_tried_once_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    calls = []

    def fails(*_args: Tensor, **_options: object) -> Tensor:
        calls.append(1)
        raise RuntimeError("Triton found no compiler\nand more")

    def kernel() -> Kernel:
        return fails

    for reaches in TREES.values():
        own = tried_attention(reaches, None, CPU, kernel)(*heads(reaches))
        assert torch.equal(own, tree_attention(reaches)(*heads(reaches)))
    assert len(calls) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "does not run on cpu (RuntimeError: Triton found no compiler)" in said


def test_a_kernel_that_only_fails_backward_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    def kernel() -> Kernel:
        return lambda q, *_args, **_options: q.detach()

    reaches = TREES["one prefix"]
    own = tried_attention(reaches, None, CPU, kernel)(*heads(reaches))
    assert torch.equal(own, tree_attention(reaches)(*heads(reaches)))
    assert "does not require grad" in capsys.readouterr().err


def test_a_kernel_that_runs_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    def kernel() -> Kernel:
        return by_blocks

    reaches, qkv = TREES["one prefix"], heads(TREES["one prefix"])
    own = tried_attention(reaches, [3], CPU, kernel)(*qkv)
    assert torch.equal(own, block_attention(reaches, [3], CPU, by_blocks)(*qkv))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_model_elsewhere_meets_no_tensor_of_the_cpu(tmp_path: Path, dtype: torch.dtype) -> None:
    """On "meta", which like CUDA refuses to be mixed: loss and gradients of adapters, frozen layers below."""
    loaded = load_llama(make_tiny_llama(tmp_path, layers=2))

    def away(weights: object) -> dict[str, Tensor]:
        named = {field.name: getattr(weights, field.name) for field in fields(weights)}  # type: ignore[arg-type]
        return {name: x.to("meta", dtype) for name, x in named.items() if isinstance(x, Tensor)}

    layers = tuple(replace(layer, **away(layer)) for layer in loaded.layers)
    model = replace(
        loaded, **away(loaded) | {"inv_freq": loaded.inv_freq.to("meta")}, layers=layers
    )  # fmt: skip
    corpus = lay_out(CASES["loss in what rows share"])
    drawn = new_adapter({1: model.config.shapes}, rank=2, alpha=2.0, seed=0)
    adapter = drawn.like([p.detach().to("meta").requires_grad_() for p in drawn.parameters()])
    tree = make_tree(corpus, [0, 1])
    branch = Branch(tree, corpus, Trunk(model, corpus, 1, memory_bytes=0).states(tree), adapter)
    # Kept states lie in the CPU's memory, also beside a client whose states were not kept.
    kept = {segment: torch.zeros(*x.shape, dtype=x.dtype) for segment, x in branch.states.items()}
    torch.autograd.backward(losses(model, [branch, replace(branch, states=kept)]))
    gradients = [p.grad for p in adapter.parameters() if p.grad is not None]
    assert {(g.device.type, g.dtype) for g in gradients} == {("meta", torch.float32)}
    assert len(gradients) == len(adapter.parameters())


def test_given_spans_are_seen_as_the_plain_attention_sees_them() -> None:
    reaches = [(3, (0,)), (2, (0, 1))]  # both continue the given span
    q, k, v = heads(reaches)
    given = [(k[:2] + 1, v[:2] - 1)]
    own = tried_attention(reaches, None, CPU, lambda: by_blocks)(q, k, v, given)
    assert torch.equal(own, tree_attention(reaches)(q, k, v, given))
    assert not torch.equal(own, tree_attention([(3, ()), (2, (0,))])(q, k, v))
