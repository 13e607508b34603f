"""OpenTelemetry spans: one a run and one a step, of ids and times only, sent by OTLP over HTTP.

A span is made when it ends, from the run's events, so a crash leaves none open; ids follow from the run's, so
that workers on several hosts make one trace. OpenTelemetry is imported where an endpoint is set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from fine_tune_runner.errors import ConfigError, RunnerError
from fine_tune_runner.observe.told import ENDS, client_of, facts
from fine_tune_runner.policy.egress import EgressPolicy
from fine_tune_runner.policy.transport import checked_transport
from fine_tune_runner.settings import Settings, load_client
from fine_tune_runner.workflow.engine import Event

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

TIMEOUT_S = 10.0


class Ended(NamedTuple):
    """A span: a step of a run, or the run from its start (or its going on) to its end; `parent` 0 is none."""

    name: str
    run_id: str
    id: int
    parent: int
    start: datetime
    end: datetime
    failed: str | None = None  # the code of the error


def ended(events: Sequence[Event]) -> list[Ended]:
    """The spans that end with the last of a run's events, which are given from the first; none for most."""
    last = events[-1]
    ends = [n for n, event in enumerate(events[:-1]) if event.event in ENDS]
    go = events[ends[-1] + 1 :] if ends else events
    run_id = last.run_id
    root = _id(run_id, "run", len(ends))
    if last.event == "step done":
        start = last.at - timedelta(seconds=last.data["seconds"])
        return [_step(last.data["step"], run_id, root, start, last.at)]
    if last.event not in ENDS:
        return []
    failed = str(facts(last).get("code", "error")) if last.event == "run failed" else None
    found = [Ended("run", run_id, root, 0, go[0].at, last.at, failed)]
    begun = [event for event in go if event.event in ("step started", "step done")]
    if begun and begun[-1].event == "step started":
        found.insert(0, _step(begun[-1].data["step"], run_id, root, begun[-1].at, last.at, failed))
    return found


def _step(
    name: str, run_id: str, root: int, start: datetime, end: datetime, failed: str | None = None
) -> Ended:
    return Ended(name, run_id, _id(run_id, name, root, end.isoformat()), root, start, end, failed)


def _id(*parts: object) -> int:
    """A span id: 64 bits, never 0."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8]) or 1


class Spans:
    """Sends the spans of runs to `settings.otlp_endpoint`; `events` reads a run's events.

    Spans of a sensitive client's runs go over a connection of their own that reaches what its policy allows,
    and are left out where that is not the endpoint. Raises ConfigError where the extra is missing.
    """

    def __init__(
        self, settings: Settings, events: Callable[[str], Sequence[Event]], notice: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._events = events
        self._notice = notice
        host = urlsplit(settings.otlp_endpoint or "").hostname or ""
        self._open = _processor(settings, EgressPolicy(sensitive=False), notice)
        self._kept = _processor(settings, EgressPolicy(sensitive=True, names=(host,)), notice)

    def __call__(self, event: Event) -> None:
        """Take note of an event; what ended with it is sent later, from another thread."""
        if event.event != "step done" and event.event not in ENDS:
            return
        try:
            known = list(self._events(event.run_id))
        except (RunnerError, OSError) as error:
            self._notice(f"no spans of {event.run_id}: {error}")
            return
        # Another process may have written more by now.
        while known and (known[-1].event, known[-1].at) != (event.event, event.at):
            known.pop()
        for span in ended(known) if known else ():
            (self._kept if self._sensitive(span.run_id) else self._open).on_end(_readable(span))

    def close(self) -> None:
        """Send what is left."""
        for processor in (self._open, self._kept):
            processor.shutdown()  # type: ignore[no-untyped-call]

    def _sensitive(self, run_id: str) -> bool:
        """Also of a client whose config cannot be read."""
        try:
            return load_client(self._settings, client_of(run_id)).config.is_sensitive
        except RunnerError:
            return True


def _processor(settings: Settings, policy: EgressPolicy, notice: Callable[[str], None]) -> BatchSpanProcessor:
    try:
        import httpx2
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    except ImportError:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed; "
            "pip install 'fine-tune-runner[observe]', or unset it"
        ) from None

    url = f"{settings.otlp_endpoint}/v1/traces"

    class Otlp(SpanExporter):
        def __init__(self) -> None:
            headers = {name: value.reveal() for name, value in (settings.otlp_headers or {}).items()}
            # No proxy by the environment but the transport's own, which knows who may use one.
            self.http = httpx2.Client(
                transport=checked_transport(policy), headers=headers, timeout=TIMEOUT_S, trust_env=False
            )
            self.told = False

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            content = encode_spans(spans).SerializeToString()
            try:
                self.http.post(
                    url, content=content, headers={"Content-Type": "application/x-protobuf"}
                ).raise_for_status()
                self.told = False
            except (httpx2.HTTPError, RunnerError) as error:
                if not self.told:
                    notice(f"spans are left out: {url}: {error}")
                self.told = True
                return SpanExportResult.FAILURE
            return SpanExportResult.SUCCESS

        def shutdown(self) -> None:
            self.http.close()

    return BatchSpanProcessor(Otlp())


def _readable(span: Ended) -> ReadableSpan:
    """A span as OpenTelemetry has it; its trace is the run's."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

    trace = int.from_bytes(hashlib.sha256(span.run_id.encode()).digest()[:16])

    def context(span_id: int) -> SpanContext:
        return SpanContext(trace, span_id, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))

    attributes = {"fine_tune.run_id": span.run_id, "fine_tune.client": client_of(span.run_id)}
    if span.parent:
        attributes["fine_tune.step"] = span.name
    if span.failed:
        attributes["error.type"] = span.failed
    return ReadableSpan(
        span.name,
        context(span.id),
        context(span.parent) if span.parent else None,
        Resource.create({"service.name": "fine-tune-runner"}),
        attributes,
        status=Status(StatusCode.ERROR if span.failed else StatusCode.OK),
        start_time=_ns(span.start),
        end_time=_ns(span.end),
    )


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1e6) * 1000
