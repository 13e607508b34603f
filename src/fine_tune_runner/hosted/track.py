"""Track A as the runner sees it: one hosted provider for one client.

No text of a sensitive client gets as far as a socket here: every connection is opened in one place, which
refuses, but for one that can carry nothing but ids. The SDK is imported where it is used.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from fine_tune_runner.errors import PolicyError, ProviderError, ServingError
from fine_tune_runner.hosted import cost, shutdown
from fine_tune_runner.hosted.answers import HostedAnswerer
from fine_tune_runner.hosted.flow import Eligible, Flow, HostedJob, Pace, Trained, Upload, resumable
from fine_tune_runner.hosted.place import Errand, place_of
from fine_tune_runner.hosted.providers import PROVIDERS, base_model, is_own_host
from fine_tune_runner.hosted.remote import cancel_job, delete_files, model_of_job, still_on
from fine_tune_runner.hosted.whereabouts import check_here, made_at
from fine_tune_runner.policy.egress import EgressPolicy
from fine_tune_runner.settings import Client, Settings
from fine_tune_runner.types import (
    Answerer,
    Clock,
    Dataset,
    Decoding,
    Estimate,
    Message,
    Model,
    RegistryEntry,
    Run,
    Step,
    Tokenizer,
    TokenStats,
)
from fine_tune_runner.workflow.ledger import Ledger

if TYPE_CHECKING:
    import httpx2

    from fine_tune_runner.hosted.doctor import Unwatched
    from fine_tune_runner.hosted.wire import Wire


class Hosted:
    """Trains and asks one client's versions at its provider.

    `clock`, `sleep` and `transport` are seams; `crash_point` is the ledger's.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        *,
        pace: Pace | None = None,
        clock: Clock = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx2.BaseTransport | None = None,
        crash_point: Callable[[str], None] = lambda _point: None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._pace = pace or Pace(poll_s=settings.poll_s)
        self._clock = clock
        self._sleep = sleep
        self._transport = transport
        self.place = place_of(settings, client.config)
        self.provider = self.place.provider
        self.title = f"Track A ({self.provider.title})"
        self._base = base_model(self.provider, client.config.weights) or ""
        self.ledger = Ledger(
            settings.data_dir,
            clock,
            url=settings.database,
            sleep=sleep,
            settle_s=self._pace.request_s + self._pace.grace_s,
            grace_s=self._pace.grace_s,
            crash_point=crash_point,
        )

    def unavailable(self) -> str | None:
        """Why no new job can be started, by what is known without asking the provider."""
        if refusal := self._sensitive():
            return refusal
        if refusal := self._no_key() or self.place.refusal("train") or self.place.refusal("answer"):
            return refusal
        if not self._base:
            return f'no base model is named for {self.provider.title}; set "base_model" in config.json'
        own = is_own_host(self.provider, self.place.url)
        if own and self.provider.trains and self._base not in self.provider.trains:
            names = ", ".join(self.provider.trains)
            return (
                f"{self.provider.title} does not train {self._base}; set base_model in config.json: {names}"
            )
        today = self._clock().date()
        if closed := shutdown.closed(self.provider, self.place.url, today):
            return closed
        try:
            shutdown.check_alive(self._base, shutdown.life(self.provider, self.place.url, self._base, today))
        except PolicyError as error:
            return str(error)
        return None

    def tokenizer(self) -> Tokenizer:
        """o200k_base, an approximation for models of other families."""
        return cost.ChatTokens(exact=self._base.startswith(("gpt-4o", "gpt-4.1")))

    def estimate(self, dataset: Dataset, tokens: TokenStats) -> Estimate:
        """Tokens, epochs by the auto rule, and the price where one is on record."""
        training = self._client.config.training
        epochs = training.epochs or cost.auto_epochs(dataset.examples)
        price = self.provider.prices.get(self._base)
        source = f"{self.provider.title}'s price of {self.provider.prices_read}"
        if price is None:
            source = f"no price of {self._base} at {self.provider.title} is on record"
        return Estimate(
            dataset_sha256=dataset.sha256,
            tokens_per_epoch=tokens.total,
            epochs=epochs,
            steps=cost.optimizer_steps(dataset.examples, epochs, training.batch_size),
            cost_usd=cost.training_usd(price, tokens.total * epochs) if price else None,
            price_source=source,
        )

    def steps(self) -> Sequence[Step]:
        """Data set → eligible → uploaded → paid job → trained → a model that answers."""
        flow = self._flow()
        at = functools.partial(Step, place="hosted", provider=self.provider.name)
        return (
            at(name="eligible", gives=Eligible, do=resumable(flow.eligible)),
            at(name="upload", gives=Upload, do=resumable(flow.upload)),
            at(name="create", gives=HostedJob, do=resumable(flow.create)),
            at(name="poll", gives=Trained, do=resumable(flow.poll)),
            at(name="ready", gives=Model, do=resumable(flow.ready)),
        )

    def base(self) -> Model:
        """The bare base model at the same provider."""
        return Model(
            model_id=self._base,
            track="A",
            provider=self.provider.name,
            base_model=self._base,
            dataset_sha256="",
            endpoint=self.place.answers_url,
        )

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Answerer]:
        """Ask over chat completions; ServingError where one of the models does not answer any more."""
        if refusal := self._sensitive():
            raise ServingError(refusal)
        for model in models:
            # The key belongs to the configured addresses; it is not sent to where another key trained once.
            if model.endpoint not in (None, self.place.url, self.place.answers_url):
                raise ServingError(
                    f"{model.model_id} is at {model.endpoint}, but this key is for {self.place.answers_url}; "
                    "set OPENAI_BASE_URL"
                )
        with self.connect("answer") as wire:
            for model in models:
                self._try(wire, model.model_id)
            yield HostedAnswerer(wire)

    def month_usd(
        self,
        model: Model,
        prompts: Sequence[tuple[Message, ...]],
        tokens_per_answer: float,
        answers: int,
    ) -> float | None:
        """By the provider's price of the fine-tuned base; None where none is on record."""
        provider = PROVIDERS.get(model.provider)
        price = provider.prices.get(model.base_model) if provider else None
        if price is None or not prompts:
            return None
        sent = sum(tokens for tokens, _ in self.tokenizer().count(prompts)) / len(prompts)
        return cost.month_usd(price, sent, tokens_per_answer, answers)

    def ended(self, run: Run) -> str | None:
        """Why the run was closed in the ledger, where it was."""
        return self.ledger.closed(run.run_id)

    def pending(self, run: Run) -> str | None:
        """What of a run may still be going on at the provider, asked there; None where nothing does."""
        ledger, settle_s = self.ledger, self._pace.request_s + self._pace.grace_s
        try:
            self._flow().check_whereabouts(run.run_id)
            with self.connect("ids") as wire:
                return still_on(
                    wire,
                    self.provider,
                    run.run_id,
                    ledger.effects(run.run_id),
                    closed=ledger.closed(run.run_id) is not None,
                    settled=lambda effect: (self._clock() - effect.intent_at).total_seconds() >= settle_s,
                )
        except ProviderError as error:
            return f"nobody can tell whether its job still runs ({error})"

    def cancel(self, run: Run) -> str | None:
        """Let nothing more of the run begin, stop its job at the provider, delete its files there."""
        jobs = self._flow().cancel(run.run_id)
        what = f"job {', '.join(jobs)} no longer runs" if jobs else "no job runs"
        track = "b" if self._client.config.is_sensitive else "a"
        return (
            f"{run.run_id} is at its end: {what} at {self.provider.title}, its training file is "
            f"deleted there; another attempt: fine-tune submit --client {run.client_id} "
            f"--version {run.version} --track {track} --again"
        )

    def follow(self, active: RegistryEntry | None) -> str | None:
        """A provider has no name of ours that could mean another version."""
        return None

    def forget(self, run_ids: Sequence[str], model_ids: Sequence[str]) -> tuple[str, ...]:
        """Stop what still runs of a client, delete its files and models at the provider; the models' ids.

        Models of earlier attempts, which no registry names any more, go too. What is at another address is
        left: ProviderError names the first, once all that is here was deleted.
        """
        flow, away = self._flow(), []
        here: tuple[list[str], list[str]] = ([], [])
        checks = (flow.check_whereabouts, self._check_made_here)
        for check, names, kept in zip(checks, (run_ids, model_ids), here, strict=True):
            for name in names:
                try:
                    check(name)
                    kept.append(name)
                except ProviderError as error:
                    away.append(error)
        jobs = [job_id for run_id in here[0] for job_id in flow.cancel(run_id)]
        with self.connect("ids") as wire:
            made = filter(None, [model_of_job(wire, job_id) for job_id in jobs])
            every = dict.fromkeys([*here[1], *made])
            gone = tuple(model_id for model_id in every if wire.delete_model(model_id))
        if away:
            raise away[0]
        return gone

    def _check_made_here(self, model_id: str) -> None:
        """ProviderError where a model is at another address; that of a closed run is gone there already."""
        made = made_at(self._client.dir, model_id)
        if made is not None and self.ledger.closed(made.run_id) is None:
            check_here(model_id, made.url, [self.place.url, self.place.answers_url])

    def discard(self, found: Unwatched) -> None:
        """Delete what no run watches: stop its job, delete its model or file; its run can begin no more."""
        with self.connect("ids") as wire:
            if found.kind == "file":
                wire.delete_file(found.id)
                return
            if found.run_id is not None:
                self.ledger.close(found.run_id, "discarded by fine-tune doctor")
            if found.kind == "job":
                cancel_job(wire, self.provider, found.id)
            if found.model_id is not None:
                wire.delete_model(found.model_id)
            if found.run_id is not None:
                delete_files(wire, found.run_id)

    def connect(self, errand: Errand) -> Wire:
        """A wire to the provider; PolicyError without key or address.

        For a sensitive client only "ids" is opened, whose wire refuses every request that carries more.
        """
        from fine_tune_runner.hosted.wire import Wire, anything, only_ids
        from fine_tune_runner.policy.transport import checked_transport

        refusal = self._sensitive() if errand != "ids" else None
        refusal = refusal or self._no_key() or self.place.refusal(errand)
        key = self._settings.openai_api_key
        if refusal or key is None:
            raise PolicyError(refusal or "no key")
        policy = EgressPolicy(sensitive=self._client.config.is_sensitive and errand != "ids")
        return Wire(
            self.provider,
            self.place.at(errand),
            key,
            transport=self._transport or checked_transport(policy),
            allow=only_ids if errand == "ids" else anything,
            timeout_s=self._pace.request_s,
            sleep=self._sleep,
        )

    def _flow(self) -> Flow:
        return Flow(
            self._client,
            self.place,
            self._base,
            connect=self.connect,
            estimate=self.estimate,
            ledger=self.ledger,
            clock=self._clock,
            sleep=self._sleep,
            pace=self._pace,
        )

    def _no_key(self) -> str | None:
        if self._settings.openai_api_key is not None:
            return None
        return "OPENAI_API_KEY is not set; set it in the environment or in .env, or use --track b"

    def _sensitive(self) -> str | None:
        if not self._client.config.is_sensitive:
            return None
        return (
            f"{self._client.id} is sensitive: its data may not leave the private network, nothing was sent; "
            'use --track b, or set "sensitive": false in config.json'
        )

    def _try(self, wire: Wire, model_id: str) -> None:
        from fine_tune_runner.hosted.wire import Rejected

        try:
            wire.chat(model_id, (Message(role="user", content="ping"),), Decoding(max_tokens=1))
        except Rejected as error:
            raise ServingError(f"{model_id} cannot be asked any more: {error}") from None
