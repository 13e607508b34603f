"""An adapter merged into its base as one GGUF file, which every Ollama takes: a few rows at a time.

Merged matrices are encoded anew, the other tensors of a GGUF base are copied byte for byte; the matrices of a
Hugging Face folder, which have no such bytes, are all encoded. Knows no server and no torch.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fine_tune_runner.errors import ConfigError, TrainingError
from fine_tune_runner.files import publish, sha256_file
from fine_tune_runner.private.adapter import AdapterWeights, Pair, read_adapter
from fine_tune_runner.private.base_tensors import Rows, copied_piece, encoded_piece
from fine_tune_runner.private.gguf_base import OpenBase, open_base
from fine_tune_runner.private.gguf_file import OnProgress, Piece, silent, write_gguf
from fine_tune_runner.private.gguf_tokenizer import UNKNOWN_PRE
from fine_tune_runner.private.llama_layout import MODULES, permute
from fine_tune_runner.settings import Quantization

if TYPE_CHECKING:
    from numpy.typing import NDArray

IN_PROCESS = ("F32", "F16", "Q8_0")
QUANTIZER = "llama-quantize"


def merge_gguf(
    base: Path,
    adapter_dir: Path,
    target: Path,
    *,
    stamp: Mapping[str, str],
    quantization: Quantization = "Q8_0",
    on_progress: OnProgress = silent,
    quantizer: str = QUANTIZER,
) -> str:
    """Write base plus adapter to `target` and return the file's sha256; memory does not grow with the model.

    `base` is a Hugging Face folder or a GGUF file, pristine; `stamp` becomes `ftr.*` key-values, and
    `ftr.adapter_sha256` with them. `on_progress` gets bytes written and bytes in all. The file appears whole
    or not at all. For the K kinds `quantizer` (a program name or path) runs over an F16 file beside `target`.
    Raises TrainingError naming what the adapter holds that cannot be merged, ConfigError and MissingModel for
    a base that cannot be exported.
    """
    check_quantization(quantization, quantizer)
    adapter = read_adapter(adapter_dir)
    direct = quantization if quantization in IN_PROCESS else "F16"
    opened = _opened(base, direct)
    if stamped := opened.header.values.get("ftr.client_id"):
        raise ConfigError(
            f"{base} is itself a fine-tuned export (of {stamped}); a second adapter would stack on it: "
            "name the pristine base"
        )
    pieces = _pieces(opened, adapter, direct)
    added = {**stamp, "ftr.adapter_sha256": adapter.sha256}
    if direct == quantization:
        return write_gguf(target, opened.header, added, pieces, on_progress)
    between = target.with_name(f".{target.name}.f16")
    try:
        write_gguf(between, opened.header, added, pieces, on_progress)
        return _quantized(between, target, quantization, quantizer)
    finally:
        between.unlink(missing_ok=True)


def check_export(base: Path, quantization: Quantization, quantizer: str = QUANTIZER) -> None:
    """Raise what `merge_gguf` would raise for this base and encoding, before anything is trained.

    Reads headers and tokenizer only: a second or two for a large vocabulary.
    """
    check_quantization(quantization, quantizer)
    _opened(base, "F16")


def check_quantization(quantization: Quantization, quantizer: str = QUANTIZER) -> None:
    """Raise ConfigError where `quantization` needs a program that is not there."""
    if quantization not in IN_PROCESS and shutil.which(quantizer) is None:
        raise ConfigError(
            f"base_model.quantization {quantization} needs {quantizer}, which is not on the PATH; install "
            f"llama.cpp (brew install llama.cpp), or set it to one of {', '.join(IN_PROCESS)}"
        )


def _opened(base: Path, kind: str) -> OpenBase:
    """A base whose merged file a server can be given text for."""
    opened = open_base(base, kind)
    if not opened.is_gguf and opened.header.values.get("tokenizer.ggml.pre") == UNKNOWN_PRE:
        raise ConfigError(
            f"{base}: llama.cpp has no name for how its tokenizer.json cuts a text, so a server would ask "
            "with other tokens than were trained; name the model's GGUF file as base_model instead"
        )
    return opened


def _pieces(opened: OpenBase, adapter: AdapterWeights, kind: str) -> list[Piece]:
    updates = {
        f"blk.{layer}.{MODULES[module]}.weight": (module, pair)
        for (layer, module), pair in adapter.pairs.items()
    }
    shapes = {tensor.name: tensor.shape for tensor in opened.tensors}
    for name, (_, pair) in updates.items():
        if shapes.get(name) != pair.shape:
            found = shapes.get(name, "no such tensor")
            raise TrainingError(
                f"{adapter.folder}: its update of {name} is {pair.shape}, the base has {found}; give the "
                "base that it was trained on"
            )
    pieces = []
    for tensor in opened.tensors:
        if tensor.name in updates:
            module, pair = updates[tensor.name]
            update = partial(_update, pair, adapter.scale, opened.heads.get(module))
            pieces.append(encoded_piece(tensor, kind, update))
        elif opened.is_gguf:
            pieces.append(copied_piece(tensor))
        else:
            pieces.append(encoded_piece(tensor, kind))
    return pieces


def _update(pair: Pair, scale: float, heads: int | None) -> Rows:
    """The rows of `scale * b @ a` in llama.cpp's order; the product is made a few rows at a time."""
    a, b = pair.a(), np.float32(scale) * pair.b()
    ordered = permute(b, heads) if heads else b

    def rows(start: int, stop: int) -> NDArray[np.float32]:
        return np.asarray(ordered[start:stop] @ a, dtype=np.float32)

    return rows


def _quantized(source: Path, target: Path, quantization: str, quantizer: str) -> str:
    """Let llama-quantize encode `source`; its key-values go along. Ctrl-C ends it with us."""
    part = target.with_name(f".{target.name}.part")
    # A base of K kinds keeps its unmerged tensors in them, which llama-quantize else refuses to touch.
    command = [quantizer, "--allow-requantize", str(source), str(part), quantization]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if done.returncode or not part.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TrainingError(
                f"{quantizer} failed on {target.name}: {last}; set base_model.quantization to Q8_0"
            )
        digest = sha256_file(part)
        publish(part, target)
        return digest
    finally:
        part.unlink(missing_ok=True)
