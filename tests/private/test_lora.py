"""The adapter's start, its linear against plain autograd, and its files against PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.llama import load_llama, logits
from fine_tune_runner.private.llama_config import LlamaConfig
from fine_tune_runner.private.lora import Adapter, Lora, linear, new_adapter
from fine_tune_runner.private.lora_layout import save_peft, start


def adapter_for(config: LlamaConfig, *, seed: int = 0, layers: int = 1) -> Adapter:
    top = range(config.layers - layers, config.layers)
    return new_adapter(dict.fromkeys(top, config.shapes), rank=4, alpha=8.0, seed=seed)


def fill(adapter: Adapter) -> Adapter:
    generator = torch.Generator().manual_seed(1)
    adapter.load({k: torch.randn(v.shape, generator=generator) / 8 for k, v in adapter.tensors().items()})
    return adapter


def test_a_starts_kaiming_uniform_and_b_zero() -> None:
    adapter = new_adapter({0: {"down": (4096, (64,))}}, rank=64, alpha=1.0, seed=0)
    lora = adapter.layers[0]["down"]
    start = lora.a.detach()
    bound = 1 / 4096**0.5  # kaiming_uniform_(a=sqrt(5)): sqrt(6 / ((1 + 5) * fan_in))
    assert float(start.abs().max()) <= bound
    assert float(start.std()) == pytest.approx(bound / 3**0.5, rel=0.01)
    assert not lora.b[0].any()


def test_the_draw_is_that_of_torch() -> None:
    found = start({0: {"qkv": (577, (64, 32, 32)), "o": (64, (9,))}}, rank=4, seed=7)
    generator = torch.Generator().manual_seed(7)
    drawn = (torch.rand(12, 577, generator=generator) * 2 - 1) / 577**0.5
    parts = [found[f"base_model.model.model.layers.0.self_attn.{x}_proj.lora_A.weight"] for x in "qkv"]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(parts)), drawn, rtol=1e-6, atol=0)
    output = found["base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight"]
    expected = (torch.rand(4, 64, generator=generator) * 2 - 1) / 8
    assert torch.equal(torch.from_numpy(output), expected)


def test_the_same_seed_gives_the_same_start(tmp_path: Path) -> None:
    config = load_llama(make_tiny_llama(tmp_path)).config
    first, same, other = (adapter_for(config, seed=seed).tensors() for seed in (3, 3, 4))
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    assert torch.equal(first[key], same[key])
    assert not torch.equal(first[key], other[key])


def test_linear_is_the_base_plus_scaled_low_rank_products() -> None:
    draw = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=draw, dtype=torch.float64)

    x, weight = matrix(5, 6).requires_grad_(), matrix(7, 6)
    lora = Lora(
        a=matrix(4, 6).requires_grad_(),
        b=(matrix(3, 2).requires_grad_(), matrix(4, 2).requires_grad_()),
        scale=0.5,
    )

    def plain() -> torch.Tensor:
        low = [(x @ a.T) @ b.T for a, b in zip(lora.a.split(2), lora.b, strict=True)]
        return x @ weight.T + 0.5 * torch.cat(low, dim=1)

    torch.testing.assert_close(linear(x, weight, [(5, lora)]), plain())
    inputs, outer = (x, lora.a, *lora.b), matrix(5, 7)
    own = torch.autograd.grad(linear(x, weight, [(5, lora)]), inputs, outer)
    torch.testing.assert_close(own, torch.autograd.grad(plain(), inputs, outer))


def test_each_adapter_acts_on_its_own_rows() -> None:
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 6, generator=draw).requires_grad_(), torch.randn(7, 6, generator=draw)

    def lora(rank: int, scale: float) -> Lora:
        a = torch.randn(rank, 6, generator=draw).requires_grad_()
        return Lora(a=a, b=(torch.randn(7, rank, generator=draw).requires_grad_(),), scale=scale)

    first, second = lora(2, 0.5), lora(3, 2.0)
    together = linear(x, weight, [(2, first), (3, second)])
    apart = torch.cat([linear(x[:2], weight, [(2, first)]), linear(x[2:], weight, [(3, second)])])
    torch.testing.assert_close(together, apart)
    inputs, outer = (x, first.a, *first.b, second.a, *second.b), torch.randn(5, 7, generator=draw)
    own, expected = torch.autograd.grad(together, inputs, outer), torch.autograd.grad(apart, inputs, outer)
    for mine, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_peft_loads_the_folder_and_gives_the_same_logits(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base", layers=3)
    model = load_llama(base)
    adapter = fill(adapter_for(model.config, layers=2))
    save_peft(adapter, tmp_path, "tiny")
    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(tmp_path)
    )
    tokens = torch.arange(3, 90)
    with torch.no_grad():
        own = logits(model, tokens, adapter)
        torch.testing.assert_close(own, reference(tokens[None]).logits[0], atol=1e-4, rtol=0)
        assert (own - logits(model, tokens)).abs().max() > 0.1


def test_the_config_names_rank_layers_and_no_path(tmp_path: Path) -> None:
    config = load_llama(make_tiny_llama(tmp_path / "base", layers=3)).config
    save_peft(adapter_for(config, layers=2), tmp_path, "tiny")
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["layers_to_transform"]) == (4, 8.0, [1, 2])
    assert written["base_model_name_or_path"] == "tiny"


def test_saved_weights_come_back(tmp_path: Path) -> None:
    config = load_llama(make_tiny_llama(tmp_path / "base")).config
    saved, loaded = fill(adapter_for(config)), adapter_for(config)
    save_peft(saved, tmp_path, "tiny")
    loaded.load(load_file(str(tmp_path / "adapter_model.safetensors")))
    assert all(torch.equal(loaded.tensors()[key], value) for key, value in saved.tensors().items())


def test_weights_of_other_settings_are_refused(tmp_path: Path) -> None:
    config = load_llama(make_tiny_llama(tmp_path)).config
    with pytest.raises(TrainingError, match="other names or shapes"):
        adapter_for(config, layers=1).load(adapter_for(config, layers=2).tensors())
