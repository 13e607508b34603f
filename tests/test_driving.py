"""One question for the costs of several runs, and what a no stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from fine_tune_runner.driving import drive
from fine_tune_runner.errors import Interrupted, NeedsApproval, UsageError
from fine_tune_runner.types import Estimate, Run, RunContext, Step
from fine_tune_runner.workflow.journal import Journal
from tests.workflow.engine_world import a_run, clock, made

COSTS = {"ash": 7.0, "birch": 0.0, "cedar": 5.0}
RUNS = [a_run(client) for client in COSTS]
ASH, BIRCH, CEDAR = (run.run_id for run in RUNS)
Asked = list[Mapping[str, float | None]]


def plan(run: Run) -> Sequence[Step]:
    def estimate(context: RunContext) -> Estimate:
        found = Estimate(
            dataset_sha256="",
            tokens_per_epoch=1,
            epochs=1,
            steps=1,
            cost_usd=COSTS[run.client_id],
            price_source="made up",
        )
        context.emit("estimated", **msgspec.to_builtins(found))
        if found.cost_usd and not context.approved():
            raise NeedsApproval("waits for a yes")
        return found

    return [Step(name="estimate", gives=Estimate, do=estimate)]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made(tmp_path, *COSTS)
    return Journal(tmp_path, plan, clock)


def answering(asked: Asked, yes: bool) -> Callable[[Mapping[str, Estimate]], bool]:
    def confirm(estimates: Mapping[str, Estimate]) -> bool:
        asked.append({run_id: estimate.cost_usd for run_id, estimate in estimates.items()})
        return yes

    return confirm


def states(journal: Journal) -> list[str]:
    return [journal.find(run.run_id).state for run in RUNS]


def test_costs_are_asked_for_once_and_together(journal: Journal) -> None:
    asked: Asked = []
    assert drive(journal, RUNS, answering(asked, yes=True)) == {}
    assert asked == [{ASH: 7.0, CEDAR: 5.0}]
    assert states(journal) == ["finished", "finished", "finished"]


def test_a_no_stops_what_costs_and_nothing_else(journal: Journal) -> None:
    asked: Asked = []
    stopped = drive(journal, RUNS, answering(asked, yes=False))
    assert {run_id: type(error) for run_id, error in stopped.items()} == {
        ASH: Interrupted,
        CEDAR: Interrupted,
    }
    assert len(asked) == 1
    assert states(journal) == ["waiting", "finished", "waiting"]


def test_where_nobody_can_be_asked_each_run_that_costs_says_so(journal: Journal) -> None:
    def confirm(estimates: Mapping[str, Estimate]) -> bool:
        raise UsageError("say --yes")

    stopped = drive(journal, RUNS, confirm)
    assert {run_id: str(error) for run_id, error in stopped.items()} == {ASH: "say --yes", CEDAR: "say --yes"}
