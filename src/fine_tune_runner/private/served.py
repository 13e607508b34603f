"""Track B with an Ollama host: trained on this machine, put into Ollama, asked there.

Training, tokenizer and estimate are those of the embedded track, which also asks the versions that are not at
a host. The runner sees only `TrackPort`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from urllib.parse import urlsplit

from fine_tune_runner.errors import ProviderError, RunnerError, ServingError
from fine_tune_runner.private.ollama import Ollama, full_name
from fine_tune_runner.private.placing import Connect, Placing, stamp_of
from fine_tune_runner.private.serve import seed_of
from fine_tune_runner.private.templates import Family
from fine_tune_runner.private.track import Embedded, OneOf
from fine_tune_runner.settings import Client, Settings, base_model
from fine_tune_runner.types import (
    Answerer,
    Decoding,
    Model,
    Prompt,
    RegistryEntry,
    Reply,
    Step,
    TrainingSummary,
)

PROVIDER = "ollama"


class Served:
    """Trains one client's versions here and serves them at `OLLAMA_HOST`.

    `embedded` and `connect` are seams: for another trainer, and for another way to the host.
    """

    def __init__(
        self,
        settings: Settings,
        client: Client,
        *,
        embedded: Embedded | None = None,
        connect: Connect | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._host = settings.ollama_host or ""
        self._connect = connect or self._open
        self._embedded = embedded or Embedded(settings, client)
        # Training is here: what it takes is the embedded track's to say, and nothing goes on elsewhere.
        self.tokenizer, self.estimate = self._embedded.tokenizer, self._embedded.estimate
        self.ended, self.pending = self._embedded.ended, self._embedded.pending
        self.cancel, self.month_usd = self._embedded.cancel, self._embedded.month_usd
        self._named = base_model(settings, client.config)
        self._placing = Placing(settings, client, self._connect, lambda: self._embedded.weights)
        self._alias = f"{client.id}-client:latest"
        self.title = f"Track B (Ollama at {urlsplit(self._host).netloc})"

    def unavailable(self) -> str | None:
        """As for the embedded track; raises where host, base, template or encoding would stop a run later."""
        if reason := self._embedded.unavailable():
            return reason
        self._placing.check()
        return None

    def steps(self) -> Sequence[Step]:
        """Host looked at → adapter → one GGUF → model at the host → the one that was trained."""
        train = Step(name="train", gives=TrainingSummary, do=self._embedded.train, place="train")
        return (self._placing.before(), train, *self._placing.after())

    def base(self) -> Model:
        """The bare base: the host's own where it has one, else the weights here."""
        bare = self._embedded.base()
        if self._named.ollama is None:
            return bare
        return Model(
            model_id=self._named.ollama,
            track="B",
            provider=PROVIDER,
            base_model=bare.base_model,
            dataset_sha256="",
            endpoint=self._host,
        )

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Answerer]:
        """Ask at the host, and here what is not at a host; another model of that name is refused."""
        there = [model for model in models if model.endpoint == self._host]
        here = [model for model in models if model.endpoint is None]
        for model in models:
            if model not in there and model not in here:
                raise ServingError(
                    f"{model.model_id} is at {model.endpoint}; set OLLAMA_HOST to ask it there"
                )
        with ExitStack() as stack:
            answerers: dict[str, Answerer] = {}
            if here:
                answerers |= dict.fromkeys(
                    (model.model_id for model in here), stack.enter_context(self._embedded.serve(here))
                )
            if there:
                ollama = stack.enter_context(self._connect())
                for model in there:
                    self._check_served(ollama, model)
                asked = OllamaAnswerer(ollama, self._placing.family)
                answerers |= dict.fromkeys((model.model_id for model in there), asked)
            yield OneOf(answerers)

    def forget(self, run_ids: Sequence[str], model_ids: Sequence[str]) -> tuple[str, ...]:
        """Delete these models at the host, and every model that these runs made there, names of any kind."""
        wanted = {model_id.lower() for model_id in model_ids}
        with self._connect() as ollama:
            gone = []
            for name in self._own(ollama):
                stamp = stamp_of(ollama.show(name))
                if name.lower() in wanted or stamp.get("ftr.run_id") in run_ids:
                    ollama.delete(name)
                    gone.append(name)
        return tuple(gone)

    def follow(self, active: RegistryEntry | None) -> str | None:
        """Let `:latest` be the version in service: a copy with its digest, or no such name; says what it did.

        The alias goes where what is in service is not at an Ollama; at another host it is left alone. Raises
        ProviderError where the version is not at the host, or the copy is not what it was copied from.
        """
        if active is not None and active.provider == PROVIDER and active.endpoint != self._host:
            return None
        with self._connect() as ollama:
            listed = {model.name.lower(): model.digest for model in ollama.models()}
            if self._alias in listed and self._alias not in self._own(ollama):
                raise ProviderError(f"{self._host}: {self._alias} was not made by this system; left as it is")
            if active is None or active.provider != PROVIDER:
                gone = ollama.delete(self._alias)
                return f"{self._alias} taken away: nothing at this host is in service" if gone else None
            digest = listed.get(str(active.model_id).lower())
            if digest is None:
                raise ProviderError(
                    f"{self._host} has no {active.model_id}, which is in service; roll back to a version "
                    "that it has, or train it again"
                )
            if listed.get(self._alias) == digest:
                return None
            ollama.copy(str(active.model_id), self._alias)
            copied = ollama.find(self._alias)
        if copied is None or copied.digest != digest:
            raise ProviderError(
                f"{self._host}: {self._alias} is not the same as {active.model_id} after copying"
            )
        return f"{self._alias} → {active.model_id}"

    def has(self) -> frozenset[str]:
        """The full names of all models at the host; it is asked once."""
        with self._connect() as ollama:
            return frozenset(full_name(model.name) for model in ollama.models())

    def _own(self, ollama: Ollama) -> list[str]:
        """The names at the host that this client's runs made."""
        names = [m.name for m in ollama.models() if m.name.lower().startswith(f"{self._client.id}-client:")]
        return [name for name in names if stamp_of(ollama.show(name)).get("ftr.client_id") == self._client.id]

    def _check_served(self, ollama: Ollama, model: Model) -> None:
        """The host has it, and it is the one that this run trained on this data set."""
        if ollama.find(model.model_id) is None:
            raise ServingError(f"{self._host} has no {model.model_id} any more; train the version again")
        if not model.dataset_sha256:
            return
        stamp = stamp_of(ollama.show(model.model_id))
        if stamp.get("ftr.dataset_sha256") != model.dataset_sha256:
            raise ServingError(
                f"{self._host}: {model.model_id} is not the model on record; somebody replaced it"
            )
        # An attempt that died between create and register has replaced what is on record.
        made_by = stamp.get("ftr.run_id")
        if model.run_id is not None and made_by != model.run_id:
            raise ServingError(
                f"{self._host}: {model.model_id} was made by run {made_by}, not by {model.run_id}, which is "
                f"on record; go on with it: fine-tune resume {made_by}"
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[Ollama]:
        from fine_tune_runner.policy.egress import policy_of
        from fine_tune_runner.private.tunnel import way_to

        with (
            way_to(self._host, policy_of(self._settings, self._client)) as (url, transport),
            Ollama(url, transport=transport, headers=self._settings.ollama_headers) as ollama,
        ):
            yield ollama


class OllamaAnswerer:
    """Implements `types.Answerer` over one host; parameters of service that a call does not name stay."""

    def __init__(self, ollama: Ollama, family: Family) -> None:
        self._ollama = ollama
        self._family = family

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """One reply a prompt, in order; a call that failed comes as `Reply.error`."""
        for prompt in prompts:
            yield self._reply(model_id, prompt, decoding)

    def _reply(self, model_id: str, prompt: Prompt, decoding: Decoding) -> Reply:
        options: Mapping[str, float | int] = {
            "temperature": decoding.temperature,
            "num_predict": decoding.max_tokens,
            "seed": seed_of(decoding, prompt),
        }
        try:
            said = self._ollama.chat(model_id, self._family.sent(prompt.messages), options)
        except RunnerError as error:
            return Reply(question_id=prompt.question_id, k=prompt.k, error=str(error))
        return Reply(question_id=prompt.question_id, k=prompt.k, text=said.text.strip(), tokens=said.tokens)
