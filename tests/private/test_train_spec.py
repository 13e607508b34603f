"""Defaults of a training that depend on the base."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from fine_tune_runner.errors import MissingModel
from fine_tune_runner.private.train_spec import TrainSpec, default_learning_rate, fingerprint, resolve
from fine_tune_runner.settings import TrainingConfig

OLD_DEFAULT = "7772e65a8eaec3e1dfdd9595b78d5ed3e4ca1ecaff4ebf1b6745cc3b01753785"
OLD_ALL = "aee78e9fc2057812d5314563c8c5fe0245ca65a852373066fb378e6709d3e2fd"


@pytest.mark.parametrize(
    ("hidden", "rate"),
    [
        (64, 2e-3),  # never above what was measured
        (576, 2e-3),  # SmolLM2-135M
        (2048, 7.42e-4),  # Llama 3.2 1B: 2e-3 * (576 / 2048) ** 0.781, by hand
        (4096, 4.32e-4),  # Llama 3.1 8B, Mistral 7B: half of that to the power 0.781
    ],
)
def test_the_learning_rate_falls_with_the_width_of_the_base(hidden: int, rate: float) -> None:
    assert default_learning_rate(hidden) == pytest.approx(rate, rel=2e-3)


def test_the_default_is_read_from_the_base_and_a_setting_wins(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 4096, "num_hidden_layers": 32}')
    assert resolve(TrainingConfig(), tmp_path).learning_rate == pytest.approx(4.32e-4, rel=2e-3)
    assert resolve(TrainingConfig(learning_rate=1e-4), tmp_path).learning_rate == 1e-4


@pytest.mark.parametrize(
    ("asked", "depth", "layers"),
    [("auto", 30, 10), ("auto", 32, 11), ("auto", 2, 1), ("all", 30, 30), (4, 30, 4), (50, 30, 30)],
)
def test_layers_are_a_number_once_the_base_is_known(
    tmp_path: Path, asked: int | Literal["all", "auto"], depth: int, layers: int
) -> None:
    (tmp_path / "config.json").write_text(f'{{"hidden_size": 576, "num_hidden_layers": {depth}}}')
    assert resolve(TrainingConfig(layers=asked), tmp_path).layers == layers


def test_auto_is_the_same_training_as_its_number_and_old_trainings_are_known_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 576, "num_hidden_layers": 30}')
    (tmp_path / "v1.jsonl").write_text("{}\n")

    def of(layers: int | Literal["all", "auto"]) -> str:
        return fingerprint(
            TrainSpec(
                base_dir=str(tmp_path),
                train_path=str(tmp_path / "v1.jsonl"),
                out_dir="",
                training=TrainingConfig(layers=layers),
            )
        )

    # As computed before "auto" was: of the default, which was 10 then, and of "all".
    assert of("auto") == of(10) == OLD_DEFAULT
    assert of("all") == OLD_ALL


def test_a_base_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"config\.json is missing"):
        resolve(TrainingConfig(), tmp_path)
