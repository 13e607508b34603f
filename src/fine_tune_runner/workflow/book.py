"""Where the ledger is kept: a SQLite file beside the data, or tables in PostgreSQL; the same statements.

One transaction at a time on either, on the disk when it ends. It knows no table. psycopg is imported where an
address says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fine_tune_runner.errors import DatabaseAway, RunError
from fine_tune_runner.files import locked

if TYPE_CHECKING:
    import psycopg

# A statement with `:name` placeholders and their values → its rows.
Execute = Callable[..., list[dict[str, Any]]]
SCHEMA = "fine_tune"


class Book(Protocol):
    """A place for the ledger's tables; RunError where it cannot be read or written."""

    def exists(self) -> bool:
        """Whether anything was ever written."""
        ...

    def transaction(self) -> AbstractContextManager[Execute]:
        """One transaction, with no other beside it, on the disk when the block ends."""
        ...

    def held(self, name: str, wait_s: float) -> AbstractContextManager[None]:
        """Let nobody else hold that name; BlockingIOError, its text the holder, where one still does."""
        ...

    def forget(self, mine: Callable[[str], bool]) -> None:
        """Remove what is left of names that were held, where their part before the last dot is `mine`."""
        ...


def book(folder: Path, url: str | None) -> Book:
    """The book of a data folder; `url` None is SQLite in `folder`."""
    return FileBook(folder) if url is None else ServerBook(url)


class FileBook:
    """`ledger.sqlite` in `folder`, with a lock file for each name that is held."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "ledger.sqlite"

    def exists(self) -> bool:
        """Whether there is a file."""
        return self._path.is_file()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Execute]:
        """One transaction, on the disk when it ends."""
        self._make_folder()
        try:
            with contextlib.closing(sqlite3.connect(self._path, timeout=60, isolation_level=None)) as file:
                file.row_factory = sqlite3.Row
                file.execute("PRAGMA synchronous = FULL")
                file.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
                file.execute("BEGIN IMMEDIATE")
                yield lambda statement, **values: [dict(row) for row in file.execute(statement, values)]
                file.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise RunError(
                f"{self._path}: {error}; see to space and permissions. A broken ledger may be moved away: "
                "what was paid for is looked up at the provider before anything is created"
            ) from None

    @contextlib.contextmanager
    def held(self, name: str, wait_s: float) -> Iterator[None]:
        """By a file of that name, which dies with its process."""
        self._make_folder()
        locks = self._folder / "locks"
        locks.mkdir(exist_ok=True)
        try:
            with locked(locks / name, wait_s=wait_s):
                yield
        except BlockingIOError as error:
            raise BlockingIOError(f"process {error}") from None

    def forget(self, mine: Callable[[str], bool]) -> None:
        """Remove the lock files."""
        for lock in (self._folder / "locks").glob("*"):
            if mine(lock.name.rpartition(".")[0]):
                lock.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)  # it may be there already, made by somebody less careful


class ServerBook:
    """Tables in a schema of its own, with an advisory lock for each name that is held.

    Such a lock goes with its session, also where only the server went away: a call in doubt is then settled
    by looking at the provider, as after a crash.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def exists(self) -> bool:
        """A server is always there."""
        return True

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Execute]:
        """One transaction, on the server's disk when it ends."""
        with self._session() as session, session.transaction():
            session.execute("SELECT pg_advisory_xact_lock(%s)", (lock_key("ledger"),))
            session.execute("SET LOCAL synchronous_commit TO on")
            session.execute("SET LOCAL client_min_messages TO warning")
            session.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            session.execute(f"SET LOCAL search_path TO {SCHEMA}")
            yield lambda statement, **values: _rows(session, statement, values)

    @contextlib.contextmanager
    def held(self, name: str, wait_s: float) -> Iterator[None]:
        """By a session's lock, which dies with it."""
        import psycopg

        with self._session() as session:
            session.execute("SET idle_session_timeout = 0")
            session.execute(f"SET lock_timeout = {max(1, int(wait_s * 1000))}")
            try:
                session.execute("SELECT pg_advisory_lock(%s)", (lock_key(name),))
            except psycopg.errors.LockNotAvailable:
                raise BlockingIOError("another worker") from None
            yield

    def forget(self, mine: Callable[[str], bool]) -> None:
        """Nothing is left of them."""

    @contextlib.contextmanager
    def _session(self) -> Iterator[psycopg.Connection]:
        import psycopg

        try:
            session = psycopg.connect(plain(self._url), autocommit=True, connect_timeout=5)
            with contextlib.closing(session):
                yield session
        except psycopg.OperationalError as error:
            raise DatabaseAway(
                f"PostgreSQL: {_first_line(error)}; nothing is lost, mend that and go on"
            ) from None
        except psycopg.Error as error:
            raise RunError(
                f"the ledger in PostgreSQL: {_first_line(error)}; see to its permissions"
            ) from None


def plain(url: str) -> str:
    """A database address as psycopg takes it: without the driver that SQLAlchemy names."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def lock_key(name: str) -> int:
    """A name as the 64-bit key of a PostgreSQL advisory lock."""
    digest = hashlib.sha256(f"fine-tune-runner/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


def _rows(session: psycopg.Connection, statement: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
    from psycopg.rows import dict_row

    with session.cursor(row_factory=dict_row) as cursor:
        cursor.execute(re.sub(r":(\w+)", r"%(\1)s", statement).encode(), values or None)
        return cursor.fetchall() if cursor.description else []


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
