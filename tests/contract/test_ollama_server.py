"""The Ollama stand-in bites as the real one does (facts/ollama.md), also where our client never goes."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fine_tune_runner.private.gguf_base import folder_to_gguf
from tests.contract.ollama_server import gotemplate
from tests.contract.ollama_server.server import OllamaServer, serving
from tests.tiny_llama import make_tiny_llama

SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "U"}
ANSWER = {"role": "assistant", "content": "A"}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("base")
    make_tiny_llama(folder / "base")
    folder_to_gguf(folder / "base", folder / "base.gguf", "F16")
    return (folder / "base.gguf").read_bytes()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OllamaServer]:
    with serving(tmp_path / "ollama") as running:
        yield running


@pytest.fixture
def http(server: OllamaServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url) as client:
        yield client


def put(http: httpx2.Client, gguf: bytes, name: str = "a", **more: Any) -> list[dict[str, Any]]:
    digest = f"sha256:{hashlib.sha256(gguf).hexdigest()}"
    http.post(f"/api/blobs/{digest}", content=gguf)
    answer = http.post("/api/create", json={"model": name, "files": {"m.gguf": digest}, **more})
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.text.splitlines()]


def test_an_unknown_source_is_pulled(server: OllamaServer, http: httpx2.Client) -> None:
    answer = http.post("/api/create", json={"model": "a", "from": "llama3.1:8b"})
    assert (answer.status_code, server.store.pulls) == (200, ["llama3.1:8b"])
    assert json.loads(answer.text.splitlines()[-1]) == {"error": "pull model manifest: file does not exist"}


def test_an_existing_name_is_overwritten_in_any_case_of_letters(
    server: OllamaServer, http: httpx2.Client, gguf: bytes
) -> None:
    put(http, gguf, "hre:v1", system="one")
    assert put(http, gguf, "HRE:V1", system="two")[-1] == {"status": "success"}
    assert [model.system for model in server.store.models.values()] == ["two"]


def test_a_blob_that_exists_is_answered_before_its_body_is_read(
    server: OllamaServer, http: httpx2.Client, gguf: bytes
) -> None:
    put(http, gguf)
    path = f"/api/blobs/sha256:{hashlib.sha256(gguf).hexdigest()}"
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as raw:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(gguf)}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(64).startswith(b"HTTP/1.1 200")


def test_a_model_made_from_another_inherits_what_it_does_not_name(
    server: OllamaServer, http: httpx2.Client, gguf: bytes
) -> None:
    put(http, gguf, "a", system="one", parameters={"temperature": 0.5})
    http.post("/api/create", json={"model": "b", "from": "a", "parameters": {"num_ctx": 256}})
    made = server.store.find("b")
    assert (made.system, made.parameters) == ("one", {"temperature": 0.5, "num_ctx": 256})


def test_quantising_is_refused_from_0_34_1_in_the_stream(http: httpx2.Client, gguf: bytes) -> None:
    assert "not supported" in put(http, gguf, quantize="q8_0")[-1]["error"]


def test_an_unparsable_template_is_refused_in_the_stream(http: httpx2.Client, gguf: bytes) -> None:
    assert put(http, gguf, template="{{ trim .Content }}")[-1] == {
        "error": 'template error: template: function "trim" not defined'
    }


def test_embeddings_of_a_generative_model_are_501(http: httpx2.Client) -> None:
    assert http.post("/api/embed", json={"model": "a", "input": "x"}).status_code == 501


def test_more_than_20_logprobs_are_refused(http: httpx2.Client, gguf: bytes) -> None:
    put(http, gguf)
    body = {"model": "a", "messages": [USER], "logprobs": True, "top_logprobs": 21, "stream": False}
    assert http.post("/api/chat", json=body).status_code == 400


def test_generate_renders_with_the_models_own_prompt_and_raw_renders_nothing(
    http: httpx2.Client, gguf: bytes
) -> None:
    put(http, gguf, system="S", template="<{{ .System }}|{{ .Prompt }}>")
    body = {"model": "a", "prompt": "U", "stream": False, "_debug_render_only": True}
    rendered = [
        http.post("/api/generate", json={**body, **more}).json()["_debug_info"]["rendered_template"]
        for more in ({}, {"system": "T"}, {"raw": True})
    ]
    assert rendered == ["<S|U>", "<T|U>", "U"]
    said = http.post("/api/generate", json={"model": "a", "prompt": "U", "options": {"num_predict": 2}})
    assert json.loads(said.text)["done"] is True


def test_host_names_that_are_not_loopbacks_are_403(http: httpx2.Client) -> None:
    codes = [
        http.get("/api/version", headers={"Host": host}).status_code
        for host in ("ollama.example.ts.net", "localhost", "box.local:11434", "127.0.0.1:1")
    ]
    assert codes == [403, 200, 200, 200]


@pytest.mark.parametrize(
    ("template", "messages", "prompt"),
    [
        ("{{ .System }} {{ .Prompt }}", [SYSTEM, USER], "S U"),
        ("[{{ .Prompt }}]{{ .Response }}", [USER, ANSWER, USER], "[U]A[U]"),
        ("{{ range .Messages }}{{ .Role }}:{{ .Content }};{{ end }}", [SYSTEM, USER], "system:S;user:U;"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ end }}", [SYSTEM, USER], "0S1U"),
        ("{{ range .Messages }}{{ $.System }}{{ end }}", [SYSTEM, USER], "SS"),
        ("a {{- if .System }} yes{{ else }} no{{ end -}}  b{{ .Prompt }}", [USER], "a nobU"),
        ('{{ range .Messages }}{{ if eq .Role "user" }}u{{ else if eq .Role "system" }}s{{ end }}{{ end }}',
         [SYSTEM, USER], "su"),
        ('{{ if and .System (not (eq .Prompt "x")) }}1{{ end }}{{ "\\n" }}', [SYSTEM, USER], "1\n"),
        ("{{ range .Messages }}{{ .Content }}{{ end }}", [USER, USER], "U\n\nU"),
    ],
)  # fmt: skip
def test_templates_are_computed_as_go_computes_them(
    template: str, messages: list[dict[str, str]], prompt: str
) -> None:
    assert gotemplate.render(template, messages) == prompt


@pytest.mark.parametrize("template", ["{{ if .System }}", "{{ end }}", "{{ .System", "{{ $x }}", "{{ foo }}"])
def test_templates_that_go_refuses_are_refused(template: str) -> None:
    with pytest.raises(gotemplate.TemplateError):
        gotemplate.render(template, [USER])
