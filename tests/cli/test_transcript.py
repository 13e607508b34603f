"""What a run at an Ollama host prints: progress of long copies now and then, and what was compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fine_tune_runner.cli.transcript import Transcript
from fine_tune_runner.workflow.engine import Event

BEGAN = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def say(transcript: Transcript, event: str, after_s: float, **data: Any) -> None:
    transcript(Event(at=BEGAN + timedelta(seconds=after_s), event=event, run_id="r", data=data))


def test_a_long_upload_shows_how_far_it_is_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = Transcript("HRE", live=False)
    for second in range(25):
        say(transcript, "upload progress", second, done=second * 100_000_000, total=2_500_000_000)
    say(transcript, "upload progress", 25, done=2_500_000_000, total=2_500_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "    [00:10] 1000 of 2500 MB sent",
        "    [00:20] 2000 of 2500 MB sent",
    ]


def test_parity_is_one_line_with_its_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {"served_local": 0.0153, "served_bare": 1.2387, "tolerance": 0.1}
    say(Transcript("HRE", live=False), "compared", 0, **numbers)
    assert capsys.readouterr().out == (
        "  Checking parity...         ✓ 0.015 nats from the trained model (at most 0.1), "
        "1.239 from the base\n"
    )


def test_the_export_says_which_way_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    say(Transcript("HRE", live=False), "exported", 0, path="a/model.gguf", size_mb=12.0, way="merged, Q8_0")
    assert capsys.readouterr().out == "  Exporting GGUF...          ✓ a/model.gguf (12.0 MB, merged, Q8_0)\n"
