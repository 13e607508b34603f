"""What a run left behind, read for its report: questions, answers, findings, losses, times, cost.

Reads the files of one run folder, and of its client's the holdout, the registry and its record. What is
missing or broken is left out: a report about the rest is better than none.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.dataset.read import holdout_path
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError, RegistryError
from fine_tune_runner.evaluation.answers import read_answers
from fine_tune_runner.evaluation.holdout import Question, load_holdout
from fine_tune_runner.registry.audit import AuditLine, read_audit
from fine_tune_runner.types import (
    Answer,
    Dataset,
    Estimate,
    EvalReport,
    Finding,
    Findings,
    Model,
    RegistryEntry,
    Run,
    T,
    TokenStats,
    TrainingSummary,
)

LEVELS = ("fail", "warn", "info")  # worst first


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """One step on record and how long it took."""

    step: str
    seconds: float


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """All that a report shows beside scores and verdict; `losses` are (optimizer step, loss).

    `history` is the registry as it stands, `record` every change of it.
    """

    questions: tuple[Question, ...] = ()
    answers: dict[str, tuple[Answer, ...]] = {}
    findings: tuple[Finding, ...] = ()
    tokens: TokenStats | None = None
    losses: tuple[tuple[int, float], ...] = ()
    timings: tuple[Timing, ...] = ()
    dataset: Dataset | None = None
    model: Model | None = None
    training: TrainingSummary | None = None
    estimate: Estimate | None = None
    run: Run | None = None
    history: tuple[RegistryEntry, ...] = ()
    record: tuple[AuditLine, ...] = ()


def read_proof(run_dir: Path, report: EvalReport) -> Proof:
    """Read what is there in `run_dir` and in the client's folder two levels above it."""
    client_dir = run_dir.parent.parent
    findings = _decoded(run_dir / "findings.json", Findings)
    steps = list(_steps(run_dir))
    model = _given(steps, Model)
    return Proof(
        questions=_questions(client_dir, report.key.version),
        answers={label: _answers(run_dir / "answers" / f"{label}.jsonl") for label in _asked(report)},
        findings=tuple(sorted(findings.items, key=lambda f: LEVELS.index(f.level))) if findings else (),
        tokens=findings.tokens if findings else None,
        losses=tuple(_losses(run_dir)),
        timings=tuple(Timing(step=s.name, seconds=_seconds(s)) for s in steps),
        dataset=_given(steps, Dataset),
        model=model,
        training=model.training if model and model.training else _given(steps, TrainingSummary),
        estimate=_given(steps, Estimate),
        run=_decoded(run_dir / "run.json", Run),
        history=_decoded(client_dir / "model_registry.json", tuple[RegistryEntry, ...]) or (),
        record=_record(client_dir / "model_registry.json.audit"),
    )


def _questions(client_dir: Path, version: int) -> tuple[Question, ...]:
    path = holdout_path(client_dir, version)
    try:
        return load_holdout(path, load_taxonomy(client_dir)).questions if path.is_file() else ()
    except DataError:
        return ()


def _asked(report: EvalReport) -> list[str]:
    """The models of this evaluation: an earlier one of the same run may have left files of others."""
    return sorted(card.label for card in (report.new, report.previous, report.base) if card)


def _answers(path: Path) -> tuple[Answer, ...]:
    try:
        return read_answers(path) if path.is_file() else ()
    except DataError:
        return ()


def _record(path: Path) -> tuple[AuditLine, ...]:
    try:
        return read_audit(path).lines
    except RegistryError:
        return ()


def _losses(run_dir: Path) -> list[tuple[int, float]]:
    """By step, from the last time that each was taken: after a crash some are taken again.

    A hosted provider's own table (`metrics.csv`) has every step, the events only those that were seen.
    """
    path = run_dir / "events.jsonl"
    found: dict[int, float] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        if b'"loss":' not in line:
            continue
        try:
            event = msgspec.json.decode(line, type=threadsafe(_Progress))
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # another event, or a line cut by a power cut
        if event.event in ("train step", "job status") and event.data.step and event.data.loss is not None:
            found[event.data.step] = event.data.loss
    for table in sorted(run_dir.glob("attempt-*/metrics.csv")):
        found |= dict(_table(table))
    return sorted(found.items())


def _table(path: Path) -> Iterator[tuple[int, float]]:
    for row in csv.DictReader(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            yield int(float(row["step"])), float(row["train_loss"])
        except (KeyError, TypeError, ValueError):
            continue  # a row of the validation, or none of this shape


class _Loss(msgspec.Struct):
    step: int | None = None
    loss: float | None = None


class _Progress(msgspec.Struct):
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
    return None if raw is None else msgspec.json.decode(raw, type=threadsafe(kind))


def _decoded(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=threadsafe(kind))
    except (OSError, msgspec.DecodeError):
        return None
