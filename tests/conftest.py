"""What several rooms' tests share: the fetched models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fine_tune_runner.settings import load_settings


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder that `fine-tune fetch` (part of `make test`) has filled."""
    folder = load_settings(os.environ).models_dir
    for name in ("smollm2", "minilm"):
        if not (folder / name).is_dir():
            pytest.fail(f"{folder / name} is missing; run: fine-tune fetch {name}", pytrace=False)
    return folder
