"""What a training is asked to do, its identity, and where its result lies.

No torch here: the process that asks for a training imports this and starts at once.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError, MissingModel
from fine_tune_runner.files import sha256_file
from fine_tune_runner.settings import TrainingConfig
from fine_tune_runner.types import TrainingSummary

SUMMARY = "training.json"


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One training: paths as strings, `base_dir` a Hugging Face folder with its tokenizer.

    `out_dir` is the attempt's own folder: `adapter/` appears there last and whole, `checkpoints/` beside it.
    """

    base_dir: str
    train_path: str
    out_dir: str
    training: TrainingConfig

    @property
    def adapter_dir(self) -> Path:
        """The finished PEFT folder."""
        return Path(self.out_dir) / "adapter"

    @property
    def checkpoint_dir(self) -> Path:
        """Checkpoints of the unfinished training."""
        return Path(self.out_dir) / "checkpoints"


class _Shape(msgspec.Struct, frozen=True):
    hidden_size: int
    num_hidden_layers: int


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """`training.json` in the adapter's folder."""

    spec_sha256: str
    summary: TrainingSummary


def resolve(training: TrainingConfig, base_dir: Path) -> TrainingConfig:
    """The defaults of Track B in place of None (`threads` stays: None means all cores), `layers` a number.

    The learning rate follows the base's hidden size. Raises MissingModel where it has no config.json.
    """
    shape = _shape(base_dir)
    return msgspec.structs.replace(
        training,
        epochs=training.epochs or 4,
        learning_rate=training.learning_rate or default_learning_rate(shape.hidden_size),
        batch_size=training.batch_size or 8,
        layers=trained_layers(training.layers, shape.num_hidden_layers),
    )


def trained_layers(asked: int | str, depth: int) -> int:
    """How many of a base's `depth` layers get adapters: all, the number asked for, or by itself a third.

    A third of SmolLM2-135M's 30, rounded up, is the 10 of docs/track-b.md, "How many layers".
    """
    if isinstance(asked, int):
        return min(asked, depth)
    return depth if asked == "all" else math.ceil(depth / 3)


def default_learning_rate(hidden: int) -> float:
    """2e-3 up to a hidden size of 576, where it was measured (facts: SmolLM2-135M), less above it.

    LoRA's best rate depends on the base's width and hardly on the rank: it falls with hidden^-0.781 for Llama
    (Schulman and Thinking Machines Lab 2025, "LoRA Without Regret", thinkingmachines.ai/blog/lora). So
    7.4e-4 at 2048 and 4.3e-4 at 4096; the sweep in tinker-cookbook (hyperparam_utils.py at 02face3) found
    1e-3 for Llama-3.2-1B and 3e-4 for Llama-3.1-8B, with larger batches. The anchor is ours, not theirs.
    """
    share: float = min(1.0, 576 / hidden) ** 0.781
    return 2e-3 * share


def _shape(base_dir: Path) -> _Shape:
    path = base_dir / "config.json"
    if not path.is_file():
        raise MissingModel(
            f"{path} is missing; give a Hugging Face folder with config.json and *.safetensors"
        )
    return msgspec.json.decode(path.read_bytes(), type=threadsafe(_Shape))


def fingerprint(spec: TrainSpec) -> str:
    """sha256 over what decides the result: settings, the training file, the base's config and weight files.

    Weights count by name and size, since hashing gigabytes at every start would cost minutes. Checkpoint
    interval, threads and paths do not count.
    Raises MissingModel where the base has no config.json, DataError where the training file is missing.
    """
    config = Path(spec.base_dir) / "config.json"
    resolved = resolve(spec.training, config.parent)
    if not Path(spec.train_path).is_file():
        raise DataError(f"{spec.train_path} is missing; the upstream pipeline writes it")
    weights = sorted((path.name, path.stat().st_size) for path in config.parent.glob("*.safetensors"))
    # As written where it is no "auto": trainings that began before that existed are known again.
    layers = resolved.layers if spec.training.layers == "auto" else spec.training.layers
    training = msgspec.structs.replace(resolved, layers=layers, checkpoint_every=1, threads=None)
    parts = (training, sha256_file(Path(spec.train_path)), sha256_file(config), weights)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def finished(spec: TrainSpec, sha256: str) -> TrainingSummary | None:
    """The summary of this very training where it has already ended, else None."""
    path = spec.adapter_dir / SUMMARY
    if not path.is_file():
        return None
    found = msgspec.json.decode(path.read_bytes(), type=threadsafe(Finished))
    return found.summary if found.spec_sha256 == sha256 else None
