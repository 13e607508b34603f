"""Fetching a base from the hub: the real client, in a process of its own, against a hub on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tests.small_client import Workplace
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.types import Message

COMMIT = "0" * 40
TOKEN = "hf_" + "not-a-real-one"


class Hub(BaseHTTPRequestHandler):
    """Two repositories: `org/open` for everybody, `org/gated` for whoever brings the token."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        if "gated" in self.path and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, with_body)
        if "/tree/" in self.path:
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), {}, with_body)
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            repository = self.path.removeprefix("/api/models/").split("/revision")[0]
            info: dict[str, Any] = {"id": repository, "sha": COMMIT, "siblings": siblings}
            return self._send(200, json.dumps(info).encode(), {}, with_body)
        name = self.path.rpartition("/")[2]
        if name not in self.files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        data = self.files[name]
        tag = hashlib.sha256(data).hexdigest()
        return self._send(200, data, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, with_body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    base = make_tiny_llama(tmp_path / "upstream")
    # As Mistral's repositories: the weights a second time, which nobody wants to download.
    files = {path.name: path.read_bytes() for path in base.iterdir()} | {"consolidated.safetensors": b"twice"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHub", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}
    server.shutdown()
    server.server_close()


def test_a_gated_base_says_how_to_get_it_and_comes_with_the_token(
    place: Workplace, env: dict[str, str]
) -> None:
    refused = place.run("fetch", "org/gated", env=env)
    assert refused.code == 1
    assert "is gated: accept its licence at huggingface.co/org/gated, set HF_TOKEN" in refused.err
    assert "Traceback" not in refused.err
    fetched = place.run("fetch", "org/gated", env=env | {"HF_TOKEN": TOKEN})
    assert (fetched.code, TOKEN in fetched.out + fetched.err) == (0, False)


def test_a_fetched_base_is_found_by_runs_and_what_they_need_not_is_left(
    place: Workplace, env: dict[str, str], tmp_path: Path
) -> None:
    place.write_config(base_model="org/open")
    before = place.submit(1, "--dry-run")
    fetched = place.run("fetch", "org/open", "--json", env=env)
    after = place.run("submit", "--client", "small", "--version", "1", "--dry-run", env=env)
    assert (before.code, fetched.code, after.code) == (1, 0, 0)
    assert "run: fine-tune fetch org/open" in before.err
    (folder,) = fetched.events[0]["paths"]
    assert "model.safetensors" in {path.name for path in Path(folder).iterdir()}
    assert list((tmp_path / "hf").rglob("consolidated*")) == []


def test_mistral_gets_a_template_that_keeps_the_system_message_of_a_training_row(
    place: Workplace, env: dict[str, str]
) -> None:
    fetched = place.run("fetch", "mistral", "--json", env=env)
    (folder,) = fetched.events[0]["paths"]
    row = (
        Message(role="system", content="S"),
        Message(role="user", content="U"),
        Message(role="assistant", content="A"),
    )
    tokenizer = ChatTokenizer(Path(folder))
    expected = "<|im_start|>[INST] S\n\nU[/INST] A<|im_end|>"  # the tiny base's own first and last token
    assert tokenizer._whole.decode(tokenizer.encode(row).tokens, skip_special_tokens=False) == expected
    assert tokenizer._whole.decode(tokenizer.prompt(row), skip_special_tokens=False) == (
        expected.removesuffix(" A<|im_end|>")
    )


def test_a_hub_that_cannot_be_reached_is_named(place: Workplace, tmp_path: Path) -> None:
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    done = place.run("fetch", "org/open", env=nowhere)
    assert done.code == 1
    assert "base model org/open cannot be downloaded" in done.err
    assert "run: fine-tune fetch org/open" in done.err
