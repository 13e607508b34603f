"""Rate limits of hosted work: each provider has its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from fine_tune_runner.types import Run, Step
from fine_tune_runner.workflow.database import LIMITS, Database, Limits
from fine_tune_runner.workflow.durable import Durable
from tests.workflow.engine_world import Steps, a_run, clock, made, ran, wait_until


def hosted(folder: Path) -> Durable:
    """Runs whose training is hosted; a client's provider is the first part of its name."""
    steps = Steps(folder)
    steps.names[1] = ("train", "hosted")

    def plan(run: Run) -> Sequence[Step]:
        provider = run.client_id.partition("-")[0]
        return [
            msgspec.structs.replace(step, provider=provider if step.place == "hosted" else None)
            for step in steps.plan(run)
        ]

    return Durable(folder, plan, clock)


def test_a_provider_that_is_at_its_limit_holds_up_no_other(tmp_path: Path) -> None:
    durable = hosted(tmp_path)
    one_an_hour = LIMITS | {"hosted": Limits(100, starts=1, period_s=3600.0)}
    database = Database(tmp_path / ".fine-tune", None, one_an_hour)
    clients = ("openai-1", "openai-2", "together-1", "together-2")
    made(tmp_path, *clients)
    for client in clients:
        durable.enqueue(a_run(client))
    database.prepare()
    with durable.engine(database):
        wait_until(lambda: sum(state.state == "finished" for state in durable.runs()) == 2)
        wait_until(lambda: sum(line.endswith(" load") for line in ran(tmp_path)) == 4)
    database.close()
    trained = sorted(line.split("-")[0] for line in ran(tmp_path) if line.endswith(" train"))
    assert trained == ["openai", "together"]
