"""The steps of a hosted run: eligible → upload → create → poll → ready, each safe to start again.

What costs money goes through the ledger. A run that ends for good is closed there first and its remote files
are deleted after that, so that a crash in between can leave a file but never start a second job.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.errors import PolicyError, ProviderError, RunError, ServingError
from fine_tune_runner.hosted.cost import training_usd
from fine_tune_runner.hosted.looks import last_look, note, wait_s
from fine_tune_runner.hosted.place import Errand, Place
from fine_tune_runner.hosted.progress import keep, progress, summary
from fine_tune_runner.hosted.providers import ENDS, Phase, job_body, job_suffix, phase
from fine_tune_runner.hosted.records import RemoteEvent, RemoteJob
from fine_tune_runner.hosted.remote import cancel_job, delete_files, file_name, find_file, find_job, or_else
from fine_tune_runner.hosted.shutdown import check_alive, day, life
from fine_tune_runner.hosted.upload import write_upload
from fine_tune_runner.hosted.whereabouts import began_at, check_here
from fine_tune_runner.settings import Client
from fine_tune_runner.types import (
    Clock,
    Dataset,
    Decoding,
    Estimate,
    Findings,
    Message,
    Model,
    RunContext,
    T,
    TokenStats,
    TrainingSummary,
)
from fine_tune_runner.workflow.ledger import Busy, Ledger, Unanswered

if TYPE_CHECKING:
    from fine_tune_runner.hosted.wire import Wire

HOUR = 3600.0
PING = (Message(role="user", content="ping"),)
# What to do about a failed job, by the provider's code.
REMEDIES = {
    "invalid_training_file": "mend the rows it names and publish another version",
    "invalid_n_examples": "publish a version with more examples",
    "exceeded_quota": "see to the account's credit, then try again with --again",
    "insufficient_quota": "see to the account's credit, then try again with --again",
}


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds between two looks at a job, for one request, and how long each phase may last.

    `ready_s` is how long a finished model may take to answer, `outage_s` how long a provider may be away.
    """

    poll_s: float = 60.0
    request_s: float = 60.0
    grace_s: float = 10.0
    ready_s: float = 1800.0
    outage_s: float = 3600.0
    validating_s: float = 2 * HOUR
    queued_s: float = 24 * HOUR
    running_s: float = 48 * HOUR
    paused_s: float = 24 * HOUR

    def limit_s(self, where: Phase) -> float:
        """How long a job may stay in a phase that is no end."""
        limits = {"validating": self.validating_s, "queued": self.queued_s, "paused": self.paused_s}
        return limits.get(where, self.running_s)


class Eligible(msgspec.Struct, frozen=True, kw_only=True):
    """What was known before anything was sent: the base model, when it stops answering, and the address."""

    base_model: str
    shutdown_date: date | None
    url: str = ""


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """The training file at the provider; `name` carries the run id."""

    file_id: str
    name: str
    sha256: str


class HostedJob(msgspec.Struct, frozen=True, kw_only=True):
    """The paid job of this run; `begun_at` is by our own clock."""

    job_id: str
    suffix: str | None
    begun_at: datetime


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """A job that succeeded; its files at the provider are gone."""

    model_id: str
    cost_usd: float | None
    training: TrainingSummary | None


def resumable(do: Callable[[RunContext], T]) -> Callable[[RunContext], T]:
    """A step whose passing failures name the command that goes on."""

    def step(context: RunContext) -> T:
        try:
            return do(context)
        except (Busy, Unanswered) as error:
            raise ProviderError(
                f"{error}; nothing is lost, go on with: fine-tune resume {context.run.run_id}"
            ) from None

    return step


class Flow:
    """The steps over one provider; `connect` opens a wire for an errand and refuses a sensitive client."""

    def __init__(
        self,
        client: Client,
        place: Place,
        base: str,
        *,
        connect: Callable[[Errand], Wire],
        estimate: Callable[[Dataset, TokenStats], Estimate],
        ledger: Ledger,
        clock: Clock,
        sleep: Callable[[float], None],
        pace: Pace,
    ) -> None:
        self._client = client
        self._place = place
        self._provider = place.provider
        self._base = base
        self._connect = connect
        self._estimate = estimate
        self._ledger = ledger
        self._clock = clock
        self._sleep = sleep
        self._pace = pace

    def eligible(self, context: RunContext) -> Eligible:
        """Ask the provider when the base model ends; PolicyError where it has, a warning below 90 days."""
        from fine_tune_runner.hosted.wire import Rejected

        served = None
        with self._connect("train") as wire:
            try:
                model = wire.model(self._base)
                served = day(model.shutdown_date) if model else None
            except Rejected as error:
                if error.status == 401:
                    raise
        known = life(self._provider, self._place.url, self._base, self._clock().date(), served)
        if warning := check_alive(self._base, known):
            context.emit("warning", message=warning)
        if self._client.config.training.learning_rate and self._provider.learning_rate == "multiplier":
            context.emit(
                "warning",
                message=f"training.learning_rate is not sent: {self._provider.title} takes a multiplier of "
                "a rate of its own",
            )
        return Eligible(base_model=self._base, shutdown_date=known.shutdown_date, url=self._place.url)

    def upload(self, context: RunContext) -> Upload:
        """Send `messages` of the training set under a name that carries the run id, once."""
        dataset, run = context.value(Dataset), context.run
        self._check_place(context)
        context.attempt_dir.mkdir(parents=True, exist_ok=True)
        name = file_name(run.run_id)
        path = context.attempt_dir / name
        train = read.train_path(context.client_dir, run.version)
        try:
            sha256 = write_upload(train, path, dataset.sha256)
            request = {"url": self._place.url, "name": name, "sha256": sha256}
            with self._connect("train") as wire, self._ends_for_good(wire, context):
                file_id = self._ledger.once(
                    run.run_id,
                    "upload",
                    request,
                    find=lambda: find_file(wire, run.run_id),
                    create=lambda: wire.upload(name, path).id,
                )
        finally:
            path.unlink(missing_ok=True)
        context.emit("uploaded", file_id=file_id, provider=self._provider.title)
        return Upload(file_id=file_id, name=name, sha256=sha256)

    def create(self, context: RunContext) -> HostedJob:
        """Start the job, once; on a refusal the uploaded file is deleted and the run is at its end."""
        run, upload = context.run, context.value(Upload)
        self._check_place(context)
        suffix = job_suffix(self._provider, run.client_id, run.version)
        training = self._client.config.training
        body = job_body(self._provider, self._base, upload.file_id, suffix, training, run.run_id)

        def begin() -> str:
            self._check_agreed(context)
            return wire.create_job(body).id

        with self._connect("train") as wire, self._ends_for_good(wire, context):
            job_id = self._ledger.once(
                run.run_id,
                "create",
                {"url": self._place.url, **body},
                find=lambda: find_job(wire, run.run_id, upload.file_id),
                create=begin,
            )
        context.emit("job created", job_id=job_id, suffix=f"{self._base}:{suffix}" if suffix else self._base)
        return HostedJob(job_id=job_id, suffix=suffix, begun_at=self._clock())

    def poll(self, context: RunContext) -> Trained:
        """Watch the job to its end, keep what it reports, delete its files at the provider."""
        self._check_place(context)
        with self._connect("train") as wire:
            job, events = self._watch(wire, context, context.value(HostedJob))
            end = phase(self._provider, job.status)
            checkpoints = or_else(lambda: wire.checkpoints(job.id), ())
            adapters = {name for checkpoint in checkpoints for name in checkpoint.result_files or ()}
            results = [name for name in job.result_files or () if name not in adapters]
            metrics = or_else(lambda: wire.content(results[0]), b"") if results else b""
            keep(context.attempt_dir, job, events, checkpoints, metrics or None)
            if end != "succeeded":
                raise self._failed(wire, context, job, events)
            delete_files(wire, context.run.run_id, [*results, context.value(Upload).file_id])
        if not job.fine_tuned_model:
            raise ProviderError(f"{self._provider.title}: job {job.id} succeeded without naming a model")
        price = self._provider.prices.get(self._base)
        estimate, tokens = context.value(Estimate), context.value(Findings).tokens
        loss_tokens = tokens.loss * estimate.epochs if tokens else 0
        return Trained(
            model_id=job.fine_tuned_model,
            cost_usd=training_usd(price, job.trained_tokens) if price and job.trained_tokens else None,
            training=summary(job, context.attempt_dir, loss_tokens, [c.id for c in checkpoints]),
        )

    def ready(self, context: RunContext) -> Model:
        """Wait until the model answers; ServingError where it does not in time."""
        trained, job = context.value(Trained), context.value(HostedJob)
        model_id = trained.model_id
        if self._provider.served_as == "deployment":
            model_id = job.suffix or model_id
            context.emit("warning", message=f'deploy {trained.model_id} under the name "{model_id}"')
        with self._connect("answer") as wire:
            self._wait_until_it_answers(wire, context, model_id)
        with self._connect("train") as wire:
            listed = or_else(lambda: wire.model(model_id), None)
        known = life(
            self._provider,
            self._place.url,
            trained.model_id,
            self._clock().date(),
            day(listed.shutdown_date) if listed else None,
        )
        ends = [d for d in (known.shutdown_date, context.value(Eligible).shutdown_date) if d]
        context.emit("job finished", model_id=model_id)
        return Model(
            model_id=model_id,
            track="A",
            provider=self._provider.name,
            base_model=self._base,
            dataset_sha256=context.value(Dataset).sha256,
            endpoint=self._place.answers_url,
            training=trained.training,
            shutdown_date=min(ends, default=None),
            cost_usd=trained.cost_usd,
        )

    def _check_place(self, context: RunContext) -> None:
        """ProviderError where the run began at another address: its file and its job are there."""
        began = context.value(Eligible).url or None
        check_here(f"run {context.run.run_id}", began, [self._place.url])

    def _check_agreed(self, context: RunContext) -> None:
        """PolicyError where the job would be another than was agreed to, or dearer than its limit by now.

        The estimate is on record since the run began; config.json and --max-cost may have changed since.
        """
        run, agreed, tokens = context.run, context.value(Estimate), context.value(Findings).tokens
        if tokens is None:
            return
        now = self._estimate(context.value(Dataset), tokens)
        base, limit = context.value(Eligible).base_model, run.max_cost_usd
        dearer = (now.cost_usd or 0.0) > (agreed.cost_usd or 0.0)
        if dearer or (base, agreed.epochs) != (self._base, now.epochs):
            raise PolicyError(
                f"run {run.run_id} was agreed to as {_terms(agreed, base)}, but config.json makes it now "
                f"{_terms(now, self._base)}; no job was started. Put config.json back and resume, or: "
                f"fine-tune cancel {run.run_id}, and submit --again"
            )
        if limit is not None and (agreed.cost_usd is None or agreed.cost_usd > limit):
            raise PolicyError(
                f"run {run.run_id} was agreed to as {_terms(agreed, base)}, which --max-cost {limit:.2f} "
                f"forbids; no job was started. Submit with another limit, or: fine-tune cancel {run.run_id}"
            )

    def _watch(
        self, wire: Wire, context: RunContext, hosted: HostedJob
    ) -> tuple[RemoteJob, tuple[RemoteEvent, ...]]:
        """Look until the job has ended; an outage is waited out, a phase that lasts too long is not."""
        shown: tuple[str, int | None] | None = None
        look = last_look(context.attempt_dir, hosted.job_id)
        self._pause(context, wait_s(look, self._clock(), self._pace.poll_s))
        seen = self._clock()
        entered, last = (min(seen, look.since), look.status) if look else (seen, "")
        while True:
            context.check_cancelled()
            try:
                job = wire.job(hosted.job_id)
                events = or_else(lambda: wire.events(hosted.job_id), ())
            except (Unanswered, Busy) as error:
                if (self._clock() - seen).total_seconds() > self._pace.outage_s:
                    raise
                context.emit("warning", message=f"{error}; the job goes on, asking again")
                self._pause(context, self._pace.poll_s)
                continue
            seen, where, at = self._clock(), phase(self._provider, job.status), progress(events)
            if job.status != last:
                entered, last = seen, job.status
            step = at.step if where == "running" else None
            if shown != (job.status, step):
                shown = (job.status, step)
                steps = msgspec.to_builtins(at) if where == "running" else {}
                elapsed = (seen - hosted.begun_at).total_seconds()
                context.emit("job status", status=job.status, elapsed_s=elapsed, **steps)
            if where in ENDS:
                return job, events
            if (seen - entered).total_seconds() > self._pace.limit_s(where):
                # Whoever resumes gives it as long again.
                note(context.attempt_dir, job.id, job.status, seen, seen)
                raise self._overdue(wire, context, job, where)
            again_at = seen + timedelta(seconds=self._pace.poll_s)
            note(context.attempt_dir, job.id, job.status, entered, again_at)
            self._pause(context, self._pace.poll_s)

    def _overdue(
        self, wire: Wire, context: RunContext, job: RemoteJob, where: Phase
    ) -> ProviderError | RunError:
        """A job stuck before it cost anything is cancelled; any other is left to itself."""
        hours = self._pace.limit_s(where) / HOUR
        stuck = f'{self._provider.title}: job {job.id} has been "{job.status}" for over {hours:g} h'
        run_id = context.run.run_id
        if where != "validating":
            return ProviderError(
                f"{stuck}; look at the provider's own page, then: fine-tune resume {run_id}, "
                f"or: fine-tune cancel {run_id}"
            )
        cancel_job(wire, self._provider, job.id)
        self._end(wire, context, f"job {job.id} was stuck in validation")
        return ProviderError(
            f"{stuck} and was cancelled; its file was deleted; try again with --again, or use --track b"
        )

    def _failed(
        self, wire: Wire, context: RunContext, job: RemoteJob, events: tuple[RemoteEvent, ...]
    ) -> ProviderError | RunError:
        """Close the run, delete its files, and say why in one line."""
        self._end(wire, context, f"job {job.id} {job.status}")
        if phase(self._provider, job.status) == "cancelled":
            return RunError(f"job {job.id} was cancelled at {self._provider.title}; try again with --again")
        code = job.error.code if job.error else None
        told = [event.message for event in events if event.level in ("error", "warn")]
        said = (job.error.message if job.error else None) or (told[-1] if told else "it gave no reason")
        remedy = REMEDIES.get(code or "", f"see {context.attempt_dir.name}/provider-events.jsonl of the run")
        reason = " ".join(f"{code}: {said}".split() if code else said.split())
        return ProviderError(f"{self._provider.title}: job {job.id} failed: {reason}; {remedy}")

    def _wait_until_it_answers(self, wire: Wire, context: RunContext, model_id: str) -> None:
        from fine_tune_runner.hosted.wire import Rejected

        begun = self._clock()
        while True:
            context.check_cancelled()
            try:
                wire.chat(model_id, PING, Decoding(max_tokens=1))
            except (Rejected, Unanswered, Busy) as error:
                if isinstance(error, Rejected) and error.status == 401:
                    raise
                if (self._clock() - begun).total_seconds() > self._pace.ready_s:
                    minutes = self._pace.ready_s / 60
                    raise ServingError(
                        f"{model_id} is trained but does not answer after {minutes:g} min ({error}); "
                        f"nothing is lost, ask again later: fine-tune resume {context.run.run_id}"
                    ) from None
            else:
                return
            self._pause(context, self._pace.poll_s)

    def _pause(self, context: RunContext, seconds: float) -> None:
        """Sleep by the second, so that `fine-tune cancel` is heard."""
        while seconds > 0:
            context.check_cancelled()
            self._sleep(min(1.0, seconds))
            seconds -= 1.0

    @contextlib.contextmanager
    def _ends_for_good(self, wire: Wire, context: RunContext) -> Iterator[None]:
        """On a refusal that would come again, close the run and delete what it uploaded."""
        from fine_tune_runner.hosted.wire import Closed, Rejected

        try:
            yield
        except Closed:
            self._end(wire, context, "refused by the provider")
            raise
        except Rejected as error:
            if not error.final:
                raise
            self._end(wire, context, "refused by the provider")
            raise ProviderError(
                f"{error}; what was uploaded is deleted; mend that, then try again with --again"
            ) from None
        except RunError:
            if self._ledger.closed(context.run.run_id) is not None:
                delete_files(wire, context.run.run_id)
            raise

    def _end(self, wire: Wire, context: RunContext, reason: str) -> None:
        self._ledger.close(context.run.run_id, reason)
        with contextlib.suppress(ProviderError):  # the reason counts; `doctor` lists what is left
            delete_files(wire, context.run.run_id)

    def check_whereabouts(self, run_id: str) -> None:
        """ProviderError where a run may have a file or a job at another address than that of the settings."""
        if self._ledger.closed(run_id) is None and self._ledger.effects(run_id):
            check_here(f"run {run_id}", began_at(self._client.dir, run_id), [self._place.url])

    def cancel(self, run_id: str) -> tuple[str, ...]:
        """Let nothing more begin, stop the run's jobs, delete its files; the ids of the jobs.

        ProviderError where what it sent is at another address; the run is not closed then.
        """
        self.check_whereabouts(run_id)
        self._ledger.close(run_id, "cancelled")
        done = {e.step: e.provider_id for e in self._ledger.effects(run_id) if e.provider_id}
        with self._connect("ids") as wire:
            job = find_job(wire, run_id, done.get("upload")).id or done.get("create")
            jobs = [job] if job else []
            for job_id in jobs:
                cancel_job(wire, self._provider, job_id)
            delete_files(wire, run_id)
        return tuple(jobs)


def _terms(estimate: Estimate, base: str) -> str:
    """What is paid for, in words."""
    price = "an unknown price" if estimate.cost_usd is None else f"${estimate.cost_usd:.2f}"
    return f"{estimate.epochs} epochs of {base} for {price}"
