"""Defaults of a training that depend on the base."""

from __future__ import annotations

from pathlib import Path

import pytest

from fine_tune_runner.errors import MissingModel
from fine_tune_runner.private.train_spec import default_learning_rate, resolve
from fine_tune_runner.settings import TrainingConfig


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
    (tmp_path / "config.json").write_text('{"hidden_size": 4096, "model_type": "llama"}')
    assert resolve(TrainingConfig(), tmp_path).learning_rate == pytest.approx(4.32e-4, rel=2e-3)
    assert resolve(TrainingConfig(learning_rate=1e-4), tmp_path).learning_rate == 1e-4


def test_a_base_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"config\.json is missing"):
        resolve(TrainingConfig(), tmp_path)
