"""Who is alive on PostgreSQL: each worker holds a session lock on its executor id, one reaper looks around.

It also has a share of a lock on every queue that it serves: where nobody has one, nobody comes for the work.
Locks go with the session, so a killed worker's are free at once. A worker that hangs stops beating, the
server ends its session, and what it did not finish is done by another: it notices when it beats again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection

import psycopg

from fine_tune_runner.errors import RunError
from fine_tune_runner.workflow.book import lock_key, plain
from fine_tune_runner.workflow.database import Database, served_key
from fine_tune_runner.workflow.engine import Patience

BEAT_S = 1.0


class Lease:
    """Holds `executor_id` on PostgreSQL and takes over the work of executors whose lock is free.

    `lost` is called once where another has taken over what is `active` here: this worker must stop. `wanted`
    says which runs are taken up at all.
    """

    def __init__(
        self,
        database: Database,
        executor_id: str,
        *,
        lost: Callable[[], None],
        notice: Callable[[str], None],
        wanted: Callable[[str], bool],
        active: Callable[[], Collection[str]],
        patience: Patience,
    ) -> None:
        self._database = database
        self._executor_id = executor_id
        self._lost = lost
        self._notice = notice
        self._wanted = wanted
        self._active = active
        self._patience = patience
        self._shared: Collection[str] = ()  # the queues that the session has a share of
        self._ended = threading.Event()
        self._missing: dict[str, float] = {}
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self, queues: Collection[str]) -> None:
        """Take the lock and a share of each queue's; nothing of this executor may be dequeued before."""
        self._queues: Collection[str] = queues
        try:
            self._session = self._connect()
        except psycopg.Error as error:
            raise RunError(f"PostgreSQL: {str(error).strip().splitlines()[0]}") from None
        self._thread.start()

    def close_queues(self) -> None:
        """Let the queues go with the next beat, in whose thread the session is: this worker takes no more."""
        self._queues = ()

    def stop(self) -> None:
        """Let the lock go."""
        self._ended.set()
        self._thread.join(5.0)
        with contextlib.suppress(psycopg.Error):
            self._session.close()

    def _connect(self) -> psycopg.Connection:
        session = psycopg.connect(plain(self._database.url), autocommit=True, connect_timeout=5)
        session.execute(f"SET idle_session_timeout = {int(self._patience.hang_s * 1000)}")
        row = session.execute("SELECT pg_try_advisory_lock(%s)", (lock_key(self._executor_id),)).fetchone()
        if row is None or not row[0]:
            session.close()
            raise psycopg.OperationalError("the lock of this executor is not free yet")
        queues = self._queues  # `close_queues` may come meanwhile
        for queue in queues:  # nobody holds one alone, so none is waited for
            session.execute("SELECT pg_advisory_lock_shared(%s)", (served_key(queue),))
        self._shared = queues
        return session

    def _beat(self) -> None:
        """Keep the session alive and look for dead executors; a server that is away is waited for."""
        away_since: float | None = None
        while not self._ended.wait(BEAT_S):
            try:
                if away_since is not None:
                    self._session = self._connect()
                    self._notice(f"PostgreSQL is back after {time.monotonic() - away_since:.0f} s")
                    away_since = None
                    if self._session.execute(TAKEN, (list(self._active()), self._executor_id)).fetchone():
                        self._lost()
                        return
                self._leave_closed()
                self._reap()
            except (psycopg.Error, RunError) as error:
                with contextlib.suppress(psycopg.Error):
                    self._session.close()
                if away_since is None:
                    away_since = time.monotonic()
                    self._notice(
                        f"PostgreSQL does not answer ({str(error).strip().splitlines()[0]}); trying on"
                    )

    def _leave_closed(self) -> None:
        """Give back the shares of queues that were closed since they were taken."""
        if not self._queues:
            for queue in self._shared:
                self._session.execute("SELECT pg_advisory_unlock_shared(%s)", (served_key(queue),))
            self._shared = ()

    def _reap(self) -> None:
        """Put back the work of executors that are gone for longer than the grace; one reaper at a time."""
        if not self._try(lock_key("reaper")):
            return
        try:
            holders = {row[0] for row in self._session.execute(HOLDERS).fetchall()}
            now = time.monotonic()
            self._missing = {name: self._missing.get(name, now) for name in holders if self._free(name)}
            dead = {name for name, since in self._missing.items() if now - since >= self._patience.grace_s}
            if dead:
                with self._database.one_line():
                    taken = self._database.recover(dead=dead.__contains__, wanted=self._wanted)
                for name in taken:
                    self._notice(f"{name} is taken over from a worker that is gone")
        finally:
            self._session.execute("SELECT pg_advisory_unlock(%s)", (lock_key("reaper"),))

    def _free(self, executor_id: str) -> bool:
        if executor_id == self._executor_id or not self._try(lock_key(executor_id)):
            return False
        self._session.execute("SELECT pg_advisory_unlock(%s)", (lock_key(executor_id),))
        return True

    def _try(self, key: int) -> bool:
        row = self._session.execute("SELECT pg_try_advisory_lock(%s)", (key,)).fetchone()
        return bool(row and row[0])


TAKEN = (
    "SELECT 1 FROM dbos.workflow_status WHERE workflow_uuid = ANY(%s) "
    "AND (status = 'ENQUEUED' OR (status = 'PENDING' AND executor_id <> %s))"
)
HOLDERS = "SELECT DISTINCT executor_id FROM dbos.workflow_status WHERE status = 'PENDING'"
