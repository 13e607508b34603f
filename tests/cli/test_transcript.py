"""What a run at an Ollama host prints: progress of long copies now and then, and what was compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fine_tune_runner.cli.common import costs
from fine_tune_runner.cli.transcript import Transcript, Transcripts
from fine_tune_runner.types import Estimate
from fine_tune_runner.workflow.engine import Event

RUN = "{}-v1-b-00000000-1"
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


def test_calls_to_a_judge_are_not_counted_as_answers(capsys: pytest.CaptureFixture[str]) -> None:
    transcript = Transcript("HRE", live=False)
    say(transcript, "evaluation started", 0, holdout="v1_eval.jsonl")
    say(transcript, "evaluation progress", 20, model="v1 (B)", done=5, total=40)
    say(transcript, "evaluation progress", 40, model="judge reader:70b", done=3, total=8)
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "    [00:20] 5/40 answers",
        "    [00:40] 3/8 calls to judge reader:70b",
    ]


def loaded(transcripts: Transcripts, client_id: str) -> None:
    transcripts(
        Event(at=BEGAN, event="loaded", run_id=RUN.format(client_id), data={"path": "p", "records": 52})
    )


def test_several_clients_have_their_id_before_each_line_and_one_has_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = Transcripts({"hre": "HRE", "small-shop": "SHOP"}, live=False)
    for client_id in ("small-shop", "hre", "another"):
        loaded(both, client_id)
    loaded(Transcripts({"hre": "HRE"}, live=False), "hre")
    assert capsys.readouterr().out.splitlines() == [
        "small-shop │   Loading JSONL...           ✓ p (52 records)",
        "hre        │   Loading JSONL...           ✓ p (52 records)",
        "  Loading JSONL...           ✓ p (52 records)",
    ]


def test_a_terminal_has_a_bar_for_each_client_that_trains(capsys: pytest.CaptureFixture[str]) -> None:
    both = Transcripts({"hre": "HRE", "rtt": "RTT"}, live=True)
    data = {"base": "tiny", "rank": 4, "layers": 2, "steps": 8, "together": 2}
    step = {"step": 3, "total": 8, "loss": 1.5, "tokens_per_s": 100.0, "eta_s": 9.0}
    for client_id in ("hre", "rtt"):
        both(Event(at=BEGAN, event="train started", run_id=RUN.format(client_id), data=data))
    for client_id in ("hre", "rtt"):
        both(Event(at=BEGAN, event="train step", run_id=RUN.format(client_id), data=step))
    both.close()
    both(Event(at=BEGAN, event="train step", run_id=RUN.format("hre"), data=step))  # after a question
    both.close()
    lines, others = capsys.readouterr().out.splitlines(), "together with 1 other"
    assert [line for line in lines if "Training" in line] == [
        f"{client_id} │   Training LoRA...           tiny · rank 4 · 2 layers · 8 steps · {others}"
        for client_id in ("hre", "rtt")
    ]


def test_the_costs_of_several_runs_are_named_each_and_summed() -> None:
    def estimate(cost_usd: float | None) -> Estimate:
        return Estimate(
            dataset_sha256="",
            tokens_per_epoch=1,
            epochs=1,
            steps=1,
            cost_usd=cost_usd,
            price_source="list of 3 May",
        )

    assert costs({"hre-v1": estimate(2.0)}) == "this run costs about $2.00 (list of 3 May)"
    assert costs({"hre-v1": estimate(2.0), "rtt-v1": estimate(3.5)}) == (
        "these 2 runs cost about $5.50 together "
        "(hre-v1 about $2.00 (list of 3 May); rtt-v1 about $3.50 (list of 3 May))"
    )
    assert "about $2.00 and what is not known together" in costs({"a": estimate(2.0), "b": estimate(None)})
