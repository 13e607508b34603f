"""Several runs of one command: those that wait for the same step are known to whoever does it first."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from fine_tune_runner.errors import DataError
from fine_tune_runner.types import RunContext
from tests.workflow.engine_world import Steps, a_run, engine, made, ran

CLIENTS = ("ash", "birch", "cedar")
RUNS = {client: a_run(client).run_id for client in CLIENTS}


class Meetings:
    """A training step that looks who else waits for it; `met` are the others, by run."""

    def __init__(self, folder: Path) -> None:
        self.met: dict[str, list[str]] = {}
        self.early: list[str] = []
        self._folder = folder
        made(folder, *CLIENTS)

    def train(self, context: RunContext) -> None:
        with context.others() as others:
            names = [other.run.run_id for other in others]
            self.met[context.run.run_id] = names
            time.sleep(0.5)  # long enough for the next to begin, if it could
            begun = {line.split()[0] for line in ran(self._folder) if line.endswith(" train")}
            self.early += [name for name in names if name in begun]
            for other in others:
                other.emit("met", by=context.run.run_id)


def late(client: str) -> Callable[[RunContext], None]:
    """A first step that takes longer for one client."""

    def load(context: RunContext) -> None:
        time.sleep(1.0 if context.run.client_id == client else 0.0)

    return load


def test_the_first_to_train_waits_for_those_on_their_way_and_holds_them(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path)
    durable = engine(tmp_path, Steps(tmp_path, train=meetings.train, load=late("cedar")))
    runs = [a_run(client) for client in CLIENTS]
    assert durable.run_all(runs) == {}
    assert [len(names) for names in meetings.met.values()] == [2, 1, 0]
    assert meetings.early == []
    first, *_, last = meetings.met
    assert durable.events(last)[-1].event == "run finished"
    assert next(e.data["by"] for e in durable.events(last) if e.event == "met") == first
    assert sorted(line for line in ran(tmp_path) if line.endswith("train")) == sorted(
        f"{run_id} train" for run_id in RUNS.values()
    )


def test_a_run_of_another_label_is_not_among_them(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path)
    durable = engine(tmp_path, Steps(tmp_path, label="private", train=meetings.train))
    assert durable.run_all([a_run("hre"), a_run("birch")]) == {}
    assert meetings.met == {a_run("hre").run_id: [], RUNS["birch"]: []}


def test_what_stops_one_run_is_told_and_stops_no_other(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path)

    def load(context: RunContext) -> None:
        if context.run.client_id == "birch":
            raise DataError("birch is wrong")

    durable = engine(tmp_path, Steps(tmp_path, train=meetings.train, load=load))
    stopped = durable.run_all([a_run(client) for client in CLIENTS])
    assert {run_id: str(error) for run_id, error in stopped.items()} == {RUNS["birch"]: "birch is wrong"}
    assert [durable.find(RUNS[client]).state for client in CLIENTS] == ["finished", "failed", "finished"]
    assert [len(names) for names in meetings.met.values()] == [1, 0]


def test_a_run_by_itself_meets_nobody(tmp_path: Path) -> None:
    meetings = Meetings(tmp_path)
    engine(tmp_path, Steps(tmp_path, train=meetings.train)).run(a_run("ash"))
    assert meetings.met == {RUNS["ash"]: []}
