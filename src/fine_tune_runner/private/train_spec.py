"""What a training is asked to do, its identity, and where its result lies.

No torch here: the process that asks for a training imports this and starts at once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

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


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """`training.json` in the adapter's folder."""

    spec_sha256: str
    summary: TrainingSummary


def resolve(training: TrainingConfig) -> TrainingConfig:
    """The defaults of Track B in place of None (`threads` stays: None means all cores)."""
    return msgspec.structs.replace(
        training,
        epochs=training.epochs or 4,
        learning_rate=training.learning_rate or 2e-3,
        batch_size=training.batch_size or 8,
    )


def fingerprint(spec: TrainSpec) -> str:
    """sha256 over what decides the result: settings, the training file, the base's config and weight files.

    Weights count by name and size, since hashing gigabytes at every start would cost minutes. Checkpoint
    interval, threads and paths do not count.
    Raises MissingModel where the base has no config.json, DataError where the training file is missing.
    """
    config = Path(spec.base_dir) / "config.json"
    if not config.is_file():
        raise MissingModel(
            f"{config} is missing; give a Hugging Face folder with config.json and *.safetensors"
        )
    if not Path(spec.train_path).is_file():
        raise DataError(f"{spec.train_path} is missing; the upstream pipeline writes it")
    weights = sorted((path.name, path.stat().st_size) for path in config.parent.glob("*.safetensors"))
    training = msgspec.structs.replace(resolve(spec.training), checkpoint_every=1, threads=None)
    parts = (training, sha256_file(Path(spec.train_path)), sha256_file(config), weights)
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def finished(spec: TrainSpec, sha256: str) -> TrainingSummary | None:
    """The summary of this very training where it has already ended, else None."""
    path = spec.adapter_dir / SUMMARY
    if not path.is_file():
        return None
    found = msgspec.json.decode(path.read_bytes(), type=Finished)
    return found.summary if found.spec_sha256 == sha256 else None
