"""What stands between linears, forward and back, against transformers and autograd; and what is kept."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_llama import make_tiny_llama
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding, apply_rotary_pos_emb

from fine_tune_runner.private.activations import Before, RmsNorm, SwiGLU, rotate
from fine_tune_runner.private.llama import block, load_llama, rotary, tree_attention
from fine_tune_runner.private.lora import Lora, linear, new_adapter

EPS = 1e-5


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_norm_is_that_of_transformers() -> None:
    x = drawn(7, 24) * 3
    reference = LlamaRMSNorm(24, eps=EPS)
    reference.weight.data = drawn(24, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(RmsNorm(reference.weight, EPS).forward(x), reference(x))


def test_a_norm_in_bfloat16_is_computed_in_float32() -> None:
    x = (drawn(7, 24) * 3).bfloat16()
    reference = LlamaRMSNorm(24, eps=EPS).bfloat16()
    with torch.no_grad():
        assert torch.equal(RmsNorm(reference.weight, EPS).forward(x), reference(x))


def test_rotation_and_its_way_back_are_those_of_transformers() -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=2, head_dim=16)
    heads = drawn(5, 4, 16).requires_grad_()
    cos, sin = LlamaRotaryEmbedding(config)(heads, torch.arange(3, 8)[None])
    one = heads.transpose(0, 1)[None]
    turned, _ = apply_rotary_pos_emb(one, one, cos, sin)
    expected = torch.cat([turned[0].transpose(0, 1)[:, :3], heads[:, 3:]], dim=1)
    rope = (cos[0, :, None, :8], sin[0, :, None, :8])
    found, outer = rotate(heads, rope, 3), drawn(5, 4, 16, seed=1)
    torch.testing.assert_close(found, expected)
    own, theirs = (torch.autograd.grad(result, heads, outer)[0] for result in (found, expected))
    torch.testing.assert_close(own, theirs)


def plain_norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * drawn(6, seed=5)


def plain_swiglu(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=1)
    return functional.silu(gate) * up


@pytest.mark.parametrize("name", ["norm", "swiglu"])
def test_gradients_through_a_linear_are_those_of_autograd(name: str) -> None:
    own: Before = RmsNorm(drawn(6, seed=5), EPS) if name == "norm" else SwiGLU()
    width, plain = (6, plain_norm) if name == "norm" else (12, plain_swiglu)
    x, weight = (drawn(5, width) * 2).requires_grad_(), drawn(7, 6, seed=1)
    a, b = drawn(2, 6, seed=2).requires_grad_(), drawn(7, 2, seed=3).requires_grad_()
    found = linear(x, weight, [(5, Lora(a=a, b=(b,), scale=0.5))], own)
    made = plain(x)
    expected = made @ weight.T + 0.5 * (made @ a.T) @ b.T
    torch.testing.assert_close(found, expected)
    outer = drawn(5, 7, seed=4)
    mine, theirs = (torch.autograd.grad(result, (x, a, b), outer) for result in (found, expected))
    torch.testing.assert_close(mine, theirs)


def test_a_linear_without_adapters_passes_gradients_on() -> None:
    x, weight = drawn(5, 12).requires_grad_(), drawn(7, 6, seed=1)
    outer = drawn(5, 7, seed=4)
    (own,) = torch.autograd.grad(linear(x, weight, (), SwiGLU()), x, outer)
    (expected,) = torch.autograd.grad(plain_swiglu(x) @ weight.T, x, outer)
    torch.testing.assert_close(own, expected)


def test_a_layer_keeps_neither_norms_nor_products(tmp_path: Path) -> None:
    """Per token: two inputs, the heads, attention's output, gate and up; and the low-rank ones."""
    model = load_llama(make_tiny_llama(tmp_path, hidden=64, heads=4, kv_heads=2, intermediate=128))
    adapter = new_adapter({0: model.config.shapes}, rank=1, alpha=1.0, seed=0)
    weights = {weight.data_ptr() for weight in adapter.parameters()}
    kept: dict[int, int] = {}
    tokens = 50

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    x, rope = drawn(tokens, 64), rotary(model, torch.arange(tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(model, 0, [(tokens, adapter.layers[0])], x, rope, tree_attention([(tokens, ())]))
    entries = 64 + (64 + 2 * 32) + 64 + 64 + 2 * 128
    small = 7 + 4 + 16  # low-rank results, attention's normalisers, cos and sin
    assert sum(kept.values()) / tokens <= entries + small


def test_keys_of_a_whole_row_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rows share would be kept once a row; it is joined again on the way back."""
    hooks = torch.autograd.graph.saved_tensors_hooks
    kept: list[Any] = []

    def recording(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Any:
        def packed(saved: Tensor) -> Any:
            kept.append(pack(saved))
            return kept[-1]

        return hooks(packed, unpack)

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", recording)
    q, k, v = (drawn(9 * heads, 8).view(9, heads, 8).requires_grad_() for heads in (4, 2, 2))
    tree_attention([(5, ()), (2, (0,)), (2, (0,))])(q, k, v)
    whole = (1, 2, 5 + 2, 8)
    assert [[len(part) for part in one] for one in kept if isinstance(one, list)] == [[5, 2]] * 4
    assert whole not in [one.shape for one in kept if isinstance(one, Tensor)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_of_a_loaded_base_stays_mapped(tmp_path: Path) -> None:
    model = load_llama(make_tiny_llama(tmp_path, tied=False))
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert model.embed.isfinite().all()
