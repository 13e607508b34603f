"""The correct behaviour: one small ASGI application over an `Account`.

It holds every request against the wire description before it is served, and every answer of its own before
it is sent; chat completions, which the description does not cover, are held against the SDK's types. What
was wrong stands in `faults`. It knows nothing of misbehaviour (misbehave.py).
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.contract.openai_server.account import Account, WireError, page
from tests.contract.openai_server.description import description

PREFIX = "/v1"
Endpoint = Callable[[Request], Awaitable[Any]]
_CHAT = TypeAdapter(CompletionCreateParamsNonStreaming)


def make_app(account: Account, key: str, faults: list[str]) -> Starlette:
    """The application for one account; any key but `key` is answered with 401."""
    endpoints = _Endpoints(account)

    def route(path: str, method: str, endpoint: Endpoint) -> Route:
        return Route(PREFIX + path, _checked(endpoint, key, faults), methods=[method])

    job = "/fine_tuning/jobs/{job_id}"
    return Starlette(
        routes=[
            route("/files", "GET", endpoints.files),
            route("/files", "POST", endpoints.upload),
            route("/files/{file_id}", "GET", endpoints.file),
            route("/files/{file_id}", "DELETE", endpoints.delete_file),
            route("/files/{file_id}/content", "GET", endpoints.content),
            route("/fine_tuning/jobs", "GET", endpoints.jobs),
            route("/fine_tuning/jobs", "POST", endpoints.create_job),
            route(job, "GET", endpoints.job),
            route(job + "/cancel", "POST", endpoints.cancel),
            route(job + "/pause", "POST", endpoints.pause),
            route(job + "/resume", "POST", endpoints.resume),
            route(job + "/events", "GET", endpoints.events),
            route(job + "/checkpoints", "GET", endpoints.checkpoints),
            route("/models", "GET", endpoints.models),
            route("/models/{model}", "GET", endpoints.model),
            route("/models/{model}", "DELETE", endpoints.delete_model),
            route("/chat/completions", "POST", endpoints.chat),
        ]
    )


def _checked(endpoint: Endpoint, key: str, faults: list[str]) -> Callable[[Request], Awaitable[Response]]:
    async def answer_to(request: Request, path: str) -> Any:
        if request.headers.get("authorization") != f"Bearer {key}":
            raise WireError(401, "invalid_api_key", "Incorrect API key provided.")
        if wrong := await _request_faults(request, path):
            faults.extend(f"{request.method} {path}: {fault}" for fault in wrong)
            raise WireError(400, None, "; ".join(wrong))
        return await endpoint(request)

    async def serve(request: Request) -> Response:
        path = request.url.path.removeprefix(PREFIX)
        status = 200
        try:
            answer = await answer_to(request, path)
        except WireError as error:
            status, answer = error.status, error.body
        finally:
            await request.close()
        if isinstance(answer, Response):
            return answer
        if wrong := _answer_faults(request.method, path, status, answer):
            faults.extend(f"answer to {request.method} {path}: {fault}" for fault in wrong)
        return JSONResponse(answer, status_code=status)

    return serve


async def _request_faults(request: Request, path: str) -> list[str]:
    if path == "/chat/completions":
        try:
            _CHAT.validate_python(await request.json())
        except ValidationError as error:
            return [str(error)]
        return []
    body: Any = None
    if request.method == "POST" and request.headers.get("content-type", "").startswith("multipart/"):
        form = await request.form()
        body = {name: value if isinstance(value, str) else value.filename for name, value in form.items()}
    elif request.method == "POST" and await request.body():
        body = await request.json()
    return description().request_faults(request.method, path, request.query_params.multi_items(), body)


def _answer_faults(method: str, path: str, status: int, answer: Any) -> list[str]:
    if path == "/chat/completions" and status == 200:
        try:
            ChatCompletion.model_validate(answer, strict=True)
        except ValidationError as error:
            return [str(error)]
        return []
    covered = "/models" if path == "/chat/completions" else path  # its errors have the common shape
    method = "GET" if path == "/chat/completions" else method
    return description().answer_faults(method, covered, status, answer)


class _Endpoints:
    def __init__(self, account: Account) -> None:
        self._account = account

    async def files(self, request: Request) -> Any:
        purpose = request.query_params.get("purpose")
        files = [f.public() for f in self._account.files.values() if purpose in (None, f.purpose)]
        return self._page(files[::-1], request, 10_000)

    async def upload(self, request: Request) -> Any:
        form = await request.form()
        file, purpose = form["file"], form["purpose"]
        assert not isinstance(file, str), "the description asks for a file"
        assert isinstance(purpose, str), "the description asks for a string"
        return self._account.add_file(file.filename or "", purpose, await file.read()).public()

    async def file(self, request: Request) -> Any:
        return self._account.file(request.path_params["file_id"]).public()

    async def content(self, request: Request) -> Any:
        return Response(self._account.file(request.path_params["file_id"]).content)

    async def delete_file(self, request: Request) -> Any:
        file = self._account.file(request.path_params["file_id"])
        del self._account.files[file.id]
        return {"id": file.id, "object": "file", "deleted": True}

    async def jobs(self, request: Request) -> Any:
        wanted = {
            name[len("metadata[") : -1]: value
            for name, value in request.query_params.multi_items()
            if name.startswith("metadata[")
        }
        jobs = [
            job.public
            for job in reversed(self._account.jobs.values())
            if wanted.items() <= (job.public["metadata"] or {}).items()
        ]
        return _only(self._page(jobs, request, 20), "object", "data", "has_more")

    async def create_job(self, request: Request) -> Any:
        return self._account.create_job(await request.json()).public

    async def job(self, request: Request) -> Any:
        return self._account.look(request.path_params["job_id"])

    async def cancel(self, request: Request) -> Any:
        return self._account.cancel(request.path_params["job_id"])

    async def pause(self, request: Request) -> Any:
        # `paused` is a real status that the description does not list, so the old one is answered.
        public = dict(self._account.job(request.path_params["job_id"]).public)
        self._account.pause(public["id"], "paused")
        return public

    async def resume(self, request: Request) -> Any:
        return self._account.pause(request.path_params["job_id"], "running")

    async def events(self, request: Request) -> Any:
        events = self._account.job(request.path_params["job_id"]).events
        return _only(self._page(events, request, 20), "object", "data", "has_more")

    async def checkpoints(self, request: Request) -> Any:
        return self._page(self._account.job(request.path_params["job_id"]).checkpoints, request, 10)

    async def models(self, request: Request) -> Any:
        return {"object": "list", "data": self._account.models()}

    async def model(self, request: Request) -> Any:
        name = request.path_params["model"]
        for model in self._account.models():
            if model["id"] == name:
                return model
        raise WireError(404, "model_not_found", f"The model '{name}' does not exist", "model")

    async def delete_model(self, request: Request) -> Any:
        self._account.delete_model(request.path_params["model"])
        return {"id": request.path_params["model"], "object": "model", "deleted": True}

    async def chat(self, request: Request) -> Any:
        body = json.loads(await request.body())
        text = self._account.answer(body["model"], body["messages"])
        asked = sum(len(message["content"].split()) for message in body["messages"])
        said = len(text.split())
        return {
            "id": "chatcmpl-contract",
            "object": "chat.completion",
            "created": self._account.now,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        }

    def _page(self, items: list[dict[str, Any]], request: Request, limit: int) -> dict[str, Any]:
        return page(items, request.query_params.get("after"), int(request.query_params.get("limit", limit)))


def _only(answer: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: answer[key] for key in keys}
