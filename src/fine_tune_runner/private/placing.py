"""The steps that put a trained adapter into an Ollama host: look, export, make, confirm, compare.

Each is one durable step from one value to the next. It knows the host through its client only, and neither
the registry nor what is in service.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import islice
from pathlib import Path

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import MissingModel, ProviderError, ServingError
from fine_tune_runner.files import write_atomic
from fine_tune_runner.private import bases
from fine_tune_runner.private.bases import Base
from fine_tune_runner.private.modelfile import metadata, modelfile, stamps
from fine_tune_runner.private.ollama import Creation, Ollama, Shown, outdated
from fine_tune_runner.private.parity import ParityReport, check_parity
from fine_tune_runner.private.templates import Family, family_of
from fine_tune_runner.private.track import SERVED_CONTEXT, smoke
from fine_tune_runner.settings import Client, Settings, base_model
from fine_tune_runner.types import Dataset, Model, Run, RunContext, Step, TrainingSummary

PROGRESS_S = 1.0  # seconds between two events of a long copy
STAMP = "ftr."
ADAPTER = "adapter.gguf"
PARITY_PROMPTS = 3
PARITY_OPTIONS = {"temperature": 0.0, "num_predict": 8}
Connect = Callable[[], AbstractContextManager[Ollama]]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at the host before training: its version, and the name that is free there."""

    version: str
    model_id: str


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """The file to upload, below the client's folder, and its sha256."""

    path: str
    sha256: str


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A model that the host lists, with the stamp of this run; `digest` is of its manifest there."""

    model_id: str
    digest: str


class Placing:
    """One client's way into the host of the settings; `base` finds the base model's files."""

    def __init__(
        self, settings: Settings, client: Client, connect: Connect, base: Callable[[], Base]
    ) -> None:
        self._settings = settings
        self._client = client
        self._host = settings.ollama_host or ""
        self._connect = connect
        self._named = base_model(settings, client.config)
        self._base = base

    def before(self) -> Step:
        """The step before training."""
        return Step(name="host", gives=Host, do=self.look)

    def after(self) -> Sequence[Step]:
        """The steps after training; the last gives the model."""
        return (
            Step(name="export", gives=Export, do=self.export),
            Step(name="create", gives=Made, do=self.create),
            Step(name="parity", gives=ParityReport, do=self.parity),
            Step(name="confirm", gives=Model, do=self.confirm),
        )

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        """The base's own."""
        base = self._base()
        return ChatTokenizer(base.dir, base.name)

    @cached_property
    def family(self) -> Family:
        """How the base lays out a conversation; ConfigError where that cannot be put into Ollama."""
        return family_of(self.tokenizer)

    def check(self) -> None:
        """Raise what would stop a run after its training: template, encoding, host, base; network."""
        from fine_tune_runner.private.merge import check_export

        _ = self.family
        check_export(pristine(self._base()), self._named.quantization)
        with self._connect() as ollama:
            ollama.version()
            self._check_base(ollama)

    def look(self, context: RunContext) -> Host:
        """The host answers, has the base, and the model's name is free there, or of an earlier attempt."""
        model_id = name_of(context.run)
        with self._connect() as ollama:
            version = ollama.version()
            if outdated(version):
                context.emit(
                    "warning",
                    message=f"Ollama {version} at {self._host} lets a request read its memory "
                    "(CVE-2026-7482); update it to 0.17.1 or later",
                )
            self._check_base(ollama)
            self._check_free(ollama, model_id, context.client_dir)
        context.emit("host found", host=self._host, version=version, model_id=model_id)
        return Host(version=version, model_id=model_id)

    def export(self, context: RunContext) -> Export:
        """Base and adapter → one stamped GGUF, the adapter alone to compare with, a Modelfile for people."""
        from fine_tune_runner.private.export import export_adapter
        from fine_tune_runner.private.merge import merge_gguf

        run, dataset = context.run, context.value(Dataset)
        path, stamp = context.attempt_dir / "model.gguf", stamps(run, dataset)
        kind = self._named.quantization
        digest = merge_gguf(
            pristine(self._base()),
            context.attempt_dir / "adapter",
            path,
            stamp=stamp,
            quantization=kind,
            on_progress=_progress(context, "export progress"),
        )
        export_adapter(
            context.attempt_dir / "adapter", self._base().dir, context.attempt_dir / ADAPTER, stamp
        )
        relative = str(path.relative_to(context.client_dir))
        context.emit("exported", path=relative, size_mb=path.stat().st_size / 1e6, way=f"merged, {kind}")
        record = modelfile(
            base=f"./{path.relative_to(context.run_dir)}",
            adapter=None,
            system=self.family.prepared(dataset.system_prompt),
            template=self._template(path),
            stop=self.tokenizer.stop_texts,
            metadata=metadata(run, dataset),
            temperature=self._client.config.eval.temperature,
            num_ctx=self._num_ctx,
        )
        write_atomic(context.run_dir / "Modelfile", record.encode())
        return Export(path=relative, sha256=digest)

    def create(self, context: RunContext) -> Made:
        """Upload the file unless it is there, make the model, find it in the list with the stamp of this run.

        Nothing of anybody else is replaced.
        """
        export, host, dataset = context.value(Export), context.value(Host), context.value(Dataset)
        path = context.client_dir / export.path
        digest = f"sha256:{export.sha256}"
        creation = Creation(
            model=host.model_id,
            files={"model.gguf": digest},
            system=self.family.prepared(dataset.system_prompt),
            template=self._template(path),
            parameters={
                "temperature": self._client.config.eval.temperature,
                "num_ctx": self._num_ctx,
                "stop": list(self.tokenizer.stop_texts),
            },
        )
        with self._connect() as ollama:
            self._check_free(ollama, host.model_id, context.client_dir)
            ollama.upload(path, digest, _progress(context, "upload progress"))
            context.check_cancelled()
            ollama.create(creation)
            made = self._listed(ollama, host.model_id, stamps(context.run, dataset))
        context.emit("created", model_id=made.model_id, digest=made.digest)
        return made

    def parity(self, context: RunContext) -> ParityReport:
        """The model there is the one that was trained, or the run stops here with the check that failed."""
        from fine_tune_runner.private.serve import serve_embedded

        made, gguf = context.value(Made), context.client_dir / context.value(Export).path
        trained = self._local("trained", str((context.attempt_dir / ADAPTER).relative_to(context.client_dir)))
        bare = self._local("bare", None)
        base = bases.with_gguf(self._base(), self._settings)
        threads = self._client.config.training.threads or os.cpu_count() or 1
        rows = islice(read.examples(read.train_path(context.client_dir, context.run.version)), PARITY_PROMPTS)
        with (
            self._connect() as ollama,
            serve_embedded(
                base, [trained, bare], context.client_dir, threads=threads, context=self._num_ctx
            ) as here,
        ):
            report = check_parity(
                tokenizer=self.tokenizer,
                prompts=[row.messages[:-1] for row in rows],
                rendered=lambda messages: ollama.render(made.model_id, self.family.sent(messages)),
                served=lambda messages: (
                    ollama.chat(
                        made.model_id, self.family.sent(messages), PARITY_OPTIONS, top_logprobs=20
                    ).logprobs
                ),
                local=lambda tokens: here.next_tokens("trained", tokens),
                bare=lambda tokens: here.next_tokens("bare", tokens),
                quantization=self._named.quantization,
                adds_bos=adds_bos(gguf),
            )
        context.emit("compared", **msgspec.to_builtins(report))
        return report

    def confirm(self, context: RunContext) -> Model:
        """A smoke generation by the question alone: system prompt and parameters are the model's own."""
        run, made = context.run, context.value(Made)
        started = time.monotonic()
        with self._connect() as ollama:
            self._listed(ollama, made.model_id, stamps(run, context.value(Dataset)))
            said = ollama.chat(made.model_id, smoke("")[1:], {"num_predict": 16})
        if said.tokens < 1:
            raise ServingError(f"{made.model_id} was made at {self._host} but answers nothing")
        context.emit("confirmed", model_id=made.model_id, seconds=time.monotonic() - started)
        return Model(
            model_id=made.model_id,
            track="B",
            provider="ollama",
            base_model=self._base().name,
            dataset_sha256=run.dataset_sha256,
            endpoint=self._host,
            artifact=made.model_id,
            artifact_sha256=context.value(Export).sha256,
            training=context.value(TrainingSummary),
        )

    def _listed(self, ollama: Ollama, model_id: str, wanted: Mapping[str, str]) -> Made:
        listed = ollama.find(model_id)
        if listed is None:
            raise ProviderError(
                f"{self._host} does not list {model_id}, which was made there; resume the run"
            )
        found = stamp_of(ollama.show(model_id))
        if wrong := [key for key, value in wanted.items() if found.get(key) != value]:
            raise ProviderError(
                f"{self._host}: {model_id} says {wrong[0]} is {found.get(wrong[0])!r}, not "
                f"{wanted[wrong[0]]!r}; somebody replaced it: ollama show {model_id}"
            )
        return Made(model_id=model_id, digest=listed.digest)

    def _local(self, model_id: str, artifact: str | None) -> Model:
        return Model(
            model_id=model_id,
            track="B",
            provider="embedded",
            base_model=self._base().name,
            dataset_sha256="",
            artifact=artifact,
        )

    @property
    def _num_ctx(self) -> int:
        return min(self.tokenizer.context, SERVED_CONTEXT)

    def _template(self, gguf: Path) -> str:
        return self.family.go_template(server_adds_bos=adds_bos(gguf))

    def _check_base(self, ollama: Ollama) -> None:
        name = self._named.ollama
        if name is not None and ollama.find(name) is None:
            raise MissingModel(
                f"{self._host} has no {name}, the base to compare with; there: ollama pull {name}"
            )

    def _check_free(self, ollama: Ollama, name: str, client_dir: Path) -> None:
        """An earlier attempt of this client's own may be replaced, nothing else: the server would not ask."""
        if ollama.find(name) is None:
            return
        run_id = stamp_of(ollama.show(name)).get("ftr.run_id")
        if run_id is None or not (client_dir / "runs" / run_id).is_dir():
            whose = f"made by run {run_id}, unknown here" if run_id else "not made by this system"
            raise ProviderError(
                f"{self._host} already has {name}, {whose}; where nobody needs it, take it away there: "
                f"ollama rm {name}"
            )


def name_of(run: Run) -> str:
    """What a run's model is called at the host."""
    return f"{run.client_id}-client:v{run.version}"


def pristine(base: Base) -> Path:
    """The base's own weights, never a conversion of them."""
    return base.gguf or base.dir


def stamp_of(shown: Shown) -> dict[str, str]:
    """The `ftr.*` key-values of a model."""
    return {key: str(value) for key, value in shown.model_info.items() if key.startswith(STAMP)}


def adds_bos(gguf: Path) -> bool:
    """Whether a server puts the beginning-of-text token before the rendered prompt.

    Where the file does not say, llama.cpp does so for SentencePiece vocabularies.
    """
    from fine_tune_runner.private.gguf_file import read_header

    values = read_header(gguf).values
    return bool(values.get("tokenizer.ggml.add_bos_token", values.get("tokenizer.ggml.model") == "llama"))


def _progress(context: RunContext, event: str) -> Callable[[int, int], None]:
    """Events of a long copy, at most one a second and the last; a run that was asked to stop stops."""
    last = -PROGRESS_S

    def report(done: int, total: int) -> None:
        nonlocal last
        context.check_cancelled()
        now = time.monotonic()
        if done >= total or now - last >= PROGRESS_S:
            last = now
            context.emit(event, done=done, total=total)

    return report
