"""A PEFT adapter as GGUF: names, scale and permutation; what cannot be held is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.export import export_adapter

# PEFT reads a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peft_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter of fixed random numbers with B not zero, as PEFT saves it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "task_type": "CAUSAL_LM"} | options
    )
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    # A as well: PEFT draws it from the global generator, so every run would have another adapter.
    scales = {"lora_A": 0.1, "lora_B": 0.3}
    for name, parameter in tuned.named_parameters():
        for part, scale in scales.items():
            if f"{part}." in name:
                parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base"))


def test_names_and_values_are_those_that_llama_cpp_reads(base: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(base, tmp_path / "adapter")
    path = export_adapter(adapter, base, tmp_path / "adapter.gguf", {"ftr.client_id": "hre"})
    reader = GGUFReader(path)
    keys = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha", "ftr.client_id")
    assert [reader.fields[key].contents() for key in keys] == ["llama", "adapter", "lora", 8.0, "hre"]
    tensors = {t.name: t.data for t in reader.tensors}
    saved = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == len(saved) == 2 * 7 * 2
    down = saved["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].numpy()
    assert np.array_equal(tensors["blk.1.ffn_down.weight.lora_a"], down)
    key_b = saved["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"].numpy()
    by_fact = key_b.reshape(2, 2, 32 // 2 // 2, 4).swapaxes(1, 2).reshape(32, 4)
    assert np.array_equal(tensors["blk.0.attn_k.weight.lora_b"], by_fact)


def test_rslora_is_folded_into_alpha(base: Path, tmp_path: Path) -> None:
    adapter = peft_adapter(base, tmp_path / "adapter", use_rslora=True)
    reader = GGUFReader(export_adapter(adapter, base, tmp_path / "adapter.gguf", {}))
    assert reader.fields["adapter.lora.alpha"].contents() == pytest.approx(8 / 4**0.5 * 4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": [*LINEARS, "lm_head"]}, "lm_head"),
        ({"target_modules": [*LINEARS, "embed_tokens"]}, "embed_tokens"),
        ({"rank_pattern": {"q_proj": 2}}, "a rank a module"),
        ({"bias": "all"}, "bias training"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_gguf_lora_cannot_hold_is_refused_by_name(
    options: dict[str, Any], named: str, base: Path, tmp_path: Path
) -> None:
    adapter = peft_adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(TrainingError, match=named):
        export_adapter(adapter, base, tmp_path / "adapter.gguf", {})
    assert not (tmp_path / "adapter.gguf").exists()


def test_a_folder_without_adapter_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8}))
    with pytest.raises(TrainingError, match=r"adapter_model\.safetensors is missing"):
        export_adapter(tmp_path, base, tmp_path / "adapter.gguf", {})
