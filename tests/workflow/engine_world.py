"""Runs of two clients without rows, models or providers: steps that count themselves, and how to end them.

Called as a program it runs one of them in a process of its own: `engine_world.py FOLDER WHAT [RUN [URL]]`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fine_tune_runner.types import Place, Run, RunContext, Step
from fine_tune_runner.workflow.durable import Durable
from fine_tune_runner.workflow.engine import Event, Patience

ROOT = Path(__file__).parents[2]


class Number(msgspec.Struct, frozen=True):
    """What every step gives."""

    number: int


def clock() -> datetime:
    return datetime.now(UTC)


def a_run(client: str = "hre", version: int = 1) -> Run:
    return Run(
        run_id=f"{client}-v{version}-b-00000000-1",
        client_id=client,
        version=version,
        track="B",
        track_reason="test",
        attempt=1,
        dataset_sha256="0" * 64,
        created_at=clock(),
        who="anna",
    )


def made(folder: Path, *clients: str) -> None:
    """Make the folders of clients; no run makes one."""
    for client in clients:
        (folder / client).mkdir(exist_ok=True)


def ran(folder: Path) -> list[str]:
    """Every step that was begun, in every process, as `RUN STEP`."""
    path = folder / "ran.txt"
    return path.read_text().splitlines() if path.exists() else []


class Steps:
    """Four steps in three places, each written down as it begins; `do` says what one does besides.

    `label` is what the client `hre` asks of workers.
    """

    def __init__(self, folder: Path, label: str | None = None, **do: Callable[[RunContext], None]) -> None:
        self.folder = folder
        made(folder, "hre", "rtt")
        self.label = label
        self.do = do
        self.names: list[tuple[str, Place]] = [
            ("load", "registry"),
            ("train", "train"),
            ("score", "evaluate"),
            ("promote", "registry"),
        ]

    def plan(self, run: Run) -> Sequence[Step]:
        label = self.label if run.client_id == "hre" else None
        return [
            Step(name=name, gives=Number, do=self._step(name), place=place, label=label)
            for name, place in self.names
        ]

    def _step(self, name: str) -> Callable[[RunContext], Number]:
        def do(context: RunContext) -> Number:
            with (self.folder / "ran.txt").open("a") as file:
                file.write(f"{context.run.run_id} {name}\n")
            self.do.get(name, lambda context: None)(context)
            return Number(len(name))

        return do


def slowly(context: RunContext) -> None:
    """A long step that hears when it shall stop."""
    for _ in range(1200):
        context.check_cancelled()
        time.sleep(0.05)


def stubbornly(context: RunContext) -> None:
    """A long step that hears nothing."""
    time.sleep(100)


def checkpointed(context: RunContext) -> None:
    """Forty training steps; each is on disk before the next, and one that is there is not done again."""
    path = context.attempt_dir / "done.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    for number in range(len(path.read_text().split()) + 1, 41):
        context.check_cancelled()
        time.sleep(0.05)
        with path.open("a") as file:
            file.write(f"{number}\n")


def awhile(context: RunContext) -> None:
    """A step that lasts longer than a short outage."""
    time.sleep(4)


def briefly(context: RunContext) -> None:
    """A step during which others look on."""
    time.sleep(0.5)


def engine(
    folder: Path,
    steps: Steps,
    events: list[Event] | None = None,
    notices: list[str] | None = None,
    url: str | None = None,
) -> Durable:
    heard = events if events is not None else []
    told = notices if notices is not None else []
    return Durable(folder, steps.plan, clock, listener=heard.append, notice=told.append, url=url)


def start(folder: Path, what: str, *more: str) -> subprocess.Popen[str]:
    """A process of this file's main."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.workflow.engine_world", str(folder), what, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(seen: Callable[[], bool], child: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not seen():
        assert child is None or child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def work_until_finished(durable: Durable) -> None:
    """A worker, as a service manager starts one at boot; nobody submits anything."""
    deadline = time.monotonic() + 60

    def stopped() -> bool:
        assert time.monotonic() < deadline, "waited too long"
        return {state.state for state in durable.runs()} == {"finished"}

    durable.work(stopped)


def work(folder: Path, steps: Steps, url: str) -> None:
    """Be a worker on PostgreSQL, for ever; one that hangs is given up after 3 s."""
    told = Durable(
        folder,
        steps.plan,
        clock,
        url=url,
        notice=lambda text: print(text, flush=True),
        patience=Patience(grace_s=1.0, hang_s=3.0),
    )
    asked: list[bool] = []

    def stopped() -> bool:
        """Asked again and again once the engine is up."""
        asked.append(True)
        if len(asked) == 1:
            print("ready", flush=True)
        return False

    told.work(stopped)


def older_engine() -> None:
    """Be a process that another patch of dbos was installed for: that number is what it would hash."""
    from dbos._utils import GlobalParams

    GlobalParams.dbos_version = "3.0.1"
    print(f"dbos {GlobalParams.dbos_version}", flush=True)


def main(folder: Path, what: str, client: str = "hre") -> None:
    """`slow`: a run whose training lasts a minute; `die`: one that ends the process in mid-training."""
    trains = {"work": briefly, "work-slow": slowly, "work-awhile": awhile, "work-stubborn": stubbornly}
    if what in trains:
        work(folder, Steps(folder, train=trains[what]), client)
        return
    if what == "older":
        older_engine()
    steps = {
        "slow": Steps(folder, train=slowly),
        "older": Steps(folder, train=slowly),
        "stubborn": Steps(folder, train=stubbornly),
        "checkpointed": Steps(folder, train=checkpointed),
        "die": Steps(folder, train=lambda context: os._exit(9)),
        "quick": Steps(folder),
    }[what]
    told = Durable(folder, steps.plan, clock, notice=lambda text: print(text, flush=True))
    told.run(a_run(client))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
