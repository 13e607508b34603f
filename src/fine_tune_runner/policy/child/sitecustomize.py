"""Python runs this at the start of every child of a guarded run, which has this folder on its PYTHONPATH.

A child that cannot be put under the guard does not start. A sitecustomize of the machine's own still runs.
"""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

try:
    from fine_tune_runner.policy.guard import install_from_environment

    install_from_environment()
except BaseException as error:  # noqa: BLE001 - the process edge: site would only print it and go on
    print(f"{sys.executable} cannot be put under the egress guard, so it ends: {error}", file=sys.stderr)
    os._exit(5)

_others = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]
_spec = PathFinder.find_spec("sitecustomize", _others)
if _spec is not None and _spec.loader is not None:
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
