"""The two forms of a base model, and the way from each to the other: Hugging Face folder and GGUF file.

Llama family only (GGUF architecture `llama`, which Mistral shares). Weights go through unchanged in value
from GGUF to folder. Knows no cache and no hub.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fine_tune_runner.errors import ConfigError
from fine_tune_runner.private.base_tensors import (
    BaseTensor,
    encoded_piece,
    folder_tensors,
    gguf_tensors,
    heads_in,
    row_count,
)
from fine_tune_runner.private.gguf_file import Header, read_header, write_gguf
from fine_tune_runner.private.gguf_tokenizer import add_tokenizer
from fine_tune_runner.private.llama_layout import (
    head_dim,
    heads_of,
    module_of,
    rope_factors,
    tensor_names,
    unpermute,
)
from fine_tune_runner.private.safetensors_file import INDEX

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from numpy.typing import NDArray

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


@dataclass(frozen=True)
class OpenBase:
    """A base ready to be written as GGUF: its key-values, its tensors, and the heads of q and k.

    `is_gguf` tells whether the tensors have bytes of their own that can be copied.
    """

    header: Header
    tensors: tuple[BaseTensor, ...]
    heads: Mapping[str, int]
    is_gguf: bool


def open_base(base: Path, kind: str = "F16") -> OpenBase:
    """Read headers and tokenizer, not the weights; `kind` is what a folder's matrices will be.

    Raises MissingModel where something is missing or cut off, ConfigError naming what cannot be exported:
    another architecture, biases, rope types, parts of a split file.
    """
    if base.is_dir():
        config = json.loads((base / "config.json").read_text())
        tensors = tuple(folder_tensors(base, config))
        factors = rope_factors(config)
        if factors is not None:
            values = factors[None]
            rope = BaseTensor("rope_freqs.weight", factors.shape, lambda start, stop: values[start:stop])
            tensors = (rope, *tensors)
        return OpenBase(_folder_header(base, config, kind), tensors, heads_of(config), is_gguf=False)
    header = read_header(base)
    gguf_architecture(header)
    return OpenBase(header, gguf_tensors(header), heads_in(header.values), is_gguf=True)


def gguf_to_folder(source: Path, folder: Path) -> None:
    """Write config.json, *.safetensors and tokenizer files for a GGUF file into an existing folder.

    Quantised tensors become float32, which holds their values exactly; float16 stays. Raises ConfigError for
    another architecture, MissingModel for a file that is no GGUF.
    """
    header = read_header(source)
    config = _config(header)
    _write_tensors(header, config, folder)
    _write_tokenizer(source, folder)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def gguf_architecture(header: Header) -> None:
    """Raise ConfigError, naming what the file holds, for anything but a whole dense Llama."""
    found = header.values.get("general.architecture", "unknown")
    experts = header.values.get(f"{found}.expert_count")
    if found != "llama" or experts:
        raise ConfigError(
            f"{header.path}: architecture {found!r}{' with experts' if experts else ''} is not supported; "
            "take a dense Llama or Mistral base"
        )
    if header.values.get("split.count", 0) > 1:
        raise ConfigError(
            f"{header.path}: is one of {header.values['split.count']} parts; join them with "
            "llama-gguf-split --merge and name the result"
        )
    names = tensor_names(int(header.values["llama.block_count"])) | {"rope_freqs.weight": ""}
    unknown = sorted(tensor.name for tensor in header.tensors if tensor.name not in names)
    if unknown:
        raise ConfigError(
            f"{header.path}: tensors {', '.join(unknown[:3])} are none of a Llama; take another base"
        )


def _config(header: Header) -> dict[str, Any]:
    gguf_architecture(header)
    source = header.path

    def value(key: str, default: Any = None) -> Any:
        return header.values.get(key, default)

    tensors = {tensor.name: tensor for tensor in gguf_tensors(header)}
    heads = value("llama.attention.head_count")
    hidden = value("llama.embedding_length")
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": int(tensors["token_embd.weight"].shape[0]),
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
        config["rope_scaling"] = _recipe(source, config, tensors["rope_freqs.weight"].rows(0, 1)[0])
    return config


def _recipe(source: Path, config: dict[str, Any], factors: NDArray[Any]) -> dict[str, Any]:
    for recipe in _LLAMA3_SCALING:
        expected = rope_factors(config | {"rope_scaling": recipe})
        if expected is not None and np.allclose(factors, expected, rtol=1e-4):
            return dict(recipe)
    raise ConfigError(f"{source}: its rope factors are not those of Llama 3; take the Hugging Face folder")


def _write_tensors(header: Header, config: dict[str, Any], folder: Path) -> None:
    from gguf import GGMLQuantizationType
    from safetensors.numpy import save_file

    names, heads = tensor_names(config["num_hidden_layers"]), heads_of(config)
    where: dict[str, str] = {}
    shard: dict[str, NDArray[Any]] = {}

    def save(file: str) -> None:
        save_file(shard, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, file))
        shard.clear()

    for tensor in gguf_tensors(header):
        name = names.get(tensor.name)
        if name is None:
            continue
        values = tensor.rows(0, row_count(tensor.shape)).reshape(tensor.shape)
        if module_of(name) in heads:
            values = unpermute(values, heads[module_of(name)])
        is_half = tensor.kind == GGMLQuantizationType.F16
        shard[name] = values.astype(np.float16) if is_half else values
        if sum(v.nbytes for v in shard.values()) > _SHARD_BYTES:
            save(f"model-{len(set(where.values())):05}.safetensors")
    if not where:
        save("model.safetensors")
        return
    save(f"model-{len(set(where.values())):05}.safetensors")
    index = {"metadata": {}, "weight_map": where}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _write_tokenizer(source: Path, folder: Path) -> None:
    """transformers builds the tokenizer; it reads a file's neighbours first, so it gets a folder alone."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as alone:
        (Path(alone) / "base.gguf").symlink_to(source.resolve())
        AutoTokenizer.from_pretrained(alone, gguf_file="base.gguf").save_pretrained(folder)


def folder_to_gguf(folder: Path, target: Path, kind: str = "F16") -> None:
    """Write a Llama-family Hugging Face folder as one GGUF file that llama.cpp loads.

    Matrices in `kind`, vectors in float32.
    """
    base = open_base(folder, kind)
    write_gguf(target, base.header, {}, [encoded_piece(tensor, kind) for tensor in base.tensors])


def _folder_header(folder: Path, config: dict[str, Any], kind: str) -> Header:
    """The key-values that `gguf` writes for a folder, as a header of no tensors."""
    from gguf import GGUFWriter, LlamaFileType

    file_type = "ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"
    with tempfile.TemporaryDirectory(prefix="ftr-") as scratch:
        path = Path(scratch) / "header.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_name(folder.name)
        writer.add_file_type(LlamaFileType[file_type])
        _add_config(writer, config)
        add_tokenizer(writer, folder, config)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return read_header(path)


def _add_config(writer: GGUFWriter, config: dict[str, Any]) -> None:
    rope = (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    heads = heads_of(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads["self_attn.q_proj"])
    writer.add_head_count_kv(heads["self_attn.k_proj"])
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_rope_dimension_count(head_dim(config))
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
