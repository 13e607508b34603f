"""Moving a client to the other track, on two scripted ones: what is compared, priced and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.errors import DataError, PolicyError, RegistryError, UsageError
from fine_tune_runner.migrate import moving, parity
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.types import Job, Track
from tests.scripted_track import Letters, Scripted, in_process
from tests.small_client import train_rows, write_rows
from tests.test_runner import Desk, right, right_below, wrong


class TwoTracks(Desk):
    """Version 1 is `m1` on Track A and `m11` on Track B."""

    def __init__(self, folder: Path, **config: Any) -> None:
        super().__init__(folder, **config)
        self.track = Scripted({0: wrong, 1: right}, cost_usd=0.5, track="A")
        self.other = Scripted({0: wrong, 11: right}, first=10)

    def library(self) -> FineTuneRunner:
        return FineTuneRunner(
            self.settings,
            tracks={"A": self.track.maker(), "B": self.other.maker()},
            embedder=lambda settings: Letters(),
            who="anna",
            engine=in_process,
        )

    def move(self, to: Track = "B", **words: Any) -> Job:
        return self.library().start(moving(self.library(), "small", to, **words))

    def active(self) -> list[str | None]:
        return [entry.model_id for entry in self.library().registry("small").entries() if entry.active]


@pytest.fixture
def desk(tmp_path: Path) -> TwoTracks:
    desk = TwoTracks(tmp_path, track_preference="a")
    desk.library().submit("small", 1)
    return desk


def test_an_equal_model_takes_over_and_both_are_priced(desk: TwoTracks) -> None:
    job = desk.move()
    assert desk.active() == ["m11"]
    found = parity(desk.library(), job, 2000)
    assert found.old is not None
    assert (found.old.model_id, found.old.recall, found.new.model_id, found.new.recall) == ("m1", 1, "m11", 1)
    # Seven words: "Root cause: X" and "The evidence points there."; the script takes $1 for 1000 of them.
    assert (found.old.tokens_per_answer, found.old.month_usd, found.new.month_usd) == (7.0, 14.0, 0.0)


def test_a_worse_model_is_refused_and_its_lost_questions_are_named(desk: TwoTracks) -> None:
    desk.other.script = {0: wrong, 11: right_below(9)}
    found = parity(desk.library(), desk.move(), 0)
    assert (found.verdict.decision, desk.active()) == ("refuse", ["m1"])
    assert found.verdict.lost == ("small-009", "small-010", "small-011")


def test_a_model_that_cannot_be_asked_any_more_is_compared_by_its_stored_answers(desk: TwoTracks) -> None:
    desk.track.script = {}
    found = parity(desk.library(), desk.move(), 1000)
    assert found.old is not None
    assert (found.old.recall, found.verdict.decision, desk.active()) == (1.0, "promote", ["m11"])
    assert "by its stored answers of" in found.verdict.reason


def test_a_model_that_cannot_be_asked_and_left_no_answers_holds_the_move(desk: TwoTracks) -> None:
    desk.track.script = {}
    (path,) = desk.client.glob("runs/*/answers/1-A.jsonl")
    path.unlink()
    found = parity(desk.library(), desk.move(), 1000)
    assert (found.old, found.verdict.decision, desk.active()) == (None, "hold", ["m1"])
    assert "m1 was switched off; nothing it answered is stored" in found.verdict.reason


def test_moving_again_trains_nothing_new_and_says_where_it_is(desk: TwoTracks) -> None:
    desk.move()
    with pytest.raises(UsageError, match="in service on that track already"):
        desk.move()
    assert desk.other.trained == [1]


def test_a_sensitive_client_cannot_go_to_track_a(tmp_path: Path) -> None:
    desk = TwoTracks(tmp_path, track_preference="b")
    desk.library().submit("small", 1)
    with pytest.raises(PolicyError, match="nothing was sent"):
        desk.move("A")
    assert desk.track.trained == []


def test_only_the_data_set_of_the_model_in_service_is_moved(desk: TwoTracks) -> None:
    write_rows(desk.client / "v1.jsonl", train_rows(62))
    with pytest.raises(DataError, match="v1"):
        desk.move()
    assert desk.other.trained == []


def test_without_a_version_in_service_there_is_nothing_to_move(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="nothing to move"):
        TwoTracks(tmp_path).move()
