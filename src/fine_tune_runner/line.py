"""The straight line of a run: the steps from a data set to a version in service, in order.

Each method is one durable step from one noun to the next. It is handed the track it runs on and never asks
which one that is. `runner.py` decides that a run begins; the engine decides which steps are still to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.dataset.validate import check
from fine_tune_runner.errors import DataError, NeedsApproval, PolicyError, RegistryError, RunnerError
from fine_tune_runner.files import write_atomic
from fine_tune_runner.ports import OpenJudge, TrackPort
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.settings import Client, Settings
from fine_tune_runner.types import (
    Answerer,
    Clock,
    Dataset,
    Embedder,
    Estimate,
    EvalReport,
    Evaluation,
    Findings,
    Model,
    RegistryEntry,
    RunContext,
    Status,
    Step,
    Track,
    Verdict,
    VersionKey,
)

if TYPE_CHECKING:
    from fine_tune_runner.evaluation.stored import StoredAnswers

Emit = Callable[..., None]
NOT_ASKED_AGAIN = "a judge is not asked when stored answers are scored again; fine-tune eval asks it"
STATUS_AFTER: Mapping[str, Status] = {"promote": "eval", "refuse": "refused", "hold": "held"}


class Line:
    """The steps of a client's runs on one track; `track_of` gives any track, for asking older models."""

    def __init__(
        self,
        settings: Settings,
        client: Client,
        track_of: Callable[[Track], TrackPort],
        track: Track,
        registry: Registry,
        embedder: Callable[[], Embedder],
        clock: Clock,
        judge: OpenJudge | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._track_of = track_of
        self._track = track_of(track)
        self._registry = registry
        self._embedder = embedder
        self._clock = clock
        self._judge = judge

    def steps(self) -> Sequence[Step]:
        """Every step of a run, in order."""
        steps = (
            Step(name="load", gives=Dataset, do=self.load),
            Step(name="check", gives=Findings, do=self.check),
            Step(name="estimate", gives=Estimate, do=self.estimate),
            *self._track.steps(),
            Step(name="register", gives=RegistryEntry, do=self.register),
            Step(name="evaluate", gives=EvalReport, do=self.evaluate, place="evaluate"),
            Step(name="decide", gives=Verdict, do=self.decide),
            Step(name="promote", gives=RegistryEntry, do=self.promote),
        )
        # A sensitive client's steps are done by workers that are trusted with it, and by no other.
        label = "private" if self._client.config.is_sensitive else None
        return tuple(msgspec.structs.replace(step, label=label) for step in steps)

    def load(self, context: RunContext) -> Dataset:
        """Request → Dataset; DataError where the files changed since the run was submitted."""
        dataset = read.load(self._client, context.run.version)
        if dataset.sha256 != context.run.dataset_sha256:
            raise DataError(
                f"{dataset.train_path}: its content changed since run {context.run.run_id} began; "
                f"publish v{dataset.version + 1} instead"
            )
        context.emit("loaded", path=dataset.train_path, records=dataset.examples)
        return dataset

    def check(self, context: RunContext) -> Findings:
        """Dataset → Findings; DataError where one forbids training, so nothing is sent or trained."""
        dataset = context.value(Dataset)
        findings = self.findings(dataset.version, self._embedder())
        data = msgspec.json.format(msgspec.json.encode(findings), indent=2)
        write_atomic(context.run_dir / "findings.json", data)
        counts = {level: sum(f.level == level for f in findings.items) for level in ("fail", "warn")}
        context.emit("checked", **counts)
        if findings.failed:
            command = f"fine-tune check --client {dataset.client_id} --version {dataset.version}"
            faults = [
                f"{f.path}{f' line {f.line}' if f.line else ''}: {f.message}; {f.remedy}"
                for f in findings.items
                if f.level == "fail"
            ]
            raise DataError("\n".join([*faults[:20], f"{counts['fail']} faults; all findings: {command}"]))
        return findings

    def findings(self, version: int, embedder: Embedder | None) -> Findings:
        """Every check of one version, with the tokenizer of the track's base model."""
        taxonomy = load_taxonomy(self._client.dir)
        tokenizer = self._track.tokenizer()
        return check(self._client, version, tokenizer=tokenizer, embedder=embedder, taxonomy=taxonomy)

    def estimate(self, context: RunContext) -> Estimate:
        """Findings → Estimate; PolicyError above the cost limit, or where there is one and no known price."""
        dataset, findings = context.value(Dataset), context.value(Findings)
        if findings.tokens is None:
            raise DataError(
                f"{dataset.train_path}: no tokenizer counted its tokens; fetch the base model first"
            )
        estimate = self._track.estimate(dataset, findings.tokens)
        context.emit("estimated", **msgspec.to_builtins(estimate))
        limit, cost = context.run.max_cost_usd, estimate.cost_usd
        if limit is not None and cost is None:
            raise PolicyError(
                f"{estimate.price_source}, so --max-cost {limit:.2f} cannot be kept; nothing was sent. "
                "Leave --max-cost out to be asked instead"
            )
        if limit is not None and cost is not None and cost > limit:
            raise PolicyError(
                f"estimated cost ${cost:.2f} is above --max-cost {limit:.2f}; nothing was sent. "
                "Raise the limit, or train fewer epochs (training.epochs in config.json)"
            )
        if cost != 0 and not context.approved():
            run_id = context.run.run_id
            raise NeedsApproval(f"run {run_id} costs money and waits for a yes: fine-tune approve {run_id}")
        return estimate

    def register(self, context: RunContext) -> RegistryEntry:
        """Model → RegistryEntry with status eval: from now on the model is known."""
        dataset, model, run = context.value(Dataset), context.value(Model), context.run
        key = VersionKey(version=run.version, track=run.track)
        known = edits.find(self._registry.entries(), key)
        if known is not None and known.run_id == run.run_id:
            return known
        entry = RegistryEntry(
            version=run.version,
            track=run.track,
            model_id=model.model_id,
            eval_score=None,
            active=False,
            created_at=self._clock(),
            status="eval",
            provider=model.provider,
            endpoint=model.endpoint,
            artifact=model.artifact,
            artifact_sha256=model.artifact_sha256,
            base_model=model.base_model,
            dataset_sha256=dataset.sha256,
            holdout_sha256=dataset.holdout_sha256,
            training_examples=dataset.examples,
            account_state_version=dataset.account_state_version,
            run_id=run.run_id,
            shutdown_date=model.shutdown_date,
            cost_usd=model.cost_usd,
        )
        self._registry.change(
            "register",
            lambda entries: edits.registered(entries, entry),
            who=run.who,
            why=f"trained on {dataset.examples} examples",
            key=key,
            run_id=run.run_id,
        )
        context.emit("registered", model_id=model.model_id, status="eval")
        return entry

    def evaluate(self, context: RunContext) -> EvalReport:
        """Model → EvalReport, beside the version in service or, for a first version, the bare base."""
        dataset, entry = context.value(Dataset), context.value(RegistryEntry)
        return self.measure(
            dataset,
            entry,
            context.run_dir,
            context.emit,
            context.check_cancelled,
            answers=context.run.answers,
        )

    def measure(
        self,
        dataset: Dataset,
        entry: RegistryEntry,
        run_dir: Path,
        emit: Emit,
        check_cancelled: Callable[[], None] = lambda: None,
        *,
        answers: int | None = None,
    ) -> EvalReport:
        """Ask and score a registered version; raw answers go to `answers/` of the run.

        `answers` to each question count for more than those of config.json.
        """
        from fine_tune_runner.evaluation.harness import measure
        from fine_tune_runner.evaluation.judging import opened

        config = self._client.config.eval
        previous = self._registry.active()
        previous = None if previous is None or previous.key == entry.key else previous
        emit("evaluation started", holdout=Path(dataset.holdout_path).name)

        def on_reply(label: str, done: int, total: int) -> None:
            check_cancelled()
            emit("evaluation progress", model=label, done=done, total=total)

        with opened(self._judge, config.judge) as judge:
            return measure(
                self._client,
                dataset,
                new=model_of(entry),
                key=entry.key,
                previous=None if previous is None else (previous.key, model_of(previous)),
                base=None if previous else self._track_of(entry.track).base(),
                serve=self.serve,
                embedder=self._embedder(),
                decoding=config.decoding,
                answers_dir=run_dir / "answers",
                on_reply=on_reply,
                tolerance=self._settings.tolerance,
                answers=answers or config.answers,
                stored=None if previous is None else self._stored(previous),
                judge=judge,
                clock=self._clock,
            )

    def measure_again(self, dataset: Dataset, entry: RegistryEntry, run_dir: Path) -> EvalReport:
        """Score the last evaluation's answers again, by the labels and decisions of today; asks no model.

        Raises DataError where more than those changed since, or where it was never evaluated.
        """
        from fine_tune_runner.evaluation.harness import measure
        from fine_tune_runner.evaluation.judging import Away
        from fine_tune_runner.evaluation.replay import Replay
        from fine_tune_runner.evaluation.report import read_report

        kept, _ = read_report(run_dir)
        embedder, decoding = self._embedder(), self._client.config.eval.decoding
        fingerprints = self._yardsticks(entry, dataset, embedder, kept.judge)
        new, answers_dir = model_of(entry), run_dir / "answers"
        previous = edits.get(self._registry.entries(), kept.previous_key) if kept.previous_key else None
        other = _once(previous) if previous else self._track_of(entry.track).base()
        labels = {new.model_id: _answers_of(entry)}
        # Where stored answers stood in they do so again; where nobody was asked an older file may lie there.
        if previous is None or (kept.previous is not None and not kept.shared):
            labels[other.model_id] = _answers_of(previous) if previous else "base"
        replay = Replay(answers_dir, labels, fingerprints)
        return measure(
            self._client,
            dataset,
            new=new,
            key=entry.key,
            previous=None if previous is None else (previous.key, other),
            base=None if previous else other,
            serve=replay.serve,
            embedder=embedder,
            decoding=decoding,
            answers_dir=answers_dir,
            on_reply=lambda _label, _done, _total: None,
            tolerance=self._settings.tolerance,
            answers=replay.repeats(new.model_id),
            stored=None if previous is None else self._stored(previous),
            judge=Away(kept.judge, NOT_ASKED_AGAIN) if kept.judge else None,
            clock=self._clock,
        )

    def _yardsticks(
        self, entry: RegistryEntry, dataset: Dataset, embedder: Embedder, judge: str | None
    ) -> tuple[str, str]:
        """The fingerprints that stored answers have: before and after labels were confirmed.

        DataError where they were drawn, or would be scored, in another way than today.
        """
        from fine_tune_runner.evaluation.answers import fingerprint

        def on(holdout_sha256: str) -> str:
            return fingerprint(
                embedder=embedder.fingerprint,
                decoding=self._client.config.eval.decoding,
                system_prompt=dataset.system_prompt,
                taxonomy=load_taxonomy(self._client.dir),
                holdout_sha256=holdout_sha256,
                judge=judge,
            )

        today = on(entry.holdout_sha256 or "")
        asked = entry.evaluation.fingerprint.partition("+")[0] if entry.evaluation else ""
        known = (dataset.holdout_sha256, read.published_sha256(Path(dataset.holdout_path)))
        if asked != today or entry.holdout_sha256 not in known:
            raise DataError(
                f"holdout, system prompt, taxonomy, decoding or scorer changed since v{entry.version} was "
                "evaluated, so its stored answers stay as they were scored; ask again: fine-tune eval "
                f"--client {self._client.id} --version {entry.version}"
            )
        return asked, on(dataset.holdout_sha256)

    def _stored(self, previous: RegistryEntry) -> StoredAnswers | None:
        """What the version in service answered when it was evaluated; None where it never was."""
        from fine_tune_runner.evaluation.stored import StoredAnswers

        if previous.evaluation is None:
            return None
        return StoredAnswers(
            path=run_dir_of(self._client, previous) / "answers" / f"{_answers_of(previous)}.jsonl",
            holdout=read.holdout_path(self._client.dir, previous.version),
            holdout_sha256=previous.holdout_sha256,
            at=previous.evaluation.at,
        )

    def decide(self, context: RunContext) -> Verdict:
        """EvalReport → Verdict, and the score onto the registry entry."""
        run = context.run
        report = context.value(EvalReport)
        return self.record(report, context.run_dir, run.who, context.emit, strict=run.strict)

    def record(
        self, report: EvalReport, run_dir: Path, who: str, emit: Emit, *, strict: bool = False
    ) -> Verdict:
        """Judge a report, write it beside the run, and put score and verdict on the registry entry."""
        from fine_tune_runner.evaluation import gate
        from fine_tune_runner.evaluation.report import write_report

        tolerance = self._settings.tolerance
        verdict = gate.decide(report, tolerance, strict=strict)
        evaluations = {e.key: e.evaluation for e in self._registry.entries() if e.evaluation}
        if behind := gate.behind_best(report.key, verdict, evaluations, tolerance):
            report = msgspec.structs.replace(report, warnings=(*report.warnings, behind))
        for warning in report.warnings:
            emit("warning", message=warning)
        evaluation = Evaluation(
            method=report.measure,
            recall=report.new.recall,
            similarity=report.new.similarity,
            questions=report.new.questions,
            answers=report.new.answers,
            fingerprint=report.fingerprint,
            verdict=verdict,
            at=self._clock(),
        )
        key, status = report.key, STATUS_AFTER[verdict.decision]
        by_hand = run_dir.name == f"{self._client.id}-v{key.version}"
        of_model = {"model_id": report.new.model_id, "run_id": None if by_hand else run_dir.name}
        self._registry.change(
            "evaluate",
            lambda entries: edits.scored(
                edits.unreplaced(entries, key, **of_model), key, evaluation, report.holdout_sha256, status
            ),
            who=who,
            why=f"{verdict.decision}: {verdict.reason}",
            key=key,
            run_id=run_dir.name,
        )
        write_report(run_dir, report, verdict)
        emit("evaluated", report=msgspec.to_builtins(report), verdict=msgspec.to_builtins(verdict))
        return verdict

    def promote(self, context: RunContext) -> RegistryEntry:
        """Verdict → RegistryEntry: active, or refused or held with an alert."""
        from fine_tune_runner.evaluation.report import rewrite_report

        registered, verdict = context.value(RegistryEntry), context.value(Verdict)
        entry = self.apply(registered, verdict, context.run.who, context.emit)
        rewrite_report(context.run_dir)  # written before, it shows this version as not yet in service
        return entry

    def apply(self, judged: RegistryEntry, verdict: Verdict, who: str, emit: Emit) -> RegistryEntry:
        """Do what the verdict on `judged` says; on a refusal or hold what is in service stays, with an alert.

        Raises RegistryError where another model has taken the place of the one that was judged.
        """
        key, of_model = judged.key, {"model_id": judged.model_id, "run_id": judged.run_id}
        if verdict.decision != "promote":
            emit("alert", decision=verdict.decision, key=msgspec.to_builtins(key), reason=verdict.reason)
            return edits.get(self._registry.entries(), key)
        entries = self._registry.change(
            "promote",
            lambda entries: edits.promoted(
                edits.unreplaced(entries, key, **of_model), key, verdict.compared_with, self._client.id
            ),
            who=who,
            why=verdict.reason,
            key=key,
            run_id=judged.run_id,
        )
        self.follow(emit)
        entry = edits.get(entries, key)
        emit("promoted", client_id=self._client.id, model_id=entry.model_id, key=msgspec.to_builtins(key))
        if verdict.compared_with is not None:
            emit("archived", key=msgspec.to_builtins(verdict.compared_with))
        return entry

    def follow(self, emit: Emit) -> None:
        """Let names beside the registry follow it, on every track that the client has versions on.

        The registry is the truth: what cannot be changed now is said, and the next command does it.
        """
        entries = self._registry.entries()
        active = edits.active(entries)
        for track in sorted({entry.track for entry in entries}):
            try:
                if said := self._track_of(track).follow(active):
                    emit("followed", message=said)
            except RunnerError as error:
                emit(
                    "warning",
                    message=f"{error}. The registry has what is in service; the next command tries again",
                )

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Mapping[str, Answerer]]:
        """Load models of any track; yields an Answerer for all of them."""
        with ExitStack() as stack:
            by_model: dict[str, Answerer] = {}
            for track in sorted({model.track for model in models}):
                of_track = [model for model in models if model.track == track]
                answerer = stack.enter_context(self._track_of(track).serve(of_track))
                by_model |= {model.model_id: answerer for model in of_track}
            yield by_model


def run_dir_of(client: Client, entry: RegistryEntry) -> Path:
    """Where the files of a registered version are; one that was registered by hand has no run."""
    return client.dir / "runs" / (entry.run_id or f"{client.id}-v{entry.version}")


def model_of(entry: RegistryEntry) -> Model:
    """The model behind a registry entry; RegistryError where the entry has none."""
    if entry.model_id is None or entry.base_model is None or entry.dataset_sha256 is None:
        raise RegistryError(f"{edits.spell(entry.key)} has no model on record; submit it again")
    return Model(
        model_id=entry.model_id,
        track=entry.track,
        provider=entry.provider or "",
        base_model=entry.base_model,
        dataset_sha256=entry.dataset_sha256,
        run_id=entry.run_id,
        endpoint=entry.endpoint,
        artifact=entry.artifact,
        artifact_sha256=entry.artifact_sha256,
        shutdown_date=entry.shutdown_date,
        cost_usd=entry.cost_usd,
    )


def trained_on(client: Client, entry: RegistryEntry) -> Dataset:
    """The data set of a registered version; DataError where its files say something else by now."""
    dataset = read.load(client, entry.version)
    if dataset.sha256 != entry.dataset_sha256:
        raise DataError(
            f"{dataset.train_path}: its content is not what v{entry.version} was trained on; restore it, "
            f"or publish v{entry.version + 1}"
        )
    return dataset


def _once(entry: RegistryEntry) -> Model:
    """The model that an entry had, also where it is deleted by now; only its name counts."""
    return model_of(msgspec.structs.replace(entry, model_id=entry.model_id or edits.spell(entry.key)))


def _answers_of(entry: RegistryEntry) -> str:
    """What a version's file of answers is called, in whichever run it was asked."""
    return f"{entry.version}-{entry.track}"
