"""The guard on real sockets, lookups and programs: refused before anything is sent, named, on record."""

from __future__ import annotations

import contextlib
import logging.handlers
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fine_tune_runner.policy.egress import EgressPolicy, EgressRefused
from fine_tune_runner.policy.guard import child_environment, current, guarded, vouched
from fine_tune_runner.policy.record import EgressRecord

SENSITIVE = EgressPolicy(sensitive=True, names=("mill",), hosts_file="/nowhere", resolv_conf="/nowhere")
OUTSIDE = ("192.0.2.1", 9)  # TEST-NET-1, RFC 5737


@pytest.fixture
def record(tmp_path: Path) -> EgressRecord:
    return EgressRecord(tmp_path / "egress.jsonl")


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def connect() -> None:
    with socket.socket() as sock:
        sock.settimeout(0.2)
        sock.connect(OUTSIDE)


def connect_ipv6(address: str) -> None:
    try:
        sock = socket.socket(socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with sock:
        sock.settimeout(0.2)
        sock.connect((address, 9))


def with_datagram(call: Callable[[socket.socket], object]) -> Callable[[], None]:
    def ask() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            call(sock)

    return ask


def syslog() -> None:
    logging.handlers.SysLogHandler(OUTSIDE).close()


# Each way out that Python code has, and what the record calls it.
WAYS: dict[str, tuple[Callable[[], object], str]] = {
    "connect": (connect, "connect"),
    "connect_ex": (lambda: socket.socket().connect_ex(OUTSIDE), "connect"),
    "urllib": (lambda: urllib.request.urlopen("http://192.0.2.1/", timeout=0.2), "connect"),
    "sendto": (with_datagram(lambda sock: sock.sendto(b"x", OUTSIDE)), "connect"),
    "sendto with flags": (with_datagram(lambda sock: sock.sendto(b"x", 0, OUTSIDE)), "connect"),
    "sendmsg": (with_datagram(lambda sock: sock.sendmsg([b"x"], [], 0, OUTSIDE)), "connect"),
    "IPv6": (lambda: connect_ipv6("2001:db8::1"), "connect"),
    "mapped IPv4": (lambda: connect_ipv6("::ffff:192.0.2.1"), "connect"),
    "a name given to connect": (lambda: socket.socket().connect(("example.org", 9)), "connect"),
    "a name given to sendto": (with_datagram(lambda s: s.sendto(b"x", ("example.org", 9))), "connect"),
    "getaddrinfo": (lambda: socket.getaddrinfo("example.org", 80), "lookup"),
    "gethostbyname": (lambda: socket.gethostbyname("example.org"), "lookup"),
    "gethostbyname_ex": (lambda: socket.gethostbyname_ex("example.org"), "lookup"),
    "gethostbyaddr": (lambda: socket.gethostbyaddr("192.0.2.1"), "lookup"),
    "getnameinfo": (lambda: socket.getnameinfo(OUTSIDE, 0), "lookup"),
    "a raw socket": (lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), "connect"),
    "Popen": (lambda: subprocess.run(["/usr/bin/env", "true"], check=False), "program"),
    "os.system": (lambda: os.system("true"), "program"),
    "posix_spawn": (lambda: os.posix_spawn("/usr/bin/env", ["env", "true"], os.environ), "program"),
    "a Python without the guard": (lambda: subprocess.run([sys.executable], env={}, check=False), "program"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_out_of_python_is_refused_and_put_on_record(way: str, record: EgressRecord) -> None:
    call, what = WAYS[way]
    with guarded(SENSITIVE, record.path), pytest.raises(EgressRefused, match="Nothing was sent"):
        call()
    (line,) = record.read()
    assert line.what == what
    assert line.refused
    assert line.by.startswith("tests.policy.test_guard (") or "test_guard.py:" in line.by


def test_the_library_that_calls_out_is_named_and_not_what_it_calls_with(
    tmp_path: Path, record: EgressRecord
) -> None:
    chatty = tmp_path / "chatty.py"
    chatty.write_text("import httpx2\n\ndef report():\n    httpx2.get('http://192.0.2.1/collect')\n")
    library: dict[str, object] = {"__name__": "chatty"}
    exec(compile(chatty.read_text(), chatty, "exec"), library)
    report = library["report"]
    assert callable(report)
    with guarded(SENSITIVE, record.path), pytest.raises(EgressRefused, match=rf"chatty \({chatty}:4\)"):
        report()


def test_loopback_may_be_reached_and_is_put_on_record(
    listener: tuple[str, int], record: EgressRecord
) -> None:
    with guarded(SENSITIVE, record.path), socket.create_connection(listener, 5):
        pass
    (line,) = record.read()
    assert (line.what, line.host, line.port, line.refused) == ("connect", *listener, "")


def test_local_sockets_may_be_used_and_are_not_put_on_record(record: EgressRecord) -> None:
    with guarded(SENSITIVE, record.path):
        one, other = socket.socketpair()
        one.sendall(b"x")
        assert other.recv(1) == b"x"
        one.close()
        other.close()
    assert record.read() == []


def test_a_name_of_the_settings_given_to_connect_is_resolved_once_and_pinned(
    tmp_path: Path, listener: tuple[str, int], record: EgressRecord
) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 mill\n")
    policy = EgressPolicy(sensitive=True, hosts_file=str(tmp_path / "hosts"))
    with guarded(policy, record.path), socket.socket() as sock:
        sock.connect(("mill", listener[1]))
        assert sock.getpeername() == listener


def test_outside_the_block_the_guard_does_nothing(record: EgressRecord) -> None:
    with guarded(SENSITIVE, record.path):
        pass
    assert current() is None
    with contextlib.suppress(OSError):
        connect()
    assert record.read() == []


def test_a_thread_that_a_library_started_is_held_by_the_sensitive_run(record: EgressRecord) -> None:
    refused: list[str] = []

    def background() -> None:
        try:
            connect()
        except EgressRefused as error:
            refused.append(str(error))

    with guarded(SENSITIVE, record.path):
        thread = threading.Thread(target=background)
        thread.start()
        thread.join(10)
    assert len(refused) == 1
    assert len(record.read()) == 1


def test_two_clients_of_one_process_keep_their_own_policies(tmp_path: Path) -> None:
    """The open client's thread holds its block while the sensitive one's is open too."""
    both = threading.Barrier(2, timeout=10)
    seen: dict[str, bool] = {}

    def run(name: str, policy: EgressPolicy) -> None:
        with guarded(policy, tmp_path / name):
            both.wait()
            guard = current()
            seen[name] = guard is not None and guard.policy.refusal("192.0.2.1") is not None
            both.wait()

    threads = [
        threading.Thread(target=run, args=("open", EgressPolicy(sensitive=False))),
        threading.Thread(target=run, args=("sensitive", SENSITIVE)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == {"open": False, "sensitive": True}


def test_what_was_checked_already_passes(record: EgressRecord) -> None:
    with guarded(SENSITIVE, record.path), vouched():
        done = subprocess.run(["/usr/bin/env", "true"], check=False)
    assert done.returncode == 0


def test_a_block_inside_a_block_writes_to_the_outer_record(record: EgressRecord) -> None:
    with guarded(SENSITIVE, record.path), guarded(SENSITIVE), pytest.raises(EgressRefused):
        connect()
    assert len(record.read()) == 1


def test_a_sensitive_block_is_offline_and_without_proxies_and_puts_the_environment_back() -> None:
    os.environ["HTTPS_PROXY"] = "http://10.0.0.1:3128"
    try:
        before = dict(os.environ)
        with guarded(SENSITIVE):
            assert "HTTPS_PROXY" not in os.environ
            assert os.environ["HF_HUB_OFFLINE"] == "1"
            assert urllib.request.getproxies() == {"no": "*"}
        assert dict(os.environ) == before
    finally:
        del os.environ["HTTPS_PROXY"]


CALL_OUT = "import socket; socket.create_connection(('192.0.2.1', 9), 0.2)"


def test_a_python_child_is_guarded_by_what_it_inherits(record: EgressRecord) -> None:
    with guarded(SENSITIVE, record.path):
        done = subprocess.run([sys.executable, "-c", CALL_OUT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "EgressRefused: __main__ (<string>:1) tried to connect to 192.0.2.1:9" in done.stderr
    (line,) = record.read()
    assert line.pid != os.getpid()


def test_a_grandchild_is_guarded_too(record: EgressRecord) -> None:
    code = (
        f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {CALL_OUT!r}]).returncode)"
    )
    with guarded(SENSITIVE, record.path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert [line.host for line in record.read()] == ["192.0.2.1"]


def test_a_python_that_cannot_load_the_guard_does_not_start(record: EgressRecord) -> None:
    """Such as another environment's, without this package: here one whose guard's word is torn."""
    with guarded(SENSITIVE, record.path):
        env = child_environment(os.environ) | {"FINE_TUNE_EGRESS": "{"}
        command = [sys.executable, "-c", "print('started')"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 5
    assert done.stdout == ""
    assert "cannot be put under the egress guard" in done.stderr


def test_a_sitecustomize_of_the_machine_still_runs(tmp_path: Path, record: EgressRecord) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("print('of the machine')\n")
    with guarded(SENSITIVE, record.path) as guard:
        env = guard.environment({"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "own")})
        command = [sys.executable, "-c", "pass"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "of the machine\n"


def test_a_client_that_is_not_sensitive_is_only_put_on_record(
    listener: tuple[str, int], record: EgressRecord
) -> None:
    with guarded(EgressPolicy(sensitive=False), record.path):
        with socket.create_connection(listener, 5):
            pass
        assert subprocess.run(["/usr/bin/env", "true"], check=False).returncode == 0
    assert [line.what for line in record.read()] == ["connect"]
