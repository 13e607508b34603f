"""What an Ollama host keeps: blobs, models by name, and a llama.cpp for those that are loaded.

Behaves as facts/ollama.md says, its bites included. Knows no HTTP (app.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.contract.ollama_server import gotemplate

DEFAULTS: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.9,
    "num_predict": -1,
    "num_ctx": 4096,
}
TYPES: Mapping[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "top_k": (int,),
    "top_p": (int, float),
    "min_p": (int, float),
    "repeat_penalty": (int, float),
    "num_predict": (int,),
    "num_ctx": (int,),
    "num_keep": (int,),
    "seed": (int,),
    "stop": (list,),
}
LOADED_AT_ONCE = 3


class Refusal(Exception):
    """An answer that is an error; `status` as the real server's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Stored:
    """One model: layers by digest and what comes with them."""

    name: str
    gguf: str
    adapters: tuple[str, ...] = ()
    system: str = ""
    template: str = "{{ .Prompt }}"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    parent: str = ""
    modified: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def digest(self) -> str:
        """Of the manifest: the same layers have the same digest, whatever the name."""
        layers = [self.gguf, self.adapters, self.system, self.template, dict(self.parameters), self.license]
        return hashlib.sha256(json.dumps(layers, sort_keys=True).encode()).hexdigest()


class Store:
    """The models of one host; `version` is the server's, `pulls` what it asked a public registry for.

    `broken_copy` makes copies that differ: the fault that comparing digests is there for.
    """

    def __init__(self, folder: Path, version: str = "0.34.1") -> None:
        self.folder = folder
        self.version = version
        self.models: dict[str, Stored] = {}
        self.pulls: list[str] = []
        self.broken_copy = False
        self._runners: dict[tuple[str, tuple[str, ...], int], Any] = {}
        self._lock = threading.Lock()

    @property
    def _number(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("-")[0].split("."))

    def blob(self, digest: str) -> Path:
        """Where a blob lies, whether it is there or not."""
        return self.folder / digest.replace(":", "-")

    def find(self, name: str) -> Stored:
        """A model by its name, whose case does not count; 404 as the server says it."""
        found = self.models.get(key_of(name))
        if found is None:
            raise Refusal(404, f"model '{name}' not found")
        return found

    def create(self, request: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        """The lines of a creation; a fault is a Refusal at the place where the stream stops."""
        name = str(request.get("model") or "")
        model = name.rpartition(":")[0] or name
        if not name or len(model) > 80 or " " in name:
            raise Refusal(400, "invalid model name")
        if not request.get("files") and not request.get("from"):
            raise Refusal(400, "neither 'from' or 'files' was specified")
        stored = self._from(request["from"]) if request.get("from") else self._from_files(request)
        if request.get("adapters"):
            yield {"status": "converting adapter"}
            stored = replace(stored, adapters=(*stored.adapters, *self._adapters(request["adapters"])))
        yield {"status": "parsing GGUF"}
        try:
            gotemplate.parse(request.get("template") or "")
        except gotemplate.TemplateError as error:
            raise Refusal(400, f"template error: {error}") from None
        yield {"status": f"using existing layer {stored.gguf}"}
        given = {k: request[k] for k in ("system", "template", "license") if request.get(k)}
        licence = f"{stored.license}\n{given.pop('license', '')}".strip()  # one more layer, none is replaced
        merged = {**stored.parameters, **(request.get("parameters") or {})}
        made = replace(stored, name=name, parameters=merged, license=licence, **given)
        yield {"status": "writing manifest"}
        self.models[key_of(name)] = made  # an existing name is overwritten, and nobody asks
        yield {"status": "success"}

    def _from(self, name: str) -> Stored:
        found = self.models.get(key_of(name))
        if found is None:
            self.pulls.append(name)
            raise Refusal(500, "pull model manifest: file does not exist")
        return replace(found, parent=name, modified=datetime.now(UTC))

    def _from_files(self, request: Mapping[str, Any]) -> Stored:
        ((_, digest), *_rest) = request["files"].items()
        path = self.blob(digest)
        if not path.is_file():
            raise Refusal(400, f'blob "{digest}" not found')
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise Refusal(400, "invalid file magic")
        if request.get("quantize") and self._number >= (0, 34, 1):
            raise Refusal(400, "quantizing GGUF models is not supported")
        if (0, 30) <= self._number < (0, 34, 1):
            digest = self._rewritten(path)
        return Stored(name="", gguf=digest)

    def _rewritten(self, path: Path) -> str:
        """The same model in other bytes: these versions write a GGUF anew."""
        data = path.read_bytes() + b"\0" * 32
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blob(digest).write_bytes(data)
        return digest

    def _adapters(self, adapters: Mapping[str, str]) -> Iterator[str]:
        if self._number >= (0, 34, 1):
            raise Refusal(400, "adapters are no longer supported")
        for digest in adapters.values():
            if not self.blob(digest).is_file():
                raise Refusal(400, f'blob "{digest}" not found')
            yield digest

    def copy(self, source: str, target: str) -> None:
        """Another name for the same layers, with the same digest."""
        found = self.find(source)
        extra = {"license": found.license + " "} if self.broken_copy else {}
        self.models[key_of(target)] = replace(found, name=target, **extra)

    def delete(self, name: str) -> None:
        """Forget a name; blobs stay until a restart, as orphans do."""
        del self.models[key_of(self.find(name).name)]

    def info(self, stored: Stored) -> dict[str, Any]:
        """model_info of /api/show: the GGUF's key-values, long lists left out."""
        from gguf import GGUFReader

        reader = GGUFReader(self.blob(stored.gguf))
        kept = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        return {k: v for k, v in kept.items() if not isinstance(v, list)}

    def prompt(self, stored: Stored, messages: list[dict[str, str]]) -> str:
        """The rendered prompt; the model's own system prompt where the request has none."""
        if stored.system and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": stored.system}, *messages]
        try:
            return gotemplate.render(stored.template, messages)
        except gotemplate.TemplateError as error:
            raise Refusal(500, str(error)) from None

    def complete(self, stored: Stored, prompt: str, options: Mapping[str, Any], top: int) -> dict[str, Any]:
        """llama.cpp's answer to a prompt as text; parameter types are looked at only now."""
        chosen = {**DEFAULTS, **stored.parameters, **options}
        for key, value in chosen.items():
            if key not in TYPES or isinstance(value, bool) or not isinstance(value, TYPES[key]):
                raise Refusal(500, f'option "{key}" must be of type {TYPES.get(key, (object,))[0].__name__}')
        body = {
            "prompt": prompt,
            "max_tokens": chosen["num_predict"],
            "temperature": chosen["temperature"],
            "top_k": chosen["top_k"],
            "top_p": chosen["top_p"],
            "min_p": chosen.get("min_p", 0.0),
            "repeat_penalty": chosen.get("repeat_penalty", 1.0),
            "seed": chosen.get("seed", -1),
            "stop": chosen.get("stop", []),
            **({"logprobs": top} if top else {}),
        }
        with self._lock:  # one answer at a time, and nobody unloads a model that is answering
            runner = self._runner(stored, chosen["num_ctx"])
            if top and chosen["temperature"] == 0:
                return self._one_by_one(runner, stored, body)
            answer: dict[str, Any] = runner.handle_completions(body)
        if "error" in answer:
            raise Refusal(500, str(answer["error"]["message"]))
        return answer

    def _one_by_one(self, runner: Any, stored: Stored, body: dict[str, Any]) -> dict[str, Any]:
        """A greedy answer whose every token has its probabilities, as Ollama gives them.

        llama.cpp keeps them back where a token is half a character. They are those before the draw, so a draw
        that is made to be a letter has the same.
        """
        from gguf import GGUFReader

        fields = GGUFReader(self.blob(stored.gguf)).fields
        letter = fields["tokenizer.ggml.tokens"].contents().index("a")
        ends = [f.contents() for k, f in fields.items() if k.endswith(("eos_token_id", "eot_token_id"))]
        said: list[dict[str, Any]] = []
        for _ in range(body["max_tokens"] if body["max_tokens"] > 0 else 64):
            prompt = [body["prompt"], *(token["id"] for token in said)]
            forced = {**body, "prompt": prompt, "max_tokens": 1, "logit_bias": [[letter, 1e6]], "stop": []}
            answer = runner.handle_completions(forced)
            (drawn,) = answer["choices"][0]["logprobs"]["content"]
            likely = drawn["top_logprobs"]
            if likely[0]["id"] in ends:
                break
            said.append({**likely[0], "top_logprobs": likely})
        text = b"".join(bytes(token["bytes"]) for token in said).decode(errors="replace")
        choice = {"text": text, "logprobs": {"content": said}, "finish_reason": "stop"}
        return {"choices": [choice], "usage": {"prompt_tokens": 0, "completion_tokens": len(said)}}

    def _runner(self, stored: Stored, context: int) -> Any:
        key = (stored.gguf, stored.adapters, context)
        if key not in self._runners:
            while len(self._runners) >= LOADED_AT_ONCE:
                del self._runners[next(iter(self._runners))]
            self._runners[key] = self._load(*key)
        return self._runners[key]

    def _load(self, gguf: str, adapters: tuple[str, ...], context: int) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self.blob(gguf))
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(self.blob(a)), 1.0) for a in adapters]
        params.n_ctx, params.n_parallel, params.cache_ram_mib = context, 1, 0
        params.fit_params = params.endpoint_slots = params.ui = params.warmup = False
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.verbosity = -1
        # In a folder of its own: a socket's path holds 107 bytes, and a test's folder may have more.
        sockets = tempfile.mkdtemp(prefix="ftr-")
        weakref.finalize(self, shutil.rmtree, sockets, ignore_errors=True)
        params.hostnames = [str(Path(sockets) / "llama.sock")]
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:
            raise Refusal(500, f"unable to load model: {error}") from None

    def close(self) -> None:
        """Unload everything."""
        self._runners.clear()


def key_of(name: str) -> str:
    """A name as the server compares it: with its tag, in lower case."""
    return (name if ":" in name else f"{name}:latest").lower()
