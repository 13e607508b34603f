"""A functional Llama forward over frozen weights, for rows that share their beginnings.

Weights come from a Hugging Face folder; the same tokens give the logits of transformers' LlamaForCausalLM.
Tokens lie flat, [N, E], as spans of a tree: a span sees those it continues, and itself. It must not know data
sets or optimizers. Axes: N tokens, E hidden, H query heads, K key heads, D head size, V vocabulary.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from fine_tune_runner.errors import MissingModel, TrainingError
from fine_tune_runner.private.activations import RmsNorm, SwiGLU, rotate
from fine_tune_runner.private.four_bit import Packed, pack
from fine_tune_runner.private.llama_config import LlamaConfig, read_config
from fine_tune_runner.private.lora import Adapter, Lora, linear

# attend(q_NHD, k_NKD, v_NKD) -> [M, H * D]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# Keys and values, [S, K, D] each, of a span
Pair = tuple[Tensor, Tensor]
# Length of each span, and the indices of those before it that it continues
Reaches = Sequence[tuple[int, tuple[int, ...]]]
# One layer's adapters, each with the number of rows that it is for, in the order of the rows
Loras = Sequence[tuple[int, Mapping[str, Lora]]]


@dataclass(frozen=True)
class Layer:
    """Frozen weights of one layer; linears that read the same input are stacked as lora.GROUPS says."""

    input_norm: Tensor
    qkv: Tensor | Packed
    o: Tensor | Packed
    post_norm: Tensor
    gate_up: Tensor | Packed
    down: Tensor | Packed


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


def load_llama(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    four_bit: bool = False,
) -> Llama:
    """Load a base, frozen, from `folder`/*.safetensors; with `four_bit` its linears in NF4, used as `dtype`.

    Raises MissingModel where the folder has no weights, TrainingError where a tensor is missing or the config
    is not Llama's.
    """
    config = read_config(folder)
    take = _tensors(folder, device, dtype)

    def layer(index: int) -> Layer:
        def stack(*modules: str) -> Tensor:
            return take(*(f"model.layers.{index}.{module}.weight" for module in modules))

        def frozen(*modules: str) -> Tensor | Packed:
            return pack(stack(*modules)) if four_bit else stack(*modules)

        return Layer(
            input_norm=stack("input_layernorm"),
            qkv=frozen("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            o=frozen("self_attn.o_proj"),
            post_norm=stack("post_attention_layernorm"),
            gate_up=frozen("mlp.gate_proj", "mlp.up_proj"),
            down=frozen("mlp.down_proj"),
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


def _tensors(folder: Path, device: torch.device | str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """take(name, ...) -> these weights, one below the other."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise MissingModel(
            f"{folder} has no *.safetensors; fetch the base anew, for example: fine-tune fetch"
        )
    where = {key: path for path in files for key in _keys(path)}

    def mapped(key: str) -> Tensor:
        if key not in where:
            raise TrainingError(f"{folder}: tensor {key} is missing; the base is incomplete, fetch it anew")
        with safe_open(str(where[key]), framework="pt") as reader:
            tensor: Tensor = reader.get_tensor(key)
        return tensor

    def take(*keys: str) -> Tensor:
        # A copy, and the files opened anew each time: what was read of a mapped file stays in memory.
        return torch.cat([mapped(key).to(device, dtype) for key in keys])

    return take


def _keys(path: Path) -> list[str]:
    with safe_open(str(path), framework="pt") as reader:
        return list(reader.keys())


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


@dataclass(frozen=True)
class Kept:
    """The rows that go on after attention, ascending, and the adapters counted over those rows."""

    rows: Tensor
    loras: Loras


def block(
    model: Llama,
    index: int,
    loras: Loras,
    x_NE: Tensor,
    rope: tuple[Tensor, Tensor],
    attend: Attend,
    kept: Kept | None = None,
) -> Tensor:
    """One layer. With `kept` only those rows go on after attention, and `attend` must return just them."""
    config, layer = model.config, model.layers[index]
    input_norm, post_norm = (RmsNorm(w, config.norm_eps) for w in (layer.input_norm, layer.post_norm))
    flat = linear(x_NE, layer.qkv, _of(loras, "qkv"), input_norm)
    heads_NHD = torch.unflatten(flat, 1, (-1, config.head_dim))
    heads_NHD = rotate(heads_NHD, rope, config.heads + config.kv_heads)
    # torch.split, not slices: the gradient of a slice is a whole tensor of zeros with the slice copied in.
    q, k, v = torch.split(heads_NHD, [config.heads, config.kv_heads, config.kv_heads], dim=1)
    attended = attend(q, k, v)
    if kept is not None:
        x_NE, loras = x_NE[kept.rows], kept.loras
    x = x_NE + linear(attended, layer.o, _of(loras, "o"))
    gate_up = linear(x, layer.gate_up, _of(loras, "gate_up"), post_norm)
    return x + linear(gate_up, layer.down, _of(loras, "down"), SwiGLU())


def _of(loras: Loras, group: str) -> list[tuple[int, Lora]]:
    return [(rows, groups[group]) for rows, groups in loras if group in groups]


class TreeAttend(Protocol):
    """Attention that may see spans which are not among the tokens."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, given: Sequence[Pair] = ()) -> Tensor:
        """As Attend; `given` are spans of the same lengths in every call."""
        ...


def tree_attention(reaches: Reaches, keep: Sequence[int] | None = None) -> TreeAttend:
    """Attention over flat spans: each token sees the spans that its own continues, and its own up to itself.

    `reaches` gives each span's length and the indices of the spans before it that it continues; given spans
    count first. With `keep` (flat positions, ascending) only those rows are computed and come back. One call
    a span: a mask over all tokens would cost what sharing saves (facts/training.md), and so no row is ever
    padded.
    """
    lengths = [length for length, _ in reaches]
    wanted = _rows_of_spans(lengths, keep)
    masks: list[Tensor | None] = []  # made for the first layer, used by all

    def attend(q: Tensor, k: Tensor, v: Tensor, given: Sequence[Pair] = ()) -> Tensor:
        queries = torch.split(q, lengths)
        keys = [*(key for key, _ in given), *torch.split(k, lengths)]
        values = [*(value for _, value in given), *torch.split(v, lengths)]
        if not masks:
            masks.extend(_masks(reaches, [len(key) for key in keys], wanted, q))
        out = []
        for span, (rows, mask) in enumerate(zip(wanted, masks, strict=True)):
            if rows is not None and not rows:
                continue  # nothing in this span predicts anything
            path = (*reaches[span][1], len(given) + span)
            query = queries[span] if rows is None else queries[span][torch.tensor(rows, device=q.device)]
            out.append(_attention(query, [keys[i] for i in path], [values[i] for i in path], mask))
        return _joined(out) if out else q.new_zeros(0, q.shape[1] * q.shape[2])

    return attend


def _rows_of_spans(lengths: Sequence[int], keep: Sequence[int] | None) -> list[list[int] | None]:
    """The kept positions of each span, counted from its start; None where all are."""
    if keep is None:
        return [None] * len(lengths)
    rows: list[list[int] | None] = []
    waiting, start = list(reversed(keep)), 0
    for length in lengths:
        own = []
        while waiting and waiting[-1] < start + length:
            own.append(waiting.pop() - start)
        rows.append(own)
        start += length
    return rows


def _masks(
    reaches: Reaches, lengths: Sequence[int], wanted: Sequence[list[int] | None], like: Tensor
) -> list[Tensor | None]:
    """[M, S] a span, 0 where a query may look and -inf elsewhere; None for a plain causal square."""
    masks: list[Tensor | None] = []
    for (length, path), rows in zip(reaches, wanted, strict=True):
        if rows is None and not path:
            masks.append(None)
            continue
        before = sum(lengths[span] for span in path)
        last = torch.tensor(list(range(length)) if rows is None else rows, device=like.device) + before
        hidden = torch.arange(before + length, device=like.device) > last[:, None]
        masks.append(
            torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -math.inf)
        )
    return masks


def _attention(
    q_MHD: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], mask_MS: Tensor | None
) -> Tensor:
    """[M, H * D]; causal where there is no mask. Keys and values, [S, K, D], come in parts.

    These are joined, and for the way back joined again: kept, they would be what rows share once a row.
    """
    q, k, v = map(_headed, (q_MHD, _joined(keys), _joined(values)))
    parts = {_place(x): [own.detach() for own in side] for x, side in ((k, keys), (v, values)) if side[1:]}

    def pack(saved: Tensor) -> Tensor | list[Tensor]:
        return parts.get(_place(saved), saved)

    def unpack(kept: Tensor | list[Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else _headed(torch.cat(kept))

    again = torch.autograd.graph.saved_tensors_hooks(pack, unpack) if parts else contextlib.nullcontext()
    with again:
        out = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask_MS, is_causal=mask_MS is None, enable_gqa=True
        )
    return out[0].transpose(0, 1).flatten(1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts[1:] else parts[0]


def _place(x: Tensor) -> tuple[int, torch.Size]:
    return x.data_ptr(), x.shape


def _headed(x_NHD: Tensor) -> Tensor:
    """[1, H, N, D]."""
    return x_NHD.transpose(0, 1)[None]


def logits(model: Llama, tokens_N: Tensor, adapter: Adapter | None = None) -> Tensor:
    """[N, V] of one plain row, without shared prefix; for parity checks and greedy answers."""
    rope = rotary(model, torch.arange(tokens_N.shape[0], device=model.device))
    x, count = model.embed[tokens_N], tokens_N.shape[0]
    attend = tree_attention([(count, ())])
    for index in range(model.config.layers):
        groups = adapter.layers.get(index, {}) if adapter else {}
        x = block(model, index, [(count, groups)], x, rope, attend)
    return RmsNorm(model.norm, model.config.norm_eps).forward(x) @ model.head.T
