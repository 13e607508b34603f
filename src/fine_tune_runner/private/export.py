"""From an adapter folder to a GGUF LoRA file, which llama.cpp loads beside the base; and a run's stamps.

Needs numpy and gguf, no torch and no llama.cpp. Source of names and of the permutation: llama.cpp
convert_lora_to_gguf.py, whose tensors these are (facts/ollama.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.files import publish
from fine_tune_runner.private.adapter import AdapterWeights, read_adapter
from fine_tune_runner.private.llama_layout import MODULES, heads_of, permute
from fine_tune_runner.types import Dataset, Run


def stamps(run: Run, dataset: Dataset, base: str) -> dict[str, str]:
    """The `ftr.*` key-values that say whose model a file is; `base` is a name, never a path here."""
    return {
        "ftr.client_id": run.client_id,
        "ftr.version": str(run.version),
        "ftr.run_id": run.run_id,
        "ftr.dataset_sha256": dataset.sha256,
        "ftr.account_state_version": dataset.account_state_version,
        "ftr.base": base,
    }


def export_adapter(adapter: Path, base_dir: Path, target: Path, metadata: Mapping[str, str]) -> Path:
    """Write `adapter` (a PEFT folder, or one of mlx-lm) as the GGUF file `target`; return it.

    `base_dir` is the base's Hugging Face folder: q and k are permuted by its head counts. `metadata` becomes
    string key-values, such as `ftr.client_id`. The file appears whole or not at all. Raises TrainingError
    naming what GGUF LoRA cannot hold (DoRA, bias, lm_head and embedding LoRA …).
    """
    from gguf import GGUFWriter

    weights = read_adapter(adapter)
    heads = heads_of(_config(base_dir))
    part = target.with_name(f".{target.name}.part")
    writer = GGUFWriter(part, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp multiplies by alpha / rank: so mlx-lm's scale and rsLoRA are folded in.
    writer.add_float32("adapter.lora.alpha", weights.scale * weights.rank)
    for key, value in metadata.items():
        writer.add_string(key, value)
    _add_tensors(writer, weights, heads)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    publish(part, target)
    return target


def _add_tensors(writer: Any, weights: AdapterWeights, heads: Mapping[str, int]) -> None:
    for (layer, module), pair in weights.pairs.items():
        b = permute(pair.b(), heads[module]) if module in heads else pair.b()
        for half, values in (("a", pair.a()), ("b", b)):
            name = f"blk.{layer}.{MODULES[module]}.weight.lora_{half}"
            writer.add_tensor(name, np.ascontiguousarray(values, dtype=np.float32))


def _config(base_dir: Path) -> dict[str, Any]:
    path = base_dir / "config.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); give the adapter's base") from None
    return content
