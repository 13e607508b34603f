"""What a job's events say of its progress, and what is kept of a job that ended.

The provider's clock only is compared with itself, for it need not agree with ours.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from fine_tune_runner.files import write_atomic
from fine_tune_runner.hosted.records import Checkpoint, RemoteEvent, RemoteJob
from fine_tune_runner.types import TrainingSummary

_STEP = re.compile(r"[Ss]tep (\d+)/(\d+)")


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Optimizer steps, the last training loss, and the seconds that the remaining steps should take."""

    step: int | None = None
    total: int | None = None
    loss: float | None = None
    eta_s: float | None = None


def progress(events: Sequence[RemoteEvent]) -> Progress:
    """The furthest step that any event reports; `events` are sorted by time."""
    points = [point for event in events if (point := _point(event)) is not None]
    if not points:
        return Progress()
    _, step, total, loss = max(points, key=lambda point: point[1])
    (begun, first, _, _), (at, last, _, _) = points[0], points[-1]
    pace = (at - begun) / (last - first) if last > first else None
    eta = None if pace is None or total is None else max(0.0, pace * (total - step))
    return Progress(step=step, total=total, loss=loss, eta_s=eta)


def _point(event: RemoteEvent) -> tuple[float, int, int | None, float | None] | None:
    """(time, step, total steps, loss) of one event, None where it reports no step."""
    data = event.data or {}
    said = _STEP.search(event.message)
    step = data.get("step") or (int(said[1]) if said else None)
    if not isinstance(step, int | float):
        return None
    total = data.get("total_steps") or (int(said[2]) if said else None)
    loss = data.get("train_loss")
    return (
        event.created_at,
        int(step),
        int(total) if isinstance(total, int | float) else None,
        float(loss) if isinstance(loss, int | float) else None,
    )


def decoded_csv(data: bytes) -> bytes:
    """A result file as plain CSV: OpenAI encodes it in base64, others do not."""
    if data.lstrip().startswith(b"step"):
        return data
    try:
        plain = base64.b64decode(data, validate=False)
    except binascii.Error:
        return data
    return plain if plain.lstrip().startswith(b"step") else data


def keep(
    folder: Path,
    job: RemoteJob,
    events: Sequence[RemoteEvent],
    checkpoints: Sequence[Checkpoint],
    metrics: bytes | None,
) -> None:
    """Write `job.json`, `provider-events.jsonl`, `checkpoints.json` and `metrics.csv` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "job.json", msgspec.json.format(msgspec.json.encode(job), indent=2) + b"\n")
    lines = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    write_atomic(folder / "provider-events.jsonl", lines)
    write_atomic(
        folder / "checkpoints.json",
        msgspec.json.format(msgspec.json.encode(list(checkpoints)), indent=2) + b"\n",
    )
    if metrics is not None:
        write_atomic(folder / "metrics.csv", decoded_csv(metrics))


def losses(folder: Path) -> tuple[int, float, float] | None:
    """(last step, first loss, last loss) of a kept `metrics.csv`; None where it reports no loss."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    rows = csv.DictReader(io.StringIO(path.read_text(errors="replace")))
    pairs = [(row["step"], row["train_loss"]) for row in rows if row.get("step") and row.get("train_loss")]
    try:
        points = [(int(float(step)), float(loss)) for step, loss in pairs]
    except ValueError:
        return None
    return (points[-1][0], points[0][1], points[-1][1]) if points else None


def summary(job: RemoteJob, folder: Path, loss_tokens: int, found: Sequence[str]) -> TrainingSummary | None:
    """Steps, tokens, loss and resolved hyperparameters; None where the provider reported no losses.

    `loss_tokens` is our own count over all epochs, `found` the ids of the checkpoints the provider kept.
    """
    known = losses(folder)
    epochs = job.resolved.get("n_epochs")
    if known is None or not isinstance(epochs, int | float):
        return None
    steps, first, last = known
    return TrainingSummary(
        steps=steps,
        epochs=float(epochs),
        tokens=job.trained_tokens or 0,
        loss_tokens=loss_tokens,
        seconds=max(0.0, (job.finished_at or job.created_at) - job.created_at),
        first_loss=first,
        final_loss=last,
        settings={
            **job.resolved,
            "seed": job.seed,
            "job_id": job.id,
            "checkpoints": list(found),
        },
    )
