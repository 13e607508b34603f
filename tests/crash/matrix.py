"""Runs of both tracks in a process that is killed again and again: the short and the long kill matrix.

Track A is the real one against the contract server; Track B trains a tiny base (trained.py). Workers are
processes forked off one that has imported all of it, so that kills hit work, not imports.
"""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from fine_tune_runner.hosted.flow import Pace
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Settings, load_settings
from fine_tune_runner.types import Clock, Request
from fine_tune_runner.workflow.book import plain
from fine_tune_runner.workflow.durable import Durable
from fine_tune_runner.workflow.engine import Event, Patience, Plan
from fine_tune_runner.workflow.ledger import Ledger
from tests.contract.openai_server.server import KEY, ContractServer
from tests.crash.trained import TRAINING, Trained, Trainings, check_trained, write_base
from tests.scripted_track import Letters
from tests.small_client import PROMPT, write_version
from tests.workflow.postgres import Cluster

# Nothing that is forked may have threads, and numpy starts one for each core when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "tests.crash.matrix",
        "fine_tune_runner.evaluation.harness",
        "fine_tune_runner.hosted.wire",
        "fine_tune_runner.private.export",
        "fine_tune_runner.private.gguf_base",
        "fine_tune_runner.private.torch_backend",  # imported only: torch that has worked must not be forked
        "gguf",
        "jinja2",
        "safetensors.numpy",
        "tokenizers",
        "torch._dynamo",  # which torch.optim imports at its first step, and takes two seconds for
        "fine_tune_runner.workflow.executor",
        "fine_tune_runner.workflow.lease",
    ]
)
PACE = Pace(poll_s=0.05, request_s=2.0, grace_s=0.2)
PATIENCE = Patience(grace_s=1.0, hang_s=5.0)
KILL_WITHIN_S = 1.2
AWAY_WITHIN_S = 3.0


def write_clients(data: Path, runs: int, first: int = 0) -> list[str]:
    """`runs` clients with a version each, every second one on Track A, the rest with a base each; the ids."""
    names = [f"c{number:02}" for number in range(first, first + runs)]
    for number, name in enumerate(names, first):
        folder = data / name
        folder.mkdir(parents=True)
        config = {"client_id": name, "track_preference": "ab"[number % 2], "eval": {"max_tokens": 16}}
        if number % 2:
            base = write_base(data.parent / "bases" / name, seed=number)
            config |= {"base_model": str(base), "training": TRAINING}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "account_state.json").write_text(json.dumps({"version": "1.0.0", "system_prompt": PROMPT}))
        write_version(folder, 1)
    return names


class Toll(NamedTuple):
    """What was done to the workers: killed, put up again, their server stopped as by a power cut."""

    kills: int = 0
    restarts: int = 0
    outages: int = 0

    def plus(self, other: Toll) -> Toll:
        """Both together."""
        return Toll(*(a + b for a, b in zip(self, other, strict=True)))


class Counted(NamedTuple):
    """What is there in the end; `trainings` are those of all private runs."""

    finished: int
    hosted: int
    jobs: int
    private: int
    trainings: Trainings
    entries: int


def impatient(
    settings: Settings,
    plan: Plan,
    clock: Clock,
    listener: Callable[[Event], None],
    notice: Callable[[str], None],
) -> Durable:
    """The engine of the product, which takes over sooner."""
    url = settings.database
    return Durable(
        settings.data_dir, plan, clock, url=url, listener=listener, notice=notice, patience=PATIENCE
    )


def library(data: Path, url: str, database_url: str | None = None) -> FineTuneRunner:
    """The library as the command line has it, but for trained.py, its embedder and its patience."""
    env = {"CLIENT_DATA_DIR": str(data), "OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY}
    env |= {"FINE_TUNE_MODELS_DIR": str(data.parent / "models")}
    env |= {"FINE_TUNE_DATABASE_URL": plain(database_url)} if database_url else {}
    return FineTuneRunner(
        load_settings(env, data),
        tracks={
            "A": lambda settings, client: Hosted(settings, client, pace=PACE),
            "B": Trained,
        },
        embedder=lambda settings: Letters(),
        notice=lambda text: print(f"{os.getpid()} {text}", file=sys.stderr, flush=True),
        who="matrix",
        engine=impatient,
    )


def main(data: Path, url: str, database_url: str | None = None) -> None:
    """Be a worker until all runs are at their end; what it says goes to `matrix.log`."""
    log = os.open(data.parent / "matrix.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    line = library(data, url, database_url)
    looked = time.monotonic()
    up_mark(data, os.getpid()).unlink(missing_ok=True)

    def done() -> bool:
        nonlocal looked
        up_mark(data, os.getpid()).touch()
        if time.monotonic() - looked < 0.3:
            return False
        looked = time.monotonic()
        return not unfinished(line)

    line.engine.work(done)


def up_mark(data: Path, pid: int) -> Path:
    """There once the worker of that number takes work."""
    return data.parent / f"up-{pid}"


def unfinished(line: FineTuneRunner) -> list[str]:
    """What is outstanding: run, state, steps on record, who holds it."""
    return [
        f"{state.run.run_id}: {state.state} {state.error or ''} after {' '.join(state.done)} pid {state.pid}"
        for state in line.engine.runs()
        if state.state != "finished"
    ]


class Crew:
    """Workers on one data folder, each put up again when it falls, as a service manager does."""

    def __init__(self, data: Path, url: str, size: int, database_url: str | None) -> None:
        self._data = data
        self._words = (data, url, database_url)
        self._workers = [self._start() for _ in range(size)]
        self.restarts = 0

    @property
    def log(self) -> Path:
        """What the workers said."""
        return self._data.parent / "matrix.log"

    def up(self) -> bool:
        """Whether one of them takes work."""
        return any(w.is_alive() and up_mark(self._data, w.pid or 0).exists() for w in self._workers)

    def kill_one(self, dice: random.Random) -> bool:
        """SIGKILL for one of them; False where that one had ended."""
        worker = dice.choice(self._workers)
        alive = worker.is_alive()
        worker.kill()
        worker.join()
        return alive

    def revive(self) -> None:
        """Put up again who fell; AssertionError where one that was up fell by itself."""
        for place, worker in enumerate(self._workers):
            if (code := worker.exitcode) in (None, 0):
                continue
            if code != -signal.SIGKILL and up_mark(self._data, worker.pid or 0).exists():
                raise AssertionError(f"worker {worker.pid} ended with {code}\n{self.tail()}")
            self._workers[place] = self._start()
            self.restarts += 1

    def ended(self) -> bool:
        """Whether all have ended of themselves, for nothing is left to do."""
        return all(worker.exitcode == 0 for worker in self._workers)

    def dismiss(self) -> None:
        """End those that are left."""
        for worker in self._workers:
            worker.kill()
            worker.join()

    def tail(self) -> str:
        """The last of what they said."""
        return self.log.read_text(errors="replace")[-6000:]

    def _start(self) -> ForkServerProcess:
        worker = FORKS.Process(target=main, args=self._words, daemon=True)
        worker.start()
        return worker


def kill_until_done(
    data: Path,
    server: ContractServer,
    seed: int,
    kills: int,
    *,
    workers: int = 1,
    cluster: Cluster | None = None,
    outages: int = 0,
    say: Callable[[str], None] = lambda _text: None,
    limit_s: float = 240,
) -> Toll:
    """Leave every run to the workers, once, and kill one of these at random moments, `kills` times or until
    all runs are at their end; then let them finish.

    `outages` times the server is stopped before a kill and started after it. AssertionError, naming what is
    outstanding, where a run fails, a worker falls by itself, or there is no kill and no end for `limit_s`.
    """
    dice = random.Random(seed)
    url = cluster.url if cluster else None
    line = library(data, server.url, url)
    leave_all(line, data)
    toll = Toll()
    stops = set(dice.sample(range(kills // 4 + 1), outages))
    crew = Crew(data, server.url, workers, url)
    try:
        while toll.kills < kills and unfinished(line):
            wait_until(lambda: crew.up() or crew.ended(), line, crew, limit_s)
            if (away := toll.kills in stops) and cluster:
                stops.remove(toll.kills)
                cluster.stop("immediate")
                time.sleep(dice.uniform(0.0, AWAY_WITHIN_S))
            time.sleep(dice.uniform(0.0, KILL_WITHIN_S))
            toll = toll.plus(Toll(kills=crew.kill_one(dice), outages=away))
            crew.revive()
            if away and cluster:
                time.sleep(dice.uniform(0.0, AWAY_WITHIN_S))
                cluster.start()
            states = Counter(state.state for state in line.engine.runs())
            say(f"{toll.kills} of {kills} kills, {toll.outages} outages: {dict(states)}")
        wait_until(crew.ended, line, crew, limit_s)
    finally:
        crew.dismiss()
    return toll._replace(restarts=crew.restarts)


def leave_all(line: FineTuneRunner, data: Path) -> None:
    """Leave every version to the workers, as `submit --detach` does; what is at its end is left alone."""
    for name in sorted(path.parent.name for path in data.glob("*/config.json")):
        line.leave(line.run_for(Request(client_id=name, version=1)), approved=True)


def wait_until(seen: Callable[[], bool], line: FineTuneRunner, crew: Crew, limit_s: float) -> None:
    """Look until `seen`, putting up workers that fall; AssertionError, saying what is outstanding, else."""
    deadline = time.monotonic() + limit_s
    while not seen():
        crew.revive()
        late = time.monotonic() > deadline
        if late or any(state.state in ("failed", "cancelled", "waiting") for state in line.engine.runs()):
            left = "\n".join(["outstanding:", *unfinished(line), *map(str, line.engine.live()), crew.tail()])
            raise AssertionError(f"{'too late' if late else 'at an end too soon'}; {left}")
        time.sleep(0.05)


def check(data: Path, server: ContractServer, names: list[str], database_url: str | None = None) -> Counted:
    """Everything finished, paid for and registered once, and trained as if nobody had been killed."""
    line = library(data, server.url, database_url)
    assert Counter(state.state for state in line.engine.runs()) == {"finished": len(names)}
    entries = {name: line.registry(name).entries() for name in names}
    hosted = [name for name in names if entries[name][0].track == "A"]
    assert len(hosted) == (len(names) + 1) // 2
    assert len(server.account.jobs) == len(hosted)
    assert server.training_files == []
    effects = Ledger(data, url=database_url).effects()
    assert {effect.state for effect in effects} == {"done"}
    assert len({effect.run_id for effect in effects}) == len(hosted)
    for name in names:
        (entry,) = entries[name]
        assert (entry.version, entry.active, entry.status) == (1, True, "active")
        actions = [record.action for record in line.registry(name).history()]
        assert line.registry(name).verify() == []
        assert actions.count("register") == actions.count("promote") == 1
        names_of_steps = [path.name[3:] for path in data.glob(f"{name}/runs/*/steps/*.json")]
        assert len(names_of_steps) == len(set(names_of_steps))
    private = [name for name in names if name not in hosted]
    trainings = Trainings()
    for name in private:
        assert entries[name][0].track == "B"
        trainings = trainings.plus(check_trained(line, name, data.parent / "straight"))
    return Counted(
        finished=len(names),
        hosted=len(hosted),
        jobs=len(server.account.jobs),
        private=len(private),
        trainings=trainings,
        entries=sum(map(len, entries.values())),
    )
