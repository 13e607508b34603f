"""A client's folder with a run that has everything a report can show: the longest words, marks, a history."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fine_tune_runner.evaluation.answers import write_answers
from fine_tune_runner.files import write_atomic
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.types import (
    Answer,
    Dataset,
    EvalReport,
    Evaluation,
    Finding,
    Model,
    RegistryEntry,
    Run,
    ScoreCard,
    TokenStats,
    TrainingSummary,
    Verdict,
    VersionKey,
)
from tests.small_client import plain_row, write_rows
from tests.told_reports import AT, RIGHT, WRONG, answer, card, write_findings, write_losses, write_step

OLD, NEW = VersionKey(version=2, track="A"), VersionKey(version=3, track="A")
IDS = [f"hre-{n:03}" for n in range(1, 13)]
SHA = "3f79bb7b435b05321651daefd374cdc681dc06faa65e374e38337b88ca046dea"
QUESTION = (
    "Since the banner was changed, purchases are missing in GA4 and in Google Ads. The tag fires in preview. "
    "Write to ann.example@example.com. It has dataLayer.push({ecommerce:{items:[{item_id:'A',price:9}]}})"
)
OLD_TEXT = f"Root cause: {WRONG}\nThe value arrives in another currency.\nFix: send EUR and test one order."
NEW_TEXT = (
    f"Root cause: {RIGHT}\nThe banner never sends an update, so the tag waits for ever.\n"
    "Fix: push consent update after the click and test one order."
)


def write_whole_run(folder: Path) -> tuple[Path, EvalReport]:
    """The run's folder, and what its evaluation found: v3 loses two questions and gains five."""
    client, run_id = folder / "hre", f"hre-v3-a-{SHA[:8]}-1"
    run = client / "runs" / run_id
    run.mkdir(parents=True)
    rows = [plain_row(QUESTION, NEW_TEXT, id=name, root_cause=RIGHT) for name in IDS]
    write_rows(client / "v3_eval.jsonl", rows)
    new = {name: float(n not in (3, 7, 11)) for n, name in enumerate(IDS)}
    old = {name: float(n in (3, 7) or n > 8) for n, name in enumerate(IDS)}
    whole = EvalReport(
        client_id="hre",
        key=NEW,
        dataset_sha256=SHA,
        holdout_sha256=SHA[::-1],
        fingerprint="f",
        measure="recall",
        new=_card("3-A", new),
        previous=_card("2-A", old),
        previous_key=OLD,
        left_out=("hre-013",),
        answers_per_question=3,
        warnings=("hre-012 was edited since v2_eval.jsonl; its answers of then do not compare",),
    )
    for label, scores in (("3-A", new), ("2-A", old)):
        write_answers(
            run / "answers" / f"{label}.jsonl",
            [_answered(q, s, k) for q, s in scores.items() for k in range(3)],
        )
    _write_steps(run)
    _write_run(run, run_id)
    _write_findings(run)
    _write_registry(client, run_id, whole)
    return run, whole


def _answered(question: str, score: float, k: int) -> Answer:
    return answer(question, RIGHT if score else WRONG, NEW_TEXT if score else OLD_TEXT, k)


def _card(label: str, scores: dict[str, float]) -> ScoreCard:
    model_id = f"ft:gpt-4o-mini-2024-07-18:agency-with-a-long-name:hre-v{label[0]}:AbCdEf{label[0]}"
    answers = 3 * len(scores)
    return card(scores, label=label, model_id=model_id, answers=answers, methods={"line": answers})


def _write_steps(run: Path) -> None:
    training = TrainingSummary(
        steps=60,
        epochs=3.0,
        tokens=110_000,
        loss_tokens=17_000,
        seconds=812.0,
        first_loss=2.9,
        final_loss=0.4,
        settings={"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8, "job_id": "ftjob-abc123"},
    )
    model = Model(
        model_id="ft:gpt-4o-mini-2024-07-18:agency-with-a-long-name:hre-v3:AbCdEf3",
        track="A",
        provider="openai",
        base_model="gpt-4o-mini-2024-07-18",
        dataset_sha256=SHA,
        training=training,
        cost_usd=6.31,
    )
    dataset = Dataset(
        client_id="hre",
        version=3,
        train_path="data/clients/hre/v3.jsonl",
        holdout_path="data/clients/hre/v3_eval.jsonl",
        sha256=SHA,
        holdout_sha256=SHA[::-1],
        examples=112,
        holdout_examples=12,
        account_state_version="1.2.0",
        system_prompt="",
    )
    for number, (name, value) in enumerate((("load", dataset), ("train", model)), 1):
        write_step(run, number, name, value, seconds=14 * 60)


def _write_run(run: Path, run_id: str) -> None:
    whole = Run(
        run_id=run_id,
        client_id="hre",
        version=3,
        track="A",
        track_reason="track_preference of the client",
        attempt=1,
        dataset_sha256=SHA,
        created_at=AT,
        who="anna@workstation",
    )
    write_atomic(run / "run.json", msgspec.json.encode(whole))
    losses = {s: 0.4 + 2.5 / (1 + s / 8) + 0.1 * (s % 3) for s in range(1, 61)}
    write_losses(run, "job status", losses)


def _write_findings(run: Path) -> None:
    findings = [
        Finding(
            check=check,
            level=level,  # type: ignore[arg-type]
            message=message,
            path="data/clients/hre/v3.jsonl",
            line=line,
            remedy=remedy,
        )
        for check, level, message, line, remedy in (
            ("email", "warn", "personal data (email): ann.…", 17, "mask it, if the model shall not learn it"),
            (
                "coverage",
                "warn",
                "the holdout asks for csp_blocks_tags, which no row trains",
                None,
                "add rows",
            ),
            ("secret", "fail", "a key (openai_key): sk-…", 40, "take it out and revoke it"),
        )
    ]
    tokens = TokenStats(
        tokenizer="gpt-4o-mini", total=36_800, loss=5_700, longest=727, longest_line=12, mean=320.0
    )
    write_findings(run, *findings, tokens=tokens)


def _write_registry(client: Path, run_id: str, whole: EvalReport) -> None:
    registry = Registry(client, lambda: AT)
    verdicts = {
        2: Verdict(decision="promote", reason="first", measure="recall", tolerance=0.05),
        3: Verdict(
            decision="promote",
            reason="better",
            measure="recall",
            tolerance=0.05,
            new=0.75,
            previous=0.42,
            delta=0.33,
            compared_with=OLD,
        ),
    }
    for version, verdict in verdicts.items():
        score = 0.71 if version == 2 else whole.new.recall
        entry = RegistryEntry(
            version=version,
            track="A",
            model_id=f"ft:gpt-4o-mini-2024-07-18:agency:hre-v{version}",
            eval_score=score,
            active=version == 3,
            created_at=AT,
            status="active" if version == 3 else "archived",
            holdout_sha256=SHA,
            run_id=run_id,
            cost_usd=6.31,
            evaluation=Evaluation(
                method="recall",
                recall=score,
                similarity=0.8,
                questions=12,
                answers=36,
                fingerprint="f",
                verdict=verdict,
                at=AT,
            ),
        )
        registry.change(
            "register",
            lambda entries, entry=entry: edits.registered(entries, entry),
            who="anna@workstation",
            why="trained on 112 examples",
            key=entry.key,
        )
