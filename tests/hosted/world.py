"""A client `hre` on disk and a hosted run of it against the contract server: real journal, ledger, registry.

`python -m tests.hosted.world DATA_DIR URL KEY [POINT HOW]` runs it in a process of its own, which ends itself
at POINT of the journal or the ledger (HOW: exit, kill or raise).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.hosted.flow import Pace
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.settings import Client, Settings, load_client, load_settings
from fine_tune_runner.types import (
    Dataset,
    Estimate,
    Findings,
    Model,
    RegistryEntry,
    Run,
    RunContext,
    Step,
    TokenStats,
    VersionKey,
)
from fine_tune_runner.workflow.engine import Event
from fine_tune_runner.workflow.journal import Journal

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
PROMPT = "You are a conversion tracking expert for HRE."
CAUSES = ("duplicate_tag_install", "consent_update_missing", "currency_mismatch", "csp_blocks_tags")
BASE = "gpt-4o-mini-2024-07-18"


class Time:
    """A clock that only sleeping moves."""

    def __init__(self, start: datetime = START) -> None:
        self.now = start
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)


def row(n: int) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": PROMPT},
            {"role": "user", "content": f"Since release {n} page {n * 7} shows wrong purchases"},
            {"role": "assistant", "content": f"Root cause: {CAUSES[n % 4]}\nFix number {n}.", "weight": 1},
        ],
        "ticket": f"TCK-{n}-not-to-be-sent",
    }


def write_client(data_dir: Path, **config: Any) -> None:
    """The folder of client `hre` with version 3: 60 rows, 10 questions."""
    folder = data_dir / "hre"
    folder.mkdir(parents=True)
    config = {"client_id": "hre", "track_preference": "a"} | config
    (folder / "config.json").write_bytes(msgspec.json.encode(config))
    state = {"version": "1.2.0", "system_prompt": PROMPT}
    (folder / "account_state.json").write_bytes(msgspec.json.encode(state))
    for name, numbers in (("v3.jsonl", range(60)), ("v3_eval.jsonl", range(100, 110))):
        (folder / name).write_bytes(b"".join(msgspec.json.encode(row(n)) + b"\n" for n in numbers))


def make_settings(data_dir: Path, url: str | None, key: str | None) -> Settings:
    """Settings of a process whose environment names only these."""
    env = {"CLIENT_DATA_DIR": str(data_dir), "OPENAI_BASE_URL": url or "", "OPENAI_API_KEY": key or ""}
    return load_settings(env | {"FINE_TUNE_MODELS_DIR": str(data_dir)}, data_dir)


class HostedRun:
    """One run from its files to its registry entry; `line` is the step list that the engine is handed."""

    def __init__(
        self,
        settings: Settings,
        *,
        time: Time | None = None,
        pace: Pace | None = None,
        listener: Callable[[Event], None] = lambda _event: None,
        crash_point: Callable[[str], None] = lambda _point: None,
        **seams: Any,
    ) -> None:
        self.settings = settings
        self.time = time or Time()
        self.client: Client = load_client(settings, "hre")
        self.track = Hosted(
            settings,
            self.client,
            pace=pace or Pace(),
            clock=self.time,
            sleep=self.time.sleep,
            crash_point=crash_point,
            **seams,
        )
        self.events: list[Event] = []
        self._listener = listener
        self.journal = Journal(
            settings.data_dir, self.plan, self.time, listener=self._hear, crash_point=crash_point
        )

    def start(self, attempt: int = 1) -> Model:
        """Run to the end, or go on where it was."""
        run = self.run(attempt)
        self.journal.run(run)
        model = self.journal.value(run.run_id, Model)
        assert isinstance(model, Model)
        return model

    def run(self, attempt: int = 1) -> Run:
        dataset = read.load(self.client, 3)
        return Run(
            run_id=f"hre-v3-a-{dataset.sha256[:8]}-{attempt}",
            client_id="hre",
            version=3,
            track="A",
            track_reason="named",
            attempt=attempt,
            dataset_sha256=dataset.sha256,
            created_at=START,
            who="tester@here",
        )

    def plan(self, _run: Run) -> Sequence[Step]:
        def load(_context: RunContext) -> Dataset:
            return read.load(self.client, 3)

        def estimate(context: RunContext) -> Estimate:
            tokens = context.value(Findings).tokens
            assert tokens is not None
            context.emit("estimated")
            return self.track.estimate(context.value(Dataset), tokens)

        return (
            Step(name="load", gives=Dataset, do=load),
            Step(name="check", gives=Findings, do=_check),
            Step(name="estimate", gives=Estimate, do=estimate),
            *self.track.steps(),
            Step(name="register", gives=RegistryEntry, do=self._register),
        )

    def _register(self, context: RunContext) -> RegistryEntry:
        """As line.py does it: once a run, whatever was cut off."""
        model, run = context.value(Model), context.run
        known = edits.find(self.registry.entries(), VersionKey(version=run.version, track="A"))
        if known is not None and known.run_id == run.run_id:
            return known
        entry = RegistryEntry(
            version=run.version,
            track="A",
            model_id=model.model_id,
            eval_score=None,
            active=False,
            created_at=self.time(),
            status="eval",
            provider=model.provider,
            endpoint=model.endpoint,
            run_id=run.run_id,
        )
        self.registry.change(
            "register",
            lambda entries: edits.registered(entries, entry),
            who=run.who,
            why="trained",
            key=entry.key,
            run_id=run.run_id,
        )
        return entry

    @property
    def registry(self) -> Registry:
        return Registry(self.client.dir, self.time)

    def heard(self, name: str) -> list[dict[str, Any]]:
        """The data of every event of that name."""
        return [event.data for event in self.events if event.event == name]

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self._listener(event)


def _check(context: RunContext) -> Findings:
    dataset = context.value(Dataset)
    tokens = TokenStats(tokenizer="o200k_base", total=3000, loss=900, longest=60, longest_line=1, mean=50.0)
    return Findings(dataset_sha256=dataset.sha256, items=(), tokens=tokens)


def main(data_dir: str, url: str, key: str, point: str = "", how: str = "exit") -> None:
    """Run in this process, and end it at `point`."""

    def crash(reached: str) -> None:
        if reached == point:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise ZeroDivisionError("a bug of ours")
            os._exit(9)

    HostedRun(make_settings(Path(data_dir), url, key), crash_point=crash).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
