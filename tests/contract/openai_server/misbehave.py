"""Misbehaviour as a layer around the correct application: answers lost, delayed, refused or bent.

A `Fault` hits requests by method and path, so many times; a `Bend` rewrites the JSON of right answers. Both
are handed over as lists, which a test fills at any time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.types import ASGIApp, Receive, Scope, Send

# "after" faults happen once the application has done the work, "before" faults instead of it.
Kind = Literal["error before", "error after", "cut before", "cut after", "silence after"]


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of that method and path (a regular expression)."""

    method: str
    path: str
    kind: Kind
    times: int = 1
    status: int = 500
    code: str | None = None
    message: str = "The server had an error while processing your request"
    headers: dict[str, str] = field(default_factory=dict)
    text: str | None = None  # a body that is no JSON


@dataclass
class Bend:
    """Rewrites the answers to that method and path; `change` is handed the decoded JSON or the raw bytes."""

    method: str
    path: str
    change: Callable[[Any], Any]
    raw: bool = False

    def __call__(self, body: bytes) -> bytes:
        """The body as it is sent."""
        return self.change(body) if self.raw else json.dumps(self.change(json.loads(body))).encode()


class Misbehaving:
    """ASGI middleware that applies the first fault that fits, then every bend that does."""

    def __init__(self, app: ASGIApp, faults: list[Fault], bends: list[Bend], seen: list[str]) -> None:
        self._app = app
        self._faults = faults
        self._bends = bends
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, rightly or wrongly."""
        if scope["type"] != "http":
            return
        method, path = scope["method"], scope["path"].removeprefix("/v1")
        self._seen.append(f"{method} {path}")
        fault = self._take(method, path)
        if fault is None or fault.kind.endswith("after"):
            status, headers, body = await _answer(self._app, scope, receive)
        if fault is None:
            for bend in self._bends:
                if status == 200 and bend.method == method and re.fullmatch(bend.path, path):
                    body = (
                        bend.change(body) if bend.raw else json.dumps(bend.change(json.loads(body))).encode()
                    )
            await _send(send, status, headers, body)
        elif fault.kind.startswith("cut"):
            scope["state"]["transport"].abort()
        elif fault.kind == "silence after":
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            error = {"message": fault.message, "type": "server_error", "param": None, "code": fault.code}
            text = json.dumps({"error": error}) if fault.text is None else fault.text
            await _send(
                send, fault.status, {"content-type": "application/json"} | fault.headers, text.encode()
            )

    def _take(self, method: str, path: str) -> Fault | None:
        for fault in self._faults:
            if fault.times > 0 and fault.method == method and re.fullmatch(fault.path, path):
                fault.times -= 1
                return fault
        return None


async def _answer(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[int, dict[str, str], bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def keep(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, keep)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    headers = {name.decode(): value.decode() for name, value in sent[0].get("headers", ())}
    return sent[0]["status"], headers, body


async def _send(send: Send, status: int, headers: dict[str, str], body: bytes) -> None:
    headers = headers | {"content-length": str(len(body))}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def error_object(job: dict[str, Any]) -> dict[str, Any]:
    """`"error": {}` on a job that did not fail, as the real API answers."""
    return job if job["error"] else job | {"error": {}}


def with_status(*, old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Another word for one status."""
    return lambda job: job | {"status": new} if job["status"] == old else job


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """An object, or a list of them, that lacks one key."""

    def change(answer: dict[str, Any]) -> dict[str, Any]:
        if "data" in answer:
            return answer | {"data": [change(item) for item in answer["data"]]}
        return {key: value for key, value in answer.items() if key != name}

    return change


def shuffled(answer: dict[str, Any]) -> dict[str, Any]:
    """Events in no order, each of them twice."""
    data = sorted(answer["data"], key=lambda event: event["id"][::-1])
    return answer | {"data": data + data[::-1]}


def endless(answer: dict[str, Any]) -> dict[str, Any]:
    """A page that claims to have more."""
    return answer | {"has_more": True}
