"""1,000 runs of as many clients through the engine alone: runs a second, and memory at each tenth of them.

Four steps in three places that take no time. Printed beside the plain engine as it was measured once. The
whole line with watch and evaluation: watch_1000.py.

    python -m benchmarks.thousand [--runs 1000] [--postgres]
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.workflow.engine_world import Steps, a_run, clock, made
from tests.workflow.postgres import cluster

from fine_tune_runner.types import RunContext
from fine_tune_runner.workflow.durable import Durable
from fine_tune_runner.workflow.engine import Event

# facts/durability.md, on two idle cores: one-step workflows of plain DBOS a second.
MEASURED = {"SQLite": 22, "PostgreSQL": 51}


def memory_mb() -> float:
    """Of this process, now."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def ours(folder: Path, url: str | None, runs: int) -> tuple[float, list[float]]:
    """Runs a second from the worker's start to the last end, and memory at each tenth of them."""
    ended: list[float] = []
    memory: list[float] = []

    def hear(event: Event) -> None:
        if event.event == "run finished":
            ended.append(time.monotonic())
            if len(ended) % max(1, runs // 10) == 0:
                memory.append(memory_mb())

    def at_once(_context: RunContext) -> None:
        return

    durable = Durable(folder, Steps(folder, train=at_once).plan, clock, url=url)
    began = time.monotonic()
    for number in range(runs):
        made(folder, f"c{number:04}")
        durable.enqueue(a_run(f"c{number:04}"))
    print(f"{runs} runs queued in {time.monotonic() - began:.1f} s", flush=True)
    began = time.monotonic()
    durable.work(lambda: len(ended) == runs, listener=hear)
    names = (folder / "ran.txt").read_text().splitlines()
    assert len(names) == len(set(names)) == 4 * runs, "a step was done twice, or not at all"
    return runs / (ended[-1] - began), memory


@contextlib.contextmanager
def servers(postgres: bool) -> Iterator[str | None]:
    """The address of a PostgreSQL of this benchmark's own, None for SQLite."""
    if not postgres:
        yield None
        return
    with cluster() as running:
        yield running.url


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--postgres", action="store_true")
    words = parser.parse_args()
    kind = "PostgreSQL" if words.postgres else "SQLite"
    with tempfile.TemporaryDirectory() as folder, servers(words.postgres) as url:
        rate, memory = ours(Path(folder), url, words.runs)
    print(
        f"{kind}: {words.runs} runs of four steps in three workflows each, all done once: {rate:.2f} runs/s,"
    )
    print(f"{3 * rate:.1f} workflows/s; plain DBOS, measured on two idle cores: {MEASURED[kind]} workflows/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"memory at each tenth, MB: {', '.join(f'{mb:.0f}' for mb in memory)}; peak {peak:.0f}")


if __name__ == "__main__":
    main()
