"""Ollama's HTTP over a `Store`: paths, status codes and streams as facts/ollama.md says; nothing else.

Bound to loopback it answers 403 to a foreign Host; a blob that it has is answered before its body is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.contract.ollama_server.store import Refusal, Store, Stored

OWN_HOSTS = ("localhost", "127.0.0.1", "[::1]")
OWN_ENDINGS = (".localhost", ".local", ".internal")
LEVELS = {0: "F32", 1: "F16", 7: "Q8_0"}  # llama.h, llama_ftype
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(store: Store, token: str | None) -> Starlette:
    """The application for one store; with `token` it stands behind a proxy that wants `Bearer token`."""
    endpoints = _Endpoints(store)
    routes = [
        ("/api/version", "GET", endpoints.version),
        ("/api/tags", "GET", endpoints.tags),
        ("/api/ps", "GET", endpoints.ps),
        ("/api/show", "POST", endpoints.show),
        ("/api/blobs/{digest}", "HEAD", endpoints.has_blob),
        ("/api/blobs/{digest}", "POST", endpoints.put_blob),
        ("/api/create", "POST", endpoints.create),
        ("/api/copy", "POST", endpoints.copy),
        ("/api/delete", "DELETE", endpoints.delete),
        ("/api/chat", "POST", endpoints.chat),
        ("/api/generate", "POST", endpoints.generate),
        ("/api/embed", "POST", endpoints.embed),
    ]
    return Starlette(routes=[Route(p, _guarded(e, token), methods=[m]) for p, m, e in routes])


def _guarded(endpoint: Endpoint, token: str | None) -> Endpoint:
    async def answer(request: Request) -> Response:
        host = request.headers.get("host", "").rsplit(":", 1)[0]
        if host not in OWN_HOSTS and not host.endswith(OWN_ENDINGS):
            return Response(status_code=403)
        if token is not None and request.headers.get("authorization") != f"Bearer {token}":
            return Response("unauthorized", status_code=401)
        try:
            return await endpoint(request)
        except Refusal as refusal:
            return JSONResponse({"error": str(refusal)}, status_code=refusal.status)

    return answer


class _Endpoints:
    """One coroutine a route."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": self._store.version})

    async def tags(self, request: Request) -> Response:
        return JSONResponse({"models": [self._listed(m) for m in self._store.models.values()]})

    async def ps(self, request: Request) -> Response:
        return JSONResponse({"models": []})

    def _listed(self, stored: Stored) -> dict[str, Any]:
        size = self._store.blob(stored.gguf).stat().st_size
        return {
            "name": stored.name if ":" in stored.name else f"{stored.name}:latest",
            "model": stored.name,
            "modified_at": stored.modified.isoformat(),
            "size": size,
            "digest": stored.digest,
            "details": {"format": "gguf", "parent_model": stored.parent},
        }

    async def show(self, request: Request) -> Response:
        stored = self._store.find((await request.json())["model"])
        pairs = [
            (key, item)
            for key, value in stored.parameters.items()
            for item in (value if isinstance(value, list) else [value])
        ]
        info = await run_in_threadpool(self._store.info, stored)
        shown = {
            "license": stored.license,
            "system": stored.system,
            "template": stored.template,
            "parameters": "\n".join(f"{key:<30} {json.dumps(item)}" for key, item in pairs),
            "details": {
                "format": "gguf",
                "parent_model": stored.parent,
                "quantization_level": LEVELS.get(info.get("general.file_type"), "unknown"),
            },
            "model_info": info,
        }
        return JSONResponse({key: value for key, value in shown.items() if value})

    async def has_blob(self, request: Request) -> Response:
        there = self._store.blob(request.path_params["digest"]).is_file()
        return Response(status_code=200 if there else 404)

    async def put_blob(self, request: Request) -> Response:
        wanted = request.path_params["digest"]
        path = self._store.blob(wanted)
        if path.is_file():
            return Response(status_code=200)
        part = path.with_name(f"{path.name}.part")
        seen = hashlib.sha256()
        with part.open("wb") as file:
            async for chunk in request.stream():
                seen.update(chunk)
                file.write(chunk)
        if f"sha256:{seen.hexdigest()}" != wanted:
            part.unlink()
            raise Refusal(400, f"digest mismatch, expected {wanted!r}, got 'sha256:{seen.hexdigest()}'")
        part.replace(path)
        return Response(status_code=201)

    async def create(self, request: Request) -> Response:
        lines = self._store.create(await request.json())
        if (await request.json()).get("stream") is False:
            last = [*lines][-1]
            return JSONResponse(last)

        def stream() -> Iterator[bytes]:
            try:
                for line in lines:
                    yield json.dumps(line).encode() + b"\n"
            except Refusal as refusal:  # the 200 is on the wire already
                yield json.dumps({"error": str(refusal)}).encode() + b"\n"

        return StreamingResponse(stream(), media_type="application/x-ndjson")

    async def copy(self, request: Request) -> Response:
        body = await request.json()
        self._store.copy(body["source"], body["destination"])
        return Response(status_code=200)

    async def delete(self, request: Request) -> Response:
        self._store.delete((await request.json())["model"])
        return Response(status_code=200)

    async def embed(self, request: Request) -> Response:
        raise Refusal(501, "this model does not support embeddings")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        stored = self._store.find(body["model"])
        prompt = self._store.prompt(stored, body.get("messages") or [])
        return await self._answered(body, stored, prompt, "message")

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        stored = self._store.find(body["model"])
        if body.get("system"):
            stored = Stored(**{**vars(stored), "system": body["system"]})
        prompt = body.get("prompt") or ""
        if not body.get("raw"):
            prompt = self._store.prompt(stored, [{"role": "user", "content": prompt}])
        return await self._answered(body, stored, prompt, "response")

    async def _answered(self, body: dict[str, Any], stored: Stored, prompt: str, key: str) -> Response:
        head = {"model": body["model"], "created_at": stored.modified.isoformat()}
        if body.get("_debug_render_only"):
            return JSONResponse({**head, "_debug_info": {"rendered_template": prompt}})
        top = body.get("top_logprobs") or 0
        if top > 20:
            raise Refusal(400, "top_logprobs must be between 0 and 20")
        wanted = (top or 1) if body.get("logprobs") else 0
        answer = await run_in_threadpool(
            self._store.complete, stored, prompt, body.get("options") or {}, wanted
        )
        choice = answer["choices"][0]
        text = choice["text"]
        said = {
            **head,
            key: text if key == "response" else {"role": "assistant", "content": text},
            "done": True,
            "done_reason": choice["finish_reason"],
            "prompt_eval_count": answer["usage"]["prompt_tokens"],
            "eval_count": answer["usage"]["completion_tokens"],
        }
        if wanted:
            said["logprobs"] = [
                _logprob(token, top) for token in (choice["logprobs"] or {}).get("content", ())
            ]
        if body.get("stream", True):
            return Response(json.dumps(said) + "\n", media_type="application/x-ndjson")
        return JSONResponse(said)


def _logprob(token: dict[str, Any], top: int) -> dict[str, Any]:
    keys = ("token", "logprob", "bytes")
    one = {key: token[key] for key in keys}
    if top:
        one["top_logprobs"] = [{key: other[key] for key in keys} for other in token["top_logprobs"]]
    return one
