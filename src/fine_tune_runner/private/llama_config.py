"""config.json of a Llama-family base: what a forward needs of it; what ours do not know is refused by name.

Both back ends read it: no torch, no mlx.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.errors import MissingModel, TrainingError


class LlamaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the forward needs of config.json; `context` is the longest row, a sliding window included."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    norm_eps: float
    tied: bool
    context: int
    rope: dict[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """(in, (out, ...)) of each group of linears, as `lora.new_adapter` takes them."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (self.hidden, (queries, keys, keys)),
            "o": (queries, (self.hidden,)),
            "gate_up": (self.hidden, (self.intermediate, self.intermediate)),
            "down": (self.intermediate, (self.hidden,)),
        }


def read_config(folder: Path) -> LlamaConfig:
    """Read config.json of a Llama-family folder.

    Raises MissingModel where it is not there, TrainingError naming what this trainer does not know.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise MissingModel(
            f"{path} is missing; give a Hugging Face folder with config.json and *.safetensors"
        )
    raw = json.loads(path.read_text())
    rope = _rope_settings(raw)
    unknown = _unknown(raw, rope)
    if unknown:
        raise TrainingError(
            f"{path}: {', '.join(unknown)}: not supported; use a Llama-family base "
            "(model_type llama or mistral, no biases, rope default or llama3, unquantised)"
        )
    context = raw.get("max_position_embeddings", 2048)
    return LlamaConfig(
        layers=raw["num_hidden_layers"],
        hidden=raw["hidden_size"],
        heads=raw["num_attention_heads"],
        kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        head_dim=raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"],
        intermediate=raw["intermediate_size"],
        vocab=raw["vocab_size"],
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tied=bool(raw.get("tie_word_embeddings", False)),
        context=min(context, raw.get("sliding_window") or context),
        rope=rope,
    )


def _rope_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`; before it, `rope_theta` and `rope_scaling`."""
    rope = {
        "rope_theta": raw.get("rope_theta", 10000.0),
        **(raw.get("rope_scaling") or {}),
        **(raw.get("rope_parameters") or {}),
    }
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    return rope


def _unknown(raw: dict[str, Any], rope: dict[str, Any]) -> list[str]:
    rules: tuple[tuple[str, Any, bool], ...] = (
        ("model_type", raw.get("model_type"), raw.get("model_type") in ("llama", "mistral")),
        ("attention_bias", raw.get("attention_bias"), not raw.get("attention_bias")),
        ("mlp_bias", raw.get("mlp_bias"), not raw.get("mlp_bias")),
        ("hidden_act", raw.get("hidden_act"), raw.get("hidden_act", "silu") == "silu"),
        ("rope_type", rope["rope_type"], rope["rope_type"] in ("default", "llama3")),
        (
            "partial_rotary_factor",
            rope.get("partial_rotary_factor"),
            rope.get("partial_rotary_factor", 1) == 1,
        ),
        ("quantization_config", "...", not raw.get("quantization_config")),
    )
    return [f"{name} {value!r}" for name, value, known in rules if not known]
