"""The engine's database: SQLite beside the data, or PostgreSQL; who waits, who runs, which executor is dead.

It is disposable: how far a run is stands in its record. Only ids and outcomes go through it, as JSON. Imports
dbos, so it is imported only where something runs.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSPortableJSONSerializer, _serialization

from fine_tune_runner.errors import RunError
from fine_tune_runner.files import locked
from fine_tune_runner.types import Place
from fine_tune_runner.workflow.book import lock_key
from fine_tune_runner.workflow.engine import Waiting

APP = "fine-tune-runner"
APP_VERSION = "1"  # the default is a hash of the source and of dbos itself: any edit would strand runs
POLL_S = 0.2
LIVE = ("ENQUEUED", "DELAYED", "PENDING")
Workflow = Literal["run", "leg"]


class Limits(NamedTuple):
    """How many workflows of a queue one worker takes, and how many a provider's may start in `period_s`."""

    at_once: int | None
    starts: int | None = None
    period_s: float = 60.0


# `registry` carries the runs themselves, partitioned by client: its versions never run side by side. `hosted`
# is partitioned by provider: each one's limit is its own.
LIMITS: dict[Place, Limits] = {
    "registry": Limits(100),
    "hosted": Limits(100, starts=60),
    "evaluate": Limits(2),
    "train": Limits(1),
}


# The keys of all advisory locks that are held in this database (PostgreSQL manual, 54.12).
HELD = sqlalchemy.text(
    "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' "
    "AND objsubid = 1 AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


def _refuse_pickle(_text: str) -> Any:
    raise RunError("the engine's database holds a pickle, which nothing here wrote; look into who did")


# dbos goes by what a row says of itself: with a portable serializer configured it would still unpickle.
_serialization.DBOSDefaultSerializer.deserialize = _refuse_pickle  # type: ignore[method-assign,assignment]


def host() -> str:
    """This machine's name, as queues carry it."""
    return socket.gethostname().split(".")[0].lower()


def served_key(queue: str) -> int:
    """The lock that every worker which serves a queue has a share of, on PostgreSQL (lease.py)."""
    return lock_key(f"queue {queue}")


class Database:
    """Queues and workflows; `url` None is SQLite in `folder`, `here` None this machine's name of now."""

    def __init__(
        self,
        folder: Path,
        url: str | None,
        limits: Mapping[Place, Limits] = LIMITS,
        here: str | None = None,
    ) -> None:
        self.folder = folder
        self._limits = limits
        self.here = here or host()  # kept, for it may change under a worker
        self.path = folder / "engine.sqlite"
        self.embedded = url is None
        self.url = url or f"sqlite:///{self.path}"
        self._client: DBOSClient | None = None

    def exists(self) -> bool:
        """Whether anything was ever run by it; PostgreSQL counts as there."""
        return not self.embedded or self.path.exists()

    def prepare(self) -> None:
        """Create what is missing: the file in WAL mode first, tables, queues of this host."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        with locked(self.folder / "engine-setup.lock", wait_s=60.0), self.one_line():
            if self.embedded and not self.path.exists():
                with contextlib.closing(sqlite3.connect(self.path)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")
                self.path.chmod(0o600)
            if self._unmigrated():
                DBOS.migrate(self.url)

    def queue(self, place: Place, label: str | None) -> str:
        """The queue of a place, as this machine serves it: `evaluate`, `train@HOST`, `evaluate:private`.

        SQLite is of one machine, whatever that is called: all training there is on `train`.
        """
        name = f"train@{self.here}" if place == "train" and not self.embedded else place
        return name + (f":{label}" if label else "")

    def today(self, queue: str) -> str:
        """The name of today for a queue: on SQLite, training was once on one that named the machine."""
        return re.sub(r"^train@[^:]*", "train", queue) if self.embedded else queue

    def register(self, places: Sequence[Place], labels: Sequence[str]) -> list[str]:
        """Register the queues that a process with these labels serves; their names."""
        names = []
        for place in places:
            for label in (None, *labels):
                name = self.queue(place, label)
                limits = self._limits[place]
                words: dict[str, Any] = {"worker_concurrency": limits.at_once}
                if limits.starts is not None:
                    words["partition_limiter"] = {"limit": limits.starts, "period": limits.period_s}
                if place == "registry":
                    words["partition_concurrency"] = 1
                self.client.register_queue(name, polling_interval_sec=POLL_S, **words)
                names.append(name)
        return names

    @property
    def client(self) -> DBOSClient:
        """The connection of this process."""
        if self._client is None:
            self._client = DBOSClient(
                system_database_url=self.url,
                serializer=DBOSPortableJSONSerializer(),
                application_name=APP,
                retry_connection_errors=False,
            )
        return self._client

    def close(self) -> None:
        """Let go of the connection."""
        if self._client is not None:
            self._client.destroy()
            self._client = None

    def enqueue_run(self, client_id: str, run_id: str, label: str | None, priority: int) -> str:
        """Put a run on the home host's queue, unless it is there or under way; its newest workflow's id."""
        goes = self.goes(run_id)
        if goes and goes[-1].status in LIVE:
            return goes[-1].id
        name = f"{run_id}~{len(goes) + 1}" if goes else run_id
        self.client.enqueue(
            {
                "workflow_name": "run",
                "queue_name": self.queue("registry", label),
                "workflow_id": name,
                "app_version": APP_VERSION,
                "queue_partition_key": client_id,
                "priority": priority,
            },
            client_id,
            run_id,
        )
        return name

    def goes(self, run_id: str) -> list[Waiting]:
        """Every time this run was set going, oldest first: workflows `RUN`, `RUN~2`, `RUN~3`."""
        found = [w for w in self._list(workflow_id_prefix=run_id, name="run") if run_of(w.id) == run_id]
        return sorted(found, key=lambda w: _go(w.id))

    def live(self, run_id: str | None = None) -> list[Waiting]:
        """The workflows that are not at their end, of one run or of all."""
        found = self._list(status=list(LIVE), workflow_id_prefix=run_id)
        return [w for w in found if run_id is None or run_of(w.id) == run_id]

    def outcome(self, workflow_id: str) -> dict[str, Any] | None:
        """What a run's workflow gave; None while it is not at its end."""
        found = self.client.list_workflows(workflow_ids=[workflow_id])
        if not found or found[0].status in LIVE:
            return None
        status = found[0]
        if status.status == "SUCCESS":
            return dict(status.output or {})
        if status.status == "CANCELLED":
            return {"state": "cancelled"}
        return {"state": "failed", "code": "run", "message": f"{workflow_id} stopped: {status.error}"}

    def cancel(self, run_id: str, *, waiting_only: bool) -> None:
        """Take a run's workflows out of the queues; those under way too, unless a live process has them."""
        found = [w.id for w in self.live(run_id) if not (waiting_only and w.status == "PENDING")]
        if found:
            self.client.cancel_workflows(found)

    def erase(self, client_id: str, mine: Callable[[str], bool]) -> None:
        """Delete every workflow of the client's runs that are `mine`, by their ids."""
        found = self._list(workflow_id_prefix=f"{client_id}-v")
        if gone := [w.id for w in found if mine(run_of(w.id))]:
            self.client.delete_workflows(gone)

    def recover(self, dead: Callable[[str], bool], wanted: Callable[[str], bool]) -> list[str]:
        """Put the workflows of dead executors back on their own queues, if their run is wanted.

        What waits under a name of yesterday goes to that of today.
        """
        live = self.live()
        again = [
            w
            for w in live
            if w.status == "PENDING" and wanted(run_of(w.id)) and w.executor_id and dead(w.executor_id)
        ]
        moved = [w for w in live if w.status == "ENQUEUED" and self.today(w.queue) != w.queue]
        for workflow in (*again, *moved):
            self.client.resume_workflow(workflow.id, queue_name=self.today(workflow.queue))
        return [w.id for w in again]

    def pending(self, executor_id: str) -> list[str]:
        """The workflows that an executor has taken."""
        return [w.id for w in self._list(status="PENDING", executor_id=executor_id)]

    def put_back(self, workflow_ids: Collection[str]) -> None:
        """Let workflows be taken off their own queues again."""
        for workflow in self._list(workflow_ids=list(workflow_ids)) if workflow_ids else []:
            self.client.resume_workflow(workflow.id, queue_name=workflow.queue)

    def strangers(self) -> list[Waiting]:
        """Unfinished workflows of another application version: nobody will ever touch them."""
        return [w for w in self.live() if w.app_version != APP_VERSION]

    def trainers(self, label: str | None) -> list[str]:
        """Queues of the hosts where a worker trains now, by name; on PostgreSQL."""
        queues = [queue.name for queue in self.client.list_queues() if queue.name.startswith("train@")]
        return sorted(self._served([name for name in queues if name.partition(":")[2] == (label or "")]))

    def stranded(self) -> list[Waiting]:
        """Training that waits for a host where no worker is now; on PostgreSQL."""
        waits = [w for w in self.live() if w.status == "ENQUEUED" and w.queue.startswith("train@")]
        served = self._served({w.queue for w in waits}) if waits else set()
        return [w for w in waits if w.queue not in served]

    def _served(self, queues: Collection[str]) -> set[str]:
        """Those of these queues that a live worker has a share of."""
        with self.client._sys_db.engine.connect() as connection:
            held = set(connection.execute(HELD).scalars())
        return {name for name in queues if served_key(name) in held}

    def shortest(self, queues: Sequence[str]) -> str:
        """The queue with the fewest unfinished workflows; looked up only where there is a choice."""
        if len(queues) == 1:
            return queues[0]
        load = Counter(w.queue for w in self._list(status=list(LIVE), queue_name=list(queues)))
        return min(queues, key=lambda name: (load[name], name))

    @contextlib.contextmanager
    def one_line(self) -> Iterator[None]:
        """What the database says, as an error of one line without its address."""
        try:
            yield
        except sqlalchemy.exc.SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            said = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            where = str(self.path) if self.embedded else "the database of FINE_TUNE_DATABASE_URL"
            raise RunError(f"{where}: {said}; nothing is lost, mend that and go on") from None

    def _unmigrated(self) -> bool:
        if not self.embedded:
            return True  # dbos compares the versions itself
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return not connection.execute(
                "SELECT name FROM sqlite_master WHERE name = 'dbos_migrations'"
            ).fetchone()

    def _list(self, **words: Any) -> list[Waiting]:
        found = self.client.list_workflows(
            load_input=False, load_output=False, **{k: v for k, v in words.items() if v is not None}
        )
        return [
            Waiting(w.workflow_id, w.status, w.queue_name or "", w.executor_id, w.app_version) for w in found
        ]


def run_of(workflow_id: str) -> str:
    """The run that a workflow is for."""
    return workflow_id.partition("~")[0]


def _go(workflow_id: str) -> int:
    number = workflow_id.partition("~")[2]
    return int(number) if number.isdigit() else 1
