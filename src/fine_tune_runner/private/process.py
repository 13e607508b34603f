"""Training in a process of its own: start it, pass on its events, stop it, and say how it ended.

The child (trainer_main.py) gets its specs as the first line of stdin, which then stays open: its end tells
the child that this process is gone. No torch here.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import Interrupted, RunnerError, TrainingError
from fine_tune_runner.policy import guard
from fine_tune_runner.private.train_spec import TrainSpec, fingerprint, finished
from fine_tune_runner.types import TrainingSummary

CHILD = ("-P", "-m", "fine_tune_runner.private.trainer_main")  # -P: the working folder is no import path
LOG = "trainer.log"
POLL_S = 0.1
STOP_S = 120.0  # a step in progress ends first, and on a slow machine with a large base that takes its time
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|^OPENAI_", re.IGNORECASE)
Event = dict[str, Any]
Result = TrainingSummary | RunnerError


def train(
    spec: TrainSpec,
    on_event: Callable[[Event], None],
    stopping: Callable[[], bool],
    *,
    stop_s: float = STOP_S,
) -> TrainingSummary:
    """`train_together` for one; raises what went wrong with it."""
    (result,) = train_together([spec], lambda _place, event: on_event(event), stopping, stop_s=stop_s)
    if isinstance(result, RunnerError):
        raise result
    return result


def train_together(
    specs: Sequence[TrainSpec],
    on_event: Callable[[int, Event], None],
    stopping: Callable[[], bool],
    *,
    stop_s: float = STOP_S,
) -> list[Result]:
    """Train on one loaded base in a child process; a training that has already ended is not run again.

    All specs name one base, layers, device, dtype and threads. Each result has the place of its spec: a
    summary, or what went wrong with this one alone. Events come with that place:
    `{"event": "step", step, total, loss, tokens_per_s, eta_s}` and `{"event": "checkpoint", step}`.
    Once `stopping()` is true, or on Ctrl-C, the child is asked to write checkpoints and end; it is killed
    `stop_s` later. Raises Interrupted then; TrainingError where the child fails or is killed, with its last
    words; and what the child itself raises of errors.py for all of them. What the child says on stderr stays
    in `trainer.log` of the first `out_dir`.
    """
    results: dict[int, Result] = {}
    for place, spec in enumerate(specs):
        if done := finished(spec, fingerprint(spec)):
            results[place] = done
    waiting = [place for place in range(len(specs)) if place not in results]
    if waiting:
        sitting = [specs[place] for place in waiting]
        ended = _sitting(sitting, lambda at, event: on_event(waiting[at], event), stopping, stop_s)
        results |= dict(zip(waiting, ended, strict=True))
    return [results[place] for place in range(len(specs))]


def _sitting(
    specs: Sequence[TrainSpec],
    on_event: Callable[[int, Event], None],
    stopping: Callable[[], bool],
    stop_s: float,
) -> list[Result]:
    for spec in specs:
        Path(spec.out_dir).mkdir(parents=True, exist_ok=True)
    log_path = Path(specs[0].out_dir) / LOG
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, *CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=guard.child_environment(child_environment(os.environ)),
            start_new_session=True,  # Ctrl-C in the terminal reaches this process only, which then asks
        )
    try:
        _send(child, specs)
        return _follow(child, len(specs), on_event, stopping, stop_s, log_path)
    finally:
        _end(child, stop_s)


def child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` without secrets, offline, and with memory kept for reuse.

    The last three are glibc's mallopt(3): freed tensors are not handed back to the kernel, which saves a
    tenth of the time on the CPU. Other systems ignore them.
    """
    kept = {name: value for name, value in env.items() if not SECRET.search(name)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        "MALLOC_TOP_PAD_": str(64 << 20),
    }


def _follow(
    child: subprocess.Popen[bytes],
    count: int,
    on_event: Callable[[int, Event], None],
    stopping: Callable[[], bool],
    stop_s: float,
    log: Path,
) -> list[Result]:
    """Read events until every training has ended; at most one request to stop, then a deadline."""
    events = _events(child)
    deadline: float | None = None
    results: dict[int, Result] = {}
    while len(results) < count:
        try:
            if deadline is None and stopping():
                deadline = _ask_to_stop(child, stop_s)
            elif deadline is not None and time.monotonic() > deadline:
                child.kill()
            event = events.get(timeout=POLL_S)
        except queue.Empty:
            continue
        except KeyboardInterrupt:
            deadline = deadline or _ask_to_stop(child, stop_s)
            continue
        if event is None:
            raise _death(child.wait(), log, deadline is not None)
        place = event.pop("place")
        if event["event"] == "done":
            results[place] = msgspec.convert(event["summary"], threadsafe(TrainingSummary))
        elif event["event"] == "error" and place is None:
            raise _error(event)
        elif event["event"] == "error":
            results[place] = _error(event)
        else:
            on_event(place, event)
    return [results[place] for place in range(count)]


def _send(child: subprocess.Popen[bytes], specs: Sequence[TrainSpec]) -> None:
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once; its exit status says more
        child.stdin.write(msgspec.json.encode(specs) + b"\n")
        child.stdin.flush()


def _events(child: subprocess.Popen[bytes]) -> queue.SimpleQueue[Event | None]:
    """Lines of the child's stdout as they come; None at its end."""
    events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()

    def read(stream: IO[bytes]) -> None:
        for line in stream:
            with contextlib.suppress(msgspec.DecodeError):  # torn by a kill
                events.put(msgspec.json.decode(line))
        events.put(None)

    threading.Thread(target=read, args=(child.stdout,), daemon=True).start()
    return events


def _ask_to_stop(child: subprocess.Popen[bytes], stop_s: float) -> float:
    child.send_signal(signal.SIGTERM)
    return time.monotonic() + stop_s


def _end(child: subprocess.Popen[bytes], stop_s: float) -> None:
    """Leave no child behind, whatever happened here: the end of stdin asks it to stop, then it is killed."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    try:
        child.wait(stop_s)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()
    child.stdout.close()


def _error(event: Event) -> RunnerError:
    kinds = {kind.code: kind for kind in RunnerError.__subclasses__()}
    return kinds.get(event["code"], TrainingError)(event["message"])


def _death(status: int, log: Path, asked: bool) -> RunnerError:
    """Why a child ended without a word on its stdout."""
    if asked and status < 0:
        return Interrupted(
            "training stopped before it could write a checkpoint; resume goes on from the last"
        )
    last = " | ".join(log.read_text(errors="replace").split("\n")[-4:]).strip(" |") or "nothing on stderr"
    if status >= 0:
        return TrainingError(f"the training process ended with exit status {status}: {last}; see {log}")
    name = signal.Signals(-status).name
    hint = "; probably out of memory: lower training.batch_size or training.layers" if status == -9 else ""
    return TrainingError(
        f"the training process was killed by {name}{hint}; resume the run ({last}; see {log})"
    )
