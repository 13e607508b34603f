"""`fine-tune watch`: looks into client folders and does what workflow/watch.py decides, each thing once.

What was said of a client is on record in its folder, so that a restart repeats nothing; what was submitted
is on record as its run. A client that cannot be read never keeps the others waiting.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.dataset.labels import labels_path
from fine_tune_runner.errors import RunnerError
from fine_tune_runner.files import sha256_file, write_atomic
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, load_client
from fine_tune_runner.types import Findings, Request
from fine_tune_runner.workflow.changes import READ, client_folders
from fine_tune_runner.workflow.engine import RUN_ID, Event, RunState
from fine_tune_runner.workflow.watch import (
    Action,
    Attempt,
    Check,
    Folder,
    Say,
    Seen,
    Submit,
    decide,
    faults_of,
)

MEMORY = ".watch.json"  # in the client's folder, and erased with it
SETTLE_S, RESCAN_S = 5.0, 60.0
AT_REST = ("finished", "failed", "cancelled")  # states of a run that nothing more is to be said of
Stamp = tuple[int, int, int, int]  # inode, size, mtime and ctime in ns
CONFIG = 0  # in place of a version: the whole folder


@dataclass(slots=True)
class _Known:
    """What this process knows of a client; `told` is on record too."""

    told: dict[str, str]
    files: int | None = None  # hash of what the last look saw, None: to be looked at in any case
    still: dict[int, tuple[object, float]] = field(default_factory=dict)  # version → its files, since when
    passed: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    due: float | None = None


class Watch:
    """Submits what is ready of all clients, or of `only` one; `say` hears what a person must.

    `check` are the checks of a version. `now` is a monotonic clock in seconds, `daily` is called on each new
    day, `notice` told in one line what goes wrong with the watch itself.
    """

    def __init__(
        self,
        runner: FineTuneRunner,
        *,
        check: Callable[[str, int], Findings],
        say: Callable[[str, Say], None],
        notice: Callable[[str], None] = lambda _text: None,
        daily: Callable[[], None] = lambda: None,
        settle_s: float = SETTLE_S,
        only: str | None = None,
        now: Callable[[], float] = time.monotonic,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._runner = runner
        self._check = check
        self._say = say
        self._notice = notice
        self._daily = daily
        self._settle_s = settle_s
        self._only = only
        self._now = now
        self._stopped = stopped
        self._clients: dict[str, _Known] = {}
        self._heard: set[str] = set()
        self._day: date | None = None
        self._rescan = now()

    def run(self, changes: Iterable[Collection[str] | None]) -> None:
        """Look where something changes or has settled, and everywhere once a minute, until `changes` end."""
        for found in changes:
            if found is None or self._now() >= self._rescan:
                self._rescan = self._now() + RESCAN_S
                self.look()
                if (today := self._runner.clock().date()) != self._day:
                    self._day = today
                    self._daily()
            else:
                self.look({*found, *self._took()})

    def once(self, sleep: Callable[[float], None] = time.sleep) -> None:
        """Look everywhere, wait for what may settle, and look there again."""
        end = self._now() + 2 * self._settle_s
        self.look()
        while self.waiting and self._now() < end and not self._stopped():
            sleep(min(0.1, self._settle_s))
            self.look(())

    @property
    def waiting(self) -> bool:
        """Whether something is being written, or was a moment ago."""
        return any(known.due is not None for known in self._clients.values())

    def heard(self, event: Event) -> None:
        """To be told of what happens in runs, from any thread: one that waits for a yes is looked at."""
        if event.event == "approval needed" and (name := RUN_ID.fullmatch(event.run_id)):
            self._heard.add(name[1])

    def look(self, names: Collection[str] | None = None) -> None:
        """Look at these clients and at those that may have settled; None: at all there are."""
        folders = {path.name: path for path in client_folders(self._runner.settings.data_dir)}
        for gone in self._clients.keys() - folders.keys():
            del self._clients[gone]
        for name, folder in folders.items():
            if self._stopped():
                return
            if self._only not in (None, name):
                continue
            due = self._clients[name].due if name in self._clients else None
            if names is None or name in names or (due is not None and self._now() >= due):
                self._look(folder)

    def _took(self) -> set[str]:
        heard = self._heard.copy()
        self._heard -= heard
        return heard

    def _look(self, folder: Path) -> None:
        known = self._clients.get(folder.name)
        if known is None:
            known = self._clients[folder.name] = _Known(told=_remembered(folder))
        before = dict(known.told)
        try:
            files = _files(folder)
            seen = hash(tuple(sorted(files.items())))
            if known.files != seen or known.due is not None:
                known.due = None
                known.files = seen if self._at_rest(folder, known, files, seen) else None
        except (RunnerError, OSError) as error:
            known.files = None
            if folder.is_dir():  # else it was taken away in this very moment
                self._tell(folder.name, known, _unreadable(error))
        finally:
            if known.told != before and folder.is_dir():
                self._remember(folder, known)

    def _at_rest(self, folder: Path, known: _Known, files: dict[str, Stamp], seen: int) -> bool:
        """Do all there is to do; whether nothing more can come before a file changes."""
        try:
            client = load_client(self._runner.settings, folder.name)
        except RunnerError:
            if not self._settled(known, CONFIG, seen):
                return True  # the folder is just being made
            raise
        known.told.pop("unreadable", None)
        while not self._stopped():
            states = self._runner.engine.runs(client.id)
            actions = decide(self._folder(client, known, files, states), known.told, known.passed)
            if not actions:
                return all(state.state in AT_REST for state in states)
            for action in actions:
                try:
                    self._do(client, known, action)
                except RunnerError as error:
                    self._tell(client.id, known, _not_submitted(action, error))
                    return False  # tried again at the next rescan
        return False

    def _do(self, client: Client, known: _Known, action: Action) -> None:
        if isinstance(action, Say):
            self._tell(client.id, known, action)
        elif isinstance(action, Check):
            findings = self._check(client.id, action.version)
            if findings.failed:
                self._tell(client.id, known, _faults(client, action, findings))
            else:
                known.passed = {action.key}
        elif isinstance(action, Submit):
            self._submit(client, known, action.version)
        else:
            run = self._runner.engine.find(action.run_id).run
            self._runner.leave(run, approved=run.max_cost_usd is not None)
            known.left.add(action.run_id)

    def _submit(self, client: Client, known: _Known, version: int) -> None:
        limit = client.config.max_cost_usd
        run = self._runner.run_for(Request(client_id=client.id, version=version, max_cost_usd=limit))
        self._runner.leave(run, approved=limit is not None)
        known.left.add(run.run_id)
        known.passed.clear()
        known.told.pop("not submitted", None)
        message = f"{run.run_id} on track {run.track} ({run.track_reason})"
        said = Say(
            subject="submitted",
            key=run.run_id,
            event="submitted",
            message=message,
            version=version,
            run_id=run.run_id,
        )
        self._tell(client.id, known, said)

    def _folder(
        self, client: Client, known: _Known, files: dict[str, Stamp], states: Iterable[RunState]
    ) -> Folder:
        runs = [
            Attempt(
                version=state.run.version,
                run_id=state.run.run_id,
                state=state.state,
                begun=state.updated_at is not None
                or state.state != "interrupted"
                or state.run.run_id in known.left,
            )
            for state in states
        ]
        registered = [entry.version for entry in Registry(client.dir, self._runner.clock).entries()]
        floor = Folder(seen=(), registered=registered, runs=runs).floor
        versions = sorted(int(name[1:-6]) for name in files if name[1:-6].isdigit())
        known.still = {v: since for v, since in known.still.items() if v > floor}
        seen = [
            self._seen(client, known, version, files)
            if version > floor
            else Seen(version=version, still=True)
            for version in versions
        ]
        return Folder(seen=seen, registered=registered, runs=runs)

    def _seen(self, client: Client, known: _Known, version: int, files: dict[str, Stamp]) -> Seen:
        train, holdout = read.train_path(client.dir, version), read.holdout_path(client.dir, version)
        stamps = [files.get(path.name) for path in (train, holdout)]
        # A rename changes the inode, not the content: ctime is then later than mtime.
        renamed = all(stamp is not None and stamp[3] > stamp[2] for stamp in stamps)
        if not renamed and not self._settled(known, version, stamps):
            return Seen(version=version, still=False)
        torn = [path for path in (train, holdout) if path.name in files and not _ends_in_newline(path)]
        rows = None if train in torn else read.count_rows(train)
        fault = (
            f"{torn[0]} does not end in a line feed; it counts as not written to its end" if torn else None
        )
        if stamps[1] is None:
            fault = f"{holdout} is missing"
        ready = fault is None and rows is not None and rows >= read.GATE_ROWS
        return Seen(
            version=version,
            still=True,
            rows=rows,
            fault=fault,
            key=_key(client.dir, train, holdout) if ready else "",
        )

    def _settled(self, known: _Known, version: int, state: object) -> bool:
        """Whether this was the same for `settle_s`; where not, when to look again is noted."""
        if version not in known.still or known.still[version][0] != state:
            known.still[version] = (state, self._now())
        until = known.still[version][1] + self._settle_s
        if self._now() >= until:
            return True
        known.due = until if known.due is None else min(known.due, until)
        return False

    def _tell(self, client_id: str, known: _Known, said: Say) -> None:
        if known.told.get(said.subject) != said.key:
            self._say(client_id, said)
            known.told[said.subject] = said.key

    def _remember(self, folder: Path, known: _Known) -> None:
        try:
            write_atomic(folder / MEMORY, msgspec.json.encode(known.told))
        except OSError as error:
            self._notice(f"{folder / MEMORY}: {error.strerror}; a restart may repeat what was said")


def _remembered(folder: Path) -> dict[str, str]:
    """What was said of a client before; nothing where that cannot be read."""
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode((folder / MEMORY).read_bytes(), type=dict[str, str])
    return {}


def _files(folder: Path) -> dict[str, Stamp]:
    """The files of a client that are looked at; links and folders are none."""
    found = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if READ.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                stat = entry.stat(follow_symlinks=False)
                found[entry.name] = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return found


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _key(folder: Path, train: Path, holdout: Path) -> str:
    """sha256 over all that the checks of a version read."""
    digest = hashlib.sha256()
    for path in (
        train,
        holdout,
        labels_path(holdout),
        folder / "account_state.json",
        folder / "config.json",
    ):
        digest.update(f"{path.name} {sha256_file(path) if path.is_file() else ''}\n".encode())
    return digest.hexdigest()


def _faults(client: Client, check: Check, findings: Findings) -> Say:
    faults = [item for item in findings.items if item.level == "fail"]
    rest = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return Say(
        subject=faults_of(check.version),
        key=check.key,
        event="faults",
        message=f"{read.fault_line(faults[0])}{rest}; all findings: "
        f"fine-tune check --client {client.id} --version {check.version}",
        version=check.version,
    )


def _not_submitted(action: Action, error: RunnerError) -> Say:
    version = action.version if isinstance(action, Check | Submit) else None
    return Say(
        subject="not submitted", key=str(error), event="not submitted", message=str(error), version=version
    )


def _unreadable(error: RunnerError | OSError) -> Say:
    place = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
    return Say(subject="unreadable", key=place, event="unreadable", message=place)
