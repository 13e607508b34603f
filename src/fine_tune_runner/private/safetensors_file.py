"""Reading tensors out of safetensors files a few rows at a time, bfloat16 included, without torch.

The format (huggingface.co/docs/safetensors): 8 bytes of length, JSON, then raw little-endian data. The
library's own reader wants torch for bfloat16 (250 MB) or maps the whole file, which counts as memory used.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fine_tune_runner.errors import MissingModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies; `shape` as in the file, `dtype` one of the format's names."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows `start` to `stop` as [rows, columns] float32, the values exactly; a vector is one row."""
        columns = self.shape[-1]
        kind = np.dtype(_TYPES[self.dtype])
        with self.path.open("rb") as file:
            file.seek(self.offset + start * columns * kind.itemsize)
            data = np.fromfile(file, kind, (stop - start) * columns)
        if data.size != (stop - start) * columns:
            raise MissingModel(f"{self.path}: tensor {self.name} is cut off; fetch the file again")
        if self.dtype == "BF16":  # the upper half of a float32
            return (data.astype(np.uint32) << 16).view(np.float32).reshape(-1, columns)
        return data.astype(np.float32).reshape(-1, columns)

    def all(self) -> NDArray[np.float32]:
        """The whole tensor in its own shape."""
        return self.rows(0, math.prod(self.shape[:-1])).reshape(self.shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, none of them read; MissingModel where it cannot be read as safetensors."""
    try:
        size, header = _header(path)
        header.pop("__metadata__", None)
        wrong = [
            f"{name} is {entry['dtype']}" for name, entry in header.items() if entry["dtype"] not in _TYPES
        ]
        tensors = {
            name: StoredTensor(
                path, name, tuple(entry["shape"]) or (1,), entry["dtype"], size + entry["data_offsets"][0]
            )
            for name, entry in header.items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise MissingModel(f"{path} cannot be read as safetensors ({error}); fetch it again") from None
    if wrong:
        raise MissingModel(f"{path}: {wrong[0]}; take weights in {', '.join(_TYPES)}")
    return tensors


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data begins, and the JSON before it."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= path.stat().st_size - 8:
            raise ValueError("no header")
        header: dict[str, Any] = json.loads(file.read(size))
    return 8 + size, header


def weight_files(folder: Path) -> list[Path]:
    """The files that make up a model: those of its index where it has one, else every *.safetensors.

    Mistral's repositories hold the weights twice: consolidated.safetensors, too, which no index names.
    """
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError) as error:
        raise MissingModel(f"{index} cannot be read ({error}); fetch the model again") from None
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        raise MissingModel(f"{folder} lacks {', '.join(missing[:3])}, which {INDEX} names; fetch it again")
    return sorted(folder / name for name in names)


def model_tensors(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a Hugging Face folder, in the order of its files."""
    return {name: tensor for path in weight_files(folder) for name, tensor in stored_tensors(path).items()}
