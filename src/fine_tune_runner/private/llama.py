"""A functional Llama forward over frozen weights: shared prefix, suffixes, and the head where there is loss.

Weights come from a Hugging Face folder; the same tokens give the logits of transformers' LlamaForCausalLM.
Tokens lie flat, [N, E]: first the P of the prefix, then B suffixes of T. It must not know data sets or
optimizers. Axes: N tokens, E hidden, H query heads, K key heads, D head size, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from fine_tune_runner.errors import MissingModel, TrainingError
from fine_tune_runner.private.lora import Adapter, Lora, linear

# attend(q_NHD, k_NKD, v_NKD) -> [M, H * D]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class Layer:
    """Frozen weights of one layer; linears that read the same input are stacked as lora.GROUPS says."""

    input_norm: Tensor
    qkv: Tensor
    o: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Llama:
    """A frozen base model in memory."""

    config: LlamaConfig
    embed: Tensor  # [V, E]
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Tensor  # [V, E], the same tensor as `embed` where they are tied
    inv_freq: Tensor  # [D / 2]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.embed.device


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


def load_llama(
    folder: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Llama:
    """Load a base, frozen, from `folder`/*.safetensors.

    Raises MissingModel where the folder has no weights, TrainingError where a tensor is missing or the config
    is not Llama's.
    """
    config = read_config(folder)
    take = _tensors(folder, device, dtype)

    def layer(index: int) -> Layer:
        def stack(*modules: str) -> Tensor:
            return torch.cat([take(f"model.layers.{index}.{module}.weight") for module in modules])

        return Layer(
            input_norm=stack("input_layernorm"),
            qkv=stack("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            o=stack("self_attn.o_proj"),
            post_norm=stack("post_attention_layernorm"),
            gate_up=stack("mlp.gate_proj", "mlp.up_proj"),
            down=stack("mlp.down_proj"),
        )

    embed = take("model.embed_tokens.weight")
    return Llama(
        config=config,
        embed=embed,
        layers=tuple(layer(index) for index in range(config.layers)),
        norm=take("model.norm.weight"),
        head=embed if config.tied else take("lm_head.weight"),
        inv_freq=_inverse_frequencies(config).to(device),
    )


def _tensors(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Callable[[str], Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MissingModel(
            f"{folder} has no *.safetensors; fetch the base anew, for example: fine-tune fetch"
        )
    readers = [safe_open(str(path), framework="pt") for path in files]
    where = {key: reader for reader in readers for key in reader.keys()}  # type: ignore[no-untyped-call]  # noqa: SIM118

    def take(key: str) -> Tensor:
        if key not in where:
            raise TrainingError(f"{folder}: tensor {key} is missing; the base is incomplete, fetch it anew")
        tensor: Tensor = where[key].get_tensor(key)  # type: ignore[no-untyped-call]
        return tensor.to(device, dtype)

    return take


def _inverse_frequencies(config: LlamaConfig) -> Tensor:
    """[D / 2], with Llama 3.1's scaling where asked (transformers modeling_rope_utils, llama3)."""
    rope, half = config.rope, torch.arange(0, config.head_dim, 2).float()
    plain: Tensor = 1.0 / (rope["rope_theta"] ** (half / config.head_dim))
    if rope["rope_type"] == "default":
        return plain
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turns = rope["original_max_position_embeddings"] * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow, scaled; 1: fast, left alone
    scaled: Tensor = (1 - share) * plain / rope["factor"] + share * plain
    return scaled


def rotary(model: Llama, positions_N: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, each [N, 1, D / 2], in the model's dtype."""
    angles = positions_N[:, None, None].float() * model.inv_freq
    return angles.cos().to(model.embed.dtype), angles.sin().to(model.embed.dtype)


def rotate(x_NHD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs (i, i + D / 2) of each head, as Hugging Face lays them out."""
    cos, sin = rope
    left, right = x_NHD.chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def rms_norm(x_NE: Tensor, weight_E: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm, computed in float32 (Zhang and Sennrich 2019)."""
    x = x_NE.float()
    return weight_E * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(x_NE.dtype)


def block(
    model: Llama,
    index: int,
    groups: dict[str, Lora],
    x_NE: Tensor,
    rope: tuple[Tensor, Tensor],
    attend: Attend,
    keep_M: Tensor | None = None,
) -> Tensor:
    """One layer. With `keep_M` only those rows go on after attention, and `attend` must return just them."""
    config, layer = model.config, model.layers[index]
    normed = rms_norm(x_NE, layer.input_norm, config.norm_eps)
    heads_NHD = torch.unflatten(linear(normed, layer.qkv, groups.get("qkv")), 1, (-1, config.head_dim))
    # torch.split, not slices: the gradient of a slice is a whole tensor of zeros with the slice copied in.
    unrotated, v = torch.split(heads_NHD, [config.heads + config.kv_heads, config.kv_heads], dim=1)
    q, k = torch.split(rotate(unrotated, rope), [config.heads, config.kv_heads], dim=1)
    attended = attend(q, k, v)
    x = (x_NE if keep_M is None else x_NE[keep_M]) + linear(attended, layer.o, groups.get("o"))
    normed = rms_norm(x, layer.post_norm, config.norm_eps)
    gate, up = linear(normed, layer.gate_up, groups.get("gate_up")).chunk(2, dim=1)
    return x + linear(functional.silu(gate) * up, layer.down, groups.get("down"))


def causal_attention(q_PHD: Tensor, k_PKD: Tensor, v_PKD: Tensor) -> Tensor:
    """[P, H * D]: each token sees itself and those before it."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_PHD, k_PKD, v_PKD))
    out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out[0].transpose(0, 1).flatten(1)


def suffix_attention(
    q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, prefix_k_PKD: Tensor, prefix_v_PKD: Tensor, batch: int
) -> Tensor:
    """[B * T, H * D]: each suffix token sees the whole prefix, itself, and those before it in its own row.

    Padding stands on the right, so that no token with loss ever sees it and no mask a row is needed.
    """
    prefix, length = prefix_k_PKD.shape[0], q_NHD.shape[0] // batch

    def rows(x_NKD: Tensor, prefix_PKD: Tensor) -> Tensor:
        own = torch.unflatten(x_NKD, 0, (batch, length))
        return torch.cat((prefix_PKD.expand(batch, -1, -1, -1), own), dim=1).transpose(1, 2)

    q = torch.unflatten(q_NHD, 0, (batch, length)).transpose(1, 2)
    seen = torch.ones(length, prefix + length, dtype=torch.bool, device=q.device).tril(prefix)
    out = functional.scaled_dot_product_attention(
        q, rows(k_NKD, prefix_k_PKD), rows(v_NKD, prefix_v_PKD), attn_mask=seen, enable_gqa=True
    )
    return out.transpose(1, 2).flatten(0, 1).flatten(1)


def _split(x_NHD: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    first, rest = torch.split(x_NHD, [prefix, x_NHD.shape[0] - prefix])
    return first, rest


def shared_attention(prefix: int, batch: int) -> Attend:
    """Attention over flat [P + B * T] tokens: the prefix once, every suffix against its keys and values."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (q0, q1), (k0, k1), (v0, v1) = (_split(x, prefix) for x in (q, k, v))
        suffix = suffix_attention(q1, k1, v1, k0, v0, batch)
        return torch.cat((causal_attention(q0, k0, v0), suffix)) if prefix else suffix

    return attend


def kept_attention(prefix: int, batch: int, keep_M: Tensor) -> Attend:
    """As `shared_attention`, but only the suffix rows `keep_M` (flat, prefix counted) come back.

    In the last layer nothing reads the prefix's own output, so it is not computed.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (_, q1), (k0, k1), (v0, v1) = (_split(x, prefix) for x in (q, k, v))
        return suffix_attention(q1, k1, v1, k0, v0, batch)[keep_M - prefix]

    return attend


def logits(model: Llama, tokens_N: Tensor, adapter: Adapter | None = None) -> Tensor:
    """[N, V] of one plain row, without shared prefix; for parity checks and greedy answers."""
    rope = rotary(model, torch.arange(tokens_N.shape[0], device=model.device))
    x = model.embed[tokens_N]
    for index in range(model.config.layers):
        groups = adapter.layers.get(index, {}) if adapter else {}
        x = block(model, index, groups, x, rope, causal_attention)
    return rms_norm(x, model.norm, model.config.norm_eps) @ model.head.T
