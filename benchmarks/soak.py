"""SIGKILL at 200 random moments over 40 runs of both tracks; every run done once, every job paid for once.

Private runs train a tiny base, and end with the bits of a training that nobody killed. On SQLite with one
worker, then on PostgreSQL with three, where the server is stopped as by a power cut three times besides. The
long form of tests/crash/test_matrix.py; needs PostgreSQL's server (`make packages`).
`python benchmarks/soak.py [--kills 200] [--runs 40] [--outages 3] [--seed N] [--only sqlite|postgresql]`.
Runs come in waves of five, so that there is work in progress at every kill.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.contract.openai_server.server import serving
from tests.crash.matrix import Counted, Toll, check, kill_until_done, write_clients
from tests.workflow.postgres import Cluster, cluster

WAVE = 5
WORKERS = {"sqlite": 1, "postgresql": 3}


def say(text: str) -> None:
    """How far it is."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def soak(kind: str, words: argparse.Namespace, running: Cluster | None, outages: int) -> tuple[Counted, Toll]:
    """Kill, wave by wave, and check; AssertionError where something is lost, done twice, or late."""
    names, toll = list[str](), Toll()
    folder = Path(tempfile.mkdtemp(prefix="ftr-soak-"))  # left to be looked at where something is wrong
    say(f"{kind}: data and what the workers say are in {folder}")
    with serving() as server:
        data = folder / "clients"
        waves = range(0, words.runs, WAVE)
        stops = random.Random(words.seed).choices(range(len(waves)), k=outages)
        for wave, first in enumerate(waves):
            names += write_clients(data, min(WAVE, words.runs - first), first)
            say(f"{kind}: wave {wave + 1} of {len(waves)}, so far {toll}")
            toll = toll.plus(
                kill_until_done(
                    data,
                    server,
                    words.seed + wave,
                    words.kills * (wave + 1) // len(waves) - toll.kills,
                    workers=WORKERS[kind],
                    cluster=running,
                    outages=stops.count(wave),
                    say=say,
                )
            )
        counted = check(data, server, names, running.url if running else None)
        assert server.wrong == []
    shutil.rmtree(folder)
    return counted, toll


def report(kind: str, counted: Counted, toll: Toll, seconds: float) -> None:
    """What was counted."""
    print(f"{kind}: {WORKERS[kind]} worker(s), {toll.kills} kills, {toll.restarts} restarts,", end=" ")
    print(f"{toll.outages} times the server stopped at once, {seconds:.0f} s")
    print(f"  {counted.finished} runs finished, {counted.entries} registry entries, none twice, none lost")
    print(f"  {counted.jobs} paid jobs for {counted.hosted} hosted runs")
    begun, resumed, steps, again = counted.trainings
    print(f"  {counted.private} private runs trained to the bits of a training that nobody killed:", end=" ")
    print(f"{begun - counted.private} times begun again, {resumed} of these from a checkpoint;", end=" ")
    print(f"{again} of {steps} optimizer steps taken twice", flush=True)


def main() -> None:
    """Kill, check, print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--outages", type=int, default=3)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--only", choices=list(WORKERS))
    words = parser.parse_args()
    say(f"seed {words.seed}")
    lines = []
    for kind in [words.only] if words.only else list(WORKERS):
        began = time.monotonic()
        with cluster() if kind == "postgresql" else contextlib.nullcontext() as running:
            counted, toll = soak(kind, words, running, words.outages if running else 0)
        lines.append((kind, counted, toll, time.monotonic() - began))
        assert toll.kills == words.kills, f"runs ended before kill {toll.kills + 1}: {toll}"
        assert toll.outages == (words.outages if running else 0)
    print(f"seed {words.seed}")
    for line in lines:
        report(*line)


if __name__ == "__main__":
    main()
