"""Checkpoints: the newest readable one of the same training, two kept, a full disk named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.checkpoint import Checkpoint, Counters, latest, save


def checkpoint(step: int, spec: str = "a") -> Checkpoint:
    counters = Counters(tokens=1, loss_tokens=1, seconds=1.0, first_loss=2.0, final_loss=1.0)
    return Checkpoint(
        spec_sha256=spec,
        step=step,
        counters=counters,
        state={kind: {"w": np.full(2, step + n, np.float32)} for n, kind in enumerate(("weight", "mean"))},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_whole(tmp_path: Path) -> None:
    for step in (9, 10):
        save(tmp_path, checkpoint(step))
    found = latest(tmp_path, "a")
    assert found is not None
    assert found["step"] == 10
    assert found == checkpoint(10) | {"state": found["state"]}
    state = {kind: arrays["w"].tolist() for kind, arrays in found["state"].items()}
    assert state == {"weight": [10.0, 10.0], "mean": [11.0, 11.0]}


def test_two_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, checkpoint(step))
    assert names(tmp_path) == ["step-00000010.safetensors", "step-00000015.safetensors"]


def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(5))
    newest = save(tmp_path, checkpoint(10))
    newest.write_bytes(newest.read_bytes()[:100])
    found = latest(tmp_path, "a")
    assert found is not None
    assert found["step"] == 5


def test_another_trainings_checkpoint_is_not_taken(tmp_path: Path) -> None:
    save(tmp_path, checkpoint(5, spec="a"))
    assert latest(tmp_path, "b") is None


def test_no_folder_means_no_checkpoint(tmp_path: Path) -> None:
    assert latest(tmp_path / "none", "a") is None


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written"):
        save(tmp_path / "file", checkpoint(5))
