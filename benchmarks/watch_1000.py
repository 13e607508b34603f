"""1,000 clients become ready at once: each version is submitted and promoted once, and memory stays flat.

The real watch, file events, engine (SQLite) and line; training takes no time (tests/scripted_track.py).
Printed beside it: runs of one empty step through the same engine, which is the most that it can do.

    python -m benchmarks.watch_1000 [--clients 1000] [--json FILE]
"""

from __future__ import annotations

import argparse
import collections
import json
import resource
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from tests.scripted_track import Letters, Scripted
from tests.small_client import CAUSES, PROMPT, write_version

from fine_tune_runner.errors import MissingModel
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.runner import FineTuneRunner, utc_now
from fine_tune_runner.settings import Settings, load_settings
from fine_tune_runner.types import Embedder, Run, Step
from fine_tune_runner.watching import Watch
from fine_tune_runner.workflow.changes import changes
from fine_tune_runner.workflow.durable import Durable
from fine_tune_runner.workflow.watch import Say

LIMIT_S = 3600.0


def right(question_id: str) -> str:
    """The holdout's own answer: `small-007` has the cause number 7 mod 4."""
    return f"Root cause: {CAUSES[int(question_id[-3:]) % 4]}\nThe evidence points there."


def memory_mb() -> float:
    """Of this process, now where the system tells, else at most."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


class Tally:
    """Runs that have ended, and the memory at each tenth of them."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done: collections.Counter[str] = collections.Counter()
        self.memory: list[float] = []
        self.begin = time.monotonic()

    def end(self, run_id: str) -> None:
        """One more."""
        self.done[run_id] += 1
        if len(self.done) % max(1, self.total // 10) == 0:
            self.memory.append(memory_mb())
            seconds = time.monotonic() - self.begin
            print(f"  {len(self.done):5} done, {seconds:6.1f} s, {self.memory[-1]:.0f} MB", flush=True)

    @property
    def whole(self) -> bool:
        """Whether all are done, or it takes too long."""
        return len(self.done) >= self.total or time.monotonic() - self.begin > LIMIT_S


def clients(data: Path, spare: Path, number: int) -> None:
    """So many folders without a version, and one version to be put into each."""
    spare.mkdir(parents=True)
    write_version(spare, 1)
    for n in range(number):
        folder = data / f"c{n:04}"
        folder.mkdir(parents=True)
        words = {"client_id": folder.name, "track_preference": "b"}
        (folder / "config.json").write_text(json.dumps(words))
        (folder / "account_state.json").write_text(json.dumps({"version": "1.0.0", "system_prompt": PROMPT}))


def without(_settings: Settings) -> Embedder:
    """As `fine-tune watch` checks."""
    raise MissingModel("not needed")


def watched(folder: Path, number: int) -> tuple[float, float, Tally]:
    """Seconds until all were submitted, seconds until all were in service, and what was counted."""
    data, spare, stop = folder / "clients", folder / "spare", threading.Event()
    clients(data, spare, number)
    track = Scripted({0: lambda _id: "none", 1: right})
    words = {"tracks": {"A": track.maker(), "B": track.maker()}, "embedder": lambda _settings: Letters()}
    settings = load_settings({"CLIENT_DATA_DIR": str(data)}, folder)
    line = FineTuneRunner(settings, **words)  # type: ignore[arg-type]
    looks = FineTuneRunner(settings, **(words | {"embedder": without}))  # type: ignore[arg-type]
    tally, submitted = Tally(number), list[float]()

    def say(_client: str, said: Say) -> None:
        if said.event == "submitted":
            submitted.append(time.monotonic())

    watch = Watch(line, check=looks.findings, say=say, stopped=stop.is_set)
    eyes = threading.Thread(target=lambda: watch.run(changes(data, stop, print)))
    eyes.start()
    time.sleep(2.0)  # it has looked once, and waits for events
    tally.begin = time.monotonic()
    publisher = threading.Thread(target=publish, args=(data, spare))
    publisher.start()
    work(line.engine.work, tally)
    stop.set()
    eyes.join()
    ended = time.monotonic() - tally.begin
    entries = [Registry(path, utc_now).entries() for path in data.iterdir() if path.name.startswith("c")]
    assert [len(found) for found in entries] == [1] * number
    assert all(found[0].active for found in entries)
    assert len(submitted) == len(track.trained) == len(tally.done) == number
    assert set(tally.done.values()) == {1}
    return submitted[-1] - tally.begin, ended, tally


def publish(data: Path, spare: Path) -> None:
    """Put the version into every folder, by renames."""
    for folder in sorted(data.glob("c*")):
        for name in ("v1_eval.jsonl", "v1.jsonl"):
            shutil.copyfile(spare / name, folder / f".{name}")
            (folder / f".{name}").replace(folder / name)


def work(do: Callable[..., None], tally: Tally) -> None:
    """Be the worker until all is done."""

    def hear(event: object) -> None:
        if getattr(event, "event", "") == "run finished":
            tally.end(event.run_id)  # type: ignore[attr-defined]

    do(lambda: tally.whole, listener=hear)


def plain(folder: Path, number: int) -> float:
    """Seconds for as many runs of one empty step, each of its own client."""
    step = Step(name="nothing", gives=dict, do=lambda _context: {})
    engine = Durable(folder, lambda _run: [step], utc_now)
    for n in range(number):
        (folder / f"c{n:04}").mkdir(parents=True)
        run = Run(
            run_id=f"c{n:04}-v1-b-00000000-1",
            client_id=f"c{n:04}",
            version=1,
            track="B",
            track_reason="",
            attempt=1,
            dataset_sha256="0" * 64,
            created_at=datetime.now(UTC),
            who="benchmark",
        )
        engine.enqueue(run)
    tally = Tally(number)
    work(engine.work, tally)
    return time.monotonic() - tally.begin


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{given.clients} clients become ready at once")
        before = time.process_time()
        submitted_s, ended_s, tally = watched(Path(folder) / "watched", given.clients)
        cpu_s = time.process_time() - before
        print(f"{given.clients} empty runs through the same engine")
        plain_s = plain(Path(folder) / "plain", given.clients)
    found = {
        "clients": given.clients,
        "submitted_s": submitted_s,
        "ended_s": ended_s,
        "processor_s": cpu_s,
        "runs_per_s": given.clients / ended_s,
        "empty_runs_per_s": given.clients / plain_s,
        "memory_mb": tally.memory,
    }
    print(f"all submitted after {submitted_s:.1f} s, in service after {ended_s:.1f} s: ", end="")
    print(f"{found['runs_per_s']:.1f} runs/s, {cpu_s:.0f} s of processor")
    print(f"empty runs: {found['empty_runs_per_s']:.1f}/s")
    print(f"memory: {tally.memory[0]:.0f} → {tally.memory[-1]:.0f} MB")
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2))


if __name__ == "__main__":
    main()
