"""A PostgreSQL cluster of its own for a test: Debian's binaries, a fresh folder, a unix socket."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

USER = "postgres"


def binaries() -> Path:
    """The newest server that Debian's packages have put here; the test is skipped where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install -y postgresql")
    return found[-1].parent


class Cluster:
    """A running server; `url` is what FINE_TUNE_DATABASE_URL takes."""

    def __init__(self, folder: Path, bin_dir: Path) -> None:
        self.folder = folder
        self._bin = bin_dir
        self.url = f"postgresql+psycopg://{USER}@/postgres?host={folder}&port=5432"

    def call(self, program: str, *arguments: str) -> None:
        """Run one of the server's programs, as the user that it insists on."""
        as_user = ["runuser", "-u", USER, "--"] if os.geteuid() == 0 else []
        subprocess.run(
            [*as_user, str(self._bin / program), *arguments], check=True, capture_output=True, cwd="/"
        )

    def start(self) -> None:
        """Start, also again after a crash."""
        options = f"-k {self.folder} -c listen_addresses= -c fsync=off"
        log = str(self.folder / "log")
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self, how: str = "immediate") -> None:
        """Stop; `immediate` is as a power cut."""
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-m", how, "stop")


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A fresh cluster, gone with the block."""
    bin_dir = binaries()
    folder = Path(tempfile.mkdtemp(prefix="ftr-pg-"))
    try:
        if os.geteuid() == 0:
            try:
                owner = pwd.getpwnam(USER)
            except KeyError:
                pytest.skip("there is no user postgres to run the server as")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        running = Cluster(folder, bin_dir)
        running.call("initdb", "-D", str(folder / "data"), "-A", "trust", "-U", USER, "--no-sync")
        running.start()
        try:
            yield running
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                running.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
