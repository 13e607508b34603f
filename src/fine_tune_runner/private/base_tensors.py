"""A base's tensors as rows of float32 in llama.cpp's order, a few at a time, from either of its two forms.

And the way back into bytes. Nothing here holds a whole matrix: the embedding of Llama 3.1 8B alone is 2 GB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fine_tune_runner.errors import ConfigError
from fine_tune_runner.private.gguf_file import Header, Piece, TensorInfo, copied, tensor_bytes
from fine_tune_runner.private.llama_layout import head_dim, heads_of, module_of, permute, tensor_names
from fine_tune_runner.private.safetensors_file import StoredTensor, model_tensors

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rows = Callable[[int, int], "NDArray[np.float32]"]  # rows start to stop as [rows, columns]
CHUNK_ELEMENTS = 2 << 20


@dataclass(frozen=True)
class BaseTensor:
    """One tensor under its GGUF name; `rows` are asked for in multiples of `unit` from a multiple of it.

    `kind` is the GGMLQuantizationType it has in the base's GGUF, and `raw` its bytes there; both None for a
    Hugging Face folder.
    """

    name: str
    shape: tuple[int, ...]
    rows: Rows
    unit: int = 1
    kind: int | None = None
    raw: Callable[[], Iterable[bytes]] | None = None


def gguf_tensors(header: Header) -> tuple[BaseTensor, ...]:
    """All tensors of a GGUF file, in its order."""
    return tuple(
        BaseTensor(
            name=info.name,
            shape=info.shape,
            rows=partial(_dequantised, header.path, info),
            kind=info.kind,
            raw=partial(copied, header.path, info.offset, tensor_bytes(info.shape, info.kind)),
        )
        for info in header.tensors
    )


def folder_tensors(folder: Path, config: dict[str, Any]) -> Iterator[BaseTensor]:
    """The tensors of a Hugging Face folder, rows of q and k permuted.

    Raises ConfigError for a tensor that no plain Llama has, such as a bias.
    """
    names = {long: short for short, long in tensor_names(config["num_hidden_layers"]).items()}
    heads = heads_of(config)
    for name, stored in model_tensors(folder).items():
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        if name not in names:
            raise ConfigError(f"{folder}: tensor {name} is none of a Llama; take another base")
        if module_of(name) in heads:
            dim = head_dim(config)
            yield BaseTensor(names[name], stored.shape, partial(_permuted, stored, dim), unit=dim)
        else:
            yield BaseTensor(names[name], stored.shape, stored.rows)


def _permuted(stored: StoredTensor, dim: int, start: int, stop: int) -> NDArray[np.float32]:
    return permute(stored.rows(start, stop), (stop - start) // dim)


def _dequantised(path: Path, info: TensorInfo, start: int, stop: int) -> NDArray[np.float32]:
    from gguf import GGMLQuantizationType, dequantize

    columns = info.shape[-1]
    row_bytes = tensor_bytes((columns,), info.kind)
    with path.open("rb") as file:
        file.seek(info.offset + start * row_bytes)
        data = np.fromfile(file, np.uint8, (stop - start) * row_bytes).reshape(stop - start, row_bytes)
    kind = GGMLQuantizationType(info.kind)
    try:
        values: NDArray[np.float32] = dequantize(data, kind)
    except NotImplementedError:
        raise ConfigError(
            f"{path}: tensor {info.name} is {kind.name}, which cannot be decoded here; take the base in "
            "Q8_0, F16 or a K kind"
        ) from None
    return values.astype(np.float32, copy=False)


def row_count(shape: tuple[int, ...]) -> int:
    """Rows of a matrix; a vector is one."""
    return math.prod(shape[:-1])


def copied_piece(tensor: BaseTensor) -> Piece:
    """A tensor of a GGUF base byte for byte."""
    assert tensor.kind is not None
    assert tensor.raw is not None
    return Piece(tensor.name, tensor.shape, tensor.kind, tensor.raw)


def encoded_piece(tensor: BaseTensor, wanted: str, update: Callable[[], Rows] | None = None) -> Piece:
    """A tensor, plus what `update` gives where there is one, as `wanted` (of GGMLQuantizationType).

    Vectors become F32, and matrices whose rows do not fill whole blocks F16, as llama-quantize does it.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quantize

    kind = GGMLQuantizationType[wanted]
    if row_count(tensor.shape) == 1:
        kind = GGMLQuantizationType.F32
    elif tensor.shape[-1] % GGML_QUANT_SIZES[kind][0]:
        kind = GGMLQuantizationType.F16

    def chunks() -> Iterator[memoryview]:
        change = update() if update is not None else None
        total, columns = row_count(tensor.shape), tensor.shape[-1]
        step = max(CHUNK_ELEMENTS // columns // tensor.unit, 1) * tensor.unit
        for start in range(0, total, step):
            stop = min(start + step, total)
            values = tensor.rows(start, stop)
            if change is not None:
                values = values + change(start, stop)
            yield np.ascontiguousarray(quantize(values, kind)).data.cast("B")

    return Piece(tensor.name, tensor.shape, int(kind), chunks)


def heads_in(values: Mapping[str, Any]) -> dict[str, int]:
    """`llama_layout.heads_of`, from a GGUF file's key-values."""
    heads = values["llama.attention.head_count"]
    config = {
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("llama.attention.head_count_kv"),
    }
    return heads_of(config)
