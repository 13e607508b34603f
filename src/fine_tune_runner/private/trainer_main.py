"""The training process itself: spec from stdin, events to stdout as JSON lines, a checkpoint before it ends.

It stops on SIGTERM, and when stdin ends, which means that its parent is gone. It opens no socket.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.errors import RunnerError, TrainingError
from fine_tune_runner.files import locked
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.types import TrainingSummary

LOCK_WAIT_S = 60.0  # a predecessor whose parent died may still be writing its checkpoint


class Events:
    """Writes events; once nobody reads them any more, the training is to stop."""

    def __init__(self, descriptor: int, stop: threading.Event) -> None:
        self._descriptor, self._stop = descriptor, stop

    def write(self, event: str, **data: Any) -> None:
        """One line, in one write."""
        try:
            os.write(self._descriptor, msgspec.json.encode({"event": event, **data}) + b"\n")
        except BrokenPipeError:
            self._stop.set()

    def on_step(self, step: int, total: int, loss: float, tokens_per_s: float, eta_s: float) -> None:
        """As trainer.Progress."""
        self.write("step", step=step, total=total, loss=loss, tokens_per_s=tokens_per_s, eta_s=eta_s)

    def on_checkpoint(self, step: int) -> None:
        """As trainer.Progress."""
        self.write("checkpoint", step=step)


def main() -> int:
    """Exit status 0 with a `done` event, 1 with an `error` event or a traceback on stderr."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # Libraries that print must not mix with events: stdout becomes stderr, events keep the pipe.
    events = Events(os.dup(1), stop)
    os.dup2(2, 1)
    spec = msgspec.json.decode(_first_line(), type=TrainSpec)
    threading.Thread(target=_watch_parent, args=(stop,), daemon=True).start()
    try:
        summary = _train(spec, events, stop)
    except RunnerError as error:
        events.write("error", code=error.code, message=str(error))
        return 1
    events.write("done", summary=msgspec.to_builtins(summary))
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


def _train(spec: TrainSpec, events: Events, stop: threading.Event) -> TrainingSummary:
    import torch

    from fine_tune_runner.dataset.read import examples
    from fine_tune_runner.dataset.render import ChatTokenizer
    from fine_tune_runner.private.batches import Row
    from fine_tune_runner.private.trainer import train_adapter

    try:
        with locked(Path(spec.out_dir) / ".lock", wait_s=LOCK_WAIT_S):
            tokenizer = ChatTokenizer(Path(spec.base_dir))
            encoded = [tokenizer.encode(example.messages) for example in examples(Path(spec.train_path))]
            rows = [Row(tokens=row.tokens, loss_mask=row.loss_mask) for row in encoded]
            return train_adapter(spec, rows, events, stop.is_set)
    except BlockingIOError as error:
        raise TrainingError(f"{spec.out_dir}: process {error} is training here; wait for it") from None
    except torch.OutOfMemoryError as error:
        remedy = "lower training.batch_size or training.layers, and resume"
        raise TrainingError(f"the accelerator's memory is too small: {error}; {remedy}") from None


if __name__ == "__main__":
    sys.exit(main())
