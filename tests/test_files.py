"""Files that appear whole: a file and a folder under their last names, and what stays where that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from fine_tune_runner.files import locked, publish


def test_a_folder_is_published_with_everything_in_it(tmp_path: Path) -> None:
    part = tmp_path / "part"
    (part / "deep").mkdir(parents=True)
    (part / "deep" / "file").write_text("whole")
    publish(part, tmp_path / "name")
    assert (tmp_path / "name" / "deep" / "file").read_text() == "whole"
    assert not part.exists()


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "name").write_text("old")
    (tmp_path / "part").write_text("new")
    publish(tmp_path / "part", tmp_path / "name")
    assert (tmp_path / "name").read_text() == "new"


def test_a_folder_that_is_there_is_not_replaced_and_the_part_stays(tmp_path: Path) -> None:
    for name in ("part", "name"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path / "part", tmp_path / "name")
    assert [(tmp_path / name / "file").read_text() for name in ("part", "name")] == ["part", "name"]


def test_a_lock_that_is_held_names_its_owner(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "lock"),
        pytest.raises(BlockingIOError, match=r"^\d+$"),
        locked(tmp_path / "lock", wait_s=0.02),
    ):
        pass
