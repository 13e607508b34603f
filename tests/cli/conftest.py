"""The command line is tested as a process, on a small client with a tiny random base."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_client import Workplace
from tests.tiny_llama import make_tiny_llama


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama."""
    return make_tiny_llama(tmp_path_factory.mktemp("base") / "tiny", context=1024)


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path, models_dir: Path) -> Workplace:
    """A fresh data folder."""
    return Workplace(tmp_path, tiny_base, models_dir)
