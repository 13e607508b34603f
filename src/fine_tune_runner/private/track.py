"""Track B, embedded: train in a process of its own, export, serve in this one. No network, no server.

The runner sees only `TrackPort`. Torch and llama.cpp are imported where they are used.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import msgspec

from fine_tune_runner.dataset.read import train_path
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ServingError
from fine_tune_runner.files import sha256_file, write_atomic
from fine_tune_runner.private import bases, train_spec
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.settings import Client, Settings, base_model, load_client
from fine_tune_runner.types import (
    Answerer,
    Dataset,
    Decoding,
    Estimate,
    Findings,
    Message,
    Model,
    Prompt,
    RegistryEntry,
    Reply,
    Run,
    RunContext,
    Step,
    Tokenizer,
    TokenStats,
    TrainingSummary,
)

if TYPE_CHECKING:
    from fine_tune_runner.private.bases import Base
    from fine_tune_runner.private.sitting import Seat, Trainer

SERVED_CONTEXT = 4096  # tokens a slot, as num_ctx in service
NEEDS = ("torch", "safetensors", "gguf", "xllamacpp")


class Embedded:
    """Trains and serves one client's versions on this machine; `trainer` in place of our own (process.py)."""

    title = "Track B (embedded)"

    def __init__(self, settings: Settings, client: Client, *, trainer: Trainer | None = None) -> None:
        self._trainer = trainer
        self._settings = settings
        self._client = client

    def unavailable(self) -> str | None:
        """Names the packages that are missing and how to get them; raises MissingModel without a base."""
        missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; run: pip install 'fine-tune-runner[local]'"
        if self._client.config.training.dtype == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
            return 'training.dtype "nf4" needs bitsandbytes; run: pip install bitsandbytes, or set "auto"'
        if self.weights.gguf is None:  # weights that are missing are asked for before anything starts
            from fine_tune_runner.private.gguf_base import open_base

            open_base(self.weights.dir)  # and what cannot be exported is refused before it is trained
        return None

    @cached_property
    def weights(self) -> Base:
        """The base model's files on this machine."""
        return self._resolve(base_model(self._settings, self._client.config).weights)

    def _resolve(self, name: str) -> Base:
        # No run asks the hub for weights: that is `fine-tune fetch`, before.
        return bases.resolve(name, self._settings, offline=True)

    def tokenizer(self) -> Tokenizer:
        """The base model's own."""
        return ChatTokenizer(self.weights.dir, self.weights.name)

    def base(self) -> Model:
        """The bare base model."""
        return Model(
            model_id=self.weights.name,
            track="B",
            provider="embedded",
            base_model=self.weights.name,
            dataset_sha256="",
        )

    def estimate(self, dataset: Dataset, tokens: TokenStats) -> Estimate:
        """Steps by the settings, time by the speed of the last training of this base here, no price."""
        training = train_spec.resolve(self._client.config.training, self.weights.dir)
        epochs, batch_size = training.epochs or 1, training.batch_size or 1
        speed = self._speeds().get(self.weights.name)
        return Estimate(
            dataset_sha256=dataset.sha256,
            tokens_per_epoch=tokens.total,
            epochs=epochs,
            steps=epochs * math.ceil(dataset.examples / batch_size),
            cost_usd=0.0,
            price_source="own hardware",
            duration_s=tokens.total * epochs / speed if speed else None,
        )

    def steps(self) -> Sequence[Step]:
        """Dataset → adapter → GGUF → a model that answers."""
        return (
            Step(name="train", gives=TrainingSummary, do=self.train, place="train"),
            Step(name="export", gives=Model, do=self.export, place="train"),
            Step(name="confirm", gives=Model, do=self.confirm, place="train"),
        )

    def train(self, context: RunContext) -> TrainingSummary:
        """Train an adapter in a process of its own, with those of other runs that wait here for the same.

        Goes on from a checkpoint of this attempt; what another run's step has trained is taken as it is.
        """
        from fine_tune_runner.private import process, sitting

        seat = self.seat(context)
        summary = train_spec.finished(seat.spec, train_spec.fingerprint(seat.spec))
        if summary is None:
            trainer = self._trainer or process.train_together
            summary, together = sitting.train_together(seat, self._seat_of, trainer)
            if together == 1 and summary.seconds > 0:
                self._remember_speed(summary.tokens / summary.seconds)
        context.emit(
            "train finished",
            steps=summary.steps,
            first_loss=summary.first_loss,
            final_loss=summary.final_loss,
        )
        return summary

    def seat(self, context: RunContext) -> Seat:
        """What a run of this client asks of the trainer; MissingModel where its base is not here."""
        from fine_tune_runner.private.sitting import Seat

        dataset, tokens = context.value(Dataset), context.value(Findings).tokens
        assert tokens is not None, "the estimate before has refused a data set without"
        path = train_path(context.client_dir, dataset.version)
        spec = TrainSpec(
            base_dir=str(self.weights.dir),
            train_path=str(path),
            out_dir=str(context.attempt_dir),
            training=self._client.config.training,
        )
        # By bytes: no template renders a system prompt by itself. JSON's own signs make it a little less.
        share = len(dataset.system_prompt.encode()) * dataset.examples / path.stat().st_size
        return Seat(context, spec, self.weights.name, tokens, tokens.mean * min(1.0, share))

    def _seat_of(self, context: RunContext) -> Seat:
        client = load_client(self._settings, context.run.client_id)
        return Embedded(self._settings, client).seat(context)

    def export(self, context: RunContext) -> Model:
        """Adapter → GGUF LoRA beside it, and a Modelfile for people."""
        from fine_tune_runner.private.export import export_adapter
        from fine_tune_runner.private.modelfile import metadata, modelfile, stamps

        run, dataset = context.run, context.value(Dataset)
        model_id = f"{run.client_id}-client:v{run.version}"
        path = context.attempt_dir / "adapter.gguf"
        export_adapter(context.attempt_dir / "adapter", self.weights.dir, path, stamps(run, dataset))
        relative = str(path.relative_to(context.client_dir))
        context.emit("exported", path=relative, size_mb=path.stat().st_size / 1e6)
        record = modelfile(
            base=self.weights.name,
            adapter=str(path.relative_to(context.run_dir)),
            system=dataset.system_prompt,
            template=None,
            stop=ChatTokenizer(self.weights.dir).stop_texts,
            metadata=metadata(run, dataset),
            temperature=self._client.config.eval.temperature,
        )
        write_atomic(context.run_dir / "Modelfile", record.encode())
        context.emit("created", model_id=model_id)
        return Model(
            model_id=model_id,
            track="B",
            provider="embedded",
            base_model=self.weights.name,
            dataset_sha256=dataset.sha256,
            artifact=relative,
            artifact_sha256=sha256_file(path),
            training=context.value(TrainingSummary),
        )

    def confirm(self, context: RunContext) -> Model:
        """A smoke generation: the model loads and says something, before it counts as made."""
        model, dataset = context.value(Model), context.value(Dataset)
        started = time.monotonic()
        prompt = Prompt(question_id="smoke", k=0, messages=smoke(dataset.system_prompt))
        with self.serve([model]) as answerer:
            replies: list[Reply] = list(answerer.replies(model.model_id, [prompt], Decoding(max_tokens=16)))
        if not replies or not replies[0].text:
            raise ServingError(
                f"{model.model_id} was made but does not answer: {replies and replies[0].error}"
            )
        context.emit("confirmed", model_id=model.model_id, seconds=time.monotonic() - started)
        return model

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Answerer]:
        """Load models in this process, one server a base; an adapter that was changed is refused."""
        from fine_tune_runner.private.serve import serve_embedded

        for model in models:
            if model.endpoint is not None:
                raise ServingError(
                    f"{model.model_id} is at {model.endpoint}; set OLLAMA_HOST to that, to ask it there"
                )
            self._check_artifact(model)
        with ExitStack() as stack:
            answerers: dict[str, Answerer] = {}
            by_base = sorted(models, key=lambda model: model.base_model)
            for name, group in groupby(by_base, key=lambda model: model.base_model):
                of_base = list(group)
                base = bases.with_gguf(self._resolve(name), self._settings)
                served = serve_embedded(
                    base,
                    of_base,
                    self._client.dir,
                    threads=self._client.config.training.threads or os.cpu_count() or 1,
                    context=min(ChatTokenizer(base.dir).context, SERVED_CONTEXT),
                )
                answerer = stack.enter_context(served)
                answerers |= {model.model_id: answerer for model in of_base}
            yield OneOf(answerers)

    def month_usd(
        self,
        model: Model,
        prompts: Sequence[tuple[Message, ...]],
        tokens_per_answer: float,
        answers: int,
    ) -> float | None:
        """Own hardware has no price an answer."""
        return 0.0

    def ended(self, run: Run) -> str | None:
        """Every run here can go on from its checkpoint."""
        return None

    def pending(self, run: Run) -> str | None:
        """Nothing runs elsewhere."""
        return None

    def cancel(self, run: Run) -> str | None:
        """Nothing runs elsewhere."""
        return None

    def follow(self, active: RegistryEntry | None) -> str | None:
        """Nobody asks by another name than the registry's."""
        return None

    def forget(self, run_ids: Sequence[str], model_ids: Sequence[str]) -> tuple[str, ...]:
        """Everything lies in the client's folder; ServingError where a run put its model elsewhere."""
        ours = f"{self._client.id}-client:"
        named = [f"{self._client.id}-{m.removeprefix(ours)}-b-*" for m in model_ids if m.startswith(ours)]
        for run in (*run_ids, *named):
            for step in (self._client.dir / "runs").glob(f"{run}/steps/*-host.json"):
                raise ServingError(
                    f"the model of run {step.parts[-3]} is at an Ollama host; set OLLAMA_HOST, so that it is "
                    "deleted there"
                )
        return ()

    def _check_artifact(self, model: Model) -> None:
        if model.artifact is None or model.artifact_sha256 is None:
            return
        path = self._client.dir / model.artifact
        if path.is_file() and sha256_file(path) != model.artifact_sha256:
            raise ServingError(
                f"{path}: its sha256 is not the one on record for {model.model_id}; restore it"
            )

    def _speeds(self) -> dict[str, float]:
        path = self._settings.data_dir / ".fine-tune" / "speeds.json"
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float]) if path.is_file() else {}

    def _remember_speed(self, tokens_per_s: float) -> None:
        folder = self._settings.data_dir / ".fine-tune"
        folder.mkdir(mode=0o700, exist_ok=True)
        speeds = self._speeds() | {self.weights.name: tokens_per_s}
        write_atomic(folder / "speeds.json", msgspec.json.encode(speeds))


def smoke(system_prompt: str) -> tuple[Message, ...]:
    """What a model is asked to see that it loads and answers."""
    question = "Purchases count twice since Monday. Where do I look first?"
    return Message(role="system", content=system_prompt), Message(role="user", content=question)


class OneOf:
    """Answers for several servers, by model."""

    def __init__(self, answerers: dict[str, Answerer]) -> None:
        self._answerers = answerers

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """The replies of the server that holds this model."""
        return self._answerers[model_id].replies(model_id, prompts, decoding)
