"""The two forms of a base model, and the way from each to the other: Hugging Face folder and GGUF file.

Llama family only (GGUF architecture `llama`, which Mistral shares). Weights go through unchanged in value
from GGUF to folder; rows of q and k are permuted, because llama.cpp rotates neighbouring pairs where
transformers rotates halves. Knows no cache and no hub.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fine_tune_runner.dataset.render import ChatTokenizer, template_text
from fine_tune_runner.errors import ConfigError, MissingModel

if TYPE_CHECKING:
    from gguf import GGUFReader, GGUFWriter
    from numpy.typing import NDArray

GgufType = Literal["F16", "F32"]
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
# GGUF stores the factors of Llama 3's rope scaling, not the recipe; these are the recipes that Meta shipped
# (config.json of Llama-3.1-8B-Instruct and Llama-3.2-1B-Instruct).
_LLAMA3_SCALING = tuple(
    {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for factor in (8.0, 32.0)
)
_SHARD_BYTES = 2_000_000_000


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
    head_dim = _head_dim(config)
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    share = np.clip(share, 0.0, 1.0)
    factors: NDArray[np.float64] = 1 / ((1 - share) / rope["factor"] + share)
    return factors.astype(np.float32)


def gguf_to_folder(source: Path, folder: Path) -> None:
    """Write config.json, *.safetensors and tokenizer files for a GGUF file into an existing folder.

    Quantised tensors become float32, which holds their values exactly; float16 stays. Raises ConfigError for
    another architecture, MissingModel for a file that is no GGUF.
    """
    reader = open_gguf(source)
    config = _config(source, reader)
    _write_tensors(source, reader, config, folder)
    _write_tokenizer(source, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def open_gguf(source: Path) -> GGUFReader:
    """A GGUF file, mapped; MissingModel where it cannot be read as one."""
    from gguf import GGUFReader

    try:
        return GGUFReader(source)
    except (OSError, ValueError, IndexError) as error:
        raise MissingModel(f"{source} cannot be read as GGUF ({error}); fetch it again") from None


def gguf_architecture(source: Path, reader: GGUFReader) -> str:
    """`llama`, or ConfigError naming what the file holds instead."""
    field = reader.get_field("general.architecture")
    found = field.contents() if field else "unknown"
    experts = reader.get_field(f"{found}.expert_count")
    if found != "llama" or (experts and experts.contents()):
        raise ConfigError(
            f"{source}: architecture {found!r}{' with experts' if experts else ''} is not supported; "
            "take a dense Llama or Mistral base"
        )
    return "llama"


def _config(source: Path, reader: GGUFReader) -> dict[str, Any]:
    gguf_architecture(source, reader)

    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        return field.contents() if field else default

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    heads = value("llama.attention.head_count")
    hidden = value("llama.embedding_length")
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "hidden_size": hidden,
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": value("llama.attention.head_count_kv", heads),
        "head_dim": value("llama.attention.key_length", hidden // heads),
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": value("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": value("llama.rope.freq_base", 10000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"),
        "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }
    scaling = value("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ConfigError(
            f"{source}: rope scaling {scaling!r} is not supported; take a base with plain or llama3 rope"
        )
    if "rope_freqs.weight" in tensors:
        config["rope_scaling"] = _recipe(source, config, np.asarray(tensors["rope_freqs.weight"].data))
    return config


def _recipe(source: Path, config: dict[str, Any], factors: NDArray[Any]) -> dict[str, Any]:
    for recipe in _LLAMA3_SCALING:
        expected = rope_factors(config | {"rope_scaling": recipe})
        if expected is not None and np.allclose(factors, expected, rtol=1e-4):
            return dict(recipe)
    raise ConfigError(f"{source}: its rope factors are not those of Llama 3; take the Hugging Face folder")


def _head_dim(config: dict[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _names(layers: int) -> dict[str, str]:
    """GGUF tensor name → Hugging Face tensor name."""
    inside = {
        f"blk.{n}.{short}.weight": f"model.layers.{n}.{long}.weight"
        for n in range(layers)
        for long, short in (MODULES | _NORMS).items()
    }
    return inside | {f"{short}.weight": f"{long}.weight" for long, short in _OUTSIDE.items()}


def _module(name: str) -> str:
    """`self_attn.q_proj` for `model.layers.3.self_attn.q_proj.weight`."""
    return name.removesuffix(".weight").split(".", 3)[-1]


def _write_tensors(source: Path, reader: GGUFReader, config: dict[str, Any], folder: Path) -> None:
    from gguf import GGMLQuantizationType, dequantize
    from safetensors.numpy import save_file

    names = _names(config["num_hidden_layers"]) | {"rope_freqs.weight": ""}
    unknown = sorted(t.name for t in reader.tensors if t.name not in names)
    if unknown:
        raise ConfigError(
            f"{source}: tensors {', '.join(unknown[:3])} are none of a Llama; take another base"
        )
    shard: dict[str, NDArray[Any]] = {}
    shards = 0
    for tensor in reader.tensors:
        name = names[tensor.name]
        if not name:
            continue
        keep = tensor.tensor_type in (GGMLQuantizationType.F16, GGMLQuantizationType.F32)
        values = np.asarray(tensor.data) if keep else dequantize(tensor.data, tensor.tensor_type)
        heads = heads_of(config).get(_module(name))
        shard[name] = np.array(values) if heads is None else unpermute(values, heads)
        if sum(v.nbytes for v in shard.values()) > _SHARD_BYTES:
            save_file(shard, folder / f"model-{shards:05}.safetensors", metadata={"format": "pt"})
            shard, shards = {}, shards + 1
    if shards:
        save_file(shard, folder / f"model-{shards:05}.safetensors", metadata={"format": "pt"})
        _write_index(folder)
    else:
        save_file(shard, folder / "model.safetensors", metadata={"format": "pt"})


def _write_index(folder: Path) -> None:
    from safetensors import safe_open

    where: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="numpy") as file:
            where |= dict.fromkeys(file.keys(), path.name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _write_tokenizer(source: Path, folder: Path) -> None:
    """transformers builds the tokenizer; it reads a file's neighbours first, so it gets a folder alone."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / "base.gguf").symlink_to(source.resolve())
        AutoTokenizer.from_pretrained(alone, gguf_file="base.gguf").save_pretrained(folder)


def folder_to_gguf(folder: Path, target: Path, kind: GgufType = "F16") -> None:
    """Write a Llama-family Hugging Face folder as one GGUF file that llama.cpp loads.

    Matrices in `kind`, vectors in float32. The tokenizer is written as far as token ids need it: prompts are
    sent as ids, answers come back as text.
    """
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

    config = json.loads((folder / "config.json").read_text())
    factors = rope_factors(config)
    writer = GGUFWriter(target, "llama")
    writer.add_name(folder.name)
    writer.add_file_type(LlamaFileType.MOSTLY_F16 if kind == "F16" else LlamaFileType.ALL_F32)
    _add_config(writer, config)
    _add_tokenizer(writer, folder, config)
    dtype: np.dtype[Any] = np.dtype(np.float16 if kind == "F16" else np.float32)
    tensors: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    if factors is not None:
        tensors["rope_freqs.weight"] = (factors.shape, factors.dtype)
    names = {long: short for short, long in _names(config["num_hidden_layers"]).items()}
    for name, shape in _shapes(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if name not in names:
            raise ConfigError(f"{folder}: tensor {name} is none of a Llama; take another base")
        tensors[names[name]] = (shape, dtype if len(shape) > 1 else np.dtype(np.float32))
    for short, (shape, kind_of) in tensors.items():
        size = math.prod(shape) * kind_of.itemsize
        raw = GGMLQuantizationType.F16 if kind_of == np.float16 else GGMLQuantizationType.F32
        writer.add_tensor_info(short, shape, kind_of, size, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for name, values in _weights(folder):
        if names.get(name) in tensors:
            heads = heads_of(config).get(_module(name))
            ordered = values if heads is None else permute(values, heads)
            writer.write_tensor_data(ordered.astype(tensors[names[name]][1]))
    writer.close()


def _add_config(writer: GGUFWriter, config: dict[str, Any]) -> None:
    rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    heads = heads_of(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["self_attn.q_proj"])
    writer.add_head_count_kv(heads["self_attn.k_proj"])
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """Tokens, kinds and merges from tokenizer.json; ids beyond the vocabulary are filled up."""
    from gguf import TokenType

    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model, added = spec["model"], {t["id"]: t for t in spec["added_tokens"]}
    listed = model["vocab"]
    stops = ChatTokenizer(folder).stop_tokens
    pairs = listed.items() if isinstance(listed, dict) else ((t, n) for n, (t, _) in enumerate(listed))
    tokens = {n: text for text, n in pairs} | {n: t["content"] for n, t in added.items()}
    size = max(config["vocab_size"], max(tokens) + 1)
    texts = [tokens.get(n, f"[PAD{n}]") for n in range(size)]
    byte_level = "ByteLevel" in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])

    def kind(n: int) -> TokenType:
        if n in added:
            return TokenType.CONTROL if added[n]["special"] else TokenType.USER_DEFINED
        if n not in tokens:
            return TokenType.UNUSED
        is_byte = not byte_level and len(texts[n]) == 6 and texts[n].startswith("<0x")
        return TokenType.BYTE if is_byte else TokenType.NORMAL

    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_token_list(texts)
    writer.add_token_types([kind(n) for n in range(size)])
    if byte_level:
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        writer.add_tokenizer_pre("default")
        writer.add_token_merges(merges)
    else:
        scores = [float(-n) for n in range(size)]
        writer.add_token_scores(scores if isinstance(listed, dict) else [score for _, score in listed])
    writer.add_chat_template(template_text(folder)[1] or "")
    # llama.cpp ends an answer at eos, eot and eom: the template's own end of turn must be among them.
    for add_stop, stop in zip((writer.add_eot_token_id, writer.add_eom_token_id), stops, strict=False):
        add_stop(stop)
    eos = config.get("eos_token_id")
    writer.add_add_bos_token(False)
    for add, token in ((writer.add_bos_token_id, config.get("bos_token_id")), (writer.add_eos_token_id, eos)):
        first = token[0] if isinstance(token, list) else token
        if first is not None:
            add(first)


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, tuple(file.get_slice(name).get_shape())


def _weights(folder: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Tensors one at a time, in the order of `_shapes`; torch reads them, because numpy knows no bfloat16."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name).float().numpy()
