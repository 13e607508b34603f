"""The steps that put a trained adapter into an Ollama host: look, export, make, confirm, compare.

Each is one durable step from one value to the next. It knows the host through its client only, and neither
the registry nor what is in service.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import MissingModel, ProviderError, ServingError
from fine_tune_runner.files import sha256_file, write_atomic
from fine_tune_runner.private import bases
from fine_tune_runner.private.bases import Base
from fine_tune_runner.private.modelfile import metadata, modelfile, stamps
from fine_tune_runner.private.ollama import Creation, Ollama, Shown, outdated
from fine_tune_runner.private.parity import ParityReport, check_parity
from fine_tune_runner.private.probe import refusal
from fine_tune_runner.private.templates import Family, family_of
from fine_tune_runner.private.track import SERVED_CONTEXT, smoke
from fine_tune_runner.settings import Client, Quantization, Settings, base_model
from fine_tune_runner.types import Dataset, Model, Run, RunContext, Step, TrainingSummary

PROGRESS_S = 1.0  # seconds between two events of a long copy
STAMP = "ftr."
_STAMP_LINE = re.compile(r"^(ftr\.[a-z0-9_]+): (.*)$", re.MULTILINE)
ADAPTER = "adapter.gguf"
PARITY_PROMPTS = 3
PARITY_OPTIONS = {"temperature": 0.0, "num_predict": 8}
Connect = Callable[[], AbstractContextManager[Ollama]]


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """What was found at the host before training: its version, the name that is free there, the way in.

    `why` says why the whole model is sent; None where the adapter alone goes onto the host's own base.
    """

    version: str
    model_id: str
    why: str | None


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """The file to upload, below the client's folder, and what it runs as there.

    `source` is the host's base under an adapter, None for a whole model; `quantization` is of the weights,
    and `adds_bos` says whether the server puts the beginning-of-text token before the rendered prompt.
    """

    path: str
    sha256: str
    source: str | None
    quantization: Quantization
    adds_bos: bool


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
            why = self._no_short_way(ollama, context)
        way = (
            f"the whole model is sent: {why}"
            if why
            else f"only the adapter is sent, onto {self._named.ollama}"
        )
        context.emit("host found", host=self._host, version=version, model_id=model_id, way=way)
        return Host(version=version, model_id=model_id, why=why)

    def _no_short_way(self, ollama: Ollama, context: RunContext) -> str | None:
        if self._named.ollama is None:
            return "config.json names no base of the host's own"
        probe = f"{context.run.client_id}-client:probe"
        path = context.attempt_dir / "probe.gguf"
        return refusal(ollama, self._named.ollama, self._base().dir, probe, path)

    def export(self, context: RunContext) -> Export:
        """Base and adapter → one stamped GGUF, or the adapter alone, and a Modelfile for people."""
        from fine_tune_runner.private.export import export_adapter

        run, dataset, host = context.run, context.value(Dataset), context.value(Host)
        adapter, stamp = context.attempt_dir / ADAPTER, stamps(run, dataset)
        export_adapter(context.attempt_dir / "adapter", self._base().dir, adapter, stamp)
        export = self._merged(context, stamp) if host.why else self._adapter(context, adapter)
        path = context.client_dir / export.path
        way = f"adapter on {export.source}" if export.source else f"merged, {export.quantization}"
        context.emit("exported", path=export.path, size_mb=path.stat().st_size / 1e6, way=way)
        relative = f"./{path.relative_to(context.run_dir)}"
        record = modelfile(
            base=export.source or relative,
            adapter=relative if export.source else None,
            system=self.family.prepared(dataset.system_prompt),
            template=self.family.go_template(server_adds_bos=export.adds_bos),
            stop=self.tokenizer.stop_texts,
            metadata=metadata(run, dataset),
            temperature=self._client.config.eval.temperature,
            num_ctx=self._num_ctx,
        )
        write_atomic(context.run_dir / "Modelfile", record.encode())
        return export

    def _merged(self, context: RunContext, stamp: Mapping[str, str]) -> Export:
        from fine_tune_runner.private.gguf_file import read_header
        from fine_tune_runner.private.merge import merge_gguf

        path = context.attempt_dir / "model.gguf"
        digest = merge_gguf(
            pristine(self._base()),
            context.attempt_dir / "adapter",
            path,
            stamp=stamp,
            quantization=self._named.quantization,
            on_progress=_progress(context, "export progress"),
        )
        return Export(
            path=str(path.relative_to(context.client_dir)),
            sha256=digest,
            source=None,
            quantization=self._named.quantization,
            adds_bos=adds_bos(read_header(path).values),
        )

    def _adapter(self, context: RunContext, path: Path) -> Export:
        source = str(self._named.ollama)
        with self._connect() as ollama:
            base = ollama.show(source)
        return Export(
            path=str(path.relative_to(context.client_dir)),
            sha256=sha256_file(path),
            source=source,
            quantization=base.details["quantization_level"],
            adds_bos=adds_bos(base.model_info),
        )

    def create(self, context: RunContext) -> Made:
        """Upload the file unless it is there, make the model, find it in the list with the stamp of this run.

        Nothing of anybody else is replaced.
        """
        export, host, dataset = context.value(Export), context.value(Host), context.value(Dataset)
        path = context.client_dir / export.path
        digest = f"sha256:{export.sha256}"
        creation = Creation(
            model=host.model_id,
            source=export.source,
            files={} if export.source else {"model.gguf": digest},
            adapters={"adapter.gguf": digest} if export.source else {},
            # What the host shows of an adapter's own key-values is nothing.
            license=stamp_text(stamps(context.run, dataset)) if export.source else "",
            system=self.family.prepared(dataset.system_prompt),
            template=self.family.go_template(server_adds_bos=export.adds_bos),
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

        made, export = context.value(Made), context.value(Export)
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
                quantization=export.quantization,
                adds_bos=export.adds_bos,
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
    """The `ftr.*` key-values of a model, from its file or, for an adapter, from its licence text."""
    values = {key: str(value) for key, value in shown.model_info.items() if key.startswith(STAMP)}
    return values or dict(_STAMP_LINE.findall(shown.license))


def stamp_text(stamp: Mapping[str, str]) -> str:
    """A stamp as lines of text, which `stamp_of` reads."""
    return "\n".join(f"{key}: {value}" for key, value in stamp.items())


def adds_bos(values: Mapping[str, Any]) -> bool:
    """Whether a server puts the beginning-of-text token before the rendered prompt, by a GGUF's key-values.

    Where they do not say, llama.cpp does so for SentencePiece vocabularies and for Llama 3's.
    """
    assumed = values.get("tokenizer.ggml.model") == "llama" or values.get("tokenizer.ggml.pre") == "llama-bpe"
    return bool(values.get("tokenizer.ggml.add_bos_token", assumed))


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
