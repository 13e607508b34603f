"""`model_registry.json`: read by a router at any instant, written by one process at a time.

A change is: lock → recover → new file written beside → audit line appended and synced → rename. The audit
line is the write-ahead log, so from the moment it is durable the change has happened, crash or not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import RegistryError
from fine_tune_runner.files import fsync_dir, locked, write_atomic, write_beside
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.audit import Audit, AuditLine, append, chain_faults, read_audit, sha256
from fine_tune_runner.registry.edits import Entries
from fine_tune_runner.types import Clock, RegistryEntry, VersionKey

FILE = "model_registry.json"
LOCK_WAIT_S = 30.0


class Registry:
    """The registry of one client.

    `notice` is told about repairs in one line. `crash_point` is called with the name of each point between
    two effects; tests end the process there.
    """

    def __init__(
        self,
        client_dir: Path,
        clock: Clock,
        *,
        notice: Callable[[str], None] = lambda _text: None,
        crash_point: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self.path = client_dir / FILE
        self.audit_path = client_dir / f"{FILE}.audit"
        self._lock_path = client_dir / f"{FILE}.lock"
        self._clock = clock
        self._notice = notice
        self._crash_point = crash_point

    def entries(self) -> Entries:
        """All versions, newest last, without a lock; a damaged file is answered from its record."""
        data = self._file_bytes()
        if data is not None:
            decoded, fault = _decode(data)
            if decoded is not None:
                return decoded
            self._notice(f"{self.path}: {fault}; answering from its record")
        last = read_audit(self.audit_path).last
        if last is not None:
            return _decode(last.content.encode())[0] or ()
        if data is not None:
            raise RegistryError(f"{self.path} cannot be read and has no record; restore it from a backup")
        return ()

    def active(self) -> RegistryEntry | None:
        """The version in service."""
        return edits.active(self.entries())

    def change(
        self,
        action: str,
        edit: Callable[[Entries], Entries],
        *,
        who: str,
        why: str,
        key: VersionKey | None = None,
        run_id: str | None = None,
    ) -> Entries:
        """Apply `edit` under the lock and return the entries after it; one without effect is not recorded.

        Raises RegistryError where the edit refuses, the lock stays taken for 30 s, or the disk is full.
        """
        with self._writing():
            audit = self._recovered()
            old = _decode(self._file_bytes() or b"[]")[0] or ()
            new = edit(old)
            if new == old:
                return old
            if found := edits.faults(new):
                raise RegistryError(f"{self.path}: refused to write: {'; '.join(found)}")
            self._write(audit, _encode(new), action, who, why, edits.spell(key) if key else "", run_id)
            return new

    def recover(self) -> None:
        """Finish what a crash left, adopt an edit by hand, restore a damaged file."""
        with self._writing():
            self._recovered()

    def history(self) -> tuple[AuditLine, ...]:
        """Every change ever made, oldest first."""
        return read_audit(self.audit_path).lines

    def at(self, time: datetime) -> Entries:
        """The entries as they stood at `time` (timezone-aware)."""
        past = [line for line in self.history() if line.at <= time]
        return (_decode(past[-1].content.encode())[0] or ()) if past else ()

    def verify(self) -> list[str]:
        """What is wrong with file or record, in words; empty where both are whole. Changes nothing."""
        found = chain_faults(self.audit_path)
        audit = read_audit(self.audit_path)
        for line in audit.lines:
            entries, fault = _decode(line.content.encode())
            if entries is None:
                found.append(f"line {line.seq}: {fault}")
        data = self._file_bytes()
        digest = "" if data is None else sha256(data)
        if audit.last is None:
            if data is not None:
                found.append("the registry has no record beside it")
        elif digest == audit.last.before and digest != audit.last.after:
            found.append(
                "the last change is recorded, not yet in the file; any command that writes completes it"
            )
        elif digest != audit.last.after:
            found.append("the file was changed by hand after its last record")
        return found

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with locked(self._lock_path, wait_s=LOCK_WAIT_S):
                yield
        except BlockingIOError as error:
            raise RegistryError(
                f"{self.path} is locked by process {error}; try again when it is done"
            ) from None
        except OSError as error:
            raise RegistryError(
                f"{self.path}: {error.strerror or error}; free the disk or mend the permissions and "
                "run the command again: the version in service is untouched"
            ) from None

    def _recovered(self) -> Audit:
        audit = read_audit(self.audit_path)
        data = self._file_bytes()
        digest = "" if data is None else sha256(data)
        last = audit.last
        if last is None and data is None:
            return audit
        if last is not None and digest == last.after:
            return audit
        if last is not None and digest == last.before:
            self._replace(last.content.encode())
            self._notice(f"{self.path}: completed a change that a crash had interrupted ({last.action})")
            return audit
        entries, fault = _decode(data) if data is not None else (None, "the file is gone")
        if entries is not None and data is not None:
            self._notice(f"{self.path}: was edited by hand; kept and recorded")
            return self._write(
                audit, data, "edited by hand", "unknown", "found at the next command", "", None
            )
        if last is None:
            raise RegistryError(f"{self.path}: {fault}, and it has no record; restore it from a backup")
        if data is not None:
            broken = self.path.with_name(f"{FILE}.broken-{self._clock():%Y%m%dT%H%M%S}")
            write_atomic(broken, data)
        self._replace(last.content.encode())
        self._notice(f"{self.path}: {fault}; restored from its record")
        return audit

    def _write(
        self, audit: Audit, data: bytes, action: str, who: str, why: str, subject: str, run_id: str | None
    ) -> Audit:
        old = self._file_bytes()
        line = AuditLine(
            seq=len(audit.lines) + 1,
            at=self._clock(),
            who=who,
            action=action,
            why=why,
            run_id=run_id,
            subject=subject,
            before=audit.last.after if audit.last and old == data else ("" if old is None else sha256(old)),
            after=sha256(data),
            content=data.decode(),
            previous=audit.head,
        )
        self._crash_point("before temporary file")
        temporary = write_beside(
            self.path, data
        )  # first, so that a full disk stops us with nothing on record
        try:
            self._crash_point("before audit line")
            append(self.audit_path, audit, line)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        self._crash_point("before rename")
        temporary.replace(self.path)
        self._crash_point("before folder sync")
        fsync_dir(self.path.parent)
        return read_audit(self.audit_path)

    def _replace(self, data: bytes) -> None:
        write_atomic(self.path, data)

    def _file_bytes(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(
                f"{self.path} cannot be read: {error.strerror}; check its permissions"
            ) from None


def _encode(entries: Entries) -> bytes:
    return msgspec.json.format(msgspec.json.encode(entries), indent=2) + b"\n"


def _decode(data: bytes) -> tuple[Entries | None, str]:
    """The entries, or None and what is wrong with them."""
    try:
        entries = msgspec.json.decode(data, type=threadsafe(tuple[RegistryEntry, ...]))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, f"not a registry ({error})"
    found = edits.faults(entries)
    return (None, "; ".join(found)) if found else (entries, "")
