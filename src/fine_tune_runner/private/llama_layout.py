"""How llama.cpp lays out a Llama, against how transformers does: tensor names, order of rows, rope factors.

Rows of q and k are permuted, because llama.cpp rotates neighbouring pairs where transformers rotates halves.
Numbers only: no file is read or written here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fine_tune_runner.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def permute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k from transformers' order into llama.cpp's; `rows` is [heads * head_dim, ...]."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def unpermute(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """The inverse of `permute`."""
    split = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(rows.shape))


def heads_of(config: dict[str, Any]) -> dict[str, int]:
    """How many heads the modules have whose rows are permuted, from config.json."""
    heads = config["num_attention_heads"]
    return {"self_attn.q_proj": heads, "self_attn.k_proj": config.get("num_key_value_heads") or heads}


def rope_factors(config: dict[str, Any]) -> NDArray[np.float32] | None:
    """[head_dim / 2] divisors of the rope frequencies for rope type `llama3`, None for plain rope.

    Source: llama.cpp convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors. ConfigError for other types.
    """
    rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ConfigError(f"rope type {kind!r} is not supported; take a base with plain or llama3 rope")
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    dim = head_dim(config)
    wavelengths = 2 * math.pi * theta ** (np.arange(0, dim, 2) / dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    share = np.clip(share, 0.0, 1.0)
    factors: NDArray[np.float64] = 1 / ((1 - share) / rope["factor"] + share)
    return factors.astype(np.float32)


def head_dim(config: dict[str, Any]) -> int:
    """Numbers in one head, from config.json."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def tensor_names(layers: int) -> dict[str, str]:
    """GGUF tensor name → Hugging Face tensor name."""
    inside = {
        f"blk.{n}.{short}.weight": f"model.layers.{n}.{long}.weight"
        for n in range(layers)
        for long, short in (MODULES | _NORMS).items()
    }
    return inside | {f"{short}.weight": f"{long}.weight" for long, short in _OUTSIDE.items()}


def module_of(name: str) -> str:
    """`self_attn.q_proj` for `model.layers.3.self_attn.q_proj.weight`."""
    return name.removesuffix(".weight").split(".", 3)[-1]
