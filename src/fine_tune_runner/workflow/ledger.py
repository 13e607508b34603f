"""The effect ledger: what was asked and paid for, so that no crash makes an outside effect twice.

Intent, fsync, call, done with the provider's id; find before create, always (facts/durability.md, "Money").
SQLite at `{data_dir}/.fine-tune/ledger.sqlite`. It knows no provider: finding and creating are handed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from fine_tune_runner.errors import ProviderError, RunError, RunnerError
from fine_tune_runner.files import locked
from fine_tune_runner.types import Clock

LOCK_WAIT_S = 900.0  # longer than a create with its grace takes
TRIES = 4
SCHEMA = """
CREATE TABLE IF NOT EXISTS effects (
    key TEXT PRIMARY KEY, run_id TEXT NOT NULL, step TEXT NOT NULL, request_sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('intent', 'done')), provider_id TEXT,
    intent_at TEXT NOT NULL, done_at TEXT);
CREATE TABLE IF NOT EXISTS closed (run_id TEXT PRIMARY KEY, reason TEXT NOT NULL, at TEXT NOT NULL);
"""


class Unanswered(ProviderError):
    """Nobody knows whether the call took effect: a timeout, a cut connection, a server error."""


class Busy(ProviderError):
    """The call was turned away before it took effect; `retry_after_s` is None where no delay was named."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Found(NamedTuple):
    """What a look at the provider gave; `complete` False means that there may be more than was seen."""

    id: str | None
    complete: bool = True


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    """One row: an outside effect of a run's step; `provider_id` is set once it is done."""

    key: str
    run_id: str
    step: str
    request_sha256: str
    state: Literal["intent", "done"]
    provider_id: str | None
    intent_at: datetime
    done_at: datetime | None


class _Row(NamedTuple):
    key: str
    run_id: str
    step: str
    request_sha256: str


def effect_key(run_id: str, step: str, request: object) -> str:
    """Hash of (run_id, step, request); `request` must fit into JSON."""
    return _sha256([run_id, step, request])


def _sha256(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def wait_s(attempt: int, busy: Busy | None = None) -> float:
    """How long to wait before the next try: as told, up to 10 minutes, else 1, 2, 4 up to 60 seconds."""
    if busy is not None and busy.retry_after_s is not None:
        return min(600.0, busy.retry_after_s)
    return float(min(60, 2**attempt))


class Ledger:
    """Runs each outside effect once, also over crashes, in several processes, and with the ledger lost.

    `settle_s` is the request timeout and a grace: so long after an intent its call may still take effect.
    `crash_point` is called between the effects; tests end the process there.
    """

    def __init__(
        self,
        data_dir: Path,
        clock: Clock = lambda: datetime.now(UTC),
        *,
        sleep: Callable[[float], None] = time.sleep,
        settle_s: float = 0.0,
        grace_s: float = 10.0,
        crash_point: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self._folder = data_dir / ".fine-tune"
        self._clock = clock
        self._sleep = sleep
        self._settle = timedelta(seconds=settle_s)
        self._grace_s = grace_s
        self._crash_point = crash_point

    def once(
        self,
        run_id: str,
        step: str,
        request: object,
        *,
        find: Callable[[], Found],
        create: Callable[[], str],
    ) -> str:
        """The provider's id of an effect that exists exactly once; found where it is there, else created.

        `create` raises Unanswered where it may have taken effect and Busy where it was turned away; anything
        else means that nothing was made. Raises RunError where the run was closed or another process works
        on the same effect, ProviderError where nobody can tell whether the effect exists.
        """
        row = _Row(effect_key(run_id, step, request), run_id, step, _sha256(request))
        with self._locked(run_id, step):
            known = self._effect(run_id, step)
            if known is not None and known.provider_id is not None:
                return known.provider_id
            doubt = known is not None
            for attempt in range(TRIES):
                failure: ProviderError | None = None
                found = find().id
                if found is None and doubt:
                    found = self._find_settled(find, row)
                if found is None:
                    found, failure = self._create(create, row, doubt)
                    doubt = doubt or isinstance(failure, Unanswered)
                if found is not None:
                    self._done(row, found)
                    self._crash_point(f"done {step}")
                    return found
                if failure is not None and attempt == TRIES - 1:
                    raise failure
                if isinstance(failure, Busy):
                    self._sleep(wait_s(attempt, failure))
        raise AssertionError("the last try returns or raises")

    def close(self, run_id: str, reason: str) -> None:
        """Let no more effects of this run begin, and wait until those that are under way have ended."""
        with self._open() as database:
            database.execute(
                "INSERT OR IGNORE INTO closed VALUES (?, ?, ?)", (run_id, reason, self._clock().isoformat())
            )
        for effect in self.effects(run_id):
            with self._locked(run_id, effect.step):
                pass

    def closed(self, run_id: str) -> str | None:
        """Why a run was closed, None where it was not."""
        with self._open() as database:
            return _reason(database, run_id)

    def erase(self, mine: Callable[[str], bool]) -> None:
        """Take the runs that are `mine`, by their ids, off the record for good, and their locks with them."""
        if (self._folder / "ledger.sqlite").is_file():
            with self._open() as database:
                rows = database.execute(
                    "SELECT run_id FROM effects UNION SELECT run_id FROM closed"
                ).fetchall()
                gone = [(row["run_id"],) for row in rows if mine(row["run_id"])]
                database.executemany("DELETE FROM effects WHERE run_id = ?", gone)
                database.executemany("DELETE FROM closed WHERE run_id = ?", gone)
        for lock in (self._folder / "locks").glob("*"):
            if mine(lock.name.rpartition(".")[0]):
                lock.unlink(missing_ok=True)

    def effects(self, run_id: str | None = None) -> list[Effect]:
        """Every effect on record, or those of one run, oldest first."""
        with self._open() as database:
            rows = database.execute(
                "SELECT * FROM effects WHERE ?1 IS NULL OR run_id = ?1 ORDER BY intent_at", (run_id,)
            ).fetchall()
        return [msgspec.convert(dict(row), Effect, strict=False) for row in rows]

    def _create(
        self, create: Callable[[], str], row: _Row, doubt: bool
    ) -> tuple[str | None, ProviderError | None]:
        """The id, or why there is none yet; an intent that certainly made nothing is taken back."""
        self._intend(row)
        self._crash_point(f"intent {row.step}")
        try:
            made = create()
        except Unanswered as error:
            return None, error
        except RunnerError as error:
            if not doubt:
                self._withdraw(row.key)
            if isinstance(error, Busy):
                return None, error
            raise
        self._crash_point(f"created {row.step}")
        return made, None

    def _find_settled(self, find: Callable[[], Found], row: _Row) -> str | None:
        """Two looks once a call in doubt can no longer take effect; only whole ones mean "nothing"."""
        intent = self._effect(row.run_id, row.step)
        if intent is not None:
            self._sleep(max(0.0, (intent.intent_at + self._settle - self._clock()).total_seconds()))
        for pause in (self._grace_s, 0.0):
            found = find()
            if found.id is not None:
                return found.id
            if not found.complete:
                raise ProviderError(
                    f"{row.step}: an earlier call was cut off, and the provider's list cannot be read to its "
                    "end, so nobody can tell whether it took effect; look at the provider's own page, or: "
                    "fine-tune doctor"
                )
            self._sleep(pause)
        return None

    def _intend(self, row: _Row) -> None:
        """Write the intent unless the run was closed; both in one transaction, so that `close` sees it."""
        with self._open() as database:
            reason = _reason(database, row.run_id)
            if reason is not None:
                raise RunError(
                    f"run {row.run_id} is at its end ({reason}); nothing was sent. "
                    "Start a new attempt with --again"
                )
            database.execute(
                "INSERT INTO effects VALUES (?, ?, ?, ?, 'intent', NULL, ?, NULL) "
                "ON CONFLICT (key) DO UPDATE SET intent_at = excluded.intent_at",
                (*row, self._clock().isoformat()),
            )

    def _done(self, row: _Row, provider_id: str) -> None:
        with self._open() as database:
            database.execute(
                "INSERT INTO effects VALUES (?1, ?2, ?3, ?4, 'done', ?5, ?6, ?6) "
                "ON CONFLICT (key) DO UPDATE SET state = 'done', provider_id = ?5, done_at = ?6",
                (*row, provider_id, self._clock().isoformat()),
            )
            database.execute(
                "DELETE FROM effects WHERE run_id = ? AND step = ? AND state = 'intent'",
                (row.run_id, row.step),
            )

    def _withdraw(self, key: str) -> None:
        with self._open() as database:
            database.execute("DELETE FROM effects WHERE key = ? AND state = 'intent'", (key,))

    def _effect(self, run_id: str, step: str) -> Effect | None:
        """The newest effect of a run's step: a run has one of each, even where its request was changed."""
        return next((effect for effect in reversed(self.effects(run_id)) if effect.step == step), None)

    @contextlib.contextmanager
    def _locked(self, run_id: str, step: str) -> Iterator[None]:
        self._make_folder()
        locks = self._folder / "locks"
        locks.mkdir(exist_ok=True)
        try:
            with locked(locks / f"{run_id}.{step}", wait_s=LOCK_WAIT_S):
                yield
        except BlockingIOError as error:
            raise RunError(f"{step}: process {error} is doing it; wait for it, or end it") from None

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when it ends."""
        self._make_folder()
        path = self._folder / "ledger.sqlite"
        try:
            with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA synchronous = FULL")
                database.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
                database.executescript(SCHEMA)
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{path}: {error}; see to space and permissions. A broken ledger may be moved away: what was "
                "paid for is looked up at the provider before anything is created"
            ) from None

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)  # it may be there already, made by somebody less careful


def _reason(database: sqlite3.Connection, run_id: str) -> str | None:
    row = database.execute("SELECT reason FROM closed WHERE run_id = ?", (run_id,)).fetchone()
    return None if row is None else str(row["reason"])
