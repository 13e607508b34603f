"""At which address a run began, and a model was made: read from the step files of the client's runs.

Settings may name another address by now. What is asked of the wrong provider is answered with "not here",
which is no proof that a job has ended or that a model is gone. Opens no socket.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fine_tune_runner.errors import ProviderError


class Made(NamedTuple):
    """The run that made a model, and the address that the model answers at."""

    run_id: str
    url: str


def began_at(client_dir: Path, run_id: str) -> str | None:
    """The address at which a run may have a file and a job; None where it is not on record."""
    urls = [value.get("url") for _, value in _values(client_dir, run_id, "eligible")]
    return urls[0] or None if urls else None


def made_at(client_dir: Path, model_id: str) -> Made | None:
    """Where a run of this client made a model; None where it is not on record."""
    for run_id, value in _values(client_dir, "*", "ready"):
        if value.get("model_id") == model_id and (url := value.get("endpoint")):
            return Made(run_id, url)
    return None


def check_here(what: str, address: str | None, here: Collection[str]) -> None:
    """Raise ProviderError where something is at another address than those that the settings name."""
    if address is not None and address not in here:
        raise ProviderError(
            f"{what} is at {address}, and the settings name {' and '.join(dict.fromkeys(here))} now, where "
            f"nothing is known of it; set OPENAI_BASE_URL={address}, its key, and its provider in config.json"
        )


def _values(client_dir: Path, run_id: str, step: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(run id, value) of the files of a step; what cannot be read is left out, and nothing claimed of it."""
    for path in sorted((client_dir / "runs").glob(f"{run_id}/steps/*-{step}.json")):
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, KeyError, OSError):
            value = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])["value"]
            if isinstance(value, dict):
                yield path.parts[-3], value
