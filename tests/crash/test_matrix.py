"""SIGKILL at random moments over runs of both tracks (the long form: benchmarks/soak.py)."""

from __future__ import annotations

from pathlib import Path

from tests.contract.openai_server.server import serving
from tests.crash.matrix import check, kill_until_done, write_clients
from tests.workflow.postgres import cluster


def test_four_runs_killed_at_six_random_moments_are_done_once_each(tmp_path: Path) -> None:
    data = tmp_path / "clients"
    names = write_clients(data, 4)
    with serving() as server:
        toll = kill_until_done(data, server, seed=1, kills=6)
        counted = check(data, server, names)
        assert server.wrong == []
    assert toll.kills > 0
    assert (counted.jobs, counted.private, counted.entries) == (2, 2, 4)


def test_three_workers_are_killed_and_their_server_is_stopped_and_all_is_done_once(tmp_path: Path) -> None:
    data = tmp_path / "clients"
    names = write_clients(data, 4)
    with cluster() as postgres, serving() as server:
        toll = kill_until_done(data, server, seed=1, kills=4, workers=3, cluster=postgres, outages=1)
        counted = check(data, server, names, postgres.url)
        assert server.wrong == []
    assert (toll.kills > 0, toll.outages) == (True, 1)
    assert (counted.jobs, counted.private, counted.entries) == (2, 2, 4)
