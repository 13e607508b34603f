"""What ties the guard to a run: its steps, its record, its warnings, and the end of a command's process."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.policy.egress import EgressPolicy, EgressRefused
from fine_tune_runner.policy.guard import current
from fine_tune_runner.policy.held import held_step
from fine_tune_runner.policy.record import RECORD, EgressRecord
from fine_tune_runner.types import Step

SENSITIVE = EgressPolicy(sensitive=True)


class Context:
    """The two things of a run that a held step touches."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.said: list[str] = []

    def emit(self, event: str, **data: Any) -> None:
        self.said.append(f"{event}: {data['message']}")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path / "runs" / "small-v1-b-1a2b3c4d-1")


def call_out() -> None:
    with socket.socket() as sock:
        sock.settimeout(0.2)
        sock.connect(("192.0.2.1", 9))


def step(do: Any) -> Step:
    return held_step(Step(name="train", gives=int, do=do), SENSITIVE)


def test_a_step_runs_under_the_policy_and_gives_what_it_gave(context: Context) -> None:
    def do(_context: object) -> int:
        guard = current()
        assert guard is not None
        return int(guard.policy.sensitive)

    assert step(do).do(context) == 1  # type: ignore[arg-type]
    assert current() is None
    assert context.said == []


def test_a_refusal_that_a_library_swallowed_becomes_a_warning_once(context: Context) -> None:
    def do(_context: object) -> int:
        for _ in range(3):
            with contextlib.suppress(Exception):
                call_out()
        return 1

    assert step(do).do(context) == 1  # type: ignore[arg-type]
    (said,) = context.said
    assert said.startswith("warning: ")
    assert "tried to connect to 192.0.2.1:9" in said
    assert said.endswith("all attempts: fine-tune egress small-v1-b-1a2b3c4d-1")
    assert len(EgressRecord(context.run_dir / RECORD).read()) == 3


def test_a_refusal_that_nobody_swallows_stops_the_step(context: Context) -> None:
    with pytest.raises(EgressRefused):
        step(lambda _context: call_out()).do(context)  # type: ignore[arg-type]
    assert len(context.said) == 1


AT_EXIT = """
import atexit, socket, sys
from pathlib import Path
from fine_tune_runner.policy.egress import EgressPolicy
from fine_tune_runner.policy.guard import guarded, keep_to_the_end
atexit.register(lambda: socket.create_connection(("192.0.2.1", 9), 0.2))
keep_to_the_end()
with guarded(EgressPolicy(sensitive=True), Path(sys.argv[1])):
    pass
"""


def test_a_commands_process_stays_guarded_to_its_end(tmp_path: Path) -> None:
    record = EgressRecord(tmp_path / RECORD)
    command = [sys.executable, "-c", AT_EXIT, str(record.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "EgressRefused" in done.stderr
    assert [line.host for line in record.read()] == ["192.0.2.1"]


AFTER_A_SENSITIVE_RUN = """
import os, sys
from fine_tune_runner.policy.egress import EgressPolicy
from fine_tune_runner.policy.guard import guarded, keep_to_the_end
from fine_tune_runner.policy.transport import checked_transport
import httpx2
keep_to_the_end()
with guarded(EgressPolicy(sensitive=True)):
    pass
assert "HTTP_PROXY" not in os.environ
for url in sys.argv[1:]:
    with httpx2.Client(transport=checked_transport(EgressPolicy(sensitive=False))) as client:
        print(client.get(url).headers["X-Asked"])
"""


class Proxy(http.server.BaseHTTPRequestHandler):
    """Answers what it is asked for, and says what that was."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("X-Asked", self.path)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        pass


def test_after_a_sensitive_run_an_open_client_still_goes_by_the_environments_proxies() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        env |= {"HTTP_PROXY": here, "NO_PROXY": "127.0.0.1"}
        command = [sys.executable, "-c", AFTER_A_SENSITIVE_RUN, "http://api.example/x", f"{here}/y"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        server.shutdown()
    assert done.stdout.split() == ["http://api.example/x", "/y"], done.stderr  # the second by NO_PROXY
