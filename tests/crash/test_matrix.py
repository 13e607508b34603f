"""SIGKILL at random moments over runs of both tracks (the long form: benchmarks/soak.py)."""

from __future__ import annotations

from pathlib import Path

from tests.contract.openai_server.server import serving
from tests.crash.matrix import check, kill_until_done, write_clients


def test_four_runs_killed_at_six_random_moments_are_done_once_each(tmp_path: Path) -> None:
    data = tmp_path / "clients"
    names = write_clients(data, 4)
    with serving() as server:
        hit = kill_until_done(data, server, seed=1, kills=6)
        check(data, server, names)
        assert server.wrong == []
    assert hit > 0
