"""What a run reached and what it was refused: `egress.jsonl` of the run folder, one line an attempt.

Hosts, ports, byte counts and the place in the code that asked; never a word of what was sent. Several
processes append to one file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from fine_tune_runner.decoding import threadsafe

RECORD = "egress.jsonl"
What = Literal["connect", "lookup", "program", "traffic"]


class Attempt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line: a connection, a name asked of a resolver, a program, or (traffic) what a connection carried.

    `host` is what was asked for, `address` what was connected to; `refused` the reason, "" where it was
    allowed; `by` the caller outside the standard library. Bytes are those of HTTP, before encryption.
    """

    at: datetime
    pid: int
    what: What
    host: str
    port: int | None = None
    address: str | None = None
    refused: str = ""
    by: str = ""
    sent: int = 0
    received: int = 0

    @property
    def told(self) -> str:
        """A refusal in words."""
        place = self.host if self.port is None else f"{self.host}:{self.port}"
        verb = {"lookup": "look up", "program": "start"}.get(self.what, "connect to")
        return f"{self.by} tried to {verb} {place}; refused: {self.refused}. Nothing was sent"


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """All attempts at one host and port, added up; bytes are None where no transport of ours counted them."""

    what: What
    host: str
    port: int | None
    addresses: tuple[str, ...]
    attempts: int
    sent: int | None
    received: int | None
    refused: str
    by: tuple[str, ...]


class EgressRecord:
    """Appends to the record of a run; safe from several threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Attempt) -> None:
        """Append one line in one write."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(line) + b"\n")
        finally:
            os.close(descriptor)

    def read(self, start: int = 0) -> list[Attempt]:
        """The lines from a byte offset on; a line that a crash tore is left out."""
        if not self.path.is_file():
            return []
        found = []
        for line in self.path.read_bytes()[start:].splitlines():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                found.append(msgspec.json.decode(line, type=threadsafe(Attempt)))
        return found

    def size(self) -> int:
        """Bytes written so far, for `read`."""
        return self.path.stat().st_size if self.path.is_file() else 0


def summary(attempts: Sequence[Attempt]) -> list[Reached]:
    """One row a host, port and answer, allowed ones first, in the order of their first attempt."""
    rows: dict[tuple[str, int | None, str, str], list[Attempt]] = {}
    for attempt in attempts:
        kind = "connect" if attempt.what == "traffic" else attempt.what
        rows.setdefault((kind, attempt.port, attempt.host, attempt.refused), []).append(attempt)
    found = [_added(group) for group in rows.values()]
    return sorted(found, key=lambda row: bool(row.refused))


def _added(group: Sequence[Attempt]) -> Reached:
    first = group[0]
    traffic = [line for line in group if line.what == "traffic"]
    return Reached(
        what="connect" if first.what == "traffic" else first.what,
        host=first.host,
        port=first.port,
        addresses=tuple(dict.fromkeys(line.address for line in group if line.address)),
        attempts=sum(line.what != "traffic" for line in group),
        sent=sum(line.sent for line in traffic) if traffic else None,
        received=sum(line.received for line in traffic) if traffic else None,
        refused=first.refused,
        by=tuple(dict.fromkeys(line.by for line in group if line.by)),
    )
