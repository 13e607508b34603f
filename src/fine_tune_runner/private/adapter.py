"""Reading a LoRA adapter as PEFT or mlx-lm leaves it: one scale, and a pair of matrices for each linear.

What no file of llama.cpp can hold is refused by name. No torch, no mlx.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.files import sha256_file
from fine_tune_runner.private.llama_layout import MODULES
from fine_tune_runner.private.safetensors_file import StoredTensor, stored_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PEFT_FILE, MLX_FILE = "adapter_model.safetensors", "adapters.safetensors"
_PEFT = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_MLX = re.compile(r"model\.layers\.(\d+)\.(.+)\.lora_([ab])")
# (key of adapter_config.json, whether its value can be exported, what people call it)
_PEFT_RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("use_dora", lambda value: not value, "DoRA"),
    ("bias", lambda value: value in (None, "none"), "bias training"),
    ("lora_bias", lambda value: not value, "LoRA bias"),
    ("modules_to_save", lambda value: not value, "fully trained modules"),
    ("trainable_token_indices", lambda value: not value, "trained tokens"),
    ("rank_pattern", lambda value: not value, "a rank a module"),
    ("alpha_pattern", lambda value: not value, "an alpha a module"),
    ("fan_in_fan_out", lambda value: not value, "transposed weights"),
)
_MLX_KINDS = {"dora": "DoRA", "full": "full fine-tuning"}


@dataclass(frozen=True)
class Pair:
    """The update of a linear is `scale * b @ a`, in transformers' order; read when it is asked for.

    `shape` is (out, in). mlx-lm keeps x @ a @ b, PEFT x @ a.T @ b.T: so the one's matrices are turned.
    """

    stored_a: StoredTensor
    stored_b: StoredTensor
    turned: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored_b.shape[self.turned], self.stored_a.shape[not self.turned]

    def a(self) -> NDArray[np.float32]:
        """[rank, in]."""
        return self.stored_a.all().T if self.turned else self.stored_a.all()

    def b(self) -> NDArray[np.float32]:
        """[out, rank]."""
        return self.stored_b.all().T if self.turned else self.stored_b.all()


@dataclass(frozen=True)
class AdapterWeights:
    """A plain LoRA; `pairs` by layer and module, such as (3, "self_attn.q_proj")."""

    folder: Path
    rank: int
    scale: float
    pairs: Mapping[tuple[int, str], Pair]
    sha256: str


def read_adapter(folder: Path) -> AdapterWeights:
    """Read adapter_config.json and the weights beside it, PEFT's or mlx-lm's.

    The scale is alpha / r, with rsLoRA alpha / sqrt(r) (Kalajdzievski 2023), in mlx-lm its own `scale`.
    Raises TrainingError naming what GGUF cannot hold (DoRA, bias, lm_head and embedding LoRA …).
    """
    config = _read(folder / "adapter_config.json")
    is_mlx = "lora_parameters" in config or "fine_tune_type" in config
    path = folder / (MLX_FILE if is_mlx else PEFT_FILE)
    if not path.is_file():
        raise TrainingError(f"{path} is missing; train again, or give the folder of a finished adapter")
    found: dict[tuple[int, str], dict[str, StoredTensor]] = {}
    unknown = _unknown_of_mlx(config) if is_mlx else _unknown_of_peft(config)
    for name, tensor in stored_tensors(path).items():
        match = (_MLX if is_mlx else _PEFT).fullmatch(name)
        if match and match[2] in MODULES:
            found.setdefault((int(match[1]), match[2]), {})[match[3].lower()] = tensor
        else:
            unknown.append(name)
    if unknown:
        raise TrainingError(
            f"{folder}: a GGUF LoRA cannot hold {', '.join(unknown[:5])}; train plain LoRA on "
            f"{', '.join(module.split('.')[1] for module in MODULES)}"
        )
    pairs = {where: _pair(path, where, halves, is_mlx) for where, halves in found.items()}
    rank, scale = _mlx_scale(config) if is_mlx else (int(config["r"]), _peft_scale(config))
    return AdapterWeights(folder=folder, rank=rank, scale=scale, pairs=pairs, sha256=sha256_file(path))


def _peft_scale(config: Mapping[str, Any]) -> float:
    alpha, rank = float(config["lora_alpha"]), int(config["r"])
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _mlx_scale(config: Mapping[str, Any]) -> tuple[int, float]:
    parameters = config["lora_parameters"]
    return int(parameters["rank"]), float(parameters["scale"])


def _unknown_of_peft(config: Mapping[str, Any]) -> list[str]:
    return [label for key, exportable, label in _PEFT_RULES if not exportable(config.get(key))]


def _unknown_of_mlx(config: Mapping[str, Any]) -> list[str]:
    kind = str(config.get("fine_tune_type", "lora"))
    return [] if kind == "lora" else [_MLX_KINDS.get(kind, kind)]


def _pair(path: Path, where: tuple[int, str], halves: Mapping[str, StoredTensor], is_mlx: bool) -> Pair:
    if halves.keys() != {"a", "b"}:
        raise TrainingError(
            f"{path}: layer {where[0]} {where[1]} has but one of its two matrices; train again"
        )
    a, b = halves["a"], halves["b"]
    if a.shape[is_mlx] != b.shape[not is_mlx]:
        raise TrainingError(
            f"{path}: layer {where[0]} {where[1]} has matrices of different rank; train again"
        )
    return Pair(a, b, turned=is_mlx)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read ({error}); give the folder of a finished adapter"
        ) from None
    return content
