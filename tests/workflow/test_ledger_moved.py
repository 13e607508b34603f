"""A ledger that begins beside the data and goes on in PostgreSQL: what was in doubt before stays in doubt."""

from __future__ import annotations

from pathlib import Path

import pytest

from fine_tune_runner.errors import RunError
from fine_tune_runner.workflow.ledger import Ledger
from tests.workflow.postgres import Cluster
from tests.workflow.test_ledger import Outside, Time, lose, once


@pytest.fixture
def url(tmp_path: Path, postgres: Cluster) -> str:
    lose(tmp_path, postgres.url)
    return postgres.url


def cut_off(folder: Path, time: Time, run_id: str) -> None:
    """A call beside the data that was sent, and whose process died before the answer."""

    def crash(point: str) -> None:
        raise ZeroDivisionError(point)

    ledger = Ledger(folder, time, sleep=time.sleep, settle_s=70, crash_point=crash)
    with pytest.raises(ZeroDivisionError, match="intent create"):
        once(ledger, Outside(), run_id)


def moved(folder: Path, time: Time, url: str) -> Ledger:
    return Ledger(folder, time, url=url, sleep=time.sleep, settle_s=70, grace_s=10)


def test_a_call_in_doubt_is_settled_no_sooner_than_before(tmp_path: Path, url: str) -> None:
    time = Time()
    cut_off(tmp_path, time, "r1")
    time.sleep(20)
    world = Outside()
    assert once(moved(tmp_path, time, url), world) == "job-1"
    assert time.slept == [20, 50, 10, 0]  # what is left of the 70 s, and the grace between two looks
    assert world.looks == 3


def test_what_was_done_or_closed_before_is_so_still(tmp_path: Path, url: str) -> None:
    time, world = Time(), Outside()
    before = Ledger(tmp_path, time)
    once(before, world)
    before.close("r2", "cancelled")
    ledger = moved(tmp_path, time, url)
    assert [effect.run_id for effect in ledger.effects()] == ["r1"]
    assert ledger.closed("r2") == "cancelled"
    assert (once(ledger, world), world.looks) == ("job-1", 1)
    with pytest.raises(RunError, match="at its end"):
        once(ledger, Outside(), "r2")


def test_only_the_run_that_goes_on_is_made_known_to_the_server(tmp_path: Path, url: str) -> None:
    time = Time()
    cut_off(tmp_path, time, "r1")
    time.sleep(1)
    cut_off(tmp_path, time, "r2")
    ledger = moved(tmp_path, time, url)
    once(ledger, Outside(), "r2")
    assert [effect.run_id for effect in ledger.effects()] == ["r1", "r2"]
    elsewhere = Ledger(tmp_path / "another host", time, url=url)
    assert [effect.run_id for effect in elsewhere.effects()] == ["r2"]
    assert [effect.run_id for effect in Ledger(tmp_path, time).effects()] == ["r1"]


def test_what_is_erased_is_erased_in_both(tmp_path: Path, url: str) -> None:
    time = Time()
    cut_off(tmp_path, time, "r1")
    cut_off(tmp_path, time, "r2")
    ledger = moved(tmp_path, time, url)
    once(ledger, Outside())
    ledger.erase(lambda run_id: True)
    assert (ledger.effects(), Ledger(tmp_path, time).effects()) == ([], [])
    assert list((tmp_path / ".fine-tune" / "locks").glob("*")) == []
