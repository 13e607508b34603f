"""What several rooms' tests share: the fetched models, a tiny base, a client to run commands on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fine_tune_runner.settings import load_settings
from tests.small_client import Workplace


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder that `fine-tune fetch` (part of `make test`) has filled."""
    folder = load_settings(os.environ).models_dir
    for name in ("smollm2", "minilm"):
        if not (folder / name).is_dir():
            pytest.fail(f"{folder / name} is missing; run: fine-tune fetch {name}", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama."""
    from tests.tiny_llama import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("base") / "tiny", context=1024)


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path, models_dir: Path) -> Workplace:
    """A fresh data folder with a small client, and the command line as processes."""
    return Workplace(tmp_path, tiny_base, models_dir)
