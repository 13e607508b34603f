"""The status table: what runs, stopped, waits and serves, from files alone."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.errors import ServingError
from fine_tune_runner.status import Row, rows
from tests.test_runner import Desk, right, wrong


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, track_preference="b")


def table(desk: Desk) -> list[Row]:
    return rows(desk.runner(), None, lambda text: None)


def fail(desk: Desk, version: int) -> str:
    """A run whose model cannot be asked; its id."""
    answers, desk.track.script = desk.track.script, {}
    with pytest.raises(ServingError):
        desk.runner().submit("small", version)
    desk.track.script = answers
    return desk.runner().engine.runs()[-1].run.run_id


def kill(desk: Desk, version: int) -> str:
    """A run whose process is gone without a last word; its id."""
    run_id = fail(desk, version)
    events = desk.client / "runs" / run_id / "events.jsonl"
    events.write_text("".join(f"{line}\n" for line in events.read_text().splitlines()[:-1]))
    return run_id


def test_a_failed_run_is_shown_with_its_error_and_how_to_go_on(desk: Desk) -> None:
    run_id = fail(desk, 2)
    first, second = table(desk)
    assert (first.version, first.status, first.run_id) == (2, "failed", run_id)
    assert first.note == f"fine-tune resume {run_id}"
    assert "was switched off" in (first.error or "")
    assert (second.status, second.model_id) == ("eval", "m2")  # it was trained all the same


def test_an_interrupted_run_is_shown(desk: Desk) -> None:
    run_id = kill(desk, 2)
    assert next((row.status, row.run_id) for row in table(desk)) == ("interrupted", run_id)


def test_a_failed_run_is_forgotten_once_a_newer_version_is_registered_and_an_interrupted_one_is_not(
    desk: Desk,
) -> None:
    desk.track.script = {0: wrong, 1: right, 2: right}
    fail(desk, 1)
    desk.runner().submit("small", 2)
    assert "failed" not in [row.status for row in table(desk)]
    events = next(desk.client.glob("runs/small-v1-*")) / "events.jsonl"
    events.write_text("".join(f"{line}\n" for line in events.read_text().splitlines()[:-1]))
    assert "interrupted" in [row.status for row in table(desk)]


def test_another_attempt_that_finished_takes_the_place_of_a_failed_one(desk: Desk) -> None:
    fail(desk, 2)
    desk.track.script = {0: wrong, 2: right}
    desk.runner().submit("small", 2, again=True)
    assert [row.status for row in table(desk)] == ["active"]


def test_the_command_shows_it_as_text_and_as_json(desk: Desk) -> None:
    run_id = kill(desk, 2)
    env = {"CLIENT_DATA_DIR": str(desk.settings.data_dir)}
    shown = CliRunner().invoke(fine_tune, ["status"], env=env).stdout
    assert f"fine-tune resume {run_id}" in shown
    assert "◌ interrupted" in shown
    lines = CliRunner().invoke(fine_tune, ["status", "--json"], env=env).stdout.splitlines()
    assert next(msgspec.json.decode(line)["run_id"] for line in lines) == run_id
