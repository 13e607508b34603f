"""One fine-tuned model per client: check, train, evaluate, compare, promote or refuse, roll back.

from fine_tune_runner import FineTuneRunner, load_settings
job = FineTuneRunner(load_settings(os.environ)).submit("hre", 3)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fine_tune_runner.errors import RunnerError
    from fine_tune_runner.runner import FineTuneRunner
    from fine_tune_runner.settings import Settings, load_settings

# Looked up on first use, so that a trainer process does not load the command's half of the package.
_EXPORTS = {
    "FineTuneRunner": "runner",
    "RunnerError": "errors",
    "Settings": "settings",
    "load_settings": "settings",
}

__all__ = ["FineTuneRunner", "RunnerError", "Settings", "load_settings"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fine_tune_runner' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fine_tune_runner.{_EXPORTS[name]}"), name)
