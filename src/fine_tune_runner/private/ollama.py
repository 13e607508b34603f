"""A small typed client of Ollama's HTTP interface: what it answers, and errors that say what to do.

Each call is one request; what the server does not check is checked here (facts/ollama.md). It knows no run,
no registry and no client; transport and headers come from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import msgspec

from fine_tune_runner.addresses import plain_to_public
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import ConfigError, PolicyError, ProviderError
from fine_tune_runner.settings import Secret
from fine_tune_runner.types import Message

T = TypeVar("T")
CHUNK = 1 << 20  # bytes of an upload in memory at once
SAFE_FROM = (0, 17, 1)  # CVE-2026-7482
MODEL_LENGTH = 80  # characters of a name before its tag
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Parameters that we send, and their types; the server takes anything at creation and fails when asked.
PARAMETERS: Mapping[str, type | tuple[type, ...]] = {
    "temperature": (int, float),
    "top_k": int,
    "top_p": (int, float),
    "min_p": (int, float),
    "repeat_penalty": (int, float),
    "num_ctx": int,
    "num_predict": int,
    "seed": int,
    "stop": (list, tuple),
}


class Listed(msgspec.Struct, frozen=True):
    """One model in the host's list; `digest` is of its manifest, hexadecimal."""

    name: str
    digest: str
    size: int = 0


class Shown(msgspec.Struct, frozen=True):
    """What the host says of a model; `model_info` has the GGUF's key-values."""

    system: str = ""
    template: str = ""
    parameters: str = ""
    license: str = ""
    model_info: dict[str, Any] = {}
    details: dict[str, Any] = {}


class Creation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A model to be made, from an uploaded file or from a model that the host has; digests by file name."""

    model: str
    source: str | None = msgspec.field(default=None, name="from")
    files: dict[str, str] = {}
    adapters: dict[str, str] = {}
    system: str = ""
    template: str = ""
    parameters: dict[str, Any] = {}
    license: str = ""


class TokenLogprob(msgspec.Struct, frozen=True):
    """One token of an answer and its natural-log probability; `top_logprobs`: the likeliest here."""

    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


class Said(msgspec.Struct, frozen=True):
    """An answer; `tokens` counts what was generated."""

    text: str
    tokens: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class _Answer(msgspec.Struct, frozen=True):
    message: dict[str, Any] = {}
    eval_count: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


class Ollama:
    """One Ollama host; use it in a `with`.

    `transport` is the seam for an egress guard, `headers` are for a proxy in front of the host. Every method
    raises ProviderError where the host cannot be reached or answers no, naming host and remedy; PolicyError
    for plain http to a public address.
    """

    def __init__(
        self,
        url: str,
        *,
        transport: httpx2.BaseTransport | None = None,
        headers: Mapping[str, Secret] | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        if plain_to_public(url):
            raise PolicyError(
                f"OLLAMA_HOST {url}: plain http to a public address, and Ollama has no authentication. "
                "Use https behind a proxy, ssh://user@host, or its address in the private network"
            )
        self.url = url
        self._http = httpx2.Client(
            base_url=url,
            transport=transport,
            headers={name: value.reveal() for name, value in (headers or {}).items()},
            timeout=httpx2.Timeout(timeout_s, connect=10.0),
            trust_env=False,  # a proxy of the environment is no way to a private host
        )

    def __enter__(self) -> Ollama:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    def version(self) -> str:
        """The server's version, such as `0.34.1`."""
        return str(self._json("GET", "/api/version", dict[str, str]).get("version", ""))

    def models(self) -> tuple[Listed, ...]:
        """Every model that the host has."""
        return self._json("GET", "/api/tags", dict[str, tuple[Listed, ...]]).get("models", ())

    def find(self, name: str) -> Listed | None:
        """The model of that name, as the host compares names: `:latest` where no tag is given, any case."""
        wanted = full_name(name)
        return next((model for model in self.models() if full_name(model.name) == wanted), None)

    def show(self, name: str) -> Shown:
        """System prompt, template, parameters and key-values of a model."""
        return self._json("POST", "/api/show", Shown, {"model": name})

    def has_blob(self, digest: str) -> bool:
        """Whether a file of that digest (`sha256:…`) lies there.

        Asked before an upload, for one of a file that is there is answered before its body is read.
        """
        with self._translated():
            status = self._http.head(f"/api/blobs/{_digest(digest)}").status_code
        if status not in (200, 404):
            raise self._refused(status, "")
        return status == 200

    def upload(self, path: Path, digest: str, on_progress: Callable[[int, int], None]) -> None:
        """Send a file unless it is there, in constant memory; `on_progress` hears bytes sent and in all."""
        total = path.stat().st_size
        if self.has_blob(digest):
            on_progress(total, total)
            return

        def chunks() -> Iterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    yield chunk
                    sent += len(chunk)
                    on_progress(sent, total)

        with self._translated():
            answer = self._http.post(
                f"/api/blobs/{_digest(digest)}", content=chunks(), headers={"Content-Length": str(total)}
            )
        if answer.status_code not in (200, 201):
            raise self._refused(answer.status_code, answer.text)

    def create(self, creation: Creation, on_status: Callable[[str], None] = lambda _status: None) -> None:
        """Make a model; an existing name is overwritten, so look first.

        What is wrong comes as a line in an answer that began with 200: every line is read, up to `success`.
        Raises ConfigError for what the server would take and then fail on; ProviderError where `source` is
        not there, which the server would pull from a public registry.
        """
        check(creation)
        if creation.source is not None and self.find(creation.source) is None:
            raise ProviderError(f"{self.url} has no {creation.source}; there: ollama pull {creation.source}")
        succeeded = False
        with (
            self._translated(),
            self._http.stream("POST", "/api/create", content=msgspec.json.encode(creation)) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise self._refused(answer.status_code, answer.text)
            for line in answer.iter_lines():
                if not line.strip():
                    continue
                said = self._decoded(line.encode(), dict[str, Any])
                if "error" in said:
                    raise ProviderError(f"{self.url} cannot make {creation.model}: {said['error']}")
                succeeded = said.get("status") == "success"
                on_status(str(said.get("status", "")))
        if not succeeded:
            raise ProviderError(f"{self.url} broke off while making {creation.model}; resume the run")

    def copy(self, source: str, target: str) -> None:
        """Give a model another name; an existing name is overwritten."""
        self._call("POST", "/api/copy", {"source": source, "destination": target})

    def delete(self, name: str) -> bool:
        """Take a model away; whether it was there."""
        if self.find(name) is None:
            return False
        self._call("DELETE", "/api/delete", {"model": name})
        return True

    def render(self, name: str, messages: Sequence[Message]) -> str:
        """The prompt as text that the host makes of these messages; nothing is generated."""
        body = {"model": name, "messages": _turns(messages), "stream": False, "_debug_render_only": True}
        info = self._json("POST", "/api/chat", dict[str, Any], body).get("_debug_info") or {}
        if "rendered_template" not in info:
            raise ProviderError(f"{self.url} shows no rendered prompt; update Ollama there")
        return str(info["rendered_template"])

    def chat(
        self,
        name: str,
        messages: Sequence[Message],
        options: Mapping[str, Any],
        *,
        top_logprobs: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Said:
        """Let a model answer; with `top_logprobs` (0 to 20) each token comes with its log-probability.

        `schema` is a JSON schema that the answer is held to (Ollama's structured outputs).
        """
        check_parameters(options)
        body: dict[str, Any] = {
            "model": name,
            "messages": _turns(messages),
            "stream": False,
            "options": dict(options),
        }
        if top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if schema is not None:
            body["format"] = dict(schema)
        answer = self._json("POST", "/api/chat", _Answer, body)
        return Said(
            text=str(answer.message.get("content", "")), tokens=answer.eval_count, logprobs=answer.logprobs
        )

    def _json(self, method: str, path: str, kind: type[T], body: Mapping[str, Any] | None = None) -> T:
        return self._decoded(self._call(method, path, body), kind)

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        with self._translated():
            content = None if body is None else msgspec.json.encode(body)
            answer = self._http.request(method, path, content=content)
        if answer.status_code != 200:
            raise self._refused(answer.status_code, answer.text)
        return answer.content

    def _decoded(self, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=threadsafe(kind))
        except msgspec.DecodeError as error:
            raise ProviderError(
                f"{self.url} answers as no Ollama does ({error}); correct OLLAMA_HOST"
            ) from None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except httpx2.TimeoutException:
            raise ProviderError(
                f"{self.url} does not answer in time; see that it is not overloaded"
            ) from None
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise ProviderError(
                f"{self.url} cannot be reached ({error}); start Ollama there, or correct OLLAMA_HOST"
            ) from None

    def _refused(self, status: int, text: str) -> ProviderError:
        remedies = {
            401: "set OLLAMA_HEADERS for the proxy in front of it, such as Authorization: Bearer ...",
            403: "an Ollama that listens on loopback refuses other host names: use ssh://user@host, let the "
            "proxy rewrite the Host header, or bind it to the private address",
        }
        try:
            said = msgspec.json.decode(text, type=dict[str, Any]).get("error") or text
        except msgspec.DecodeError:
            said = text
        words = " ".join(str(said).split())[:300]
        remedy = f"; {remedies[status]}" if status in remedies else ""
        return ProviderError(f"{self.url} answers {status}{f': {words}' if words else ''}{remedy}")


def full_name(name: str) -> str:
    """A model's name with its tag and in lower case, for names ignore case."""
    return (name if ":" in name.rpartition("/")[2] else f"{name}:latest").lower()


def outdated(version: str) -> bool:
    """Whether a version lacks the fix of CVE-2026-7482; one that cannot be read counts as new."""
    found = re.match(r"v?(\d+)\.(\d+)\.(\d+)", version)
    return found is not None and tuple(map(int, found.groups())) < SAFE_FROM


def check(creation: Creation) -> None:
    """Raise ConfigError for a creation that the server would take and then fail on."""
    name = creation.model.rpartition(":")[0] or creation.model
    if len(name) > MODEL_LENGTH:
        raise ConfigError(f"{creation.model}: an Ollama model's name has at most {MODEL_LENGTH} characters")
    if unsafe := [file for file in (*creation.files, *creation.adapters) if not file.endswith(".gguf")]:
        raise ConfigError(f"{unsafe[0]}: only GGUF goes to Ollama, whose own conversion changes adapters")
    for digest in (*creation.files.values(), *creation.adapters.values()):
        _digest(digest)
    check_parameters(creation.parameters)


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise ConfigError for a parameter that Ollama does not know, or of another type than it wants."""
    for key, value in parameters.items():
        kind = PARAMETERS.get(key)
        if kind is None:
            raise ConfigError(f"Ollama parameter {key!r} is unknown; use one of {', '.join(PARAMETERS)}")
        texts = not isinstance(value, list | tuple) or all(isinstance(item, str) for item in value)
        if isinstance(value, bool) or not isinstance(value, kind) or not texts:
            raise ConfigError(f"Ollama parameter {key} is {value!r}, of a wrong type; correct it")


def _digest(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise ConfigError(f"{digest!r} is no digest; it is sha256: and 64 hexadecimal digits")
    return digest


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
