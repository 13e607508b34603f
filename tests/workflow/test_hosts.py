"""Who trains: on SQLite this machine under any name, on PostgreSQL the hosts with a worker that lives."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from fine_tune_runner.reconcile import disagreements, mend
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Secret
from fine_tune_runner.types import Request
from fine_tune_runner.workflow.database import Database
from fine_tune_runner.workflow.engine import PATIENCE
from fine_tune_runner.workflow.lease import Lease
from tests.scripted_track import Letters
from tests.test_runner import Desk
from tests.workflow.engine_world import (
    Steps,
    a_run,
    engine,
    ran,
    start,
    wait_until,
    work_until_finished,
)
from tests.workflow.postgres import Cluster

RUN = a_run().run_id
ALL = ("load", "train", "score", "promote")


@contextlib.contextmanager
def at(folder: Path, url: str, here: str) -> Iterator[Database]:
    """The database as a host of that name sees it."""
    database = Database(folder / ".fine-tune", url, here=here)
    database.prepare()
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def trainer(folder: Path, url: str, here: str) -> Iterator[None]:
    """A worker on a host of that name that is alive and does nothing."""
    with at(folder, url, here) as database:
        lease = Lease(
            database,
            f"{here}-1",
            lost=lambda: None,
            notice=lambda _text: None,
            wanted=lambda _run_id: False,
            active=tuple,
            patience=PATIENCE,
        )
        lease.start(database.register(("train",), ()))
        try:
            yield
        finally:
            lease.stop()


def renamed(folder: Path, status: str) -> None:
    """The training of a run whose process died, as a machine of another name has left it."""
    inputs = f'{{"namedArgs":{{}},"positionalArgs":["hre","{RUN}",["train"],"train@old"]}}'
    with contextlib.closing(sqlite3.connect(folder / ".fine-tune/engine.sqlite")) as file:
        words = "queue_name = 'train@old', status = ?"
        file.execute(f"UPDATE workflow_status SET {words} WHERE queue_name LIKE 'train%'", (status,))
        file.execute("UPDATE workflow_input SET inputs = ? WHERE workflow_uuid LIKE '%~%'", (inputs,))
        file.commit()


@pytest.mark.parametrize("status", ["ENQUEUED", "PENDING"])
def test_on_sqlite_training_goes_on_where_the_machine_was_renamed(tmp_path: Path, status: str) -> None:
    start(tmp_path, "die").communicate(timeout=60)
    renamed(tmp_path, status)
    work_until_finished(engine(tmp_path, Steps(tmp_path)))
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ("load", "train", "train", "score", "promote")]


def test_on_sqlite_new_training_is_not_put_under_an_old_name(tmp_path: Path) -> None:
    durable = engine(tmp_path, Steps(tmp_path))
    with durable.database() as database:
        database.client.register_queue("train@0")
    durable.enqueue(a_run())
    work_until_finished(durable)
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ALL]


def test_only_hosts_with_a_worker_that_lives_are_offered_training(tmp_path: Path, postgres: Cluster) -> None:
    with at(tmp_path, postgres.url, "retired") as database:
        database.register(("train",), ("private",))
        assert database.trainers(None) == []
        with trainer(tmp_path, postgres.url, "mill"), trainer(tmp_path, postgres.url, "barn"):
            assert database.trainers(None) == ["train@barn", "train@mill"]
            assert database.trainers("private") == []
        assert database.trainers(None) == []


def test_a_worker_that_stops_is_offered_no_training_while_its_step_ends(
    tmp_path: Path, postgres: Cluster
) -> None:
    durable = engine(tmp_path, Steps(tmp_path), url=postgres.url)
    durable.enqueue(a_run())
    worker = start(tmp_path, "work-stubborn", postgres.url)
    try:
        with at(tmp_path, postgres.url, "home") as database:
            wait_until(lambda: f"{RUN} train" in ran(tmp_path), worker)
            assert len(database.trainers(None)) == 1
            worker.send_signal(signal.SIGINT)
            wait_until(lambda: database.trainers(None) == [], worker)
    finally:
        worker.kill()
        worker.communicate()
    durable.drop(RUN)


def test_without_a_trainer_a_run_waits_for_the_first_that_comes(tmp_path: Path, postgres: Cluster) -> None:
    notices: list[str] = []
    durable = engine(tmp_path, Steps(tmp_path), notices=notices, url=postgres.url)
    durable.enqueue(a_run())
    with at(tmp_path, postgres.url, "home") as database, durable.engine(database, ("registry",)):
        wait_until(lambda: "no trainer" in [event.event for event in durable.events(RUN)])
        worker = start(tmp_path, "work", postgres.url)
        try:
            wait_until(lambda: durable.find(RUN).state == "finished", worker)
        finally:
            worker.kill()
            worker.communicate()
    assert notices == [f"{RUN} waits, for no such worker trains now; start one: fine-tune worker"]
    assert ran(tmp_path) == [f"{RUN} {name}" for name in ALL]


def test_training_that_waits_for_a_host_without_a_worker_is_listed_and_moved(
    tmp_path: Path, postgres: Cluster
) -> None:
    desk = Desk(tmp_path, track_preference="b", sensitive=False)
    folder = desk.settings.data_dir
    durable = engine(folder, Steps(folder), url=postgres.url)
    runner = FineTuneRunner(
        msgspec.structs.replace(desk.settings, database_url=Secret(postgres.url)),
        tracks={"A": desk.track.maker(), "B": desk.track.maker()},
        embedder=lambda settings: Letters(),
        who="anna",
        engine=lambda *_words: durable,
    )
    run = runner.run_for(Request(client_id="small", version=1))
    runner.leave(run)

    def waits() -> bool:
        return ("train@old", "ENQUEUED") in [(one.queue, one.status) for one in durable.live()]

    with at(folder, postgres.url, "home") as database, durable.engine(database, ("registry",)):
        with trainer(folder, postgres.url, "old"):
            wait_until(waits)
            assert disagreements(runner, lambda _text: None) == []
        (found,) = disagreements(runner, lambda _text: None)
        assert (found.kind, found.subject, found.how) == ("nobody trains", run.run_id, "move")
        assert found.message == "its training waits for old, where no worker is now"
        mend(runner, found)
        assert disagreements(runner, lambda _text: None) == []
    with at(folder, postgres.url, "new") as database, durable.engine(database):
        wait_until(lambda: durable.find(run.run_id).state == "finished")
    assert ran(folder) == [f"{run.run_id} {name}" for name in ALL]
