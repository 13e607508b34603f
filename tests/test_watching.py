"""The watch over real folders on a scripted track: what is ready, when, and once, also for many clients."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.errors import RunnerError
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_settings
from fine_tune_runner.types import Findings, Run
from fine_tune_runner.watching import MEMORY, RESCAN_S, Watch
from fine_tune_runner.workflow.engine import Event
from fine_tune_runner.workflow.journal import Journal
from fine_tune_runner.workflow.watch import Say
from tests.scripted_track import Letters, Scripted
from tests.small_client import PROMPT, train_rows, write_version
from tests.test_runner import right, wrong


class Queue(Journal):
    """An engine whose queue is a list of run ids; `do` does what a worker would."""

    left: list[str]

    def enqueue(self, run: Run) -> None:
        self.left.append(run.run_id)
        self._record.begin(run)
        self._record.open(run).emit("run queued")

    def do(self, at_most: int = 20) -> None:
        """So many of the runs that wait are done; one that fails has that on record."""
        for state in [state for state in self.runs() if state.state == "queued"][:at_most]:
            with contextlib.suppress(RunnerError):
                self.run(state.run)


class Office:
    """A data folder, a watch over it on a clock that a test turns, and all that it said."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "clients"
        self.data.mkdir()
        self.track = Scripted({0: wrong, **dict.fromkeys(range(1, 9), right)})
        self.settings = load_settings({"CLIENT_DATA_DIR": str(self.data)}, folder)
        self.said: list[tuple[str, Say]] = []
        self.notices: list[str] = []
        self.left: list[str] = []
        self.days = 0
        self.checked = 0
        self.time_s = 0.0
        self.day = 1
        self.start()

    def start(self, **words: Any) -> None:
        """A new process over the same folder."""
        self.runner = self._runner()
        self.watch = Watch(
            self.runner,
            say=lambda client, said: self.said.append((client, said)),
            notice=self.notices.append,
            daily=self.count_day,
            now=lambda: self.time_s,
            **{"check": self.check, **words},
        )

    def _runner(self) -> FineTuneRunner:
        def queue(settings: Any, plan: Any, clock: Any, listener: Any, notice: Any) -> Queue:
            made = Queue(settings.data_dir, plan, clock, listener=listener)
            made.left = self.left
            return made

        return FineTuneRunner(
            self.settings,
            tracks={"A": self.track.maker(), "B": self.track.maker()},
            embedder=lambda settings: Letters(),
            clock=lambda: datetime(2026, 11, self.day, 12, tzinfo=UTC),
            who="watch",
            engine=queue,
        )

    def check(self, client_id: str, version: int) -> Findings:
        self.checked += 1
        return self.runner.findings(client_id, version)

    @property
    def queue(self) -> Queue:
        assert isinstance(self.runner.engine, Queue)
        return self.runner.engine

    def count_day(self) -> None:
        self.days += 1

    def client(self, name: str, **config: Any) -> Path:
        folder = self.data / name
        folder.mkdir()
        self.config(name, **config)
        state = {"version": "1.0.0", "system_prompt": PROMPT}
        (folder / "account_state.json").write_text(json.dumps(state))
        return folder

    def config(self, name: str, **config: Any) -> None:
        words = {"client_id": name, "track_preference": "b", **config}
        (self.data / name / "config.json").write_text(json.dumps(words))

    def wait(self, seconds: float) -> None:
        self.time_s += seconds
        self.watch.look(())

    def settled(self) -> None:
        """Look, let everything settle, look again."""
        self.watch.look()
        self.wait(5)

    def heard(self) -> list[str]:
        """All that was said, as `CLIENT vN EVENT`, and forgotten."""
        said = [f"{client} v{said.version} {said.event}" for client, said in self.said]
        self.said.clear()
        return said


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def publish(folder: Path, version: int, rows: list[dict[str, Any]] | None = None) -> None:
    """A version put there by renames, as upstream should."""
    write_version(folder, version, rows)
    for path in (folder / f"v{version}.jsonl", folder / f"v{version}_eval.jsonl"):
        part = path.with_suffix(".part")
        path.rename(part)
        os.utime(part, (1_700_000_000, 1_700_000_000))  # no two clock ticks are needed to tell them apart
        part.rename(path)


def test_a_version_that_was_renamed_into_place_is_submitted_at_once(office: Office) -> None:
    publish(office.client("small"), 1)
    office.watch.look()
    assert office.heard() == ["small v1 submitted"]
    assert len(office.left) == 1


def test_one_written_in_place_must_be_unchanged_for_the_settle_time(office: Office) -> None:
    folder = office.client("small")
    write_version(folder, 1, train_rows(55))
    office.watch.look()
    office.wait(4.9)
    assert office.left == []
    with (folder / "v1.jsonl").open("a") as file:
        file.write(json.dumps(train_rows(56)[-1]) + "\n")
    office.watch.look(["small"])
    office.wait(4.9)
    assert office.left == []
    office.wait(0.1)
    assert office.heard() == ["small v1 submitted"]
    assert office.runner.settings.data_dir == office.data


def test_events_and_restarts_submit_nothing_twice(office: Office) -> None:
    publish(office.client("small"), 1)
    for _ in range(3):
        office.watch.look(["small"])
    office.start()
    office.settled()
    office.queue.do()
    office.start()
    office.settled()
    assert len(office.left) == 1
    assert office.heard() == ["small v1 submitted"]
    (entry,) = Registry(office.data / "small", office.runner.clock).entries()
    assert entry.active


def test_a_run_that_a_crash_left_to_nobody_is_left_once_more(office: Office) -> None:
    publish(office.client("small"), 1)
    office.watch.look()
    events = next((office.data / "small/runs").glob("*/events.jsonl"))
    events.unlink()  # as if the process had ended between run.json and the queue
    office.start()
    office.watch.look()
    office.watch.look()
    assert len(office.left) == 2
    assert len(set(office.left)) == 1


def test_a_file_without_a_line_feed_at_its_end_is_incomplete(office: Office) -> None:
    folder = office.client("small")
    publish(folder, 1)
    whole = (folder / "v1.jsonl").read_text()
    (folder / "v1.jsonl").write_text(whole.removesuffix("\n"))
    office.settled()
    assert office.heard() == ["small v1 incomplete"]
    (folder / "v1.jsonl").write_text(whole)
    office.settled()
    assert office.heard() == ["small v1 submitted"]


def test_a_version_without_its_holdout_waits_for_it(office: Office) -> None:
    folder = office.client("small")
    publish(folder, 1)
    (folder / "v1_eval.jsonl").rename(folder / "later")
    office.settled()
    assert office.heard() == ["small v1 incomplete"]
    (folder / "later").rename(folder / "v1_eval.jsonl")
    office.settled()
    assert office.heard() == ["small v1 submitted"]


def test_missing_examples_are_counted_whenever_their_number_changes(office: Office) -> None:
    folder = office.client("small")
    office.settled()
    publish(folder, 1, train_rows(31))
    office.settled()
    office.watch.look()
    publish(folder, 1, train_rows(40))
    office.settled()
    assert [said.missing for _, said in office.said] == [50, 19, 10]
    publish(folder, 1, train_rows(50))
    office.settled()
    assert office.heard()[-1] == "small v1 submitted"


def test_faults_are_told_once_and_checked_again_when_the_content_changes(office: Office) -> None:
    folder = office.client("small")
    rows = train_rows(60)
    publish(folder, 1, [{"messages": rows[0]["messages"][:2]}, *rows])
    for _ in range(3):
        office.settled()
    office.start()
    office.settled()
    assert office.checked == 1
    (said,) = [said for _, said in office.said]
    assert said.event == "faults"
    assert f"{folder / 'v1.jsonl'} line 1: " in said.message
    assert office.left == []
    publish(folder, 1, rows)
    office.settled()
    assert (office.checked, office.heard()[-1]) == (2, "small v1 submitted")


def test_faults_that_another_file_mends_are_checked_again(office: Office) -> None:
    folder = office.client("small")
    publish(folder, 1)
    state = (folder / "account_state.json").read_text()
    (folder / "account_state.json").write_text(json.dumps({"version": "1", "system_prompt": ""}))
    office.settled()
    assert office.heard() == ["small v1 faults"]
    (folder / "account_state.json").write_text(state)
    office.watch.look(["small"])
    assert office.heard() == ["small v1 submitted"]


def test_what_is_below_a_registered_version_is_noted_and_left_alone(office: Office) -> None:
    folder = office.client("small")
    publish(folder, 2)
    office.watch.look()
    office.queue.do()
    shutil.rmtree(folder / "runs")  # pruned: the registry alone knows
    publish(folder, 1)
    office.start()
    office.settled()
    assert office.heard() == ["small v2 submitted", "small v1 skipped"]
    assert len(office.left) == 1


def test_the_highest_of_two_is_submitted_and_the_other_noted_once(office: Office) -> None:
    folder = office.client("small")
    publish(folder, 1)
    publish(folder, 2, train_rows(61))
    office.settled()
    office.start()
    office.settled()
    assert office.heard() == ["small v2 submitted", "small v1 skipped"]
    publish(folder, 3, train_rows(62))
    office.settled()
    assert office.heard() == ["small v3 submitted"]


def test_what_costs_waits_for_a_yes_where_the_config_has_no_limit(office: Office) -> None:
    office.track.cost_usd = 4.0
    publish(office.client("small", track_preference="a"), 1)
    office.watch.look()
    (run_id,) = office.left
    office.queue.do()
    at = datetime(2026, 11, 1, tzinfo=UTC)
    office.watch.heard(Event(at=at, event="approval needed", run_id=run_id))
    office.watch.run([()])
    office.start()
    office.watch.look()
    assert office.heard() == ["small v1 submitted", "small v1 needs approval"]
    assert office.track.trained == []


@pytest.mark.parametrize(("limit", "trained"), [(5.0, [1]), (3.0, [])])
def test_up_to_the_limit_of_the_config_it_goes_by_itself(
    office: Office, limit: float, trained: Sequence[int]
) -> None:
    office.track.cost_usd = 4.0
    publish(office.client("small", track_preference="a", max_cost_usd=limit), 1)
    office.watch.look()
    office.queue.do()
    office.watch.look()
    assert office.track.trained == trained
    assert office.heard() == ["small v1 submitted"]


def test_a_wrong_config_is_told_once_and_the_others_go_on(office: Office) -> None:
    publish(office.client("bad", max_cost_usd=-1), 1)
    publish(office.client("good"), 1)
    for _ in range(2):
        office.settled()
        office.start()
    assert sorted(office.heard()) == ["bad vNone unreadable", "good v1 submitted"]
    office.config("bad", max_cost_usd=1)
    office.settled()
    assert office.heard() == ["bad v1 submitted"]


def test_a_folder_that_is_just_being_made_is_no_wrong_config(office: Office) -> None:
    (office.data / "small").mkdir()
    office.watch.look()
    office.wait(1)
    shutil.rmtree(office.data / "small")
    publish(office.client("small"), 1)
    office.watch.look()
    assert office.heard() == ["small v1 submitted"]


def test_links_and_foreign_files_are_left_alone(office: Office, tmp_path: Path) -> None:
    folder = office.client("small")
    publish(folder, 1)
    (folder / "v1.jsonl").rename(tmp_path / "v1.jsonl")
    (folder / "v1.jsonl").symlink_to(tmp_path / "v1.jsonl")
    shutil.copytree(folder, tmp_path / "elsewhere")
    (office.data / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "v2.jsonl.swp").write_text("x")
    (folder / "v3.jsonl").mkdir()
    (office.data / ".hidden").mkdir()
    office.settled()
    assert office.heard() == ["small vNone queued"]


def test_a_track_that_is_not_available_is_told_once_and_tried_again(office: Office) -> None:
    office.track.reason = "no key; set OPENAI_API_KEY"
    publish(office.client("small"), 1)
    for _ in range(3):
        office.settled()
    office.track.reason = None
    office.settled()
    assert office.heard() == ["small v1 not submitted", "small v1 submitted"]


def test_only_the_named_client_is_watched(office: Office) -> None:
    office.start(only="one")
    publish(office.client("one"), 1)
    publish(office.client("two"), 1)
    office.settled()
    assert office.heard() == ["one v1 submitted"]


def test_every_minute_it_looks_everywhere_and_daily_it_looks_after_alerts(office: Office) -> None:
    office.watch.run([None])
    publish(office.client("small"), 1)
    office.watch.run([()])
    assert office.heard() == []
    office.time_s += RESCAN_S
    office.watch.run([()])
    assert (office.heard(), office.days) == (["small v1 submitted"], 1)
    office.day = 2
    office.time_s += RESCAN_S
    office.watch.run([(), ()])
    assert office.days == 2


def test_once_waits_until_what_is_there_has_settled(office: Office) -> None:
    write_version(office.client("small"), 1)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        office.time_s += seconds

    office.watch.once(sleep)
    assert office.heard() == ["small v1 submitted"]
    assert 4.9 < sum(slept) < 5.3


def test_what_cannot_be_remembered_is_said_and_breaks_nothing(office: Office) -> None:
    folder = office.client("small")
    (folder / MEMORY).mkdir()
    publish(folder, 1)
    office.watch.look()
    assert office.heard() == ["small v1 submitted"]
    assert "a restart may repeat" in office.notices[0]


def test_two_hundred_clients_ready_at_once_are_each_submitted_once(office: Office) -> None:
    first = office.client("c000")
    publish(first, 1)
    for number in range(1, 200):
        folder = office.data / f"c{number:03}"
        shutil.copytree(first, folder)
        office.config(folder.name)
    passes = Findings(dataset_sha256="", items=())
    office.start(check=lambda client, version: passes)
    office.settled()
    office.watch.look()
    assert len(office.left) == len(set(office.left)) == 200
    office.queue.do(5)
    office.start(check=lambda client, version: passes)
    office.settled()
    assert len(office.left) == 200
    assert len(office.heard()) == 200
    assert office.track.trained == [1] * 5
