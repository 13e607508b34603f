"""A real OTLP/HTTP receiver on loopback, which decodes what it is sent, and a run whose events hold text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector(ThreadingHTTPServer):
    """Keeps the spans that are posted, and every body and header as it came."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Traces)
        self.spans: list[Any] = []
        self.bodies: list[bytes] = []
        self.keys: list[str | None] = []

    @property
    def url(self) -> str:
        """As OTEL_EXPORTER_OTLP_ENDPOINT has it."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Traces(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast(Collector, self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        sent = ExportTraceServiceRequest.FromString(body)
        server.bodies.append(self.path.encode() + body)
        server.keys.append(self.headers["x-api-key"])
        server.spans += [span for r in sent.resource_spans for s in r.scope_spans for span in s.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests quiet."""


@contextmanager
def collecting() -> Iterator[Collector]:
    """A receiver that listens while the block lasts."""
    server = Collector()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def attributes(span: Any) -> dict[str, str]:
    """A span's attributes as they are named."""
    return {one.key: one.value.string_value for one in span.attributes}
