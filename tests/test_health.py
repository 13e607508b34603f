"""What `fine-tune doctor` says of the set-up, each fault with its remedy."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fine_tune_runner.errors import RunError
from fine_tune_runner.health import Check, check_machine
from fine_tune_runner.settings import load_settings

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
KEY = "sk-" + "0123456789abcdef"


class _Answer(BaseHTTPRequestHandler):
    """A provider whose clock stands at NOW; remembers which headers it was sent."""

    def do_GET(self) -> None:
        self.server.seen.append(str(self.headers))  # type: ignore[attr-defined]
        body = b'{"version": "0.12.0"}'
        self.send_response_only(200 if self.path == "/api/version" else 401)
        self.send_header("Date", f"{NOW:%a, %d %b %Y %H:%M:%S} GMT")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def provider() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answer)
    server.daemon_threads = True
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def checks(
    folder: Path, ahead_s: float = 0.0, config: dict[str, object] | None = None, **env: str
) -> list[Check]:
    """The table for one client, all packages installed and 100 GB free."""
    client = folder / "clients" / "hre"
    client.mkdir(parents=True, exist_ok=True)
    (client / "config.json").write_text(json.dumps({"client_id": "hre"} | (config or {})))
    env = {"CLIENT_DATA_DIR": str(folder / "clients"), "FINE_TUNE_MODELS_DIR": str(folder / "models")} | env
    return check_machine(
        load_settings(env, folder),
        lambda: NOW + timedelta(seconds=ahead_s),
        free=lambda path: 100 * 10**9,
        version=lambda package: "1.0",
    )


def one(found: list[Check], what: str) -> Check:
    (check,) = [check for check in found if check.what == what]
    return check


def test_a_key_that_is_not_set_is_optional_and_never_shown(tmp_path: Path) -> None:
    assert one(checks(tmp_path), "OPENAI_API_KEY").state == "off"
    found = checks(tmp_path, config={"sensitive": True}, OPENAI_API_KEY=KEY)
    assert one(found, "OPENAI_API_KEY").found == "environment (OPENAI_API_KEY)"
    assert KEY not in str(found)


def test_a_provider_is_asked_without_the_key_and_its_clock_compared(
    tmp_path: Path, provider: ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{provider.server_address[1]}/v1"
    env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": url}
    found = checks(tmp_path, ahead_s=59, **env)
    assert (one(found, "OpenAI").state, one(found, "clock").state) == ("ok", "ok")
    late = one(checks(tmp_path, ahead_s=-3600, **env), "clock")
    assert (late.state, late.found) == ("bad", "3600 s behind OpenAI's")
    assert "timedatectl" in late.remedy
    assert KEY not in str(provider.seen)  # type: ignore[attr-defined]


def test_for_sensitive_clients_alone_no_provider_is_asked(
    tmp_path: Path, provider: ThreadingHTTPServer
) -> None:
    url = f"http://127.0.0.1:{provider.server_address[1]}/v1"
    checks(tmp_path, config={"sensitive": True}, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=url)
    assert provider.seen == []  # type: ignore[attr-defined]


def test_a_host_that_is_away_is_bad(tmp_path: Path, provider: ThreadingHTTPServer) -> None:
    away = checks(tmp_path, OPENAI_API_KEY=KEY, OPENAI_BASE_URL="http://127.0.0.1:1/v1")
    assert (one(away, "OpenAI").state, "OPENAI_BASE_URL" in one(away, "OpenAI").remedy) == ("bad", True)
    assert one(checks(tmp_path, OLLAMA_HOST="127.0.0.1:1"), "Ollama").state == "bad"
    there = one(checks(tmp_path, OLLAMA_HOST=f"127.0.0.1:{provider.server_address[1]}"), "Ollama")
    assert there.found.startswith("0.12.0 at ")


def test_weights_that_are_missing_name_the_command(tmp_path: Path) -> None:
    found = checks(tmp_path)
    assert one(found, "embedder").remedy == "fine-tune fetch minilm"
    assert (one(found, "base").state, one(found, "base").remedy) == ("bad", "fine-tune fetch smollm2")
    for file in ("minilm/model.onnx", "minilm/tokenizer.json", "smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"):
        (tmp_path / "models" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / file).touch()
    found = checks(tmp_path)
    assert (one(found, "embedder").state, one(found, "base").state) == ("ok", "ok")


def test_a_full_disk_a_database_away_and_a_missing_extra_are_told(tmp_path: Path) -> None:
    def away() -> None:
        raise RunError("connection refused")

    database = "postgresql://127.0.0.1:1/fine_tune"
    settings = load_settings(
        {"CLIENT_DATA_DIR": str(tmp_path), "HOME": str(tmp_path), "FINE_TUNE_DATABASE_URL": database},
        tmp_path,
    )
    found = check_machine(
        settings,
        lambda: NOW,
        free=lambda path: 10**9,
        version=lambda package: None if package == "apprise" else "1.0",
        database=away,
    )
    assert one(found, "disk of clients").found == f"1.0 GB free at {tmp_path}"
    assert (one(found, "disk of models").state, one(found, "PostgreSQL").state) == ("bad", "bad")
    extra = one(found, "extra alerts")
    assert (extra.state, extra.found) == ("off", "without apprise")
    assert "pip install 'fine-tune-runner[alerts]'" in extra.remedy
    assert one(found, "extra postgres").state == "ok"
