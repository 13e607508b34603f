"""Checkpoints: one safetensors file each, whole or absent, the last two kept.

A checkpoint belongs to one training: its `spec_sha256` must be the one that asks. The order of batches is
derived from seed and epoch, so the step alone is the position. Knows no torch and no mlx: either goes on.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as encode

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.files import write_atomic
from fine_tune_runner.private.backend import State

KEEP = 2
NAME = re.compile(r"step-(\d{8})\.safetensors")


class Counters(TypedDict):
    """What the summary adds up over all sittings of a training."""

    tokens: int
    loss_tokens: int
    seconds: float
    first_loss: float
    final_loss: float


class Checkpoint(TypedDict):
    """Everything needed to go on after `step` optimizer steps as if nothing had happened."""

    spec_sha256: str
    step: int
    counters: Counters
    state: State


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint durably, then drop all but the last two; TrainingError where the disk refuses."""
    path = folder / f"step-{checkpoint['step']:08d}.safetensors"
    tensors = {
        f"{kind}/{key}": array
        for kind, arrays in checkpoint["state"].items()
        for key, array in arrays.items()
    }
    rest = {key: value for key, value in checkpoint.items() if key != "state"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, encode(tensors, {"checkpoint": json.dumps(rest)}))
    except OSError as error:
        raise TrainingError(
            f"{path}: the checkpoint cannot be written: {error.strerror}; make room, then resume the run"
        ) from error
    for old in _steps(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def latest(folder: Path, spec_sha256: str) -> Checkpoint | None:
    """The newest readable checkpoint of this training, None where there is none."""
    for path in reversed(_steps(folder)):
        try:
            found = _read(path)
        except (OSError, SafetensorError):
            continue  # damaged: the one before it will do
        if found["spec_sha256"] == spec_sha256:
            return found
    return None


def _read(path: Path) -> Checkpoint:
    state: State = {}
    with safe_open(str(path), framework="numpy") as file:
        rest = json.loads(file.metadata()["checkpoint"])
        for name in file.keys():  # noqa: SIM118
            kind, _, key = name.partition("/")
            state.setdefault(kind, {})[key] = file.get_tensor(name)
    return Checkpoint(
        spec_sha256=rest["spec_sha256"], step=rest["step"], counters=rest["counters"], state=state
    )


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if NAME.fullmatch(path.name))
