"""A Llama in MLX for rows that share their beginnings: mlx-lm's modules, with a forward of our own over them.

mlx-lm loads the folder and gives linears (4-bit ones too), norms and rope. Its forward takes rows of one
length with a square mask, and its LoRALinear holds one adapter; trees and several clients need ours.
Axes as in llama.py: N tokens, E hidden, H query heads, K key heads, D head size.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.utils import load_model

from fine_tune_runner.errors import MissingModel, TrainingError
from fine_tune_runner.private.batches import HEAD_ROWS, Corpus, Span, Tree
from fine_tune_runner.private.llama_config import LlamaConfig
from fine_tune_runner.private.lora_layout import names

GROUP_SIZE, BITS = 64, 4  # of a 4-bit base: mlx-lm's own defaults


@dataclass(frozen=True)
class MlxLlama:
    """A frozen base in memory; `model` is mlx_lm.models.llama.Model."""

    config: LlamaConfig
    model: Any

    def embed(self, tokens: Sequence[int]) -> mx.array:
        """[N, E]."""
        embedded: mx.array = self.model.model.embed_tokens(mx.array(list(tokens)))
        return embedded

    def head(self, hidden_NE: mx.array) -> mx.array:
        """[N, V] of final hidden states, in float32."""
        body = self.model.model
        head = body.embed_tokens.as_linear if self.config.tied else self.model.lm_head
        logits: mx.array = head(hidden_NE).astype(mx.float32)
        return logits


@dataclass(frozen=True)
class Lora:
    """Low-rank updates `scale * x A^T B^T`; A and B under PEFT's names."""

    scale: float
    matrices: Mapping[str, mx.array]


@dataclass(frozen=True)
class Reach:
    """A span of a tree: its length, its first position in a row, the spans before it that it continues.

    `kept` are the positions, counted from its start, that go on after attention; None: all.
    """

    length: int
    start: int
    path: tuple[int, ...]
    kept: tuple[int, ...] | None = None


def reaches(corpus: Corpus, spans: Sequence[Span], keep: Sequence[int] | None = None) -> list[Reach]:
    """The spans of a tree; with `keep` (flat positions, ascending) for a layer of which only those go on."""
    found = []
    for span in spans:
        kept = None
        if keep is not None:
            own = keep[bisect_left(keep, span.start) : bisect_left(keep, span.end)]
            kept = tuple(position - span.start for position in own)
        start = corpus.segments[span.segment].start
        found.append(Reach(span.end - span.start, start, span.path, kept))
    return found


def load_llama(folder: Path, config: LlamaConfig, dtype: mx.Dtype, *, four_bit: bool = False) -> MlxLlama:
    """Load a base, frozen, from `folder`/model*.safetensors; with `four_bit` its linears in MLX's own 4 bits.

    Raises MissingModel where the folder has no weights, TrainingError where a tensor is missing.
    """
    if not any(folder.glob("model*.safetensors")):
        raise MissingModel(
            f"{folder} has no model*.safetensors; fetch the base anew, for example: fine-tune fetch"
        )
    # mlx-lm knows no `rope_parameters` (transformers 5), and takes weights for tied where nothing is said.
    read = {
        "rope_theta": config.rope["rope_theta"],
        "rope_scaling": None if config.rope["rope_type"] == "default" else config.rope,
        "tie_word_embeddings": config.tied,
    }
    try:
        model, _ = load_model(folder, lazy=True, model_config=read)
    except ValueError as error:
        said = " ".join(str(error).split())[:200]  # it names every tensor that is missing
        raise TrainingError(f"{folder}: {said}; the base is incomplete, fetch it anew") from None
    model.set_dtype(dtype)
    if four_bit:
        nn.quantize(model, group_size=GROUP_SIZE, bits=BITS, class_predicate=_is_packed)
    mx.eval(model.parameters())
    return MlxLlama(config=config, model=model)


def _is_packed(path: str, module: nn.Module) -> bool:
    inside = path.startswith("model.layers.") and isinstance(module, nn.Linear)
    return inside and module.weight.shape[1] % GROUP_SIZE == 0


def top(llama: MlxLlama, tree: Tree, corpus: Corpus, states_NE: mx.array, lora: Lora, first: int) -> mx.array:
    """[len(targets), E]: hidden states, before the last norm, that predict the tree's targets.

    `states_NE` enter layer `first`, where the adapter begins.
    """
    x, last = states_NE, llama.config.layers - 1
    spans = reaches(corpus, tree.spans)
    for index in range(first, last):
        x = block(llama, index, lora, x, spans)
    x = block(llama, last, lora, x, reaches(corpus, tree.spans, tree.keep), tree.keep)
    return x[mx.array(tree.source)]  # a position predicts several tokens where rows part behind it


def block(
    llama: MlxLlama,
    index: int,
    lora: Lora | None,
    x_NE: mx.array,
    spans: Sequence[Reach],
    keep: Sequence[int] | None = None,
) -> mx.array:
    """One layer; with `keep` only those flat positions go on after attention, which `spans` then say too."""
    layer = llama.model.layers[index]

    def linear(module: str, x: mx.array) -> mx.array:
        part, name = module.split(".")
        y: mx.array = layer[part][name](x)
        if lora is not None:
            a, b = (lora.matrices[key].astype(x.dtype) for key in names(index, module))
            y = y + lora.scale * ((x @ a.T) @ b.T)
        return y

    normed = layer.input_layernorm(x_NE)
    q, k, v = (linear(f"self_attn.{name}_proj", normed) for name in "qkv")
    attended = _attend(llama.config, layer.self_attn.rope, (q, k, v), spans)
    if keep is not None:
        x_NE = x_NE[mx.array(list(keep))]
    x = x_NE + linear("self_attn.o_proj", attended)
    normed = layer.post_attention_layernorm(x)
    gated = nn.silu(linear("mlp.gate_proj", normed)) * linear("mlp.up_proj", normed)
    return x + linear("mlp.down_proj", gated)


def _attend(
    config: LlamaConfig, rope: nn.Module, qkv: tuple[mx.array, mx.array, mx.array], spans: Sequence[Reach]
) -> mx.array:
    """[M, H * D]: each token sees the spans that its own continues, and its own up to itself."""
    cuts, at = [], 0
    for span in spans[:-1]:
        at += span.length
        cuts.append(at)
    heads = (config.heads, config.kv_heads, config.kv_heads)
    queries, keys, values = (
        [_heads(part, count, config.head_dim) for part in mx.split(x, cuts)]
        for x, count in zip(qkv, heads, strict=True)
    )
    queries, keys = (
        [rope(part, offset=span.start) for part, span in zip(parts, spans, strict=True)]
        for parts in (queries, keys)
    )
    out = []
    for place, span in enumerate(spans):
        if span.kept == ():
            continue  # nothing in this span predicts anything
        path = (*span.path, place)
        k, v = (mx.concatenate([parts[i] for i in path], axis=2) for parts in (keys, values))
        q, mask = _wanted(queries[place], span, k.shape[2])
        found = mx.fast.scaled_dot_product_attention(q, k, v, scale=config.head_dim**-0.5, mask=mask)
        out.append(found[0].swapaxes(0, 1).flatten(1))
    return mx.concatenate(out)


def _heads(x_N: mx.array, count: int, head_dim: int) -> mx.array:
    """[1, heads, N, D]."""
    return x_N.reshape(1, -1, count, head_dim).swapaxes(1, 2)


def _wanted(q: mx.array, span: Reach, seen: int) -> tuple[mx.array, mx.array | str]:
    """The queries that go on, and what hides later tokens: MLX's "causal" ends with the last key."""
    if span.kept is None:
        return q, "causal"
    rows = mx.array(span.kept)
    return q[:, :, rows], mx.arange(seen) <= (rows + seen - span.length)[:, None]


def summed_loss(llama: MlxLlama, hidden_ME: mx.array, targets: Sequence[int]) -> mx.array:
    """Summed cross-entropy of hidden states before the last norm; gradients make the logits anew."""
    hidden = llama.model.model.norm(hidden_ME)
    total = mx.array(0.0)
    for start in range(0, len(targets), HEAD_ROWS):
        wanted = mx.array(list(targets[start : start + HEAD_ROWS]))

        def part(hidden: mx.array, wanted: mx.array = wanted) -> mx.array:
            loss: mx.array = nn.losses.cross_entropy(llama.head(hidden), wanted, reduction="sum")
            return loss

        total = total + mx.checkpoint(part)(hidden[start : start + HEAD_ROWS])
    return total


def logits(llama: MlxLlama, tokens: Sequence[int], lora: Lora | None = None, first: int = 0) -> mx.array:
    """[N, V] of one plain row; `lora` is on the layers from `first` on."""
    x, spans = llama.embed(tokens), [Reach(len(tokens), 0, ())]
    for index in range(llama.config.layers):
        x = block(llama, index, lora if index >= first else None, x, spans)
    return llama.head(llama.model.model.norm(x))
