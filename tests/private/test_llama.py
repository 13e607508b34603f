"""The functional Llama against transformers' LlamaForCausalLM on tiny random bases, in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.errors import MissingModel, TrainingError
from fine_tune_runner.private.llama import load_llama, logits
from fine_tune_runner.private.llama_config import read_config

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
BASES: dict[str, dict[str, Any]] = {
    "grouped queries, tied": {},
    "untied, own head_dim": {"tied": False, "head_dim": 32},
    "llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500000.0},
    "rope_parameters of transformers 5": {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    "mistral": {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    "one key head": {"kv_heads": 1},
}


@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_logits_are_those_of_transformers(tmp_path: Path, base: dict[str, Any]) -> None:
    folder = make_tiny_llama(tmp_path, **base)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.randint(0, 320, (150,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = reference(tokens[None]).logits[0]
        torch.testing.assert_close(logits(load_llama(folder), tokens), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "qwen2"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "yarn", "factor": 2.0}),
        ("quantization_config", {"quant_method": "gptq"}),
    ],
)
def test_what_is_not_llama_is_refused_by_name(tmp_path: Path, key: str, value: object) -> None:
    folder = make_tiny_llama(tmp_path, **{key: value})
    with pytest.raises(TrainingError, match="yarn" if key == "rope_scaling" else key):
        read_config(folder)


def test_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path, model_type="mistral", sliding_window=512)
    assert read_config(folder).context == 512


def test_missing_weights_name_the_folder(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingModel, match="has no"):
        load_llama(folder)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match=r"model\.layers\.2\.input_layernorm\.weight is missing"):
        load_llama(folder)
