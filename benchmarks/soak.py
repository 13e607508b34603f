"""SIGKILL at 200 random moments over 40 runs of both tracks; every run done once, every job paid for once.

The long form of tests/crash/test_matrix.py. `python benchmarks/soak.py [--kills 200] [--runs 40] [--seed 0]`.
Runs come in waves of five, so that there is work in progress at every kill.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.contract.openai_server.server import serving
from tests.crash.matrix import check, kill_until_done, write_clients

WAVE = 5


def say(text: str) -> None:
    """How far it is."""
    print(text, flush=True)


def main() -> None:
    """Kill, check, print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    began = time.monotonic()
    hit, names = 0, list[str]()
    with tempfile.TemporaryDirectory() as folder, serving() as server:
        data = Path(folder) / "clients"
        waves = range(0, words.runs, WAVE)
        for wave, first in enumerate(waves):
            names += write_clients(data, min(WAVE, words.runs - first), first)
            left = words.kills * (wave + 1) // len(waves) - hit
            hit += kill_until_done(data, server, words.seed + wave, left, say)
        check(data, server, names)
        jobs = len(server.account.jobs)
        assert server.wrong == []
    seconds = time.monotonic() - began
    print(f"{hit} kills over {len(names)} runs in {seconds:.0f} s: {len(names)} finished,")
    print(f"{jobs} paid jobs for {(len(names) + 1) // 2} hosted runs, {len(names)} registry entries")


if __name__ == "__main__":
    main()
