"""What may be done to a registry, as pure functions from entries to entries.

No file, no clock, no lock: store.py applies an edit under its lock and writes the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fine_tune_runner.errors import RegistryError
from fine_tune_runner.types import Evaluation, RegistryEntry, Status, VersionKey

Entries = tuple[RegistryEntry, ...]


def active(entries: Sequence[RegistryEntry]) -> RegistryEntry | None:
    """The version in service, None where there is none."""
    return next((entry for entry in entries if entry.active), None)


def find(entries: Sequence[RegistryEntry], key: VersionKey) -> RegistryEntry | None:
    """The entry of that version and track, None where there is none."""
    return next((entry for entry in entries if entry.key == key), None)


def get(entries: Sequence[RegistryEntry], key: VersionKey) -> RegistryEntry:
    """The entry of that version and track; RegistryError naming what there is instead."""
    entry = find(entries, key)
    if entry is None:
        raise missing(entries, spell(key))
    return entry


def missing(entries: Sequence[RegistryEntry], what: str) -> RegistryError:
    """The error for a version that is not there, naming those that are."""
    known = ", ".join(spell(e.key) for e in entries) or "nothing yet"
    return RegistryError(f"{what} is not in the registry (registered: {known})")


def spell(key: VersionKey) -> str:
    """`v3 (track A)`."""
    return f"v{key.version} (track {key.track})"


def registered(entries: Entries, entry: RegistryEntry) -> Entries:
    """Add a version, or replace the entry of an earlier attempt at it.

    Raises RegistryError where that version is in service: a model that answers is never swapped out from
    under its readers.
    """
    check_replaceable(entries, entry.key)
    rest = [e for e in entries if e.key != entry.key]
    return tuple(sorted([*rest, entry], key=lambda e: (e.version, e.created_at)))


def check_replaceable(entries: Entries, key: VersionKey) -> None:
    """Raise RegistryError where that version is or was in service: nobody's model or way back is replaced.

    An archived version whose model was pruned is no way back any more, and may be trained again.
    """
    old = find(entries, key)
    if old is not None and old.status in ("active", "archived") and old.model_id is not None:
        what = "is in service" if old.active else "was in service and can be rolled back to"
        raise RegistryError(f"{spell(key)} {what}; publish a new version instead")


def unreplaced(entries: Entries, key: VersionKey, model_id: str | None, run_id: str | None) -> Entries:
    """The entries as they are; RegistryError where the version has another model, or another run's, by now.

    What was measured on one model says nothing about the one that another attempt put in its place.
    """
    entry = get(entries, key)
    if (entry.model_id, entry.run_id) != (model_id, run_id):
        whose = f"of run {entry.run_id}" if entry.run_id else f"{entry.model_id}, registered by hand,"
        raise RegistryError(
            f"{spell(key)} is the model {whose} by now, and this verdict is about another one; "
            "nothing was changed. What there is: fine-tune status"
        )
    return entries


def scored(
    entries: Entries, key: VersionKey, evaluation: Evaluation, holdout_sha256: str, status: Status
) -> Entries:
    """Record an evaluation; `status` follows the verdict, but a version in service stays in service."""
    entry = get(entries, key)
    kept = entry.status if entry.status in ("active", "archived") else status
    new = msgspec.structs.replace(
        entry,
        eval_score=evaluation.recall,
        evaluation=evaluation,
        holdout_sha256=holdout_sha256,
        status=kept,
    )
    return _replaced(entries, new)


def without_model(entries: Entries, key: VersionKey) -> Entries:
    """Record that a model is gone; RegistryError for the version in service."""
    entry = get(entries, key)
    if entry.active:
        raise RegistryError(f"{spell(key)} is in service; its model stays until another version is promoted")
    return _replaced(entries, msgspec.structs.replace(entry, model_id=None))


def retired(entries: Entries, key: VersionKey) -> Entries:
    """Take an archived version's model away: nobody can roll back to it from now on.

    `artifact` keeps what is still to be deleted, until `cleared`. RegistryError for a version that is in
    service, or never was.
    """
    entry = get(entries, key)
    if entry.status != "archived":
        raise RegistryError(f"{spell(key)} is {entry.status}; only archived versions are pruned")
    kept = entry.artifact or entry.model_id
    return _replaced(entries, msgspec.structs.replace(entry, model_id=None, artifact=kept))


def cleared(entries: Entries, key: VersionKey) -> Entries:
    """Record that what `retired` left is deleted."""
    entry = msgspec.structs.replace(get(entries, key), artifact=None, artifact_sha256=None)
    return _replaced(entries, entry)


def marked(entries: Entries, key: VersionKey, status: Status) -> Entries:
    """Set the status of a version that is not in service."""
    entry = get(entries, key)
    if entry.active or status == "active":
        raise RegistryError(f"{spell(key)}: only promote and rollback change what is in service")
    return _replaced(entries, msgspec.structs.replace(entry, status=status))


def promoted(entries: Entries, key: VersionKey, expected: VersionKey | None, client_id: str) -> Entries:
    """Put a version into service and archive the one before: compare-and-set against `expected`.

    `expected` is the version that the gate compared with; `client_id` is for the message. Raises
    RegistryError where another one is in service by now, since the verdict says nothing about that one.
    """
    now = active(entries)
    if now is not None and now.key == key:
        return entries
    if (now.key if now else None) != expected:
        raise RegistryError(
            f"{spell(key)} was compared with {spell(expected) if expected else 'nothing'}, but "
            f"{spell(now.key) if now else 'nothing'} is in service now; evaluate it again: "
            f"fine-tune eval --client {client_id} --version {key.version} --track {key.track.lower()}"
        )
    return _activated(entries, key)


def overridden(entries: Entries, key: VersionKey) -> Entries:
    """Put a version into service whatever the gate said; the caller records who and why."""
    return _activated(entries, key)


def rolled_back(entries: Entries, key: VersionKey) -> Entries:
    """Reactivate a version that was in service before; RegistryError for any other."""
    entry = get(entries, key)
    if entry.active:
        return entries
    if entry.status != "archived":
        once = [spell(e.key) for e in entries if e.status == "archived" and e.model_id]
        raise RegistryError(
            f"{spell(key)} was never in service (status {entry.status}); "
            f"roll back to one of: {', '.join(once) or 'none'}"
        )
    return _activated(entries, key)


def faults(entries: Sequence[RegistryEntry]) -> list[str]:
    """What breaks the registry's rules; empty where all hold."""
    found = []
    keys = [e.key for e in entries]
    if len(set(keys)) != len(keys):
        found.append("the same version and track stands twice")
    if sum(e.active for e in entries) > 1:
        found.append("more than one entry is active")
    found += [
        f"{spell(e.key)}: active is {e.active}, but status is {e.status}"
        for e in entries
        if e.active != (e.status == "active")
    ]
    found += [f"{spell(e.key)}: active without a model_id" for e in entries if e.active and not e.model_id]
    return found


def _activated(entries: Entries, key: VersionKey) -> Entries:
    entry = get(entries, key)
    if entry.model_id is None or entry.status == "failed":
        raise RegistryError(f"{spell(key)} has no model (status {entry.status}); submit it again")

    def turned(e: RegistryEntry) -> RegistryEntry:
        if e.key == key:
            return msgspec.structs.replace(e, active=True, status="active")
        return msgspec.structs.replace(e, active=False, status="archived") if e.active else e

    return tuple(turned(e) for e in entries)


def _replaced(entries: Entries, new: RegistryEntry) -> Entries:
    return tuple(new if e.key == new.key else e for e in entries)
