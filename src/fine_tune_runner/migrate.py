"""Moving a client to the other track: the run that retrains its version, and how both models compare.

The guard of the run decides what is in service; this only says what was measured on the way.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fine_tune_runner.dataset.read import holdout_path
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import DataError, RegistryError, RunError, UsageError
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.line import model_of
from fine_tune_runner.registry import edits
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_account_state, load_client
from fine_tune_runner.types import EvalReport, Job, Request, Run, ScoreCard, Track, Verdict, VersionKey


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a parity report; `month_usd` None means that no price is on record, 0 own hardware."""

    key: VersionKey
    model_id: str
    recall: float | None
    similarity: float | None
    tokens_per_answer: float | None
    month_usd: float | None


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """Two models of one data set on one holdout; `old` None where it could not be asked any more."""

    client_id: str
    questions: int
    answers_per_month: int
    old: Side | None
    new: Side
    verdict: Verdict


def moving(runner: FineTuneRunner, client_id: str, to: Track, **words: Any) -> Run:
    """The run that retrains the version in service on track `to`; `words` are other fields of `Request`.

    Raises UsageError where it is there already, PolicyError where a sensitive client would go to Track A,
    DataError where the data set is not the one it was trained on.
    """
    entry = runner.registry(client_id).active()
    if entry is None:
        raise RegistryError(f"{client_id} has no version in service, so there is nothing to move")
    if entry.track == to:
        raise UsageError(f"{client_id}: {edits.spell(entry.key)} is in service on that track already")
    run = runner.run_for(Request(client_id=client_id, version=entry.version, track=to, **words))
    if run.dataset_sha256 != entry.dataset_sha256:
        raise DataError(
            f"v{entry.version} is not the data set that {entry.model_id} was trained on; restore it, or "
            "submit another version on the other track"
        )
    return run


def parity(runner: FineTuneRunner, job: Job, answers_per_month: int) -> Parity:
    """What the finished run measured; RunError where it has not come that far."""
    report: EvalReport | None = runner.engine.value(job.run_id, EvalReport)
    if report is None or job.verdict is None:
        raise RunError(f"run {job.run_id} was not evaluated; go on with it: fine-tune resume {job.run_id}")
    old = None
    if report.previous is not None and report.previous_key is not None:
        old = _side(runner, report, report.previous, report.previous_key, answers_per_month)
    return Parity(
        client_id=report.client_id,
        questions=len(report.shared) or report.new.questions,
        answers_per_month=answers_per_month,
        old=old,
        new=_side(runner, report, report.new, report.key, answers_per_month),
        verdict=job.verdict,
    )


def _side(runner: FineTuneRunner, report: EvalReport, card: ScoreCard, key: VersionKey, answers: int) -> Side:
    client = load_client(runner.settings, report.client_id)
    month = None
    if card.tokens_per_answer is not None:
        system_prompt = load_account_state(client).system_prompt
        path = holdout_path(client.dir, report.key.version)
        holdout = load_holdout(path, load_taxonomy(client.dir), system_prompt)
        prompts = [prompt.messages for prompt in holdout.prompts(range(1))]
        model = model_of(runner.entry(client.id, key.version, key.track))
        port = runner.port(client, key.track)
        month = port.month_usd(model, prompts, card.tokens_per_answer, answers)
    return Side(
        key=key,
        model_id=card.model_id,
        recall=card.recall,
        similarity=card.similarity,
        tokens_per_answer=card.tokens_per_answer,
        month_usd=month,
    )
