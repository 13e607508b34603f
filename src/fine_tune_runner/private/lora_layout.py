"""A LoRA in PEFT's terms: which linears, names of tensors, how it starts, and the folder that it becomes.

Shared by both back ends, so that a seed, a checkpoint and a finished adapter mean the same on each. Numbers
only: no torch, no mlx.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fine_tune_runner.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Linears that read the same input, in the order in which their A matrices are drawn.
GROUPS: dict[str, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
# (in, (out, ...)) of each group of each layer
Shapes = Mapping[int, Mapping[str, tuple[int, tuple[int, ...]]]]


class PeftAdapter(Protocol):
    """An adapter of either back end."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def layers(self) -> Collection[int]: ...

    def tensors(self) -> Mapping[str, Any]:
        """Under PEFT's key names; each is something that numpy.asarray takes."""
        ...


def names(layer: int, module: str) -> tuple[str, str]:
    """PEFT's names of A, [rank, in], and B, [out, rank]."""
    key = f"base_model.model.model.layers.{layer}.{module}"
    return f"{key}.lora_A.weight", f"{key}.lora_B.weight"


def start(shapes: Shapes, *, rank: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """A fresh adapter: A kaiming-uniform (a = sqrt 5), B zero, as peft/tuners/lora/layer.py starts.

    The numbers are those of torch.rand with a generator of this seed: MT19937, 24 of its 32 bits.
    """
    draw = np.random.RandomState(seed & 0xFFFF_FFFF)
    found: dict[str, NDArray[np.float32]] = {}
    for layer, groups in shapes.items():
        for group, (inputs, outputs) in groups.items():
            bits = draw.randint(0, 1 << 32, size=(len(outputs) * rank, inputs), dtype=np.uint32)
            uniform = (bits & np.uint32(0xFF_FFFF)).astype(np.float32) * np.float32(2**-24)
            # kaiming_uniform_(a=sqrt(5)) on [rank, in]
            drawn = (uniform * 2 - 1) * np.float32(1 / math.sqrt(inputs))
            for module, a, out in zip(GROUPS[group], np.split(drawn, len(outputs)), outputs, strict=True):
                name_a, name_b = names(layer, module)
                found[name_a], found[name_b] = a, np.zeros((out, rank), np.float32)
    return found


def check_same(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise TrainingError where weights from disk have other names or shapes than the adapter's own."""
    if {key: tuple(x.shape) for key, x in own.items()} != {key: tuple(x.shape) for key, x in given.items()}:
        raise TrainingError(
            "the adapter weights on disk have other names or shapes than this training's settings give; "
            "train anew with --again"
        )


def save_peft(adapter: PeftAdapter, folder: Path, base_name: str) -> None:
    """Write the two files that `peft.PeftModel.from_pretrained` reads.

    `folder` exists; `base_name` is a name for people, never a path of this machine.
    """
    from safetensors.numpy import save_file

    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "target_modules": sorted(m.rpartition(".")[2] for modules in GROUPS.values() for m in modules),
        "layers_to_transform": sorted(adapter.layers),
        "layers_pattern": "layers",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {key: np.asarray(value) for key, value in adapter.tensors().items()}
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
