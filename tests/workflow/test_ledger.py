"""The effect ledger: one outside effect, whatever is cut off, lost or done at the same time; on SQLite and on
PostgreSQL."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path

import psycopg
import pytest

from fine_tune_runner.errors import DatabaseAway, PolicyError, ProviderError, RunError
from fine_tune_runner.workflow.book import SCHEMA, lock_key, plain
from fine_tune_runner.workflow.ledger import Busy, Found, Ledger, Unanswered, effect_key
from tests.workflow.postgres import Cluster

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Outside:
    """The world: what was created, and how the next calls go wrong."""

    def __init__(self, *failures: Exception | str) -> None:
        self.made: list[str] = []
        self.failures = list(failures)
        self.looks = 0
        self.complete = True

    def find(self) -> Found:
        self.looks += 1
        return Found(self.made[0] if self.made else None, self.complete)

    def create(self) -> str:
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, Exception):
            raise failure
        self.made.append(f"job-{len(self.made) + 1}")
        if failure == "lost":
            raise Unanswered("cut off")
        return self.made[-1]


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = START
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)


def once(ledger: Ledger, world: Outside, run_id: str = "r1") -> str:
    return ledger.once(run_id, "create", {"model": "m"}, find=world.find, create=world.create)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Where the ledger is, and nothing is in it yet."""
    if request.param == "sqlite":
        return None
    found: str = request.getfixturevalue("postgres").url
    lose(tmp_path, found)
    return found


def lose(folder: Path, url: str | None) -> None:
    """Take a ledger away."""
    if url is None:
        (folder / ".fine-tune" / "ledger.sqlite").unlink()
        return
    with psycopg.connect(plain(url)) as session:
        session.execute("SET client_min_messages TO warning")
        session.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")


@pytest.fixture
def ledger(tmp_path: Path, time: Time, url: str | None) -> Ledger:
    return Ledger(tmp_path, time, url=url, sleep=time.sleep, settle_s=70, grace_s=10)


def test_done_is_done(ledger: Ledger) -> None:
    world = Outside()
    assert [once(ledger, world), once(ledger, world)] == ["job-1", "job-1"]
    assert world.made == ["job-1"]


def test_it_looks_before_it_creates_even_with_the_ledger_lost(
    tmp_path: Path, ledger: Ledger, url: str | None
) -> None:
    world = Outside()
    once(ledger, world)
    lose(tmp_path, url)
    assert once(ledger, world) == "job-1"
    assert world.made == ["job-1"]


def test_an_answer_that_was_lost_is_found_again(ledger: Ledger) -> None:
    world = Outside("lost")
    assert once(ledger, world) == "job-1"
    assert world.made == ["job-1"]


def test_in_doubt_it_waits_out_the_timeout_and_looks_twice_more(ledger: Ledger, time: Time) -> None:
    world = Outside(Unanswered("timed out"))
    assert once(ledger, world) == "job-1"
    # Before the create, at once after the doubt, and two looks with the grace between them.
    assert world.looks == 4
    assert time.slept == [70.0, 10.0, 0.0]


def test_a_list_that_cannot_be_read_to_its_end_stops_a_call_in_doubt(ledger: Ledger) -> None:
    world = Outside(Unanswered("timed out"))
    world.complete = False
    with pytest.raises(ProviderError, match="nobody can tell"):
        once(ledger, world)
    assert world.made == []


def test_a_list_that_cannot_be_read_to_its_end_hinders_no_first_call(ledger: Ledger) -> None:
    world = Outside()
    world.complete = False
    assert once(ledger, world) == "job-1"


def test_turned_away_is_tried_again_after_the_delay_it_names(ledger: Ledger, time: Time) -> None:
    world = Outside(Busy("slow down", 7.0), Busy("slow down"))
    assert once(ledger, world) == "job-1"
    assert time.slept == [7.0, 2.0]


def test_turned_away_four_times_is_an_error_that_leaves_no_doubt(ledger: Ledger) -> None:
    world = Outside(*[Busy("slow down")] * 4)
    with pytest.raises(Busy):
        once(ledger, world)
    assert ledger.effects() == []


def test_a_refusal_leaves_no_intent_behind(ledger: Ledger) -> None:
    with pytest.raises(PolicyError):
        once(ledger, Outside(PolicyError("closed")))
    assert ledger.effects() == []


def test_a_refusal_after_a_doubt_leaves_the_doubt_on_record(ledger: Ledger) -> None:
    with pytest.raises(PolicyError):
        once(ledger, Outside(Unanswered("cut"), PolicyError("closed")))
    assert [effect.state for effect in ledger.effects()] == ["intent"]


def test_an_interrupted_create_stays_in_doubt(ledger: Ledger) -> None:
    world = Outside()

    def interrupted() -> str:
        world.create()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.once("r1", "create", {"model": "m"}, find=world.find, create=interrupted)
    assert [effect.state for effect in ledger.effects()] == ["intent"]
    assert once(ledger, world) == "job-1"


def test_a_closed_run_creates_nothing_more(ledger: Ledger) -> None:
    world = Outside()
    ledger.close("r1", "cancelled")
    with pytest.raises(RunError, match=r"cancelled.*--again"):
        once(ledger, world)
    assert world.made == []


def test_another_request_is_another_effect() -> None:
    assert effect_key("r1", "create", {"a": 1, "b": 2}) == effect_key("r1", "create", {"b": 2, "a": 1})
    assert effect_key("r1", "create", {"a": 1}) != effect_key("r1", "create", {"a": 2})


def test_a_run_whose_request_was_changed_is_still_in_doubt(ledger: Ledger, time: Time) -> None:
    with pytest.raises(Unanswered):
        ledger.once("r1", "create", {"epochs": 3}, find=lambda: Found(None), create=_cut_off)
    time.slept.clear()
    world = Outside()
    ledger.once("r1", "create", {"epochs": 4}, find=world.find, create=world.create)
    assert world.looks == 3  # at once, and twice after the doubt was waited out
    assert [effect.state for effect in ledger.effects()] == ["done"]


def test_a_run_whose_request_was_changed_pays_no_second_time(ledger: Ledger) -> None:
    ledger.once("r1", "create", {"epochs": 3}, find=lambda: Found(None), create=lambda: "job-1")
    again = ledger.once("r1", "create", {"epochs": 4}, find=lambda: Found(None), create=lambda: "job-2")
    assert again == "job-1"


def _cut_off() -> str:
    raise Unanswered("cut off")


def test_its_folder_is_for_the_owner_only(tmp_path: Path) -> None:
    once(Ledger(tmp_path), Outside())
    assert stat.S_IMODE((tmp_path / ".fine-tune").stat().st_mode) == 0o700


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    once(ledger, Outside())
    (tmp_path / ".fine-tune" / "ledger.sqlite").write_bytes(b"no database at all, but long enough to be read")
    with pytest.raises(RunError, match=r"ledger\.sqlite"):
        once(ledger, Outside())


def test_the_intent_is_there_for_others_before_the_call(
    ledger: Ledger, tmp_path: Path, url: str | None
) -> None:
    seen: list[str] = []

    def create() -> str:
        seen.extend(effect.state for effect in Ledger(tmp_path, url=url).effects())
        return "job-1"

    ledger.once("r1", "create", {}, find=lambda: Found(None), create=create)
    assert seen == ["intent"]


def test_a_clock_that_was_set_back_makes_nobody_wait_longer(ledger: Ledger, time: Time) -> None:
    with pytest.raises(Unanswered):
        ledger.once("r1", "create", {}, find=lambda: Found(None), create=_cut_off)
    time.now -= timedelta(hours=1)
    time.slept.clear()
    world = Outside()
    assert once(ledger, world) == "job-1"
    assert time.slept == [70.0, 10.0, 0.0]


def test_what_is_erased_is_one_runs_alone(ledger: Ledger) -> None:
    for run_id in ("r1", "r2"):
        once(ledger, Outside(), run_id)
        ledger.close(run_id, "cancelled")
    ledger.erase(lambda run_id: run_id == "r1")
    assert [effect.run_id for effect in ledger.effects()] == ["r2"]
    assert [ledger.closed(run_id) for run_id in ("r1", "r2")] == [None, "cancelled"]


def test_a_server_that_is_away_is_one_line_without_its_address(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, url=f"postgresql+psycopg://anna:secret-word@/none?host={tmp_path}")
    with pytest.raises(
        DatabaseAway, match=r"^PostgreSQL: .*; nothing is lost, mend that and go on$"
    ) as caught:
        once(ledger, Outside())
    assert "secret-word" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_effect_that_another_host_works_on_is_waited_for(tmp_path: Path, postgres: Cluster) -> None:
    lose(tmp_path, postgres.url)
    done: list[str] = []
    with psycopg.connect(plain(postgres.url), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (lock_key("r1.create"),))
        thread = threading.Thread(
            target=lambda: done.append(once(Ledger(tmp_path, url=postgres.url), Outside()))
        )
        thread.start()
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while other.execute(waiting).fetchone() != (1,):
            assert thread.is_alive()
        assert done == []
    thread.join()
    assert done == ["job-1"]


def test_two_threads_at_once_make_one(tmp_path: Path, url: str | None) -> None:
    world, gate = Outside(), threading.Barrier(2)
    got: list[str] = []

    def submit() -> None:
        ledger = Ledger(tmp_path, url=url)
        gate.wait()
        got.append(once(ledger, world))

    threads = [threading.Thread(target=submit) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == ["job-1", "job-1"]
    assert world.made == ["job-1"]


def _die(folder: Path, url: str | None, point: str, how: str) -> None:
    """In a child process: create a file as the outside effect, and end at a point of the ledger."""

    def crash(reached: str) -> None:
        if reached == point:
            if how == "exit":
                os._exit(9)
            os.kill(os.getpid(), signal.SIGKILL)

    _file_once(Ledger(folder, url=url, crash_point=crash), folder)


def _file_once(ledger: Ledger, folder: Path) -> str:
    outside = folder / "outside"

    def find() -> Found:
        names = sorted(path.name for path in outside.iterdir())
        return Found(names[0] if names else None)

    def create() -> str:
        name = f"job-{len(list(outside.iterdir()))}"
        (outside / name).touch()
        return name

    return ledger.once("r1", "create", {}, find=find, create=create)


@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("point", ["intent create", "created create", "done create"])
def test_killed_at_any_point_it_makes_one(tmp_path: Path, url: str | None, point: str, how: str) -> None:
    (tmp_path / "outside").mkdir()
    child = get_context("spawn").Process(target=_die, args=(tmp_path, url, point, how))
    child.start()
    child.join()
    assert child.exitcode != 0
    assert _file_once(Ledger(tmp_path, url=url, sleep=lambda _s: None), tmp_path) == "job-0"
    assert len(list((tmp_path / "outside").iterdir())) == 1


def test_closing_waits_for_a_create_under_way(tmp_path: Path, url: str | None) -> None:
    begun, go = threading.Event(), threading.Event()
    order: list[str] = []

    def create() -> str:
        begun.set()
        go.wait()
        order.append("created")
        return "job-1"

    def close() -> None:
        Ledger(tmp_path, url=url).close("r1", "cancelled")
        order.append("closed")

    work: list[Callable[[], object]] = [
        lambda: Ledger(tmp_path, url=url).once("r1", "create", {}, find=lambda: Found(None), create=create),
        close,
    ]
    threads = [threading.Thread(target=target) for target in work]
    threads[0].start()
    begun.wait()
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join()
    assert order == ["created", "closed"]
