"""What `fine-tune watch` does about one client, decided from what lies in its folder; pure.

Files, runs and what was said before are values here; nothing is read, checked or submitted, and no track is
known. Doing an action and deciding again leads to the next one, until there is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from fine_tune_runner.dataset.read import GATE_ROWS
from fine_tune_runner.types import State

What = Literal[
    "submitted", "faults", "queued", "incomplete", "skipped", "needs approval", "not submitted", "unreadable"
]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A version's two files as they lie there; `still` tells that nobody writes them any more.

    `rows` are those of its training file, None while that is missing or ends in mid-line. `fault` says what
    keeps a still version from being whole. `key` is the sha256 over all that the checks of a whole one read.
    """

    version: int
    still: bool
    rows: int | None = None
    fault: str | None = None
    key: str = ""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """A run that there is; `begun` is False where it was put on record, but left to nobody yet."""

    version: int
    run_id: str
    state: State
    begun: bool = True


class Folder(msgspec.Struct, frozen=True, kw_only=True):
    """A client: its versions, ascending, the registered ones, and its runs."""

    seen: Sequence[Seen]
    registered: Collection[int] = ()
    runs: Sequence[Attempt] = ()

    @property
    def floor(self) -> int:
        """The highest version that is registered or has a run: only what is above it is submitted."""
        return max([*self.registered, *(run.version for run in self.runs)], default=0)


class Say(msgspec.Struct, frozen=True, kw_only=True):
    """Something for a person, once for as long as `key` is the last that was said of `subject`."""

    subject: str
    key: str
    event: What
    message: str
    version: int | None = None
    run_id: str | None = None
    missing: int | None = None


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """Run the checks of a version; where they pass, `key` goes to the passed ones, else its faults are said
    under `faults_of(version)`.
    """

    version: int
    key: str


class Submit(msgspec.Struct, frozen=True, kw_only=True):
    """Leave a version to the workers."""

    version: int


class Leave(msgspec.Struct, frozen=True, kw_only=True):
    """Leave a run to the workers that was put on record before a crash."""

    run_id: str


Action = Say | Check | Submit | Leave


def faults_of(version: int) -> str:
    """The subject under which the key of a version is remembered whose checks failed."""
    return f"v{version} faults"


def decide(folder: Folder, told: Mapping[str, str], passed: Collection[str]) -> list[Action]:
    """What is to be done now; empty where everything is done, or waits for a file that is being written."""
    fresh = [seen for seen in folder.seen if seen.version > folder.floor]
    said = [*_of_runs(folder), *_skipped(folder), *_waiting(fresh, bool(folder.floor))]
    actions: list[Action] = [say for say in said if told.get(say.subject) != say.key]
    actions += [Leave(run_id=run.run_id) for run in folder.runs if not run.begun]
    step = _next(fresh, told, passed)
    return actions if step is None else [*actions, step]


def _next(fresh: Sequence[Seen], told: Mapping[str, str], passed: Collection[str]) -> Action | None:
    """The highest version that is ready, or may be; while a higher one is being written lower ones wait."""
    for seen in reversed(fresh):
        if not seen.still:
            return None
        if seen.fault or seen.rows is None or seen.rows < GATE_ROWS:
            continue
        if told.get(faults_of(seen.version)) == seen.key:
            continue
        if seen.key in passed:
            return Submit(version=seen.version)
        return Check(version=seen.version, key=seen.key)
    return None


def _waiting(fresh: Sequence[Seen], in_use: bool) -> Iterator[Say]:
    """What the newest version lacks; a client without any lacks everything."""
    if not fresh:
        if not in_use:
            yield _missing(None, 0)
        return
    newest = fresh[-1]
    if not newest.still:
        return
    if newest.rows is not None and newest.rows < GATE_ROWS:
        yield _missing(newest.version, newest.rows)
    elif newest.fault:
        yield Say(
            subject="waits",
            key=newest.fault,
            event="incomplete",
            message=newest.fault,
            version=newest.version,
        )


def _missing(version: int | None, rows: int) -> Say:
    return Say(
        subject="waits",
        key=f"{version} {rows}",
        event="queued",
        message=f"awaiting {GATE_ROWS} examples (has {rows})",
        version=version,
        missing=GATE_ROWS - rows,
    )


def _skipped(folder: Folder) -> Iterator[Say]:
    """Versions that a higher one has overtaken before they were submitted."""
    used = {*folder.registered, *(run.version for run in folder.runs)}
    for seen in folder.seen:
        if seen.version < folder.floor and seen.version not in used:
            yield Say(
                subject=f"v{seen.version} skipped",
                key="noted",
                event="skipped",
                message=f"v{folder.floor} is newer",
                version=seen.version,
            )


def _of_runs(folder: Folder) -> Iterator[Say]:
    for run in folder.runs:
        if run.state == "waiting":
            yield Say(
                subject=f"{run.run_id} waits",
                key="approval",
                event="needs approval",
                message=f'fine-tune approve {run.run_id} (later ones: "max_cost_usd" in config.json)',
                version=run.version,
                run_id=run.run_id,
            )
