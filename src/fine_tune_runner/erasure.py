"""Forgetting a client: its folder goes, one line stays that says when and by whom."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from fine_tune_runner.settings import Client
from fine_tune_runner.types import RegistryEntry


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """What forgetting a client erases, or has erased."""

    client_id: str
    folder: str
    files: int
    bytes: int
    models: tuple[str, ...]
    elsewhere: tuple[str, ...] = ()  # models that were deleted at a provider


def survey(client: Client, entries: Sequence[RegistryEntry]) -> Erasure:
    """Count what is there; erases nothing."""
    files = [path for path in client.dir.rglob("*") if path.is_file() and not path.is_symlink()]
    return Erasure(
        client_id=client.id,
        folder=str(client.dir),
        files=len(files),
        bytes=sum(path.stat().st_size for path in files),
        models=tuple(entry.model_id for entry in entries if entry.model_id),
    )


def erase(erasure: Erasure, data_dir: Path, who: str, at: datetime) -> Erasure:
    """Put the erasure on record, then do it; a crash in between is finished by doing it again."""
    shared = data_dir / ".fine-tune"
    shared.mkdir(mode=0o700, exist_ok=True)
    line = {"client_id": erasure.client_id, "at": at, "who": who, "files": erasure.files}
    with (shared / "forgotten.jsonl").open("ab") as file:
        file.write(msgspec.json.encode(line) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(erasure.folder)
    return erasure
