"""Where a provider trains and where it answers: two addresses, each known before anything is paid for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from fine_tune_runner.errors import PolicyError, ServingError
from fine_tune_runner.hosted.place import Place, place_of
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.settings import ClientConfig, load_client
from fine_tune_runner.types import Decoding, Message, Model, Prompt
from tests.contract.openai_server.server import KEY, ContractServer
from tests.hosted.world import HostedRun, make_settings, write_client


class Listening(httpx2.BaseTransport):
    """Notes the host of every request on its way."""

    def __init__(self) -> None:
        self.inner = httpx2.HTTPTransport()
        self.asked: list[tuple[str, str]] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append((request.url.host, request.url.path.removeprefix("/v1")))
        return self.inner.handle_request(request)

    def close(self) -> None:
        self.inner.close()


def place(tmp_path: Path, url: str | None = None, **config: Any) -> Place:
    return place_of(make_settings(tmp_path, url, KEY), ClientConfig(client_id="hre", **config))


def test_a_provider_answers_where_it_trains_unless_it_says_otherwise(tmp_path: Path) -> None:
    assert place(tmp_path).answers_url == "https://api.openai.com/v1"
    crusoe = place(tmp_path, provider="crusoe")
    assert crusoe.url == "https://api.intelligence.crusoecloud.com/v1"
    assert crusoe.answers_url == "https://api.inference.crusoecloud.com/v1"
    named = place(tmp_path, "http://10.0.0.1/v1", provider="custom", inference_url="http://10.0.0.2/v1/")
    assert (named.url, named.answers_url) == ("http://10.0.0.1/v1", "http://10.0.0.2/v1")


def test_answers_come_from_the_other_address(tmp_path: Path, server: ContractServer) -> None:
    write_client(tmp_path, provider="custom", inference_url=server.url.replace("127.0.0.1", "localhost"))
    transport = Listening()
    hosted = HostedRun(make_settings(tmp_path, server.url, KEY), transport=transport)
    model = hosted.start()
    assert model.endpoint == hosted.track.place.answers_url
    prompt = Prompt(question_id="q", k=0, messages=(Message(role="user", content="why"),))
    with hosted.track.serve([model]) as answerer:
        (reply,) = answerer.replies(model.model_id, [prompt], Decoding())
    assert reply.text
    chats = {host for host, path in transport.asked if path == "/chat/completions"}
    others = {host for host, path in transport.asked if path != "/chat/completions"}
    assert (chats, others) == ({"localhost"}, {"127.0.0.1"})


def test_a_provider_whose_answers_have_no_known_address_is_refused_before_paying(
    tmp_path: Path, server: ContractServer
) -> None:
    write_client(tmp_path, provider="crusoe", base_model="meta-llama/Llama-3.1-8B-Instruct")
    settings = make_settings(tmp_path, server.url, KEY)
    refusal = Hosted(settings, load_client(settings, "hre")).unavailable()
    assert refusal is not None
    assert "answers at another address than it trains at" in refusal
    assert 'set "inference_url" in config.json' in refusal
    with pytest.raises(PolicyError, match="inference_url"):
        HostedRun(settings).track.connect("answer")


@pytest.mark.parametrize("config", [{}, {"inference_url": "http://answers.example.com/v1"}])
def test_plain_http_to_a_public_host_is_refused(tmp_path: Path, config: dict[str, str]) -> None:
    write_client(tmp_path, **config)
    url = None if config else "http://api.example.com/v1"
    hosted = HostedRun(make_settings(tmp_path, url, KEY))
    assert "plain http to a public host" in (hosted.track.unavailable() or "")
    with pytest.raises(PolicyError, match="use https"):
        hosted.track.connect("answer")


def test_the_key_is_not_sent_to_where_another_one_trained(tmp_path: Path, server: ContractServer) -> None:
    write_client(tmp_path)
    hosted = HostedRun(make_settings(tmp_path, server.url, KEY))
    model = Model(
        model_id="m",
        track="A",
        provider="custom",
        base_model="b",
        dataset_sha256="",
        endpoint="http://10.0.0.9/v1",
    )
    with (
        pytest.raises(ServingError, match=r"http://10\.0\.0\.9/v1, but this key is for"),
        hosted.track.serve([model]),
    ):
        pass
    assert server.seen == []
