"""The training process itself: specs from stdin, events to stdout as JSON lines, checkpoints before it ends.

It stops on SIGTERM, and when stdin ends, which means that its parent is gone. It opens no socket.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import RunnerError, TrainingError
from fine_tune_runner.files import locked
from fine_tune_runner.private.batches import Row
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.types import TrainingSummary

LOCK_WAIT_S = 60.0  # a predecessor whose parent died may still be writing its checkpoint


class Events:
    """Writes events of the training at `place` of the list; once nobody reads them, it is to stop."""

    def __init__(self, descriptor: int, stop: threading.Event, place: int | None = None) -> None:
        self._descriptor, self._stop, self._place = descriptor, stop, place

    def of(self, place: int) -> Events:
        """The events of one training."""
        return Events(self._descriptor, self._stop, place)

    def write(self, event: str, **data: Any) -> None:
        """One line, in one write."""
        try:
            line = {"event": event, "place": self._place, **data}
            os.write(self._descriptor, msgspec.json.encode(line) + b"\n")
        except BrokenPipeError:
            self._stop.set()

    def end(self, result: TrainingSummary | RunnerError) -> None:
        """The last event of a training, or of all of them where it has no place."""
        if isinstance(result, RunnerError):
            self.write("error", code=result.code, message=str(result))
        else:
            self.write("done", summary=msgspec.to_builtins(result))

    def on_step(self, step: int, total: int, loss: float, tokens_per_s: float, eta_s: float) -> None:
        """As learner.Progress."""
        self.write("step", step=step, total=total, loss=loss, tokens_per_s=tokens_per_s, eta_s=eta_s)

    def on_checkpoint(self, step: int) -> None:
        """As learner.Progress."""
        self.write("checkpoint", step=step)


def main() -> int:
    """Exit status 0 with a `done` or `error` event each; 1 with one `error` for all, or a traceback."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Libraries that print must not mix with events: stdout becomes stderr, events keep the pipe.
    events = Events(os.dup(1), stop)
    os.dup2(2, 1)
    specs = msgspec.json.decode(_first_line(), type=threadsafe(list[TrainSpec]))
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    try:
        results = _train(specs, events, stop)
    except RunnerError as error:
        events.end(error)
        return 1
    for place, result in enumerate(results):
        events.of(place).end(result)
    return 0


def _first_line() -> bytes:
    """Byte by byte from the descriptor, so that no buffer and no lock of sys.stdin is held at the end."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(0, 1)):
        line += byte
    return line


def _watch_parent(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _train(
    specs: Sequence[TrainSpec], events: Events, stop: threading.Event
) -> list[TrainingSummary | RunnerError]:
    from fine_tune_runner.private.trainer import train_adapters

    with ExitStack() as stack:
        for folder in sorted(spec.out_dir for spec in specs):  # one order, so that two never wait in a ring
            stack.enter_context(_locked(Path(folder)))
        progress = [events.of(place) for place in range(len(specs))]
        return train_adapters(specs, [_rows(spec) for spec in specs], progress, stop.is_set)


def _rows(spec: TrainSpec) -> list[Row]:
    from fine_tune_runner.dataset.read import examples
    from fine_tune_runner.dataset.render import ChatTokenizer

    tokenizer = ChatTokenizer(Path(spec.base_dir))
    encoded = (tokenizer.encode(example.messages) for example in examples(Path(spec.train_path)))
    return [Row(tokens=row.tokens, loss_mask=row.loss_mask) for row in encoded]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with locked(folder / ".lock", wait_s=LOCK_WAIT_S):
            yield
    except BlockingIOError as error:
        raise TrainingError(f"{folder}: process {error} is training here; wait for it") from None


if __name__ == "__main__":
    sys.exit(main())
