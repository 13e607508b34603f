"""The append-only record behind a registry: its write-ahead log, and its memory of who did what and why.

One JSON object a line, each carrying the registry's whole text after the change and the hash of the line
before it. This file knows nothing of promotion rules.
"""

from __future__ import annotations

import hashlib
import os
from datetime import datetime
from pathlib import Path

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import RegistryError
from fine_tune_runner.files import fsync_dir

GENESIS = "0" * 64


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """One change: `before` and `after` are sha256 of the registry file ("" where it did not exist).

    `previous` is the sha256 of the line before (64 zeros for the first), `content` the registry's text.
    """

    seq: int
    at: datetime
    who: str
    action: str
    why: str
    run_id: str | None
    subject: str
    before: str
    after: str
    content: str
    previous: str


class Audit(msgspec.Struct, frozen=True):
    """The record as it stands: its lines, the hash of the last one, and how many bytes are whole lines."""

    lines: tuple[AuditLine, ...]
    head: str
    whole_bytes: int

    @property
    def last(self) -> AuditLine | None:
        """The newest line."""
        return self.lines[-1] if self.lines else None


def sha256(data: bytes) -> str:
    """Hex digest; the hash of a registry that does not exist is the empty string, not this."""
    return hashlib.sha256(data).hexdigest()


def read_audit(path: Path) -> Audit:
    """Read the record; a last line without its line feed is a torn write that never took effect.

    Raises RegistryError for a damaged line in the middle, since nothing after it can be trusted.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Audit((), GENESIS, 0)
    whole = data[: data.rfind(b"\n") + 1]
    lines: list[AuditLine] = []
    head = GENESIS
    for number, raw in enumerate(whole.splitlines(), 1):
        try:
            lines.append(msgspec.json.decode(raw, type=threadsafe(AuditLine)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RegistryError(
                f"{path} line {number}: damaged ({error}); restore this file from a backup, "
                "then run: fine-tune verify"
            ) from None
        head = sha256(raw)
    return Audit(tuple(lines), head, len(whole))


def append(path: Path, audit: Audit, line: AuditLine) -> None:
    """Write one line durably after the whole ones, cutting off a torn tail.

    Raises OSError; the file is then cut back to the lines it had.
    """
    is_new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.ftruncate(descriptor, audit.whole_bytes)
        try:
            data = msgspec.json.encode(line) + b"\n"
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], audit.whole_bytes + written)
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, audit.whole_bytes)
            raise
    finally:
        os.close(descriptor)
    if is_new:
        fsync_dir(path.parent)


def chain_faults(path: Path) -> list[str]:
    """Every break of the hash chain, by line; empty where the record is whole."""
    audit = read_audit(path)
    found = []
    raw_lines = path.read_bytes().splitlines() if path.exists() else []
    previous, before = GENESIS, None
    for number, line in enumerate(audit.lines, 1):
        if line.seq != number:
            found.append(f"line {number}: numbered {line.seq}; a line was removed or added")
        if line.previous != previous:
            found.append(f"line {number}: does not follow from the line before; one of the two was changed")
        if before is not None and line.before != before:
            found.append(f"line {number}: begins from another registry than line {number - 1} left")
        if line.after != sha256(line.content.encode()):
            found.append(f"line {number}: its content does not match its hash")
        previous, before = sha256(raw_lines[number - 1]), line.after
    return found
