"""The whole line as a user runs it: real training, export, serving and scoring on a tiny random base."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess

from fine_tune_runner.cli.transcript import RULE
from tests.small_client import Workplace, write_version


def test_submit_trains_evaluates_promotes_and_prints_the_transcript(place: Workplace) -> None:
    result = place.submit()
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[:4] == [
        RULE,
        "  Fine-Tune Runner — SMALL v1 · Track B (embedded)",
        RULE,
        f"  Loading JSONL...           ✓ {place.data}/small/v1.jsonl (60 records)",
    ]
    for label in (
        r"  Training LoRA\.\.\.           \S+",
        r"    \[\d\d:\d\d\] step 8/8 — loss \d\.\d{3}, \d+ tokens/s, ETA 00:00",
        r"  Exporting GGUF\.\.\.          ✓ runs/small-v1-b-[0-9a-f]{8}-1/attempt-1/adapter\.gguf",
        r"  Creating model\.\.\.          ✓ small-client:v1",
        r"  Confirming\.\.\.              ✓ ",
        r"  Fine-tuned model:          small-client:v1",
        r"  Running eval harness \(holdout: v1_eval\.jsonl\)\.\.\.",
        r"    Problem recall:          ✓ \d+%",
        r"    Solution accuracy:       ✓ -?\d\.\d\d cosine sim",
        r"    Base model:              – ",
        r"  Registering model\.\.\.       ✓ model_registry\.json updated",
        r"  Promoting to active\.\.\.     ✓ small → small-client:v1",
        r"  ✓ SMALL v1 live — ready for routing",
        r"  Next: openclaw register --client small --model small-client:v1",
    ):
        assert any(re.match(label, line) for line in lines), f"{label}\n{result.out}"
    (entry,) = place.registry()
    assert (entry["active"], entry["model_id"], entry["track"]) == (True, "small-client:v1", "B")
    assert "\x1b" not in result.out

    answer = place.run("ask", "--client", "small", "Purchases count twice since Monday")
    assert (answer.code, len(answer.out) > 0) == (0, True), answer.err
    again = place.submit()
    assert (again.code, "SMALL v1 live" in again.out) == (0, True)
    assert len(list(place.client.glob("runs/*"))) == 1


def test_an_adapter_that_is_gone_with_its_answers_holds_the_next_version_and_names_the_reason(
    place: Workplace,
) -> None:
    assert place.submit().code == 0
    next(place.client.glob("runs/*/attempt-1/adapter.gguf")).unlink()
    next(place.client.glob("runs/*/answers/1-B.jsonl")).unlink()
    write_version(place.client, 2)
    result = place.submit(2, "--json")
    assert result.code == 4, result.out
    assert [row["status"] for row in place.registry()] == ["active", "held"]
    (alert,) = [event for event in result.events if event["event"] == "alert"]
    assert "adapter.gguf is missing" in alert["reason"]
    assert alert["reason"].endswith("; nothing it answered is stored")
    assert result.events[-1]["exit_code"] == 4


def test_an_adapter_that_was_changed_is_not_served(place: Workplace) -> None:
    assert place.submit().code == 0
    path = next(place.client.glob("runs/*/attempt-1/adapter.gguf"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = place.run("ask", "--client", "small", "Why?")
    assert (result.code, "its sha256 is not the one on record" in result.err) == (1, True)


def test_everything_a_run_left_is_where_the_spec_says(place: Workplace) -> None:
    assert place.submit().code == 0
    (run,) = place.client.glob("runs/*")
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    steps = [
        "load",
        "check",
        "estimate",
        "train",
        "export",
        "confirm",
        "register",
        "evaluate",
        "decide",
        "promote",
    ]
    assert {f"steps/{n:02}-{name}.json" for n, name in enumerate(steps, 1)} <= names
    expected = {
        "run.json",
        "events.jsonl",
        "findings.json",
        "report.json",
        "report.md",
        "Modelfile",
        "answers/1-B.jsonl",
        "answers/base.jsonl",
        "attempt-1/adapter/adapter_model.safetensors",
        "attempt-1/adapter/adapter_config.json",
    }
    assert expected <= names
    answers = [json.loads(line) for line in (run / "answers/1-B.jsonl").read_text().splitlines()]
    assert {"question_id", "k", "text", "score", "method", "fingerprint", "error"} <= set(answers[0])
    assert len(answers) == 12
    text = (run / "events.jsonl").read_text()
    assert "amber" not in text, "client text in the events"


def test_a_terminal_gets_a_live_bar_and_no_color_takes_the_colours_away(place: Workplace) -> None:
    """A real pseudo-terminal: progress is drawn over, and NO_COLOR leaves no colour codes."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        place.command("submit", "--client", "small", "--version", "1"),
        cwd=place.folder,
        env=place.env | {"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"},
        stdin=slave,
        stdout=slave,
        stderr=subprocess.DEVNULL,
    )
    os.close(slave)
    data = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        data += chunk
    os.close(master)
    assert child.wait() == 0
    text = data.decode(errors="replace")
    assert "8/8" in text
    assert "\x1b[2K" in text, "nothing was drawn over: no live bar"
    assert not re.search(r"\x1b\[3[0-9]m", text), "a colour in spite of NO_COLOR"
