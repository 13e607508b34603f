"""`FineTuneRunner`: the library, and everything the command line can do.

Request → run → steps of `line.py`, each once, through the engine. The one place where a track is chosen is
the dict `TRACKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any

import msgspec

from fine_tune_runner.alerts import Alerts
from fine_tune_runner.attempts import Attempts
from fine_tune_runner.dataset import read
from fine_tune_runner.driving import Confirm, drive
from fine_tune_runner.errors import (
    MissingModel,
    RegistryError,
    RunnerError,
    ServingError,
    UsageError,
)
from fine_tune_runner.line import Line, model_of, run_dir_of, trained_on
from fine_tune_runner.policy.egress import check_database, policy_of
from fine_tune_runner.policy.held import all_held, held, held_step, on_record
from fine_tune_runner.policy.track import choose_track
from fine_tune_runner.ports import Judge, TrackPort
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.settings import Client, Settings, load_account_state, load_client, whoami
from fine_tune_runner.types import (
    Clock,
    Dataset,
    Embedder,
    Estimate,
    EvalReport,
    Findings,
    Job,
    JobStatus,
    Message,
    Model,
    Prompt,
    RegistryEntry,
    Reply,
    Request,
    Run,
    Step,
    Track,
    TrackChoice,
    Verdict,
    VersionKey,
)
from fine_tune_runner.workflow.durable import Durable
from fine_tune_runner.workflow.engine import Engine, Event, Plan

TrackMaker = Callable[[Settings, Client], TrackPort]
EngineMaker = Callable[[Settings, Plan, Clock, Callable[[Event], None], Callable[[str], None]], Engine]


def _hosted(settings: Settings, client: Client) -> TrackPort:
    from fine_tune_runner.hosted.track import Hosted

    return Hosted(settings, client)


def _private(settings: Settings, client: Client) -> TrackPort:
    if settings.ollama_host:
        from fine_tune_runner.private.served import Served

        return Served(settings, client)
    from fine_tune_runner.private.track import Embedded

    return Embedded(settings, client)


TRACKS: Mapping[Track, TrackMaker] = {"A": _hosted, "B": _private}


def _judge(settings: Settings, client: Client) -> AbstractContextManager[Judge]:
    from fine_tune_runner.private.judge import judge_at_host

    return judge_at_host(settings, client)


def utc_now() -> datetime:
    """The wall clock, timezone-aware."""
    return datetime.now(UTC)


def minilm(settings: Settings) -> Embedder:
    """The embedder of checks and evaluation; MissingModel where it was not fetched."""
    from fine_tune_runner.evaluation.similarity import MiniLM
    from fine_tune_runner.private.fetch import artifact_path

    return MiniLM(
        artifact_path("minilm", "model.onnx", settings.models_dir),
        artifact_path("minilm", "tokenizer.json", settings.models_dir),
    )


def durable(
    settings: Settings,
    plan: Plan,
    clock: Clock,
    listener: Callable[[Event], None],
    notice: Callable[[str], None],
    observe: Callable[[Event], None] = lambda _event: None,
) -> Durable:
    """The engine of the product; alone on SQLite, this machine is trusted with sensitive clients.

    `listener` hears runs that are waited for, whoever does them; `observe` what is done by this process then.
    """
    url = settings.database
    return Durable(
        settings.data_dir,
        plan,
        clock,
        url=url,
        labels=() if url else ("private",),
        listener=listener,
        notice=notice,
        observe=observe,
    )


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do; `estimate` is None where findings forbid it."""

    dataset: Dataset
    choice: TrackChoice
    findings: Findings
    estimate: Estimate | None


class FineTuneRunner:
    """Checks, trains, evaluates, promotes and rolls back the versions of all clients in a data folder.

    `listener` hears every event, `notice` every repair and warning in one line. `tracks`, `embedder`, `clock`
    and `engine` are seams for tests and for other trainers; `confirm` is asked before money is spent. Methods
    raise `RunnerError`s; a refused or held version is no error but a `Job` whose verdict says so.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        listener: Callable[[Event], None] = lambda _event: None,
        notice: Callable[[str], None] = lambda _text: None,
        clock: Clock = utc_now,
        tracks: Mapping[Track, TrackMaker] = TRACKS,
        embedder: Callable[[Settings], Embedder] = minilm,
        confirm: Confirm = lambda _estimates: True,
        who: str | None = None,
        engine: EngineMaker = durable,
    ) -> None:
        self.settings = settings
        self._listener = listener
        self._notice = notice
        self.clock = clock
        self.tracks = tracks
        self._embedder = embedder
        self._confirm = confirm
        self.who = who or whoami()
        self.engine = engine(settings, self._plan, clock, listener, notice)
        self.alerts = Alerts(settings, clock, notice=notice, listener=listener)
        self._attempts = Attempts(settings, self.engine, self.port, clock, self.who)

    def submit(self, client_id: str, version: int, track: Track | None = None, **words: Any) -> Job:
        """Run a version from its files to a verdict, or go on with the run of it that there is.

        `words` are the other fields of `Request`. Training data leave this machine on Track A only.
        """
        request = Request(client_id=client_id, version=version, track=track, **words)
        return self.start(self.run_for(request))

    def start(self, run: Run) -> Job:
        """`start_all` for one; raises what stopped it."""
        (ended,) = self.start_all([run])
        if isinstance(ended, RunnerError):
            raise ended
        return ended

    def start_all(self, runs: Sequence[Run]) -> list[Job | RunnerError]:
        """Begin runs, or go on with them, side by side; each one's job, or what stopped it, in its place.

        One that is at its end is only looked up. `confirm` is asked once, for all that cost money.
        """
        begun: list[Run] = []
        stopped: dict[str, RunnerError] = {}
        with all_held(self.settings, [run.client_id for run in runs]):
            try:
                for run in runs:
                    try:
                        if self._begin(run):
                            begun.append(run)
                    except RunnerError as error:
                        stopped[run.run_id] = error
                stopped |= drive(self.engine, begun, self._confirm)
            finally:
                for run in begun:
                    self.alerts.run_ended(self.engine, run.run_id)
        return [stopped.get(run.run_id) or self.job(run.run_id) for run in runs]

    def _begin(self, run: Run) -> bool:
        """Say what is planned for a run; False where it is at its end."""
        known = [state for state in self.engine.runs(run.client_id) if state.run.run_id == run.run_id]
        if known and known[0].state == "finished":
            return False
        client = load_client(self.settings, run.client_id)
        title = self.port(client, run.track).title
        done = known[0].done if known else ()
        self._emitter(run.run_id)(
            "run planned", version=run.version, title=title, track_reason=run.track_reason, done=done
        )
        self._follow(client, run.track)
        return True

    def leave(self, run: Run, *, approved: bool = False) -> bool:
        """Leave a run to the workers and return at once; `approved` is a yes to what it costs.

        False where it is at its end, and is left alone.
        """
        if run.run_id in (s.run.run_id for s in self.engine.runs(run.client_id) if s.state == "finished"):
            return False
        if approved:
            self.engine.approve(run)
        self.engine.enqueue(run)
        return True

    @held
    def preview(self, request: Request) -> Preview:
        """Check and estimate what a request would run; nothing is sent, trained or written."""
        client, dataset, choice = self._attempts.plan(request)
        line = self.line(client, choice.track)
        findings = line.findings(dataset.version, self._embedder(self.settings))
        estimate = None
        if not findings.failed and findings.tokens is not None:
            estimate = self.port(client, choice.track).estimate(dataset, findings.tokens)
        return Preview(dataset=dataset, choice=choice, findings=findings, estimate=estimate)

    @held
    def run_for(self, request: Request) -> Run:
        """The run that a request means (attempts.py)."""
        return self._attempts.run_for(request)

    def named(self, run_id: str) -> Run:
        """The run of that name (attempts.py)."""
        return self._attempts.named(run_id)

    def cancel(self, run_id: str) -> str:
        """Stop a run, also where it goes on elsewhere; in words, what that means for it."""
        self.engine.cancel(run_id)
        run = self.engine.find(run_id).run
        port = self.port(load_client(self.settings, run.client_id), run.track)
        # Once there is a model, nothing goes on elsewhere, and what was paid for is kept.
        said = port.cancel(run) if self.engine.value(run_id, Model) is None else None
        return said or (
            f"{run_id} was asked to stop; what it did is kept, go on with it: fine-tune resume {run_id}"
        )

    def job(self, run_id: str) -> Job:
        """A run as the library shows it."""
        state = self.engine.find(run_id)
        model = self.engine.value(run_id, Model)
        return Job(
            run_id=run_id,
            client_id=state.run.client_id,
            version=state.run.version,
            track=state.run.track,
            state=state.state,
            model_id=model.model_id if model else None,
            verdict=self.engine.value(run_id, Verdict),
        )

    def poll(self, job_id: str) -> JobStatus:
        """How far a run is; `job_id` is its run id."""
        state = self.engine.find(job_id)
        progress = [
            event.data for event in self.engine.events(job_id) if event.event in ("train step", "job status")
        ]
        data = progress[-1] if progress else {}
        return JobStatus(
            run_id=job_id,
            state=state.state,
            stage=state.done[-1] if state.done else "load",
            step=data.get("step"),
            total_steps=data.get("total"),
            loss=data.get("loss"),
            eta_s=data.get("eta_s"),
            error=state.error,
        )

    @held
    def findings(self, client_id: str, version: int, track: Track | None = None) -> Findings:
        """Every check of a version, by the tokenizer of the track it would take; nothing is begun."""
        client = load_client(self.settings, client_id)
        rows = read.count_rows(read.train_path(client.dir, version))
        chosen = choose_track(client, track, None, rows).track
        try:
            embedder = self._embedder(self.settings)
        except MissingModel:
            embedder = None  # the findings say what was not checked
        return self.line(client, chosen).findings(version, embedder)

    @held
    def evaluate(
        self,
        client_id: str,
        version: int,
        track: Track | None = None,
        *,
        strict: bool = False,
        answers: int | None = None,
    ) -> tuple[EvalReport, Verdict]:
        """Score a registered version again, beside the version in service, and store score and verdict.

        `strict` holds where the evidence for a promotion is weak; `answers` to each question, None: as
        config.json says.
        """
        client = load_client(self.settings, client_id)
        entry = self.entry(client_id, version, track)
        dataset = trained_on(client, entry)
        self._follow(client, entry.track)
        run_dir = run_dir_of(client, entry)
        run_dir.mkdir(parents=True, exist_ok=True)
        emit = self._emitter(run_dir.name)
        line = self.line(client, entry.track)
        with on_record(policy_of(self.settings, client), run_dir, emit):
            report = line.measure(dataset, entry, run_dir, emit, answers=answers)
        return report, line.record(report, run_dir, self.who, emit, strict=strict)

    def register(self, client_id: str, version: int, model_id: str, track: Track) -> RegistryEntry:
        """Put a model that exists already into the registry, unevaluated and out of service."""
        client = load_client(self.settings, client_id)
        dataset = read.load(client, version)
        entry = RegistryEntry(
            version=version,
            track=track,
            model_id=model_id,
            eval_score=None,
            active=False,
            created_at=self.clock(),
            status="eval",
            base_model=client.config.weights,
            dataset_sha256=dataset.sha256,
            holdout_sha256=dataset.holdout_sha256,
            training_examples=dataset.examples,
            account_state_version=dataset.account_state_version,
        )
        self.registry(client_id).change(
            "register",
            lambda entries: edits.registered(entries, entry),
            who=self.who,
            why="registered by hand",
            key=entry.key,
        )
        return entry

    @held
    def promote(
        self, client_id: str, version: int, track: Track | None = None, *, override: str | None = None
    ) -> tuple[RegistryEntry, Verdict | None]:
        """Apply the stored verdict, or promote against it with a reason that stays on record.

        Raises RegistryError where the version was never evaluated.
        """
        entry = self._servable(client_id, version, track)
        registry = self.registry(client_id)
        verdict = entry.evaluation.verdict if entry.evaluation else None
        if override is not None:
            if not override.strip():
                raise UsageError(
                    "--override needs a reason, such as --override 'client asked for it, mail of 3 May'"
                )
            entries = registry.change(
                "override",
                lambda entries: edits.overridden(entries, entry.key),
                who=self.who,
                why=override,
                key=entry.key,
                run_id=entry.run_id,
            )
            self._follow(load_client(self.settings, client_id), entry.track)
            return edits.get(entries, entry.key), verdict
        if verdict is None:
            raise RegistryError(
                f"{edits.spell(entry.key)} was never evaluated; first: "
                f"fine-tune eval --client {client_id} --version {version}"
            )
        client = load_client(self.settings, client_id)
        line = self.line(client, entry.track)
        applied = line.apply(entry, verdict, self.who, self._emitter(entry.run_id or ""))
        self._follow(client, entry.track)
        return applied, verdict

    @held
    def rollback(
        self, client_id: str, version: int, track: Track | None = None, *, why: str = "rollback"
    ) -> RegistryEntry:
        """Reactivate a version that was in service before, at once."""
        entry = self._servable(client_id, version, track)
        entries = self.registry(client_id).change(
            "rollback",
            lambda entries: edits.rolled_back(entries, entry.key),
            who=self.who,
            why=why,
            key=entry.key,
            run_id=entry.run_id,
        )
        self._follow(load_client(self.settings, client_id), entry.track)
        return edits.get(entries, entry.key)

    @held
    def ask(self, client_id: str, question: str) -> str:
        """Let the model in service answer; PolicyError or ServingError where it cannot be asked."""
        client = load_client(self.settings, client_id)
        entry = self.registry(client_id).active()
        if entry is None:
            raise RegistryError(
                f"{client_id} has no version in service; first: "
                f"fine-tune submit --client {client_id} --version N"
            )
        model = model_of(entry)
        messages = (
            Message(role="system", content=load_account_state(client).system_prompt),
            Message(role="user", content=question),
        )
        prompt = Prompt(question_id="ask", k=0, messages=messages)
        decoding = client.config.eval.decoding
        run_dir = run_dir_of(client, entry)
        with (
            on_record(policy_of(self.settings, client), run_dir, self._emitter(run_dir.name)),
            self.line(client, entry.track).serve([model]) as answerers,
        ):
            replies: list[Reply] = list(answerers[model.model_id].replies(model.model_id, [prompt], decoding))
        if not replies or replies[0].text is None:
            raise ServingError(f"{model.model_id} did not answer: {replies and replies[0].error}")
        return replies[0].text

    def entry(self, client_id: str, version: int, track: Track | None) -> RegistryEntry:
        """The registry entry of a version; UsageError where it stands on both tracks and none is named."""
        entries = self.registry(client_id).entries()
        if track is not None:
            return edits.get(entries, VersionKey(version=version, track=track))
        found = [entry for entry in entries if entry.version == version]
        if len(found) > 1:
            raise UsageError(f"v{version} exists on both tracks; name one: --track a or --track b")
        if not found:
            raise edits.missing(entries, f"v{version}")
        return found[0]

    def _servable(self, client_id: str, version: int, track: Track | None) -> RegistryEntry:
        """The entry of a version that may go into service; PolicyError for A and a sensitive client."""
        entry = self.entry(client_id, version, track)
        choose_track(load_client(self.settings, client_id), entry.track, None, 0)
        return entry

    def registry(self, client_id: str) -> Registry:
        """The registry of a client that exists."""
        folder = load_client(self.settings, client_id).dir
        return Registry(folder, self.clock, notice=self._notice)

    def port(self, client: Client, track: Track) -> TrackPort:
        """A client on a track."""
        return self.tracks[track](self.settings, client)

    def line(self, client: Client, track: Track) -> Line:
        """The steps of a client's runs on a track."""
        return Line(
            self.settings,
            client,
            lambda name: self.port(client, name),
            track,
            Registry(client.dir, self.clock, notice=self._notice),
            lambda: self._embedder(self.settings),
            self.clock,
            lambda: _judge(self.settings, client),
        )

    def _follow(self, client: Client, track: Track) -> None:
        """Let names beside the registry follow it: after each change, and where a crash left one behind."""
        self.line(client, track).follow(lambda _event, message: self._notice(message))

    def _plan(self, run: Run) -> Sequence[Step]:
        client = load_client(self.settings, run.client_id)
        policy = policy_of(self.settings, client)
        check_database(self.settings, policy)
        return [held_step(step, policy) for step in self.line(client, run.track).steps()]

    def _emitter(self, run_id: str) -> Callable[..., None]:
        def emit(event: str, **data: object) -> None:
            self._listener(Event(at=self.clock(), event=event, run_id=run_id, data=data))

        return emit
