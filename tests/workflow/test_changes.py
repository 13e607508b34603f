"""Real file events of real folders: what a watch is told, and what it is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fine_tune_runner.workflow.changes import changes, client_folders

Found = frozenset[str] | None


class Eyes:
    """What `changes` said so far, gathered in a thread."""

    def __init__(self, data: Path) -> None:
        self.stop = threading.Event()
        self.notices: list[str] = []
        self.found: list[Found] = []
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._gather, args=(data,))
        self.thread.start()

    def _gather(self, data: Path) -> None:
        for found in changes(data, self.stop, self.notices.append, tick_s=0.1):
            with self.news:
                self.found.append(found)
                self.news.notify()

    def until(self, seen: Callable[[list[Found]], bool]) -> list[Found]:
        """What was said since the last time, once `seen` finds it there."""
        with self.news:
            assert self.news.wait_for(lambda: seen(self.found), timeout=60), self.found
            said = list(self.found)
            self.found.clear()
            return said

    def close(self) -> None:
        self.stop.set()
        self.thread.join()


@pytest.fixture
def eyes(tmp_path: Path) -> Iterator[Eyes]:
    (tmp_path / "hre" / "runs").mkdir(parents=True)
    (tmp_path / ".fine-tune").mkdir()
    looking = Eyes(tmp_path)
    looking.until(lambda found: None in found)
    yield looking
    looking.close()


def names(found: list[Found]) -> set[str]:
    return set().union(*(one for one in found if one))


def test_a_file_that_is_written_or_renamed_into_place_names_its_client(eyes: Eyes, tmp_path: Path) -> None:
    for name in ("v1.jsonl", "v1_eval.jsonl", "config.json"):
        (tmp_path / "hre" / f".{name}").write_text("x")
        (tmp_path / "hre" / f".{name}").rename(tmp_path / "hre" / name)
        eyes.until(lambda found: "hre" in names(found))
    (tmp_path / "hre" / "v1.jsonl").write_text("more")
    eyes.until(lambda found: "hre" in names(found))


def test_what_runs_write_and_foreign_files_name_nobody(eyes: Eyes, tmp_path: Path) -> None:
    (tmp_path / "hre" / "runs" / "v1.jsonl").write_text("x")
    (tmp_path / "hre" / "model_registry.json").write_text("[]")
    (tmp_path / "hre" / "notes.txt").write_text("x")
    (tmp_path / ".fine-tune" / "v1.jsonl").write_text("x")
    assert names(eyes.until(lambda found: len(found) > 5)) == set()


def test_a_client_folder_that_appears_later_is_taken_up(eyes: Eyes, tmp_path: Path) -> None:
    (tmp_path / "rtt").mkdir()
    eyes.until(lambda found: None in found)
    (tmp_path / "rtt" / "v1.jsonl").write_text("x")
    eyes.until(lambda found: "rtt" in names(found))


def test_a_folder_that_goes_breaks_nothing(eyes: Eyes, tmp_path: Path) -> None:
    (tmp_path / "hre" / "runs").rmdir()
    (tmp_path / "hre").rmdir()
    eyes.until(lambda found: None in found)
    (tmp_path / "new").mkdir()
    eyes.until(lambda found: None in found)
    assert eyes.notices == []


def test_client_folders_are_real_ones_with_a_client_id(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden", "Upper"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "file").write_text("x")
    assert [path.name for path in client_folders(tmp_path)] == ["a", "b"]
    assert client_folders(tmp_path / "none") == []
