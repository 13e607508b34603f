"""`fine-tune runs`, `logs -f` and `submit --detach` on what is there already: broken, stopped, finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fine_tune_runner.cli import fine_tune
from tests.test_runner import Desk
from tests.test_status import kill


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, track_preference="b")


def call(desk: Desk, *words: str) -> Result:
    return CliRunner().invoke(fine_tune, words, env={"CLIENT_DATA_DIR": str(desk.settings.data_dir)})


def test_a_broken_run_of_one_client_hides_no_run_of_another(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    broken = desk.settings.data_dir / "hre/runs/hre-v1-b-00000000-1/run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    result = call(desk, "runs", "--json")
    assert [json.loads(line)["run"]["client_id"] for line in result.stdout.splitlines()] == ["small"]
    assert (result.exit_code, f"hre: {broken}" in result.stderr) == (0, True)


def test_a_broken_run_of_one_client_keeps_no_run_of_another_from_going_on(desk: Desk) -> None:
    job = desk.runner().submit("small", 1)
    broken = desk.settings.data_dir / "hre/runs/hre-v1-b-00000000-1/run.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    assert desk.runner().named(job.run_id).run_id == job.run_id


def test_following_a_run_that_nobody_works_on_ends_and_says_how_to_go_on(desk: Desk) -> None:
    run_id = kill(desk, 2)
    result = call(desk, "logs", "-f", run_id)
    assert result.exit_code == 0
    assert result.stdout
    assert result.stderr.count(f"fine-tune resume {run_id}") == 1


def test_a_finished_run_that_is_left_to_a_worker_is_reported(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    result = call(desk, "submit", "--client", "small", "--version", "1", "--detach")
    assert "Queued" not in result.output
    assert (result.exit_code, "SMALL v1 live" in result.stdout) == (0, True)
    entry = call(desk, "submit", "--client", "small", "--version", "1", "--detach", "--json")
    assert json.loads(entry.stdout)["event"] == "result"
