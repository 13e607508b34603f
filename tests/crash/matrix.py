"""Runs of both tracks in a process that is killed again and again: the short and the long kill matrix.

Track A is the real one against the contract server; Track B trains in no time, but in steps that can be cut
off. Called as a program, it does all runs of a data folder as a worker does: `matrix.py DATA URL`.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fine_tune_runner.hosted.flow import Pace
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_settings
from fine_tune_runner.types import Model, Request, RunContext, Step
from tests.contract.openai_server.server import KEY, ContractServer
from tests.scripted_track import Letters, Scripted
from tests.small_client import PROMPT, write_version

ROOT = Path(__file__).parents[2]
PACE = Pace(poll_s=0.05, request_s=2.0, grace_s=0.2)


class Cut(Scripted):
    """Trains in ten short steps, writes down each training that came to its end."""

    def train(self, context: RunContext) -> Model:
        for _ in range(10):
            context.check_cancelled()
            time.sleep(0.02)
        with (context.run_dir / "trained.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return super().train(context)

    def steps(self) -> tuple[Step, ...]:
        """In the place where real training is."""
        return (Step(name="train", gives=Model, do=self.train, place="train"),)


def write_clients(data: Path, runs: int, first: int = 0) -> list[str]:
    """`runs` clients with a version each, every second one on Track A; their ids."""
    names = [f"c{number:02}" for number in range(first, first + runs)]
    for number, name in enumerate(names, first):
        folder = data / name
        folder.mkdir(parents=True)
        config = {"client_id": name, "track_preference": "ab"[number % 2], "eval": {"max_tokens": 16}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "account_state.json").write_text(json.dumps({"version": "1.0.0", "system_prompt": PROMPT}))
        write_version(folder, 1)
    return names


def library(data: Path, url: str, database_url: str | None = None) -> FineTuneRunner:
    """The library as the command line has it, but for its trainer and its embedder."""
    env = {"CLIENT_DATA_DIR": str(data), "OPENAI_BASE_URL": url, "OPENAI_API_KEY": KEY}
    env |= {"FINE_TUNE_DATABASE_URL": database_url} if database_url else {}
    cut = Cut({0: lambda question: "no", 1: lambda question: "Root cause: csp_blocks_tags"})
    return FineTuneRunner(
        load_settings(env, data),
        tracks={
            "A": lambda settings, client: Hosted(settings, client, pace=PACE),
            "B": lambda settings, client: cut,
        },
        embedder=lambda settings: Letters(),
        notice=lambda text: print(text, file=sys.stderr, flush=True),
        who="matrix",
    )


def main(data: Path, url: str, database_url: str | None = None) -> None:
    """Leave every version that is not at its end to the engine, and be the engine until all are."""
    line = library(data, url, database_url)
    names = sorted(path.parent.name for path in data.glob("*/config.json"))
    for name in names:
        run = line.run_for(Request(client_id=name, version=1))
        if unfinished(line, run.run_id):
            line.leave(run, approved=True)
    looked = time.monotonic()

    def done() -> bool:
        nonlocal looked
        if time.monotonic() - looked < 0.3:
            return False
        looked = time.monotonic()
        return all(state.state == "finished" for state in line.engine.runs())

    line.engine.work(done)


def unfinished(line: FineTuneRunner, run_id: str) -> bool:
    return not any(s.run.run_id == run_id and s.state == "finished" for s in line.engine.runs())


def start(data: Path, url: str, *more: str) -> subprocess.Popen[bytes]:
    log = (data.parent / "matrix.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.crash.matrix", str(data), url, *more],
            cwd=ROOT,
            stdout=log,
            stderr=log,
        )


def kill_until_done(
    data: Path, server: ContractServer, seed: int, kills: int, say: Callable[[str], None] = lambda _text: None
) -> int:
    """Kill the process at random moments of its life, `kills` times or until all runs are at their end, then
    let it finish; how many kills hit it alive.
    """
    dice = random.Random(seed)
    hit = 0
    for number in range(kills):
        child = start(data, server.url)
        deadline = time.monotonic() + 30
        while not engine_is_up(data, child.pid) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            child.wait(dice.uniform(0.0, 1.2))
            break  # it ended by itself: nothing is left to do
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            hit += 1
        child.wait()
        states = Counter(state.state for state in library(data, server.url).engine.runs())
        say(f"{number + 1} of {kills}: {dict(states)}")
    last = start(data, server.url)
    assert last.wait(240) == 0, (data.parent / "matrix.log").read_text()[-3000:]
    return hit


def engine_is_up(data: Path, pid: int) -> bool:
    lock = data / ".fine-tune/engine.lock"
    return lock.exists() and lock.read_text().strip() == str(pid)


def check(data: Path, server: ContractServer, names: list[str], database_url: str | None = None) -> None:
    """Everything finished, paid for and registered once; nothing twice, nothing lost."""
    line = library(data, server.url, database_url)
    assert Counter(state.state for state in line.engine.runs()) == {"finished": len(names)}
    hosted = [name for name in names if line.registry(name).entries()[0].track == "A"]
    assert len(hosted) == (len(names) + 1) // 2
    assert len(server.account.jobs) == len(hosted)
    assert server.training_files == []
    for name in names:
        (entry,) = line.registry(name).entries()
        assert (entry.version, entry.active, entry.status) == (1, True, "active")
        actions = [record.action for record in line.registry(name).history()]
        assert line.registry(name).verify() == []
        assert actions.count("register") == actions.count("promote") == 1
        names_of_steps = [path.name[3:] for path in data.glob(f"{name}/runs/*/steps/*.json")]
        assert len(names_of_steps) == len(set(names_of_steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
