"""From a PEFT adapter folder to a GGUF LoRA file, which llama.cpp and Ollama load beside the base.

Needs numpy, gguf and safetensors, no torch and no llama.cpp. Source of names and of the permutation:
llama.cpp convert_lora_to_gguf.py, whose tensors these are (facts/ollama.md).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.gguf_base import MODULES, heads_of, permute

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TENSOR = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(.+)\.lora_([AB])(?:\.default)?\.weight")
# (key of adapter_config.json, whether its value can be exported, what people call it)
_CONFIG_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("use_dora", lambda value: not value, "DoRA"),
    ("bias", lambda value: value in (None, "none"), "bias training"),
    ("lora_bias", lambda value: not value, "LoRA bias"),
    ("modules_to_save", lambda value: not value, "fully trained modules"),
    ("trainable_token_indices", lambda value: not value, "trained tokens"),
    ("rank_pattern", lambda value: not value, "a rank a module"),
    ("alpha_pattern", lambda value: not value, "an alpha a module"),
    ("fan_in_fan_out", lambda value: not value, "transposed weights"),
)


def export_adapter(adapter: Path, base_dir: Path, target: Path, metadata: Mapping[str, str]) -> Path:
    """Write `adapter` (adapter_config.json, adapter_model.safetensors) as the GGUF file `target`; return it.

    `base_dir` is the base's Hugging Face folder: q and k are permuted by its head counts. `metadata` becomes
    string key-values, such as `ftr.client_id`. The file appears whole or not at all. Raises TrainingError
    naming what GGUF LoRA cannot hold (DoRA, bias, lm_head and embedding LoRA …).
    """
    from gguf import GGUFWriter

    config = _read(adapter / "adapter_config.json")
    tensors = _tensors(adapter, config, _read(base_dir / "config.json"))
    part = target.with_name(f".{target.name}.part")
    writer = GGUFWriter(part, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", scale(config) * config["r"])
    for key, value in metadata.items():
        writer.add_string(key, value)
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return part.replace(target)


def scale(config: Mapping[str, Any]) -> float:
    """What B·A is multiplied by: alpha / r, with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023)."""
    alpha, rank = float(config["lora_alpha"]), int(config["r"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _tensors(adapter: Path, config: Mapping[str, Any], base: dict[str, Any]) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load_file

    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        raise TrainingError(f"{path} is missing; train again, or give the folder of a PEFT adapter")
    unknown = [label for key, exportable, label in _CONFIG_RULES if not exportable(config.get(key))]
    tensors: dict[str, NDArray[Any]] = {}
    for key, values in load_file(path).items():
        found = _TENSOR.fullmatch(key)
        if not found or found[2] not in MODULES:
            unknown.append(key)
            continue
        layer, module, matrix = found.groups()
        heads = heads_of(base).get(module)
        ordered = permute(values, heads) if matrix == "B" and heads else values
        name = f"blk.{layer}.{MODULES[module]}.weight.lora_{matrix.lower()}"
        tensors[name] = np.ascontiguousarray(ordered, dtype=np.float32)
    if unknown:
        raise TrainingError(
            f"{adapter}: a GGUF LoRA cannot hold {', '.join(unknown[:5])}; train plain LoRA on "
            f"{', '.join(module.split('.')[1] for module in MODULES)}"
        )
    return tensors


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); give a PEFT adapter and its base") from None
    return content
