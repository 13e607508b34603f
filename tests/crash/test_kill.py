"""Ctrl-C, kill -9 and a second submit, on real processes: nothing lost, nothing done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.small_client import Result, Workplace

STEPS = ("check", "train", "export", "confirm", "register", "evaluate", "decide", "promote")
SUBMIT = ("submit", "--client", "small", "--version", "1")


def events(place: Workplace) -> list[dict[str, object]]:
    paths = list(place.client.glob("runs/*/events.jsonl"))
    if not paths:
        return []
    data = paths[0].read_bytes()
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def wait_for(child: subprocess.Popen[str], seen: Callable[[], bool], limit_s: float = 120) -> None:
    """Look until `seen`; fail where the child ends first."""
    deadline = time.monotonic() + limit_s
    while not seen():
        assert child.poll() is None, child.communicate()[0]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def started(place: Workplace, step: str, after: int) -> Callable[[], bool]:
    def seen() -> bool:
        return any(
            e["event"] == "step started" and e["data"] == {"step": step} for e in events(place)[after:]
        )

    return seen


def slow(place: Workplace) -> None:
    """Enough steps to stop in the middle of."""
    place.write_config(training=place.config["training"] | {"epochs": 4})


def trainers(place: Workplace) -> list[int]:
    """Processes of the trainer that work in this data folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes()
            if b"trainer_main" in command and str(place.folder) in str((path / "cwd").readlink()):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def finish(child: subprocess.Popen[str]) -> Result:
    out, _ = child.communicate(timeout=120)
    return Result(child.returncode, out, out)


def test_a_kill_at_the_beginning_of_every_step_loses_nothing(place: Workplace) -> None:
    for step in STEPS:
        seen = len(events(place))
        child = place.start(*SUBMIT)
        wait_for(child, started(place, step, seen))
        os.killpg(child.pid, signal.SIGKILL)
        finish(child)
    assert place.run(*SUBMIT).code == 0
    (entry,) = place.registry()
    assert entry["active"]
    assert place.run("verify").code == 0
    order = ["load", "check", "estimate", *STEPS[1:]]
    begun = [order.index(e["data"]["step"]) for e in events(place) if e["event"] == "step started"]  # type: ignore[index]
    # Each start goes on at the step that was killed (or at the next one, where it was just on record).
    assert begun == sorted(begun)
    assert set(begun) == set(range(len(order)))


def test_kill_9_in_mid_training_goes_on_from_the_checkpoint(place: Workplace) -> None:
    slow(place)
    child = place.start(*SUBMIT)
    wait_for(child, lambda: sum(e["event"] == "train checkpoint" for e in events(place)) >= 4)
    child.kill()
    finish(child)
    deadline = time.monotonic() + 30
    while trainers(place) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert trainers(place) == [], "the trainer outlived its parent"
    before = len(events(place))
    assert place.run(*SUBMIT).code == 0
    steps = [e["data"]["step"] for e in events(place)[before:] if e["event"] == "train step"]  # type: ignore[index]
    assert steps[0] >= 4, "training began from the start again"
    assert steps[-1] == 32


def test_kill_9_of_the_trainer_alone_is_one_line_and_can_be_gone_on_with(place: Workplace) -> None:
    slow(place)
    child = place.start(*SUBMIT)
    wait_for(child, lambda: any(e["event"] == "train checkpoint" for e in events(place)))
    for pid in trainers(place):
        os.kill(pid, signal.SIGKILL)
    result = finish(child)
    assert result.code == 1
    assert "the training process was killed by SIGKILL" in result.out
    assert "Traceback" not in result.out
    assert place.run(*SUBMIT).code == 0
    assert [row["active"] for row in place.registry()] == [True]


def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(place: Workplace) -> None:
    slow(place)
    child = place.start(*SUBMIT)
    wait_for(child, lambda: any(e["event"] == "train checkpoint" for e in events(place)))
    os.kill(child.pid, signal.SIGINT)
    result = finish(child)
    (run,) = place.client.glob("runs/*")
    assert result.code == 130
    assert f"fine-tune resume {run.name}" in result.out
    assert "Traceback" not in result.out
    assert trainers(place) == []
    assert "training" not in place.run("status").out
    assert place.run("resume", run.name).code == 0
    assert [row["active"] for row in place.registry()] == [True]


def test_cancel_from_another_terminal_stops_the_run(place: Workplace) -> None:
    slow(place)
    child = place.start(*SUBMIT)
    wait_for(child, lambda: any(e["event"] == "train checkpoint" for e in events(place)))
    (run,) = place.client.glob("runs/*")
    assert "training" in place.run("status").out
    assert place.run("cancel", run.name).code == 0
    assert finish(child).code == 130
    assert events(place)[-1]["event"] == "run cancelled"
    assert place.run("resume", run.name).code == 0


def test_a_second_submit_of_a_live_run_names_run_and_process(place: Workplace) -> None:
    slow(place)
    child = place.start(*SUBMIT)
    wait_for(child, started(place, "train", 0))
    second = place.run(*SUBMIT)
    assert second.code == 1
    (run,) = place.client.glob("runs/*")
    assert f"{run.name} is alive in process {child.pid}" in second.err
    assert place.run("forget", "--client", "small", "--yes").code == 1
    os.kill(child.pid, signal.SIGINT)
    assert finish(child).code == 130


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(place: Workplace) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place.client)]
    kept = {path.name: path.read_bytes() for path in place.client.iterdir()}
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    try:
        for name, data in kept.items():
            (place.client / name).write_bytes(data)
        result = place.run(*SUBMIT)
        assert result.code == 1
        assert "No space left on device" in result.err
        assert "Traceback" not in result.err
        subprocess.run(["mount", "-o", "remount,size=64m", str(place.client)], check=True)
        assert place.run(*SUBMIT).code == 0
        assert [row["active"] for row in place.registry()] == [True]
    finally:
        subprocess.run(["umount", str(place.client)], check=True)
