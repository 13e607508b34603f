"""The effect ledger: what was asked and paid for, so that no crash makes an outside effect twice.

Intent, fsync, call, done with the provider's id; find before create, always (facts/durability.md, "Money").
Where it is kept: book.py. It knows no provider: finding and creating are handed over.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import ProviderError, RunError, RunnerError
from fine_tune_runner.types import Clock
from fine_tune_runner.workflow.book import Book, Execute, FileBook, book

LOCK_WAIT_S = 900.0  # longer than a create with its grace takes
TRIES = 4
TABLES = (
    "CREATE TABLE IF NOT EXISTS effects ("
    "key TEXT PRIMARY KEY, run_id TEXT NOT NULL, step TEXT NOT NULL, request_sha256 TEXT NOT NULL, "
    "state TEXT NOT NULL CHECK (state IN ('intent', 'done')), provider_id TEXT, "
    "intent_at TEXT NOT NULL, done_at TEXT)",
    "CREATE TABLE IF NOT EXISTS closed (run_id TEXT PRIMARY KEY, reason TEXT NOT NULL, at TEXT NOT NULL)",
)
CLOSE = "INSERT INTO closed VALUES (:run_id, :reason, :at) ON CONFLICT DO NOTHING"
TAKE_OVER = (
    "INSERT INTO effects VALUES (:key, :run_id, :step, :request_sha256, :state, :provider_id, :intent_at, "
    ":done_at) ON CONFLICT (key) DO NOTHING"
)


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

    `url` None keeps it in SQLite beside the data, else in that PostgreSQL; what was begun before the move to
    it is then taken over from beside the data, run by run as each goes on. `settle_s` is the request timeout
    and a grace: so long after an intent its call may still take effect.
    `crash_point` is called between the effects; tests end the process there.
    """

    def __init__(
        self,
        data_dir: Path,
        clock: Clock = lambda: datetime.now(UTC),
        *,
        url: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        settle_s: float = 0.0,
        grace_s: float = 10.0,
        crash_point: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self._book = book(data_dir / ".fine-tune", url)
        self._before = None if url is None else FileBook(data_dir / ".fine-tune")
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
            self._take_over(run_id)
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
        self._take_over(run_id)
        with self._open() as execute:
            execute(CLOSE, run_id=run_id, reason=reason, at=self._clock().isoformat())
        for effect in self.effects(run_id):
            with self._locked(run_id, effect.step):
                pass

    def closed(self, run_id: str) -> str | None:
        """Why a run was closed, None where it was not."""
        for kept in self._books():
            with self._open(kept) as execute:
                if reason := _reason(execute, run_id):
                    return reason
        return None

    def erase(self, mine: Callable[[str], bool]) -> None:
        """Take the runs that are `mine`, by their ids, off the record for good, and their locks with them."""
        for kept in self._books():
            with self._open(kept) as execute:
                rows = execute("SELECT run_id FROM effects UNION SELECT run_id FROM closed")
                for run_id in (row["run_id"] for row in rows if mine(row["run_id"])):
                    _delete(execute, run_id)
        for kept in filter(None, (self._book, self._before)):
            kept.forget(mine)

    def effects(self, run_id: str | None = None) -> list[Effect]:
        """Every effect on record, or those of one run, oldest first."""
        rows: dict[str, dict[str, Any]] = {}
        for kept in self._books():
            with self._open(kept) as execute:
                found = execute(
                    "SELECT * FROM effects WHERE CAST(:run_id AS TEXT) IS NULL OR run_id = :run_id",
                    run_id=run_id,
                )
            rows = {row["key"]: row for row in found} | rows
        effects = msgspec.convert(list(rows.values()), threadsafe(list[Effect]), strict=False)
        return sorted(effects, key=lambda effect: effect.intent_at)

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
            left = intent.intent_at + self._settle - self._clock()
            # No more than all of it, even where the clock was set back since.
            self._sleep(max(0.0, min(left, self._settle).total_seconds()))
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
        with self._open() as execute:
            reason = _reason(execute, row.run_id)
            if reason is not None:
                raise RunError(
                    f"run {row.run_id} is at its end ({reason}); nothing was sent. "
                    "Start a new attempt with --again"
                )
            execute(
                "INSERT INTO effects "
                "VALUES (:key, :run_id, :step, :request_sha256, 'intent', NULL, :at, NULL) "
                "ON CONFLICT (key) DO UPDATE SET intent_at = excluded.intent_at",
                **row._asdict(),
                at=self._clock().isoformat(),
            )

    def _done(self, row: _Row, provider_id: str) -> None:
        with self._open() as execute:
            execute(
                "INSERT INTO effects VALUES (:key, :run_id, :step, :request_sha256, 'done', :made, :at, :at) "
                "ON CONFLICT (key) DO UPDATE SET state = 'done', provider_id = :made, done_at = :at",
                **row._asdict(),
                made=provider_id,
                at=self._clock().isoformat(),
            )
            execute(
                "DELETE FROM effects WHERE run_id = :run_id AND step = :step AND state = 'intent'",
                run_id=row.run_id,
                step=row.step,
            )

    def _withdraw(self, key: str) -> None:
        with self._open() as execute:
            execute("DELETE FROM effects WHERE key = :key AND state = 'intent'", key=key)

    def _effect(self, run_id: str, step: str) -> Effect | None:
        """The newest effect of a run's step: a run has one of each, even where its request was changed."""
        return next((effect for effect in reversed(self.effects(run_id)) if effect.step == step), None)

    @contextlib.contextmanager
    def _locked(self, run_id: str, step: str) -> Iterator[None]:
        try:
            with self._book.held(f"{run_id}.{step}", LOCK_WAIT_S):
                yield
        except BlockingIOError as error:
            raise RunError(f"{step}: {error} is doing it; wait for it, or end it") from None

    def _take_over(self, run_id: str) -> None:
        """Bring a run's rows from beside the data to PostgreSQL, where they count from then on.

        Run by run, for those of a client that became sensitive stay here. A crash between the two repeats it.
        """
        if self._before is None or not self._before.exists():
            return
        with self._open(self._before) as execute:
            effects = execute("SELECT * FROM effects WHERE run_id = :run_id", run_id=run_id)
            closed = execute("SELECT * FROM closed WHERE run_id = :run_id", run_id=run_id)
        if not effects and not closed:
            return
        with self._open() as execute:
            for row in effects:
                execute(TAKE_OVER, **row)
            for row in closed:
                execute(CLOSE, **row)
        with self._open(self._before) as execute:
            _delete(execute, run_id)

    def _books(self) -> list[Book]:
        """The books that there are, the one in use first."""
        return [kept for kept in (self._book, self._before) if kept is not None and kept.exists()]

    @contextlib.contextmanager
    def _open(self, kept: Book | None = None) -> Iterator[Execute]:
        """One transaction on tables that are there; None: of the book in use."""
        with (kept or self._book).transaction() as execute:
            for table in TABLES:
                execute(table)
            yield execute


def _reason(execute: Execute, run_id: str) -> str | None:
    rows = execute("SELECT reason FROM closed WHERE run_id = :run_id", run_id=run_id)
    return str(rows[0]["reason"]) if rows else None


def _delete(execute: Execute, run_id: str) -> None:
    execute("DELETE FROM effects WHERE run_id = :run_id", run_id=run_id)
    execute("DELETE FROM closed WHERE run_id = :run_id", run_id=run_id)
