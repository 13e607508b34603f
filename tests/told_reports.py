"""Score cards, reports and run folders as told, no model asked: for tests of the gate and the report."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.files import write_atomic
from fine_tune_runner.types import Answer, EvalReport, Finding, Findings, ScoreCard, TokenStats, VersionKey

AT = datetime(2026, 11, 22, 9, 30, tzinfo=UTC)
RIGHT, WRONG = "consent_update_missing", "currency_mismatch"


def card(scores: Mapping[str, float], **changes: Any) -> ScoreCard:
    """One answer to each question, recall by these scores."""
    whole = ScoreCard(
        label="v",
        model_id="hre-client:v3",
        questions=len(scores),
        answers=len(scores),
        failed=0,
        unresolved=(),
        similarity=0.87,
        similarity_floor=0.31,
        own_reference_share=0.9,
        recall=sum(scores.values()) / len(scores) if scores else None,
        per_question=dict(scores),
        methods={"line": len(scores)},
        fingerprint="f",
    )
    return msgspec.structs.replace(whole, **changes)


def report(new: ScoreCard, previous: ScoreCard | None = None, **changes: Any) -> EvalReport:
    """v3 of `hre` beside v2, or as the first version."""
    track = changes.pop("track", "B")
    whole = EvalReport(
        client_id="hre",
        key=VersionKey(version=3, track=track),
        dataset_sha256="d" * 8,
        holdout_sha256="h" * 8,
        fingerprint="f",
        measure="recall",
        new=new,
        previous=previous,
        previous_key=VersionKey(version=2, track=track) if previous else None,
    )
    return msgspec.structs.replace(whole, **changes)


def answer(question: str, cause: str, text: str, k: int = 0, **changes: Any) -> Answer:
    """An answer that committed to `cause` in its line."""
    whole = Answer(
        question_id=question,
        k=k,
        text=text,
        score=float(cause == RIGHT),
        method="line",
        fingerprint="f",
        cause=cause,
        similarity=0.8,
        tokens=60,
    )
    return msgspec.structs.replace(whole, **changes)


def write_step(run: Path, number: int, name: str, value: Any, seconds: float) -> None:
    """A step on record that gave `value`; it began `AT`."""
    record = {
        "name": name,
        "gives": type(value).__name__,
        "started_at": AT,
        "ended_at": AT + timedelta(seconds=seconds),
        "value": value,
    }
    (run / "steps").mkdir(parents=True, exist_ok=True)
    write_atomic(run / "steps" / f"{number:02}-{name}.json", msgspec.json.encode(record))


def write_losses(run: Path, event: str, losses: Mapping[int, float], torn: bytes = b"") -> None:
    """`events.jsonl` of a training with a loss a step, and a line that a power cut tore."""
    data = [{"event": event, "data": {"step": s, "total": max(losses), "loss": x}} for s, x in losses.items()]
    write_atomic(run / "events.jsonl", b"".join(msgspec.json.encode(e) + b"\n" for e in data) + torn)


def write_findings(run: Path, *findings: Finding, tokens: TokenStats | None = None) -> None:
    """`findings.json` of a run."""
    kept = Findings(dataset_sha256="d" * 8, items=findings, tokens=tokens)
    write_atomic(run / "findings.json", msgspec.json.encode(kept))
