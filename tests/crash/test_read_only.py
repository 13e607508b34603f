"""A data folder that cannot be written to, on real processes: one line with its remedy, nothing half done."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.small_client import Workplace


@pytest.fixture
def read_only(place: Workplace) -> Iterator[Workplace]:
    """The same place, its data folder mounted read-only; gone with the test."""
    data = str(place.data)
    if subprocess.run(["mount", "--bind", data, data], check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-o", "remount,bind,ro", data], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", data], check=True)


@pytest.mark.parametrize(
    "command",
    [
        ("submit", "--client", "small", "--version", "1"),
        ("submit", "--client", "small", "--version", "1", "--detach"),
        ("worker",),
    ],
    ids=lambda command: " ".join((command[0], *command[5:])),
)
def test_a_command_that_has_to_write_says_so_in_one_line(
    read_only: Workplace, command: tuple[str, ...]
) -> None:
    result = read_only.run(*command)
    assert result.code == 1
    (line,) = [text for text in result.err.splitlines() if text.startswith("Error: ")]
    assert "Read-only file system" in line
    assert "check permissions and free space" in line
    assert str(read_only.data) in line
    assert "Traceback" not in result.err


def test_a_command_that_only_reads_does_not_mind(read_only: Workplace) -> None:
    result = read_only.run("status")
    assert result.code == 0, result.err
    assert "small" in result.out
