"""Deleting models that nobody rolls back to: archived versions beyond the newest few, never one in service.

The registry lets go of a model first, under its lock, so that no rollback reaches for it while it is deleted;
what a crash leaves undeleted stands there as an artifact without a model, and the next call deletes it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from typing import Any

from fine_tune_runner.errors import UsageError
from fine_tune_runner.line import run_dir_of
from fine_tune_runner.policy.egress import policy_of
from fine_tune_runner.policy.guard import guarded
from fine_tune_runner.registry import edits
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import RegistryEntry

KEEP = 3


def prunable(entries: Sequence[RegistryEntry], keep: int = KEEP) -> tuple[RegistryEntry, ...]:
    """The archived versions whose models go, oldest first: all but the `keep` newest that have one.

    Raises UsageError for a `keep` below 0.
    """
    if keep < 0:
        raise UsageError(f"--keep {keep}: give a number from 0")
    archived = [entry for entry in entries if entry.status == "archived"]
    standing = [entry for entry in archived if entry.model_id is not None]
    unfinished = [entry for entry in archived if entry.model_id is None and entry.artifact is not None]
    return (*unfinished, *standing[: max(0, len(standing) - keep)])


def prune(runner: FineTuneRunner, client_id: str, keep: int = KEEP) -> tuple[RegistryEntry, ...]:
    """Delete the models of `prunable`, where they are served and in the client's folder; return the entries.

    Answers, reports and the registry's record stay. Raises RegistryError where a version went into service
    meanwhile, and what the track raises where its host or provider cannot be reached: call it again then.
    """
    client, registry = load_client(runner.settings, client_id), runner.registry(client_id)
    gone = prunable(registry.entries(), keep)
    for entry in gone:
        words: dict[str, Any] = {
            "who": runner.who,
            "why": f"not among the {keep} newest archived versions",
            "key": entry.key,
            "run_id": entry.run_id,
        }
        registry.change("retire", partial(edits.retired, key=entry.key), **words)
        name = entry.artifact or entry.model_id
        # A model that was registered by hand may stand for another version too.
        shared = name in {other.model_id for other in registry.entries()}
        with guarded(policy_of(runner.settings, client)):
            runner.port(client, entry.track).forget([], [name] if name and not shared else [])
        for attempt in run_dir_of(client, entry).glob("attempt-*"):
            shutil.rmtree(attempt)
        registry.change("prune", partial(edits.cleared, key=entry.key), **words)
    return gone
