"""Checkpoints: one file each, whole or absent, the last two kept.

A checkpoint belongs to one training: its `spec_sha256` must be the one that asks. The order of batches is
derived from seed and epoch, so the step alone is the position.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.files import write_atomic

KEEP = 2
NAME = re.compile(r"step-(\d{8})\.pt")


class Counters(TypedDict):
    """What the summary adds up over all sittings of a training."""

    tokens: int
    loss_tokens: int
    seconds: float
    first_loss: float
    final_loss: float


class Checkpoint(TypedDict):
    """Everything needed to go on after `step` optimizer steps as if nothing had happened.

    `rng` is torch's generator on the CPU; no draw follows initialisation today.
    """

    spec_sha256: str
    step: int
    adapter: dict[str, Tensor]
    optimizer: dict[str, Any]
    rng: Tensor
    counters: Counters


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint durably, then drop all but the last two; TrainingError where the disk refuses."""
    path = folder / f"step-{checkpoint['step']:08d}.pt"
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, buffer.getvalue())
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
            found: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
            continue  # damaged: the one before it will do
        if found["spec_sha256"] == spec_sha256:
            return found
    return None


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if NAME.fullmatch(path.name))
