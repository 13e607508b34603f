"""The contract server, and a client that is hosted there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.openai_server.server import KEY, ContractServer, serving
from tests.hosted.world import HostedRun, make_settings, write_client


@pytest.fixture
def server() -> Iterator[ContractServer]:
    """A server of this test's own; what was said to it, and what it said, was in the wire format."""
    with serving() as running:
        yield running
        assert running.wrong == []


@pytest.fixture
def hosted(tmp_path: Path, server: ContractServer) -> HostedRun:
    """The client `hre` there, not run yet."""
    write_client(tmp_path / "data")
    return HostedRun(make_settings(tmp_path / "data", server.url, KEY))
