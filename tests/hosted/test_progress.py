"""What a job's events say of its progress."""

from __future__ import annotations

import base64
from pathlib import Path

from fine_tune_runner.hosted.progress import decoded_csv, losses, progress
from fine_tune_runner.hosted.records import RemoteEvent

CSV = b"step,train_loss,train_accuracy\n1,2.0,0.1\n2,1.5,0.2\n3,,\n"


def metrics(at: int, step: int, total: int | None = 100, loss: float = 1.0) -> RemoteEvent:
    data = {"step": step, "train_loss": loss} | ({"total_steps": total} if total else {})
    return RemoteEvent(id=f"e{at}", created_at=at, type="metrics", data=data)


def test_no_events_no_progress() -> None:
    assert progress([]).step is None


def test_eta_is_the_pace_so_far_over_the_steps_left() -> None:
    at = progress([metrics(0, 10), metrics(30, 20), metrics(90, 40, loss=0.5)])
    # 30 steps took 90 s, 60 are left.
    assert (at.step, at.total, at.loss, at.eta_s) == (40, 100, 0.5, 180.0)


def test_one_step_alone_tells_no_pace() -> None:
    assert progress([metrics(0, 10)]).eta_s is None


def test_a_total_that_is_not_told_gives_no_eta() -> None:
    assert progress([metrics(0, 1, None), metrics(9, 2, None)]).eta_s is None


def test_steps_that_stand_in_the_message_only() -> None:
    at = progress([RemoteEvent(id="1", message="Step 12/112: training loss=1.23")])
    assert (at.step, at.total) == (12, 112)


def test_csv_plain_and_base64_and_neither() -> None:
    assert decoded_csv(CSV) == decoded_csv(base64.b64encode(CSV)) == CSV
    assert decoded_csv(b"not a table") == b"not a table"


def test_losses_skip_rows_without_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_bytes(CSV)
    assert losses(tmp_path) == (2, 2.0, 1.5)
    (tmp_path / "metrics.csv").write_bytes(b"<html>")
    assert losses(tmp_path) is None
