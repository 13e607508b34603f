"""Forgetting a client: nothing of it stays but one line, also where the process dies in the middle."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.erasure import forget, forgetting, sweep
from fine_tune_runner.errors import PolicyError, RunError, RunnerError
from fine_tune_runner.files import locked
from fine_tune_runner.types import Request
from fine_tune_runner.workflow.ledger import Found, Ledger
from fine_tune_runner.workflow.record import Record
from tests.scripted_track import Scripted
from tests.test_runner import Desk

POINTS = ("noted", "set aside", "recorded", "off the ledger")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A client with a finished run, and effects of it and of another client's run on the ledger."""
    desk = Desk(tmp_path)
    job = desk.runner().submit("small", 1)
    ledger = Ledger(desk.settings.data_dir)
    for run_id in (job.run_id, "small-v9-a-12345678-1", "small-v1-a-12345678-x", "smaller-v1-a-12345678-1"):
        ledger.once(run_id, "create", {}, find=lambda: Found(None), create=lambda: "job-1")
        ledger.close(run_id, "cancelled")
    return desk


def shared(desk: Desk) -> Path:
    return desk.settings.data_dir / ".fine-tune"


def lines(desk: Desk) -> list[dict[str, str]]:
    path = shared(desk) / "forgotten.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def die_at(desk: Desk, point: str) -> None:
    def crash(reached: str) -> None:
        if reached == point:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        forget(desk.runner(), "small", crash_point=crash)


def test_forget_erases_the_client_and_leaves_one_line(desk: Desk) -> None:
    plan = forgetting(desk.runner(), "small")
    assert (plan.models, plan.files > 10) == (("m1",), True)
    run_id = desk.runner().engine.runs()[0].run.run_id
    assert forget(desk.runner(), "small").elsewhere == ("m1",)
    assert desk.track.forgotten == [run_id, "m1"]
    assert not desk.client.exists()
    shared = desk.client.parent / ".fine-tune"
    assert shared.stat().st_mode & 0o777 == 0o700
    (line,) = [json.loads(x) for x in (shared / "forgotten.jsonl").read_text().splitlines()]
    assert (line["client_id"], line["who"]) == ("small", "anna")


class Away(Scripted):
    """A track whose provider cannot be reached."""

    def forget(self, run_ids: Sequence[str], model_ids: Sequence[str]) -> tuple[str, ...]:
        raise PolicyError("OPENAI_API_KEY is not set")


def test_what_cannot_be_forgotten_elsewhere_is_kept_here_unless_told_otherwise(desk: Desk) -> None:
    desk.track = Away(desk.track.script)
    with pytest.raises(RunError, match=r"nothing was erased.*OPENAI_API_KEY.*--here-only"):
        forget(desk.runner(), "small")
    assert desk.client.exists()
    forget(desk.runner(), "small", here_only=True)
    assert not desk.client.exists()


def test_ledger_rows_and_locks_of_the_clients_runs_go_and_those_of_others_stay(desk: Desk) -> None:
    forget(desk.runner(), "small")
    ledger = Ledger(desk.settings.data_dir)
    others = {"small-v1-a-12345678-x", "smaller-v1-a-12345678-1"}  # the first is no run of ours
    assert {effect.run_id for effect in ledger.effects()} == others
    assert ledger.closed("small-v9-a-12345678-1") is None
    assert {lock.name for lock in (shared(desk) / "locks").iterdir()} == {f"{run}.create" for run in others}
    assert b"small-v9-a" not in (shared(desk) / "ledger.sqlite").read_bytes()


@pytest.mark.parametrize("point", POINTS[1:])
def test_an_erasure_that_was_cut_off_is_finished_by_the_next_sweep(desk: Desk, point: str) -> None:
    die_at(desk, point)
    assert not desk.client.exists()  # forgotten from the rename on
    assert sweep(desk.settings) == ("small",)
    assert [line["client_id"] for line in lines(desk)] == ["small"]
    assert list(shared(desk).glob("erasing-*")) == []
    assert "small-v9-a-12345678-1" not in {e.run_id for e in Ledger(desk.settings.data_dir).effects()}
    assert sweep(desk.settings) == ()


def test_the_engines_rows_of_its_runs_go_too(desk: Desk) -> None:
    from fine_tune_runner.workflow.database import Database

    with contextlib.closing(Database(shared(desk), None)) as database:
        database.prepare()
        for client_id, run_id in (
            ("small", "small-v9-b-12345678-1"),
            ("small-v1", "small-v1-v9-b-12345678-1"),
        ):
            database.enqueue_run(client_id, run_id, None, 1)
        forget(desk.runner(), "small")
        assert [workflow.id for workflow in database.live()] == ["small-v1-v9-b-12345678-1"]


def test_one_that_dies_before_the_rename_has_erased_nothing(desk: Desk) -> None:
    die_at(desk, "noted")
    assert sweep(desk.settings) == ()
    assert desk.runner().registry("small").entries()
    forget(desk.runner(), "small")
    assert len(lines(desk)) == 1


def test_no_run_of_a_client_begins_while_it_is_being_forgotten(desk: Desk) -> None:
    """Between the provider's cleaning and the rename: what it would begin there nobody would see again."""

    def begin(point: str) -> None:
        if point == "noted":
            with pytest.raises(RunError, match=r"small is being forgotten.*fine-tune forget.*erasure\.json"):
                desk.runner().submit("small", 2)

    forget(desk.runner(), "small", crash_point=begin)
    assert not desk.client.exists()
    assert desk.track.trained == [1]


@pytest.mark.parametrize("begin", ["start", "approve", "leave"])
def test_a_run_that_was_planned_before_brings_no_folder_back(desk: Desk, begin: str) -> None:
    runner = desk.runner()
    run = runner.run_for(Request(client_id="small", version=2))
    forget(desk.runner(), "small")
    with pytest.raises(RunnerError, match="small"):
        {
            "start": runner.start,
            "approve": runner.engine.approve,
            "leave": lambda run: runner.leave(run, approved=True),
        }[begin](run)
    assert not desk.client.exists()


def test_a_run_that_begins_while_forgetting_looks_stops_it_before_the_provider(desk: Desk) -> None:
    run = desk.runner().engine.runs()[0].run
    record = Record(desk.settings.data_dir, lambda: datetime.now(UTC))

    def begin(point: str) -> None:
        if point == "looked":
            held.enter_context(record.held(run))

    with contextlib.ExitStack() as held, pytest.raises(RunError, match="is alive; first"):
        forget(desk.runner(), "small", crash_point=begin)
    assert desk.track.forgotten == []
    assert desk.runner().submit("small", 2).state == "finished"  # nothing is left of the attempt


def test_a_new_client_of_the_same_name_may_be_forgotten_too(desk: Desk) -> None:
    die_at(desk, "set aside")
    desk.client.mkdir()
    desk.write_config()
    forget(desk.runner(), "small")
    assert [line["client_id"] for line in lines(desk)] == ["small", "small"]


def test_while_another_process_erases_a_sweep_leaves_it_alone(desk: Desk) -> None:
    die_at(desk, "set aside")
    with locked(shared(desk) / "erasing.lock"):
        assert sweep(desk.settings) == ()
    assert len(list(shared(desk).glob("erasing-*"))) == 1


def test_writing_commands_finish_it_and_reading_ones_do_not(desk: Desk) -> None:
    die_at(desk, "set aside")
    env = {"CLIENT_DATA_DIR": str(desk.settings.data_dir)}
    CliRunner().invoke(fine_tune, ["status"], env=env)
    assert len(list(shared(desk).glob("erasing-*"))) == 1
    done = CliRunner().invoke(fine_tune, ["cancel", "small-v1-b-12345678-1"], env=env)
    assert "finished erasing small, which was cut off" in done.stderr
    assert list(shared(desk).glob("erasing-*")) == []


def test_a_folder_that_is_a_link_is_not_half_erased(desk: Desk, tmp_path: Path) -> None:
    desk.client.rename(tmp_path / "elsewhere")
    desk.client.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="is a link to"):
        forget(desk.runner(), "small")
    assert (tmp_path / "elsewhere" / "config.json").exists()
    assert lines(desk) == []
