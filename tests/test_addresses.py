"""Addresses in settings: what is a URL, what OLLAMA_HOST means, and where plain http would be seen."""

from __future__ import annotations

import pytest

from fine_tune_runner.addresses import ollama_address, plain_to_public, web_address

PASSWORD = "-".join(("correct", "horse"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("100.86.248.8", "http://100.86.248.8:11434"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:9000", "http://127.0.0.1:9000"),
        ("http://0.0.0.0:11434", "http://127.0.0.1:11434"),
        (":9000", "http://127.0.0.1:9000"),
        ("::1", "http://[::1]:11434"),
        ("[::]:9000", "http://[::1]:9000"),
        ("studio", "http://studio:11434"),
        ("studio.tail1234.ts.net:80/ollama/", "http://studio.tail1234.ts.net:80/ollama"),
        ("https://ollama.example/", "https://ollama.example"),
        ("ssh://anna@studio:2222", "ssh://anna@studio:2222"),
    ],
)
def test_ollama_host_means_what_it_means_to_ollama(text: str, url: str) -> None:
    assert ollama_address(text) == url


@pytest.mark.parametrize(
    "text",
    [
        f"https://anna:{PASSWORD}@api.example/v1",
        f"https://{PASSWORD}@api.example/v1",
        f"https://api.example/v1?key={PASSWORD}",
        f"https://api.example:{PASSWORD}/v1",
        f"api.example/{PASSWORD}",
        f"ftp://{PASSWORD}",
        f"https://[{PASSWORD}]/v1",
        "http://999.1.1.1/v1",
        "http://",
    ],
)
def test_what_is_no_plain_place_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        web_address(text)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [f"anna:{PASSWORD}@studio", f"ssh://anna:{PASSWORD}@studio", "studio:port", f"http://a:{PASSWORD}@b"],
)
def test_a_wrong_ollama_host_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        ollama_address(text)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8000",
        "[::1]:8000",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.5",
        "100.64.0.1",
        "100.127.255.254",
        "[fd7a:115c:a1e0::1]",
        "[::ffff:10.0.0.1]",
        "localhost",
        "studio",
        "studio.local",
    ],
)
def test_plain_http_may_stay_on_a_private_network(host: str) -> None:
    assert plain_to_public(f"http://{host}/v1") is False


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "8.8.8.8",
        "100.128.0.1",
        "172.32.0.1",
        "134744072",
        "0x08080808",
        "[2606:4700::1111]",
        "[::ffff:8.8.8.8]",
        "localhost.example.com",
        "api.example.com.",
    ],
)
def test_plain_http_to_a_public_host_is_seen_and_https_is_not(host: str) -> None:
    assert plain_to_public(f"http://{host}/v1") is True
    assert plain_to_public(f"https://{host}/v1") is False
