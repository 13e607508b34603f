"""One client's adapter in training: its schedule, checkpoints, and how far it is.

Several learn at once on one base, each as if it were alone. Knows batches, not models and no tensors.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from fine_tune_runner.errors import TrainingError
from fine_tune_runner.private.backend import Trainable
from fine_tune_runner.private.batches import Batch
from fine_tune_runner.private.checkpoint import Checkpoint, Counters, latest, save
from fine_tune_runner.settings import TrainingConfig

PACE_STEPS = 10  # speed and ETA are means over so many steps


class Progress(Protocol):
    """Whom a training tells how far it is."""

    def on_step(self, step: int, total: int, loss: float, tokens_per_s: float, eta_s: float) -> None:
        """After each optimizer step, counted from 1.

        `tokens_per_s` counts data-set tokens, the shared prefix in every row and padding in none, so that it
        compares with trainers that read whole rows.
        """
        ...

    def on_checkpoint(self, step: int) -> None:
        """After the checkpoint of `step` is safe on disk."""
        ...


def learning_rate(step: int, total: int, *, peak: float, warmup: float) -> float:
    """The rate of step `step`, counted from 0: linear rise over `warmup * total` steps, cosine to 0."""
    rise = math.ceil(warmup * total)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2


class Learner:
    """Goes on from the newest checkpoint of this very training; `batch` is what the next step is about.

    `batches(epoch)` must give the same on every call, and as many every epoch. `training` is resolved. Once
    `error` is set the weights move no more; the rows stay in the plan, so that others see the same shapes.
    """

    def __init__(
        self,
        trainable: Trainable,
        batches: Callable[[int], Sequence[Batch]],
        training: TrainingConfig,
        progress: Progress,
        *,
        checkpoints: Path,
        spec_sha256: str,
    ) -> None:
        self.trainable = trainable
        self.error: TrainingError | None = None
        self.step = 0
        self.counters = Counters(
            tokens=0, loss_tokens=0, seconds=0.0, first_loss=math.nan, final_loss=math.nan
        )
        self._batches, self._training, self._progress = batches, training, progress
        self._checkpoints, self._spec_sha256 = checkpoints, spec_sha256
        self._planned, self._plan = 0, batches(0)
        self.total = len(self._plan) * (training.epochs or 1)
        self._pace: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS)
        if found := latest(checkpoints, spec_sha256):
            self._restore(found)
        self._saved = self.step

    @property
    def done(self) -> bool:
        """Whether all steps are taken."""
        return self.step >= self.total

    @property
    def batch(self) -> Batch:
        """The rows of the next step."""
        epoch, place = divmod(self.step, len(self._plan))
        if epoch != self._planned:
            self._planned, self._plan = epoch, self._batches(epoch)
        return self._plan[place]

    def keep(self, *, now: bool) -> None:
        """Write a checkpoint where one is due, or where one is asked for and steps are not on disk yet."""
        due = now or self.step % self._training.checkpoint_every == 0
        if self.error or self.step == self._saved or not due:
            return
        save(self._checkpoints, self._snapshot())
        self._saved = self.step
        self._progress.on_checkpoint(self.step)

    def take_step(self, loss: float, seconds: float) -> None:
        """Move the weights along the gradients that lie in them, and forget these; `loss` is before the step.

        Sets `error`, and moves nothing, where the loss or its gradient is not finite.
        """
        batch = self.batch
        training, number = self._training, self.step + 1
        rate = learning_rate(
            self.step, self.total, peak=training.learning_rate or 0.0, warmup=training.warmup
        )
        norm = self.trainable.clip(training.max_grad_norm)
        if self.error is None and not (math.isfinite(loss) and math.isfinite(norm)):
            self.error = TrainingError(
                f"step {number}: loss {loss}, gradient norm {norm}: not finite; lower training.learning_rate "
                f"(this step: {rate:.2g}) or set training.dtype to float32, and train anew with --again"
            )
        if self.error is None:
            self.trainable.step(rate)
        self.trainable.forget()
        self.step = number
        if self.error is None:
            self._tell(batch, loss, seconds)

    def _tell(self, batch: Batch, loss: float, seconds: float) -> None:
        counters = self.counters
        first = counters["first_loss"]
        self.counters = Counters(
            tokens=counters["tokens"] + batch.tokens,
            loss_tokens=counters["loss_tokens"] + batch.loss_tokens,
            seconds=counters["seconds"] + seconds,
            first_loss=loss if math.isnan(first) else first,
            final_loss=loss,
        )
        self._pace.append((seconds, batch.tokens))
        spent, tokens = (sum(column) for column in zip(*self._pace, strict=True))
        eta_s = spent / len(self._pace) * (self.total - self.step)
        self._progress.on_step(self.step, self.total, loss, tokens / spent, eta_s)

    def _snapshot(self) -> Checkpoint:
        return Checkpoint(
            spec_sha256=self._spec_sha256,
            step=self.step,
            counters=self.counters,
            state=self.trainable.state(),
        )

    def _restore(self, found: Checkpoint) -> None:
        self.trainable.restore(found["state"], found["step"])
        self.step, self.counters = found["step"], found["counters"]
