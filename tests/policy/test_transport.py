"""The HTTP transport: pinned addresses, redirects, no proxies, bytes on record, the openai SDK too."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from fine_tune_runner.policy.egress import EgressPolicy, EgressRefused
from fine_tune_runner.policy.guard import guarded
from fine_tune_runner.policy.record import EgressRecord, Reached, summary
from fine_tune_runner.policy.transport import checked_transport

BODY = b"x" * 1000


class Answering(http.server.BaseHTTPRequestHandler):
    """1000 bytes on /, a redirect outside on /away; the Host it was asked as comes back in a header."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        away = self.path == "/away"
        self.send_response(302 if away else 200)
        if away:
            self.send_header("Location", "http://192.0.2.9/collect")
        self.send_header("X-Host", self.headers["Host"])
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_args: object) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def record(tmp_path: Path) -> EgressRecord:
    return EgressRecord(tmp_path / "egress.jsonl")


@pytest.fixture
def policy(tmp_path: Path) -> EgressPolicy:
    (tmp_path / "hosts").write_text("127.0.0.1 mill\n192.0.2.9 shop\n")
    (tmp_path / "resolv.conf").write_text("nameserver 10.0.0.53\n")
    return EgressPolicy(
        sensitive=True,
        names=("asked.internal",),
        hosts_file=str(tmp_path / "hosts"),
        resolv_conf=str(tmp_path / "resolv.conf"),
    )


def test_a_name_is_connected_to_by_its_checked_address_and_keeps_its_host_header(
    policy: EgressPolicy, port: int
) -> None:
    with httpx2.Client(transport=checked_transport(policy)) as client:
        assert client.get(f"http://mill:{port}/").headers["X-Host"] == f"mill:{port}"


def test_a_name_is_resolved_once_a_connection_so_that_it_cannot_turn_outside_meanwhile(
    policy: EgressPolicy, port: int
) -> None:
    answers = iter([["127.0.0.1"], ["192.0.2.9"]])
    transport = checked_transport(policy, lookup=lambda _host, _port: next(answers))
    with httpx2.Client(transport=transport) as client:
        assert client.get(f"http://asked.internal:{port}/").status_code == 200
        assert client.get(f"http://asked.internal:{port}/").status_code == 200
    assert next(answers) == ["192.0.2.9"], "the second request was not to ask again"


def test_an_address_that_does_not_answer_gives_way_to_the_next(policy: EgressPolicy, port: int) -> None:
    transport = checked_transport(policy, lookup=lambda _host, _port: ["::1", "127.0.0.1"])
    with httpx2.Client(transport=transport) as client:
        assert client.get(f"http://asked.internal:{port}/").status_code == 200


@pytest.mark.parametrize("host", ["192.0.2.9", "shop", "unheard.of", "[2001:db8::9]", "[::ffff:192.0.2.9]"])
def test_what_is_outside_is_refused_before_anything_is_sent(
    host: str, policy: EgressPolicy, record: EgressRecord
) -> None:
    with (
        guarded(policy, record.path),
        httpx2.Client(transport=checked_transport(policy)) as client,
        pytest.raises(EgressRefused, match="Nothing was sent"),
    ):
        client.get(f"https://{host}/")
    (line,) = record.read()
    assert (line.host, line.port) == (host.strip("[]"), 443)
    assert line.refused


def test_a_redirect_to_the_outside_is_refused(policy: EgressPolicy, port: int) -> None:
    with (
        httpx2.Client(transport=checked_transport(policy), follow_redirects=True) as client,
        pytest.raises(EgressRefused, match=r"192\.0\.2\.9"),
    ):
        client.get(f"http://127.0.0.1:{port}/away")


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_sensitive_client_uses_no_proxy_of_the_environment(policy: EgressPolicy, port: int) -> None:
    with (
        environment(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9"),
        httpx2.Client(transport=checked_transport(policy)) as client,
    ):
        assert client.get(f"http://127.0.0.1:{port}/").status_code == 200


def test_another_client_goes_through_the_proxy_of_the_environment(port: int, record: EgressRecord) -> None:
    proxy, policy = f"http://127.0.0.1:{port}", EgressPolicy(sensitive=False)
    with (
        environment(HTTP_PROXY=proxy, http_proxy=proxy, NO_PROXY="", no_proxy=""),
        guarded(policy, record.path),
        httpx2.Client(transport=checked_transport(policy)) as client,
    ):
        assert client.get("http://api.example/").headers["X-Host"] == "api.example"
    assert [(line.host, line.port) for line in record.read()] == [("127.0.0.1", port)] * 2


def test_no_proxy_is_respected(port: int) -> None:
    with (
        environment(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9", no_proxy="127.0.0.1"),
        httpx2.Client(transport=checked_transport(EgressPolicy(sensitive=False))) as client,
    ):
        assert client.get(f"http://127.0.0.1:{port}/").status_code == 200


def test_host_port_and_bytes_are_on_record_once_a_connection(
    policy: EgressPolicy, port: int, record: EgressRecord
) -> None:
    with guarded(policy, record.path), httpx2.Client(transport=checked_transport(policy)) as client:
        answers = [client.get(f"http://mill:{port}/") for _ in range(2)]
    (row,) = summary(record.read())
    asked = [f"GET / HTTP/1.1\r\nHost: mill:{port}\r\n" for _ in answers]
    assert isinstance(row, Reached)
    assert (row.what, row.host, row.port, row.addresses, row.attempts) == (
        "connect",
        "mill",
        port,
        ("127.0.0.1",),
        1,
    )
    assert row.sent is not None
    assert row.received is not None
    assert row.sent > sum(map(len, asked))
    heads = sum(len(f"{k}: {v}\r\n") for a in answers for k, v in a.headers.items())
    lines = 2 * (len("HTTP/1.1 200 OK\r\n") + len("\r\n"))
    assert row.received == 2 * len(BODY) + heads + lines


def test_a_pools_thread_writes_to_the_record_of_the_run_that_made_the_client(
    policy: EgressPolicy, port: int, record: EgressRecord
) -> None:
    with guarded(policy, record.path):
        client = httpx2.Client(transport=checked_transport(policy))
    thread = threading.Thread(target=lambda: client.get(f"http://127.0.0.1:{port}/"))
    thread.start()
    thread.join(10)
    client.close()
    assert [line.what for line in record.read()] == ["connect", "traffic"]


def test_the_transport_of_an_open_client_passes_while_a_sensitive_run_is_on(
    port: int, tmp_path: Path
) -> None:
    """By name: a bare lookup from such a thread would be held to the sensitive run's policy."""
    transport = checked_transport(EgressPolicy(sensitive=False), lookup=lambda _h, _p: ["127.0.0.1"])
    codes: list[int] = []

    def ask() -> None:
        with httpx2.Client(transport=transport) as client:
            codes.append(client.get(f"http://api.example:{port}/").status_code)

    with guarded(EgressPolicy(sensitive=True), tmp_path / "egress.jsonl"):
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join(10)
    assert codes == [200]


def test_the_openai_sdk_over_it_is_refused_too(policy: EgressPolicy) -> None:
    http_client = httpx2.Client(transport=checked_transport(policy))
    sdk = openai.OpenAI(
        api_key="none", base_url="https://192.0.2.9/v1", max_retries=0, http_client=http_client
    )
    with sdk, pytest.raises(EgressRefused):
        sdk.models.list()
