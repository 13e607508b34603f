"""What a run left behind, read for its report: questions, answers, findings, losses, times, cost.

Reads the files of one run folder and the holdout beside it. What is missing or broken is left out: a report
about the rest is better than none.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.dataset.read import holdout_path
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.answers import read_answers
from fine_tune_runner.evaluation.holdout import Question, load_holdout
from fine_tune_runner.types import Answer, Estimate, EvalReport, Finding, Findings, Model, Run, T, TokenStats

LEVELS = ("fail", "warn", "info")  # worst first


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One step on record and how long it took."""

    step: str
    seconds: float


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """All that a report shows beside scores and verdict; `losses` are (optimizer step, loss)."""

    questions: tuple[Question, ...] = ()
    answers: dict[str, tuple[Answer, ...]] = {}
    findings: tuple[Finding, ...] = ()
    tokens: TokenStats | None = None
    losses: tuple[tuple[int, float], ...] = ()
    timings: tuple[Timing, ...] = ()
    model: Model | None = None
    estimate: Estimate | None = None
    run: Run | None = None


def read_proof(run_dir: Path, report: EvalReport) -> Proof:
    """Read what is there in `run_dir` and in the client's folder two levels above it."""
    findings = _decoded(run_dir / "findings.json", Findings)
    steps = list(_steps(run_dir))
    return Proof(
        questions=_questions(run_dir.parent.parent, report.key.version),
        answers={path.stem: _answers(path) for path in sorted(run_dir.glob("answers/*.jsonl"))},
        findings=tuple(sorted(findings.items, key=lambda f: LEVELS.index(f.level))) if findings else (),
        tokens=findings.tokens if findings else None,
        losses=tuple(_losses(run_dir / "events.jsonl")),
        timings=tuple(Timing(step=s.name, seconds=_seconds(s)) for s in steps),
        model=_given(steps, Model),
        estimate=_given(steps, Estimate),
        run=_decoded(run_dir / "run.json", Run),
    )


def _questions(client_dir: Path, version: int) -> tuple[Question, ...]:
    path = holdout_path(client_dir, version)
    try:
        return load_holdout(path, load_taxonomy(client_dir)).questions if path.is_file() else ()
    except DataError:
        return ()


def _answers(path: Path) -> tuple[Answer, ...]:
    try:
        return read_answers(path)
    except DataError:
        return ()


def _losses(path: Path) -> Iterator[tuple[int, float]]:
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        if b'"train step"' not in line:
            continue
        try:
            event = msgspec.json.decode(line, type=_TrainStep)
        except msgspec.DecodeError:
            continue  # a line cut by a power cut
        if event.event == "train step":
            yield event.data.step, event.data.loss


class _Loss(msgspec.Struct):
    step: int
    loss: float


class _TrainStep(msgspec.Struct):
    event: str
    data: _Loss


class _Step(msgspec.Struct):
    name: str
    gives: str
    started_at: msgspec.Raw
    ended_at: msgspec.Raw
    value: msgspec.Raw


def _steps(run_dir: Path) -> Iterator[_Step]:
    for path in sorted(run_dir.glob("steps/*.json")):
        if (step := _decoded(path, _Step)) is not None:
            yield step


def _seconds(step: _Step) -> float:
    started, ended = (msgspec.json.decode(raw, type=datetime) for raw in (step.started_at, step.ended_at))
    return (ended - started).total_seconds()


def _given(steps: list[_Step], kind: type[T]) -> T | None:
    raw: Any = next((step.value for step in reversed(steps) if step.gives == kind.__name__), None)
    return None if raw is None else msgspec.json.decode(raw, type=kind)


def _decoded(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None
