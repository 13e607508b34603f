"""Training computed by PyTorch: on CUDA, on Apple's mps, on the CPU.

The seam of backend.py over the functional Llama, its frozen trunk and torch's AdamW.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.backend import State, out_of_memory, process_memory
from fine_tune_runner.private.batches import Corpus, Tree
from fine_tune_runner.private.llama import load_llama
from fine_tune_runner.private.llama_config import LlamaConfig
from fine_tune_runner.private.lora import Adapter, new_adapter
from fine_tune_runner.private.shared_prefix import Branch, backward, tokens_at_once
from fine_tune_runner.private.trunk import Trunk
from fine_tune_runner.settings import TrainingConfig

MOMENTS = {"mean": "exp_avg", "square": "exp_avg_sq"}  # our names, and those of torch.optim.AdamW


@contextmanager
def _memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise out_of_memory(error) from None


class TorchTrainable:
    """As backend.Trainable; `corpus` and `trunk` are what its trees are about."""

    def __init__(self, adapter: Adapter, corpus: Corpus, trunk: Trunk, weight_decay: float) -> None:
        self.adapter, self.corpus, self.trunk = adapter, corpus, trunk
        self._parameters = adapter.parameters()
        self._optimizer = torch.optim.AdamW(self._parameters, weight_decay=weight_decay, fused=True)

    def clip(self, limit: float) -> float:
        """As backend.Trainable."""
        return float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))

    @_memory()
    def step(self, rate: float) -> None:
        """As backend.Trainable."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()

    def forget(self) -> None:
        """As backend.Trainable."""
        self._optimizer.zero_grad()

    def state(self) -> State:
        """As backend.Trainable."""
        moments = {
            kind: self.adapter.like([self._optimizer.state[p][name] for p in self._parameters])
            for kind, name in MOMENTS.items()
        }
        return {
            kind: {key: tensor.numpy() for key, tensor in adapter.tensors().items()}
            for kind, adapter in {"weight": self.adapter, **moments}.items()
        }

    def restore(self, state: State, step: int) -> None:
        """As backend.Trainable."""
        found: list[dict[str, Tensor]] = [{"step": torch.tensor(float(step))} for _ in self._parameters]
        for kind, name in MOMENTS.items():
            moments = self.adapter.like([torch.empty_like(p) for p in self._parameters])
            moments.load(_tensors(state[kind]))
            for own, moment in zip(found, moments.parameters(), strict=True):
                own[name] = moment
        self.adapter.load(_tensors(state["weight"]))
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": dict(enumerate(found)), "param_groups": groups})


def _tensors(arrays: dict[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


class TorchBackend:
    """As backend.Backend; loads the base when it is made."""

    @_memory()
    def __init__(self, training: TrainingConfig, base_dir: Path) -> None:
        if training.threads:
            torch.set_num_threads(training.threads)
        self._four_bit = training.dtype == "nf4"
        device = choose_device(training)
        dtype = choose_dtype(training, device)
        self._model = load_llama(base_dir, device=device, dtype=dtype, four_bit=self._four_bit)

    @property
    def config(self) -> LlamaConfig:
        """As backend.Backend."""
        return self._model.config

    @_memory()
    def begin(self, corpus: Corpus, training: TrainingConfig, layers: int, scratch: Path) -> TorchTrainable:
        """As backend.Backend."""
        model, depth = self._model, self.config.layers - layers
        adapter = new_adapter(
            dict.fromkeys(range(depth, self.config.layers), self.config.shapes),
            rank=training.rank,
            alpha=training.alpha,
            seed=training.seed,
            device=model.device,
        )
        return TorchTrainable(
            adapter, corpus, Trunk(model, corpus, depth, scratch=scratch), training.weight_decay
        )

    @_memory()
    def backward(self, parts: Sequence[tuple[TorchTrainable, Tree, int]]) -> list[float]:
        """As backend.Backend; on a GPU all trees go through the base together."""
        branches = [Branch(tree, own.corpus, own.trunk.states(tree), own.adapter) for own, tree, _ in parts]
        shares = [1 / tokens for _, _, tokens in parts]
        return backward(self._model, branches, shares, tokens_at_once(self._model.device))

    def settings(self) -> dict[str, Any]:
        """As backend.Backend."""
        dtype = "nf4" if self._four_bit else str(self._model.embed.dtype).removeprefix("torch.")
        return {"device": self._model.device.type, "dtype": dtype, "threads": torch.get_num_threads()}

    def peak_memory(self) -> int:
        """As backend.Backend."""
        device = self._model.device
        return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_memory()


def choose_device(training: TrainingConfig) -> torch.device:
    """`training.device`, or the best there is; TrainingError where the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = training.device
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise TrainingError(f"training.device is {name!r}, which torch does not find here; use auto or cpu")
    return torch.device(name)


def choose_dtype(training: TrainingConfig, device: torch.device) -> torch.dtype:
    """`training.dtype`, or bfloat16 where the hardware multiplies it natively, else float32.

    With "nf4" it is what the 4-bit weights are decoded to.
    """
    if training.dtype in ("float32", "bfloat16"):
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[training.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Without these instructions torch falls back to scalar code, a hundred times slower than float32.
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
