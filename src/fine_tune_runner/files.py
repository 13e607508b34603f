"""Writing files so that a crash leaves the old or the new, and locks that die with their process.

What is durable in this package goes through these functions. Local disks only: flock and rename
have no such guarantees on network file systems.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes, read in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: temporary file beside it, fsync, rename, fsync of the folder.

    Raises OSError; the old content then stands untouched and the temporary file is gone.
    """
    temporary = write_beside(path, data)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_beside(path: Path, data: bytes) -> Path:
    """Write `data` durably to a temporary file in the folder of `path`, to be renamed by the caller."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def publish(part: Path, target: Path) -> None:
    """Give a finished file or folder its name, last: what bears it is whole after a power cut too.

    Both on one file system; a folder of that name must be gone. Raises OSError, the part then still there.
    """
    for path in [part, *part.rglob("*")]:
        if path.is_dir():
            fsync_dir(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    part.replace(target)
    fsync_dir(target.parent)


def fsync_dir(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an exclusive flock on `path`; the file holds the owner's pid, for messages only.

    Raises BlockingIOError, its text the owner's pid, where another process still holds it after `wait_s`.
    The kernel drops the lock with the process, so a kill -9 leaves none behind.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip() or "unknown"
                    raise BlockingIOError(owner) from None
                time.sleep(0.01)
        # A full disk must not keep anybody from taking a lock: the pid is a courtesy.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def lock_owner(path: Path) -> int | None:
    """The pid that holds the lock at `path` now, None where nobody does."""
    try:
        with locked_shared_probe(path):
            return None
    except BlockingIOError as error:
        text = str(error)
        return int(text) if text.isdigit() else -1
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def locked_shared_probe(path: Path) -> Iterator[None]:
    """Take a shared lock for an instant without creating the file; BlockingIOError names the owner."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(os.pread(descriptor, 20, 0).decode(errors="replace").strip()) from None
        yield
    finally:
        os.close(descriptor)
