"""The training process: finished, stopped, killed, orphaned, failed - on a tiny random Llama, for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.errors import DataError, Interrupted, MissingModel, TrainingError
from fine_tune_runner.private.process import Event, child_environment, train
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.settings import TrainingConfig

SHORT = TrainingConfig(rank=2, layers=1, epochs=2, batch_size=4, checkpoint_every=3, device="cpu", threads=1)
LONG = msgspec.structs.replace(SHORT, epochs=100)
QUESTIONS = ("Purchases count twice", "No value in PMAX", "Consent banner is late", "Leads are missing")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base"))


def spec_in(folder: Path, base: Path, training: TrainingConfig = SHORT) -> TrainSpec:
    path = folder / "v1.jsonl"
    with path.open("w") as file:
        for number in range(12):
            question = QUESTIONS[number % 4]
            turns = [
                ("system", "You are a tracking expert."),
                ("user", f"{question} {number}"),
                ("assistant", f"Root cause: {question}."),
            ]
            messages = [{"role": role, "content": content} for role, content in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    return TrainSpec(
        base_dir=str(base), train_path=str(path), out_dir=str(folder / "attempt-1"), training=training
    )


class Watch:
    """Takes events; `after` runs once, at the first event of that step."""

    def __init__(self, at: int | None = None, after: Callable[[], None] = lambda: None) -> None:
        self.events: list[Event] = []
        self._at, self._after = at, after

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        if event["event"] == "step" and event["step"] == self._at:
            self._after()

    def steps(self) -> list[int]:
        return [event["step"] for event in self.events if event["event"] == "step"]


def checkpoints(spec: TrainSpec) -> list[str]:
    return sorted(path.name for path in spec.checkpoint_dir.iterdir())


def trainers_of(pid: int) -> list[int]:
    """Training processes that are children of `pid`."""
    ps = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=2) for line in ps.stdout.splitlines()]
    return [int(line[0]) for line in lines if int(line[1]) == pid and "trainer_main" in line[2]]


def kill_trainer() -> None:
    (pid,) = trainers_of(os.getpid())
    os.kill(pid, signal.SIGKILL)


def ended(pid: int) -> bool:
    """Gone, or a zombie where nobody reaps orphans."""
    ps = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return not ps.stdout.strip() or ps.stdout.startswith("Z")


def wait_until(done: Callable[[], bool], what: str, limit_s: float = 120.0) -> None:
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_training_in_its_own_process_leaves_a_peft_folder(tmp_path: Path, base: Path) -> None:
    spec, watch = spec_in(tmp_path, base), Watch()
    summary = train(spec, watch.on_event, lambda: False)
    assert watch.steps() == [1, 2, 3, 4, 5, 6]
    assert summary.steps == 6
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        p.name for p in spec.adapter_dir.iterdir()
    }

    again = Watch()
    assert train(spec, again.on_event, lambda: False) == summary
    assert again.events == []


def test_a_stop_keeps_a_checkpoint_and_resume_gives_the_same_bits(tmp_path: Path, base: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = spec_in(
        tmp_path / "whole", base, msgspec.structs.replace(SHORT, epochs=25, checkpoint_every=1000)
    )
    train(whole, Watch().on_event, lambda: False)

    spec, watch = spec_in(tmp_path, base, whole.training), Watch()
    with pytest.raises(Interrupted, match=r"training stopped; \d+ of 75 steps are kept"):
        train(spec, watch.on_event, lambda: len(watch.steps()) >= 4)
    kept = int(checkpoints(spec)[-1][5:13])
    assert kept == watch.steps()[-1]

    rest = Watch()
    train(spec, rest.on_event, lambda: False)
    assert rest.steps()[0] == kept + 1
    expected, got = (load_file(str(s.adapter_dir / "adapter_model.safetensors")) for s in (whole, spec))
    assert all(got[key].equal(value) for key, value in expected.items())


def test_a_killed_child_is_named_with_its_signal(tmp_path: Path, base: Path) -> None:
    spec = spec_in(tmp_path, base, LONG)
    watch = Watch(at=4, after=kill_trainer)
    with pytest.raises(
        TrainingError, match=r"killed by SIGKILL; probably out of memory: lower training\.batch"
    ):
        train(spec, watch.on_event, lambda: False)
    assert checkpoints(spec)


def test_ctrl_c_stops_the_child_with_a_checkpoint(tmp_path: Path, base: Path) -> None:
    spec = spec_in(tmp_path, base, LONG)
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        watch = Watch()

        def stopping() -> bool:
            if len(watch.steps()) == 5:
                raise KeyboardInterrupt
            return False

        with pytest.raises(Interrupted, match="steps are kept"):
            train(spec, watch.on_event, stopping)
    finally:
        signal.signal(signal.SIGINT, old)
    assert checkpoints(spec)
    assert not trainers_of(os.getpid())


PARENT = """
import sys, msgspec
from fine_tune_runner.private.process import train
from fine_tune_runner.private.train_spec import TrainSpec
spec = msgspec.json.decode(sys.argv[1], type=TrainSpec)
train(spec, lambda event: print(event["step"], flush=True), lambda: False)
"""


def test_an_orphan_writes_a_checkpoint_and_ends(tmp_path: Path, base: Path) -> None:
    spec = spec_in(tmp_path, base, msgspec.structs.replace(LONG, checkpoint_every=1000))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, msgspec.json.encode(spec).decode()], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    try:
        assert parent.stdout.readline() == "1\n"
        (child,) = trainers_of(parent.pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until(lambda: spec.checkpoint_dir.exists() and bool(checkpoints(spec)), "no checkpoint")
    wait_until(lambda: ended(child), "the orphan still runs")
    assert not spec.adapter_dir.exists()


def test_a_fault_of_the_data_comes_back_as_itself(tmp_path: Path, base: Path) -> None:
    spec = spec_in(tmp_path, base)
    Path(spec.train_path).write_text("{broken\n")
    with pytest.raises(DataError, match="line 1"):
        train(spec, Watch().on_event, lambda: False)


def test_a_missing_base_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"config\.json is missing"):
        train(spec_in(tmp_path, tmp_path / "none"), Watch().on_event, lambda: False)
    assert not (tmp_path / "attempt-1").exists()


def test_a_crash_carries_its_last_words(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(TrainingError, match=r"exit status 1: .*trainer\.log"):
        train(spec_in(tmp_path, folder), Watch().on_event, lambda: False)


def test_the_child_gets_no_secrets_and_no_network() -> None:
    env = child_environment({"PATH": "/bin", "OPENAI_API_KEY": "a", "HF_TOKEN": "b", "DB_PASSWORD": "c"})
    assert set(env) >= {"PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}
    assert not {"OPENAI_API_KEY", "HF_TOKEN", "DB_PASSWORD"} & set(env)
