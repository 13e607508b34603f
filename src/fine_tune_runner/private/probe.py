"""Whether an Ollama host takes a GGUF adapter on a base that it has: one of zeros, tried and taken away.

The short way in where it is accepted; versions from 0.34.1 refuse it, and none is believed without a try.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fine_tune_runner.errors import ProviderError
from fine_tune_runner.files import sha256_file
from fine_tune_runner.private.llama_layout import heads_of
from fine_tune_runner.private.ollama import Creation, Ollama
from fine_tune_runner.private.parity import TOLERANCE
from fine_tune_runner.types import Message


def refusal(ollama: Ollama, base: str, base_dir: Path, name: str, path: Path) -> str | None:
    """Why `base` at the host can have no adapter, None where it can; network.

    Uploads a few kilobytes (written to `path`), makes the model `name` from `base` with them, asks it one
    token, and deletes it. `base_dir` is the base's Hugging Face folder.
    """
    details = ollama.show(base).details
    if details.get("parent_model"):
        return f"{base} is itself made from {details['parent_model']}"
    if details.get("quantization_level") not in TOLERANCE:
        return f"{base} is in {details.get('quantization_level')}, which parity has no tolerance for"
    write_zeros(base_dir, path)
    digest = f"sha256:{sha256_file(path)}"
    try:
        ollama.upload(path, digest, lambda _done, _total: None)
        ollama.create(Creation(model=name, source=base, adapters={"adapter.gguf": digest}))
        ollama.chat(name, (Message(role="user", content="-"),), {"num_predict": 1})
    except ProviderError as error:
        return str(error)
    finally:
        ollama.delete(name)
    return None


def write_zeros(base_dir: Path, path: Path) -> None:
    """A GGUF LoRA of rank 1 on the first query projection that changes nothing."""
    from gguf import GGUFWriter

    config = json.loads((base_dir / "config.json").read_text("utf-8"))
    hidden, heads = config["hidden_size"], heads_of(config)["self_attn.q_proj"]
    rows = heads * (config.get("head_dim") or hidden // heads)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((1, hidden), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.lora_b", np.zeros((rows, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
