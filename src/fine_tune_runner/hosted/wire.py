"""The thin client over the official SDK: typed answers, bounded pages, and errors that say what is certain.

No create is ever retried here, nor by the SDK. The key is revealed to the SDK only and never stands in an
error. It knows no run and no file of a client.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import httpx2
import msgspec
import openai

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import PolicyError, ProviderError, RunnerError
from fine_tune_runner.hosted.providers import Provider
from fine_tune_runner.hosted.records import (
    Checkpoint,
    RemoteEvent,
    RemoteFile,
    RemoteJob,
    RemoteModel,
    Said,
)
from fine_tune_runner.hosted.shutdown import elsewhere
from fine_tune_runner.settings import Secret
from fine_tune_runner.types import Decoding, Message
from fine_tune_runner.workflow.ledger import Busy, Unanswered, wait_s

MAX_PAGES = 200
READ_TRIES = 6
_CANCEL = re.compile(r"/fine_tuning/jobs/[^/]+/cancel$")
CREATES = ("upload", "create job")
FINAL = (400, 403, 404, 413, 415, 422)  # asked again, the provider would say the same
NO_MONEY = ("insufficient_quota", "exceeded_quota", "billing_hard_limit_reached")


class Rejected(ProviderError):
    """The provider answered no, and nothing was made; `final` where a create would be refused again."""

    def __init__(self, message: str, status: int, *, final: bool) -> None:
        super().__init__(message)
        self.status = status
        self.final = final


class Closed(PolicyError):
    """The provider starts no jobs for this organisation any more."""


def anything(_request: httpx2.Request) -> None:
    """Allows every request."""


def only_ids(request: httpx2.Request) -> None:
    """Raise PolicyError for a request that carries more than ids: what is no look, delete or cancel."""
    cancels = request.method == "POST" and _CANCEL.search(request.url.path)
    if not (request.method in ("GET", "DELETE") or cancels) or request.read():
        raise PolicyError(
            f"{request.method} {request.url.path} was refused and nothing was sent: this connection carries "
            "ids only"
        )


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


Item = TypeVar("Item", bound=_Identified)
T = TypeVar("T")


class Listing(msgspec.Struct, Generic[T], frozen=True):
    """The items of a list; `complete` False where the provider has more than it would show."""

    items: tuple[T, ...]
    complete: bool = True


class _Page(msgspec.Struct, Generic[T], frozen=True):
    data: tuple[T, ...] = ()
    has_more: bool | None = False


class Wire:
    """One provider at one address under one key; close it, or use it in a `with`.

    `transport` decides what may be reached (policy/transport.py); `allow` is asked before each request.
    Raises Unanswered, Busy, Rejected and, where the provider is closed to this organisation, Closed.
    """

    def __init__(
        self,
        provider: Provider,
        base_url: str,
        key: Secret,
        *,
        transport: httpx2.BaseTransport,
        allow: Callable[[httpx2.Request], None] = anything,
        timeout_s: float = 60.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._provider = provider
        self._base_url = base_url
        self._key = key
        self._sleep = sleep
        # Redirects are not followed: the key belongs to this host.
        self._http = httpx2.Client(transport=transport, timeout=timeout_s, event_hooks={"request": [allow]})
        self._sdk = openai.OpenAI(
            api_key=key.reveal(), base_url=base_url, max_retries=0, http_client=self._http, timeout=timeout_s
        )

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._http.close()

    def upload(self, name: str, path: Path) -> RemoteFile:
        """Send a training file under `name`, once."""
        with path.open("rb") as file, self._translated("upload"):
            sent = (name, file, "application/jsonl")
            answer = self._sdk.files.with_raw_response.create(file=sent, purpose="fine-tune")
        return self._made("upload", answer.content, RemoteFile)

    def files(self) -> Listing[RemoteFile]:
        """Every training file of the account."""
        files = self._sdk.files.with_raw_response
        return self._pages(
            "files",
            lambda after: files.list(purpose="fine-tune", limit=1000, **after).content,
            _Page[RemoteFile],
        )

    def content(self, file_id: str) -> bytes:
        """The bytes of a result file."""
        return self._read("file content", lambda: self._sdk.files.content(file_id).content)

    def delete_file(self, file_id: str) -> bool:
        """Delete a file; False where there is none any more."""
        files = self._sdk.files.with_raw_response
        return self._gone("delete file", lambda: files.delete(file_id).content)

    def delete_model(self, model_id: str) -> bool:
        """Delete a fine-tuned model for ever; False where there is none any more."""
        models = self._sdk.models.with_raw_response
        return self._gone("delete model", lambda: models.delete(model_id).content)

    def create_job(self, body: Mapping[str, Any]) -> RemoteJob:
        """Start a job, once; `body` is providers.job_body's."""
        known = ("model", "training_file", "seed", "metadata", "suffix", "method", "hyperparameters")
        named: dict[str, Any] = {name: body[name] for name in known if name in body}
        extra = {name: value for name, value in body.items() if name not in known}
        with self._translated("create job"):
            jobs = self._sdk.fine_tuning.jobs.with_raw_response
            answer = jobs.create(**named, extra_body=extra or None)
        return self._made("create job", answer.content, RemoteJob)

    def job(self, job_id: str) -> RemoteJob:
        """One job as it stands."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        return self._decoded("job", self._read("job", lambda: jobs.retrieve(job_id).content), RemoteJob)

    def jobs(self, run_id: str | None = None) -> Listing[RemoteJob]:
        """Every job of the account, or those that carry a run id in their metadata."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        only: dict[str, Any] = {} if run_id is None else {"metadata": {"run_id": run_id}}
        return self._pages(
            "jobs", lambda after: jobs.list(limit=100, **only, **after).content, _Page[RemoteJob]
        )

    def cancel_job(self, job_id: str) -> RemoteJob:
        """Stop a job; Rejected where it has ended."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        return self._decoded(
            "cancel job", self._read("cancel job", lambda: jobs.cancel(job_id).content), RemoteJob
        )

    def events(self, job_id: str) -> tuple[RemoteEvent, ...]:
        """All events of a job, oldest first, each once."""
        jobs = self._sdk.fine_tuning.jobs.with_raw_response
        listing = self._pages(
            "events", lambda after: jobs.list_events(job_id, limit=100, **after).content, _Page[RemoteEvent]
        )
        return tuple(sorted(listing.items, key=lambda event: (event.created_at, event.id)))

    def checkpoints(self, job_id: str) -> tuple[Checkpoint, ...]:
        """The checkpoints the provider kept, by step."""
        found = self._sdk.fine_tuning.jobs.checkpoints.with_raw_response
        listing = self._pages(
            "checkpoints", lambda after: found.list(job_id, limit=100, **after).content, _Page[Checkpoint]
        )
        return tuple(sorted(listing.items, key=lambda checkpoint: checkpoint.step_number))

    def model(self, model_id: str) -> RemoteModel | None:
        """What the provider says of a model, None where it lists none of that id."""
        try:
            data = self._read("model", lambda: self._sdk.models.with_raw_response.retrieve(model_id).content)
        except Rejected as error:
            if error.status != 404:
                raise
            return None
        return self._decoded("model", data, RemoteModel)

    def models(self) -> tuple[RemoteModel, ...]:
        """Every model that the key can see."""
        data = self._read("models", lambda: self._sdk.models.with_raw_response.list().content)
        return self._decoded("models", data, _Page[RemoteModel]).data

    def chat(self, model: str, messages: Sequence[Message], decoding: Decoding) -> Said:
        """One answer; `tokens` are those of the answer."""
        turns: Any = [{"role": m.role, "content": m.content} for m in messages]
        chat = self._sdk.chat.completions.with_raw_response
        data = self._read(
            "chat",
            lambda: (
                chat.create(
                    model=model,
                    messages=turns,
                    temperature=decoding.temperature,
                    max_tokens=decoding.max_tokens,
                    seed=decoding.seed,
                ).content
            ),
        )
        return self._decoded("chat", data, Said)

    def _read(self, what: str, call: Callable[[], bytes]) -> bytes:
        """A call that may be made twice without harm: waits out what is passing, `Retry-After` included."""
        for attempt in range(READ_TRIES):
            try:
                with self._translated(what):
                    return call()
            except (Busy, Unanswered) as error:
                if attempt == READ_TRIES - 1:
                    raise
                self._sleep(wait_s(attempt, error if isinstance(error, Busy) else None))
        raise AssertionError("the last try returns or raises")

    def _gone(self, what: str, delete: Callable[[], bytes]) -> bool:
        try:
            self._read(what, delete)
        except Rejected as error:
            if error.status != 404:
                raise
            return False
        return True

    def _pages(
        self, what: str, fetch: Callable[[dict[str, Any]], bytes], kind: type[_Page[Item]]
    ) -> Listing[Item]:
        """All pages; ends where one brings nothing new, for there are servers that ignore `after`."""
        seen: dict[str, Item] = {}
        after: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            now = after
            page = self._decoded(what, self._read(what, lambda now=now: fetch(now)), kind)  # type: ignore[misc]
            fresh = {item.id: item for item in page.data if item.id not in seen}
            seen |= fresh
            if not page.has_more:
                return Listing(tuple(seen.values()))
            if not fresh:
                break
            after = {"after": page.data[-1].id}
        return Listing(tuple(seen.values()), complete=False)

    def _made(self, what: str, data: bytes, kind: type[T]) -> T:
        """The answer to a create: one that cannot be read leaves open what was made."""
        try:
            return self._decoded(what, data, kind)
        except ProviderError as error:
            raise Unanswered(str(error)) from None

    def _decoded(self, what: str, data: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=threadsafe(kind))
        except msgspec.DecodeError as error:
            raise ProviderError(
                f"{self._provider.title}: {what}: the answer is not in OpenAI's wire format ({error}); "
                f"check that {self._base_url} is the right address"
            ) from None

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except openai.APIStatusError as error:
            self._refuse(what, error)
        except openai.APITimeoutError:
            raise Unanswered(
                f"{self._provider.title}: {what}: no answer in time from {self._base_url}"
            ) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, RunnerError):
                raise error.__cause__ from None  # `allow` or the transport refused, such as an egress guard
            cause = type(error.__cause__).__name__
            raise Unanswered(
                f"{self._provider.title}: {what}: no connection to {self._base_url} ({cause})"
            ) from None

    def _refuse(self, what: str, error: openai.APIStatusError) -> NoReturn:
        """One status, one kind of error; chained to nothing, for the SDK's error holds the request."""
        said = error.body.get("message") if isinstance(error.body, dict) else None
        text = f"{self._provider.title}: {what}: {error.status_code} {said or error.response.reason_phrase}"
        text = text.replace(self._key.reveal(), "***")
        code = error.code
        if error.status_code == 401:
            text = (
                f"{self._provider.title}: {what}: the key in OPENAI_API_KEY was not accepted (401); check it"
            )
        elif code == "training_not_available":
            raise Closed(f"{text} (training_not_available); {elsewhere(self._provider)}") from None
        elif code in NO_MONEY:
            text += f" ({code}); see to the account's credit, then resume the run"
        elif error.status_code == 429 or "not ready" in text:
            raise Busy(text, _retry_after(error.response.headers)) from None
        elif error.status_code in (408, 409) or error.status_code >= 500:
            raise Unanswered(text) from None
        final = what in CREATES and error.status_code in FINAL
        raise Rejected(text, error.status_code, final=final) from None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The delay that `Retry-After` names, in seconds or as a date (RFC 9110, section 10.2.3)."""
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
