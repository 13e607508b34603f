"""The client against a real server on loopback: what it asks, what it refuses, and errors with a remedy."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.contract.ollama_server.server import OllamaServer, serving
from tests.private.test_templates import tokenizer
from tests.tiny_llama import CHAT_TEMPLATE, make_tiny_llama

from fine_tune_runner.errors import ConfigError, PolicyError, ProviderError
from fine_tune_runner.private.gguf_base import folder_to_gguf
from fine_tune_runner.private.ollama import Creation, Ollama, outdated
from fine_tune_runner.private.templates import family_of
from fine_tune_runner.settings import Secret
from fine_tune_runner.types import Message

GREEDY = {"temperature": 0.0, "num_predict": 5, "num_ctx": 256}
ASKED = (Message(role="user", content="Why?"),)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    make_tiny_llama(folder / "base")
    folder_to_gguf(folder / "base", folder / "base.gguf", "F16")
    return folder / "base.gguf"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OllamaServer]:
    with serving(tmp_path / "ollama") as running:
        yield running


@pytest.fixture
def client(server: OllamaServer) -> Iterator[Ollama]:
    with Ollama(server.url) as ollama:
        yield ollama


def digest_of(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def put(client: Ollama, gguf: Path, name: str = "hre-client:v1", **more: Any) -> str:
    digest = digest_of(gguf)
    client.upload(gguf, digest, lambda done, total: None)
    template = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    creation: dict[str, Any] = {
        "model": name,
        "files": {"model.gguf": digest},
        "system": "You are an expert.",
        "template": template + "<|im_start|>assistant\n",
        "parameters": {"temperature": 0.2, "num_ctx": 256, "stop": ["<|im_end|>"]},
    }
    client.create(Creation(**(creation | more)))
    return digest


def test_a_model_is_uploaded_made_listed_and_answers(client: Ollama, gguf: Path) -> None:
    put(client, gguf)
    assert [model.name for model in client.models()] == ["hre-client:v1"]
    # llama.cpp keeps back a token that is half a character; one of twenty draws is whole.
    draws = [GREEDY | {"temperature": 2.0, "seed": seed, "num_predict": 1} for seed in range(20)]
    answers = [client.chat("hre-client:v1", ASKED, options, top_logprobs=3) for options in draws]
    said = max(answers, key=lambda answer: len(answer.logprobs))
    assert len(said.logprobs) == said.tokens == 1
    assert len(said.logprobs[0].top_logprobs) == 3
    assert all(-20 < token.logprob < 0 for token in said.logprobs[0].top_logprobs)


def test_the_prompt_is_rendered_from_the_template_that_was_sent(
    client: Ollama, gguf: Path, tmp_path: Path
) -> None:
    put(client, gguf)
    rendered = client.render("hre-client:v1", ASKED)
    talk = (Message(role="system", content="You are an expert."), *ASKED)
    assert rendered == tokenizer(tmp_path / "base", CHAT_TEMPLATE, "", "<|im_end|>").text(talk)
    put(client, gguf, template="Q: {{ .Prompt }}")
    assert client.render("hre-client:v1", ASKED) == "Q: Why?"


def test_the_system_prompt_and_template_are_shown_with_the_files_key_values(
    client: Ollama, gguf: Path, tmp_path: Path
) -> None:
    family = family_of(tokenizer(tmp_path / "base", CHAT_TEMPLATE, "", "<|im_end|>"))
    put(client, gguf, template=family.go_template(server_adds_bos=False))
    shown = client.show("hre-client:v1")
    assert shown.system == "You are an expert."
    assert shown.template == family.go_template(server_adds_bos=False)
    assert shown.model_info["llama.block_count"] == 2


def test_an_upload_tells_its_progress_and_is_not_repeated(
    server: OllamaServer, client: Ollama, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 10_000)
    heard: list[tuple[int, int]] = []
    client.upload(path, digest_of(path), lambda done, total: heard.append((done, total)))
    assert heard == [(1 << 20, 2560004), (2 << 20, 2560004), (2560004, 2560004)]
    client.upload(path, digest_of(path), lambda done, total: heard.append((done, total)))
    assert heard[3:] == [(2560004, 2560004)]
    assert (server.asked("POST /api/blobs"), server.asked("HEAD /api/blobs")) == (1, 2)


def test_a_large_file_is_sent_in_constant_memory(client: Ollama, tmp_path: Path) -> None:
    """64 MB through a client and a server that share this process."""
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    digest = digest_of(path)
    tracemalloc.start()
    try:
        client.upload(path, digest, lambda done, total: None)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert client.has_blob(digest)
    assert peak < 16 << 20


def test_a_file_of_another_digest_is_refused(client: Ollama, gguf: Path) -> None:
    with pytest.raises(ProviderError, match="answers 400: digest mismatch"):
        client.upload(gguf, f"sha256:{'0' * 64}", lambda done, total: None)


def test_a_source_that_is_not_there_is_never_pulled(server: OllamaServer, client: Ollama) -> None:
    with pytest.raises(ProviderError, match=r"has no llama3\.1:8b; there: ollama pull llama3\.1:8b"):
        client.create(Creation(model="hre-client:v1", source="llama3.1:8b"))
    assert server.store.pulls == []


def test_an_error_in_the_middle_of_a_stream_is_raised(client: Ollama, tmp_path: Path) -> None:
    path = tmp_path / "no.gguf"
    path.write_bytes(b"not a GGUF")
    with pytest.raises(ProviderError, match="cannot make hre-client:v1: invalid file magic"):
        put(client, path)


def test_a_stream_that_ends_without_success_is_no_success() -> None:
    def cut(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, text='{"status":"parsing GGUF"}\n')

    with (
        Ollama("http://127.0.0.1:1", transport=httpx2.MockTransport(cut)) as ollama,
        pytest.raises(ProviderError, match="broke off while making hre-client:v1"),
    ):
        ollama.create(Creation(model="hre-client:v1", files={"model.gguf": f"sha256:{'0' * 64}"}))


def test_names_ignore_case_and_a_name_without_a_tag_is_latest(client: Ollama, gguf: Path) -> None:
    put(client, gguf, "HRE-client")
    assert client.find("hre-client:latest") == client.models()[0]


def test_a_copy_keeps_the_digest_and_a_deletion_says_what_was_there(client: Ollama, gguf: Path) -> None:
    put(client, gguf)
    client.copy("hre-client:v1", "hre-client:latest")
    assert len({model.digest for model in client.models()}) == 1
    assert (client.delete("hre-client:v1"), client.delete("hre-client:v1")) == (True, False)
    assert [model.name for model in client.models()] == ["hre-client:latest"]


def test_some_versions_keep_the_model_in_other_bytes(tmp_path: Path, gguf: Path) -> None:
    with serving(tmp_path / "ollama", version="0.33.0-rc2") as server, Ollama(server.url) as client:
        digest = put(client, gguf)
        assert server.store.find("hre-client:v1").gguf != digest
        assert 1 <= client.chat("hre-client:v1", ASKED, GREEDY).tokens <= 5


def test_success_of_a_model_that_cannot_load_shows_when_it_is_asked(client: Ollama, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\0" * 64)
    put(client, path)
    with pytest.raises(ProviderError, match="answers 500: unable to load model"):
        client.chat("hre-client:v1", ASKED, GREEDY)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"num_ctx": "4096"}, "num_ctx is '4096', of a wrong type"),
        ({"temperature": True}, "temperature is True"),
        ({"stop": [1]}, r"stop is \[1\]"),
        ({"colour": 1}, "'colour' is unknown"),
    ],
)
def test_parameters_are_checked_before_they_are_sent(
    server: OllamaServer, client: Ollama, parameters: dict[str, Any], said: str
) -> None:
    creation = Creation(model="a", files={"m.gguf": f"sha256:{'0' * 64}"}, parameters=parameters)
    with pytest.raises(ConfigError, match=said):
        client.create(creation)
    assert server.seen == []


def test_the_server_itself_takes_a_wrong_type_and_fails_when_asked(
    server: OllamaServer, client: Ollama, gguf: Path
) -> None:
    digest = put(client, gguf)
    body = {"model": "a", "files": {"m.gguf": digest}, "parameters": {"num_ctx": "4096"}}
    assert '"success"' in httpx2.post(f"{server.url}/api/create", json=body).text
    with pytest.raises(ProviderError, match='answers 500: option "num_ctx" must be of type int'):
        client.chat("a", ASKED, {})


def test_names_and_adapters_that_the_server_would_spoil_are_not_sent(client: Ollama) -> None:
    digest = f"sha256:{'0' * 64}"
    client_of_63 = f"{'x' * 63}-client:v999"
    with pytest.raises(ProviderError, match="not found"):
        client.create(Creation(model=client_of_63, files={"m.gguf": digest}))
    with pytest.raises(ConfigError, match="at most 80 characters"):
        client.create(Creation(model="x" * 81, files={"m.gguf": digest}))
    with pytest.raises(ConfigError, match="only GGUF goes to Ollama"):
        client.create(Creation(model="a", source="b", adapters={"adapter_model.safetensors": digest}))


def test_a_gguf_adapter_is_taken_by_old_versions_and_refused_by_new_ones(tmp_path: Path, gguf: Path) -> None:
    for version, taken in (("0.29.0", True), ("0.34.1", False)):
        with serving(tmp_path / version, version=version) as server, Ollama(server.url) as client:
            digest = put(client, gguf, "base")
            creation = Creation(model="hre-client:v1", source="base", adapters={"adapter.gguf": digest})
            if taken:
                client.create(creation)
            else:
                with pytest.raises(ProviderError, match="adapters are no longer supported"):
                    client.create(creation)


def test_a_foreign_host_name_is_explained(server: OllamaServer) -> None:
    with (
        Ollama(server.url, headers={"Host": Secret("ollama.example.ts.net")}) as ollama,
        pytest.raises(ProviderError, match=r"answers 403; .*use ssh://user@host"),
    ):
        ollama.version()


def test_a_proxys_token_is_sent_and_its_lack_explained(tmp_path: Path) -> None:
    token = "-".join(("proxy", "token"))
    with serving(tmp_path / "ollama", token=token) as server:
        with Ollama(server.url, headers={"Authorization": Secret(f"Bearer {token}")}) as ollama:
            assert ollama.version() == "0.34.1"
        with (
            Ollama(server.url) as ollama,
            pytest.raises(ProviderError, match="401: unauthorized; set OLLAMA_H"),
        ):
            ollama.version()


def test_nobody_there_is_one_line_with_the_remedy() -> None:
    with (
        Ollama("http://127.0.0.1:9") as ollama,
        pytest.raises(ProviderError, match=r"http://127\.0\.0\.1:9 cannot be reached .*start Ollama there"),
    ):
        ollama.version()


def test_something_else_at_that_address_is_named(tmp_path: Path) -> None:
    other = httpx2.MockTransport(lambda request: httpx2.Response(200, text="<html>"))
    with (
        Ollama("http://127.0.0.1:9", transport=other) as ollama,
        pytest.raises(ProviderError, match="answers as no Ollama does"),
    ):
        ollama.models()


@pytest.mark.parametrize("url", ["http://1.1.1.1:11434", "http://8.8.8.8", "http://ollama.example.com"])
def test_plain_http_to_a_public_address_is_refused(url: str) -> None:
    with pytest.raises(PolicyError, match="plain http to a public address"):
        Ollama(url)


@pytest.mark.parametrize(
    "url", ["http://100.86.248.8:11434", "http://10.0.0.2:1", "https://ollama.example.com"]
)
def test_private_addresses_and_https_are_taken(url: str) -> None:
    with Ollama(url) as ollama:
        assert ollama.url == url


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("0.17.0", True),
        ("0.9.6", True),
        ("0.17.1", False),
        ("0.34.1", False),
        ("0.17.1-rc1", False),
        ("", False),
    ],
)
def test_versions_with_the_known_hole_are_told_apart(version: str, old: bool) -> None:
    assert outdated(version) is old


@pytest.mark.skipif(shutil.which("ollama") is None, reason="no ollama on the PATH")
def test_a_real_ollama_takes_a_modelfile_of_ours(tmp_path: Path, gguf: Path) -> None:
    from fine_tune_runner.private.modelfile import modelfile

    text = modelfile(
        base=str(gguf),
        adapter=None,
        system='Say """x""" now',
        template="{{ range .Messages }}{{ .Content }}{{ end }}",
        stop=["<|im_end|>"],
        metadata={"client_id": "hre"},
    )
    (tmp_path / "Modelfile").write_text(text)
    try:
        done = subprocess.run(
            ["ollama", "create", "ftr-test-modelfile", "-f", str(tmp_path / "Modelfile")],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["ollama", "rm", "ftr-test-modelfile"], capture_output=True, check=False)
