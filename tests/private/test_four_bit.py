"""LoRA on a 4-bit base: numbers of the decoded weights, gradients too; without bitsandbytes it is refused."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.four_bit import Packed, dense, pack
from fine_tune_runner.private.llama import Llama, load_llama, logits
from fine_tune_runner.private.lora import new_adapter

there = find_spec("bitsandbytes") is not None
with_it = pytest.mark.skipif(not there, reason="bitsandbytes is an extra, and not installed here")


def decoded(model: Llama) -> Llama:
    """The same numbers, every weight dense."""
    layers = tuple(
        replace(x, qkv=dense(x.qkv), o=dense(x.o), gate_up=dense(x.gate_up), down=dense(x.down))
        for x in model.layers
    )
    return replace(model, layers=layers)


@with_it
def test_loss_and_gradients_are_those_of_the_decoded_weights(tmp_path: Path) -> None:
    model = load_llama(make_tiny_llama(tmp_path), four_bit=True)
    assert isinstance(model.layers[0].qkv, Packed)
    tokens = torch.randint(0, 320, (40,), generator=torch.Generator().manual_seed(1))
    found = []
    for base in (model, decoded(model)):
        adapter = new_adapter({1: base.config.shapes}, rank=4, alpha=8.0, seed=0)
        for number, parameter in enumerate(adapter.parameters()):
            parameter.data += 0.01 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(number)
            )
        loss = torch.nn.functional.cross_entropy(logits(base, tokens, adapter)[:-1], tokens[1:])
        loss.backward()  # type: ignore[no-untyped-call]
        found.append((loss.detach(), [parameter.grad for parameter in adapter.parameters()]))
    torch.testing.assert_close(found[0], found[1])


@with_it
def test_a_weight_takes_a_quarter_of_sixteen_bits_and_comes_back_near(tmp_path: Path) -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    packed = pack(weight)
    assert packed.data.numel() * packed.data.element_size() == 256 * 256 / 2
    # 16 levels for a normal distribution cut at a block's maximum (QLoRA, appendix E): 0.07 on the mean.
    assert float((packed.dense() - weight).abs().mean()) < 0.1


@pytest.mark.skipif(there, reason="bitsandbytes is installed here")
def test_without_bitsandbytes_it_is_refused_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="pip install bitsandbytes"):
        load_llama(make_tiny_llama(tmp_path), four_bit=True)
