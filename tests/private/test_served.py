"""Track B at an Ollama host: the whole line against a server on loopback, and the alias that follows it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.contract.ollama_server.server import OllamaServer, serving
from tests.contract.ollama_server.store import Refusal, Stored
from tests.private.modelfile_grammar import parse
from tests.private.ollama_world import LATEST, Desk, digests, put_foreign
from tests.small_client import PROMPT
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.errors import ConfigError, MissingModel, ParityError, ProviderError, ServingError
from fine_tune_runner.line import model_of
from fine_tune_runner.private.gguf_file import read_header
from fine_tune_runner.private.merge import merge_gguf
from fine_tune_runner.private.track import Embedded
from fine_tune_runner.prune import prune
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import Decoding, Prompt


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base") / "tiny", context=1024)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OllamaServer]:
    with serving(tmp_path / "ollama") as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path, base: Path, server: OllamaServer) -> Desk:
    return Desk(tmp_path, base, server.url)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[tuple[Desk, OllamaServer]]:
    """v1 and v2 in Ollama, v2 in service, for tests that only look."""
    folder = tmp_path_factory.mktemp("shown")
    with serving(folder / "ollama") as running:
        desk = Desk(folder, base, running.url)
        desk.submit(1)
        desk.submit(2)
        yield desk, running


@pytest.fixture
def in_service(desk: Desk) -> Desk:
    """v1 and v2 are in Ollama, v2 in service."""
    desk.submit(1)
    desk.submit(2)
    return desk


def test_a_version_is_trained_made_compared_and_promoted(
    tmp_path: Path, base: Path, server: OllamaServer
) -> None:
    """With the real trainer, for a few steps."""
    desk = Desk(tmp_path, base, server.url, trainer=None)
    desk.submit(1)
    (entry,) = desk.runner().registry("small").entries()
    assert (entry.status, entry.model_id, entry.provider) == ("active", "small-client:v1", "ollama")
    assert (entry.endpoint, entry.artifact) == (server.url, "small-client:v1")
    assert digests(server)[LATEST] == digests(server)["small-client:v1"]
    assert server.store.pulls == []
    title = desk.of("run planned")[0]["title"]
    assert title == f"Track B (Ollama at {server.url.removeprefix('http://')})"


def test_parity_was_checked_before_the_evaluation(shown: tuple[Desk, OllamaServer]) -> None:
    desk, _ = shown
    order = [e.event for e in desk.events if e.event in ("created", "compared", "confirmed", "registered")]
    assert order[:4] == ["created", "compared", "confirmed", "registered"]
    assert [data["prompts"] for data in desk.of("compared")] == [3, 3]


def test_the_alias_is_the_version_in_service(shown: tuple[Desk, OllamaServer]) -> None:
    _, server = shown
    assert digests(server)[LATEST] == digests(server)["small-client:v2"]
    assert digests(server)[LATEST] != digests(server)["small-client:v1"]


def test_the_model_carries_prompt_parameters_and_stamp(shown: tuple[Desk, OllamaServer]) -> None:
    _, server = shown
    stored = server.store.find("small-client:v2")
    assert stored.system == PROMPT
    assert stored.parameters == {"temperature": 0.2, "num_ctx": 1024, "stop": ["<|im_end|>"]}
    info = server.store.info(stored)
    assert (info["ftr.client_id"], info["ftr.version"]) == ("small", "2")
    assert info["ftr.run_id"].startswith("small-v2-b-")


def test_the_modelfile_beside_the_run_is_valid_and_names_the_file(shown: tuple[Desk, OllamaServer]) -> None:
    desk, _ = shown
    (run,) = desk.client.glob("runs/small-v2-*")
    said = dict(parse((run / "Modelfile").read_text()))
    assert (run / said["from"]).is_file()
    assert said["system"] == PROMPT
    assert "# account_state_version: 1.0.0\n" in (run / "Modelfile").read_text()


def test_a_rollback_copies_back(in_service: Desk, server: OllamaServer) -> None:
    runner = in_service.runner()
    runner.rollback("small", 1)
    assert digests(server)[LATEST] == digests(server)["small-client:v1"]
    assert in_service.notices == [f"{LATEST} → small-client:v1"]
    runner.promote("small", 2, override="back again")
    assert digests(server)[LATEST] == digests(server)["small-client:v2"]


@pytest.mark.parametrize("trace", ["another version", "none"])
def test_an_alias_that_a_crash_left_behind_is_mended(
    in_service: Desk, server: OllamaServer, trace: str
) -> None:
    if trace == "none":
        server.store.delete(LATEST)
    else:
        server.store.copy("small-client:v1", LATEST)
    in_service.runner().evaluate("small", 1)
    assert digests(server)[LATEST] == digests(server)["small-client:v2"]
    assert in_service.notices == [f"{LATEST} → small-client:v2"]


def test_a_host_that_cannot_copy_now_keeps_no_version_out_of_service(
    in_service: Desk, server: OllamaServer
) -> None:
    server.store.broken_copy = True
    entry = in_service.runner().rollback("small", 1)
    assert (entry.active, entry.model_id) == (True, "small-client:v1")
    (notice,) = in_service.notices
    assert "not the same as small-client:v1 after copying. The registry has what is in service" in notice
    server.store.broken_copy = False
    in_service.runner().evaluate("small", 1)
    assert digests(server)[LATEST] == digests(server)["small-client:v1"]


def test_a_copy_that_is_another_model_is_an_error(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    server.store.broken_copy = True
    server.store.delete(LATEST)
    with pytest.raises(ProviderError, match="not the same as small-client:v1 after copying"):
        desk.served().follow(desk.active())


def test_the_alias_goes_where_nothing_there_is_in_service(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    hosted = msgspec.structs.replace(desk.active(), track="A", model_id="ft:gpt", provider="openai")
    assert desk.served().follow(hosted) == f"{LATEST} taken away: nothing at this host is in service"
    assert (LATEST in server.names, desk.served().follow(hosted)) == (False, None)


def test_an_alias_of_somebody_else_is_left_alone(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    put_foreign(server, LATEST)
    with pytest.raises(ProviderError, match="was not made by this system"):
        desk.served().follow(desk.active())


def test_a_name_that_is_taken_stops_the_run_before_training(desk: Desk, server: OllamaServer) -> None:
    put_foreign(server, "Small-Client:V1")
    with pytest.raises(ProviderError, match="already has small-client:v1, not made by this system"):
        desk.submit(1)
    assert desk.of("train started") == []


def test_a_base_that_the_host_lacks_is_asked_for_before_training(desk: Desk, server: OllamaServer) -> None:
    desk.write_config(ollama="llama3.1:8b")
    with pytest.raises(MissingModel, match=r"has no llama3\.1:8b, .*there: ollama pull llama3\.1:8b"):
        desk.submit(1)
    assert (server.store.pulls, desk.of("run planned")) == ([], [])


def test_a_template_that_ollama_cannot_have_is_refused_before_training(
    tmp_path: Path, server: OllamaServer
) -> None:
    other = make_tiny_llama(tmp_path / "other", context=1024)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    settings["chat_template"] = settings["chat_template"].replace("'\\n' + message", "': ' + message")
    settings["chat_template"] = settings["chat_template"].replace("assistant\\n", "assistant: ")
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="none that can be put into Ollama"):
        Desk(tmp_path, other, server.url).submit(1)


def test_a_host_that_is_away_stops_the_run_before_it_begins(tmp_path: Path, base: Path) -> None:
    desk = Desk(tmp_path, base, "http://127.0.0.1:9")
    with pytest.raises(ProviderError, match="cannot be reached"):
        desk.submit(1)
    assert desk.of("run planned") == []


def test_an_old_server_is_warned_of(tmp_path: Path, base: Path) -> None:
    with serving(tmp_path / "ollama", version="0.16.3") as server:
        desk = Desk(tmp_path, base, server.url)
        desk.submit(1)
    (warning, *_) = desk.of("warning")
    assert "CVE-2026-7482" in str(warning["message"])


def test_a_replaced_model_is_not_asked(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    model = model_of(desk.active())
    put_foreign(server, "small-client:v1")
    with (
        pytest.raises(ServingError, match="is not the model on record; somebody replaced it"),
        desk.served().serve([model]),
    ):
        pass


def test_the_model_of_another_attempt_at_the_same_data_is_not_asked(desk: Desk) -> None:
    """An attempt that died between create and register has replaced what is on record."""
    desk.submit(1)
    entry = msgspec.structs.replace(desk.active(), run_id="small-v1-b-12345678-9")
    with (
        pytest.raises(ServingError, match=r"small-client:v1 was made by run small-v1-b-\w+-1, not by"),
        desk.served().serve([model_of(entry)]),
    ):
        pass


def spoil(server: OllamaServer, change: Callable[[dict[str, Any]], None]) -> None:
    """From now on the server makes something else than what it is asked for."""
    made = server.store.create

    def spoiled(request: Mapping[str, Any]) -> Iterator[dict[str, str]]:
        other = dict(request)
        change(other)
        return made(other)

    server.store.create = spoiled  # type: ignore[method-assign]


def other_alpha(desk: Desk, server: OllamaServer, alpha: float) -> Callable[[dict[str, Any]], None]:
    """A change that puts in a model with the same stamp whose adapter was merged with another alpha."""

    def change(request: dict[str, Any]) -> None:
        (digest,) = request["files"].values()
        values = read_header(server.store.blob(digest)).values
        (adapter,) = desk.client.glob("runs/*/attempt-1/adapter")
        folder = shutil.copytree(adapter, desk.folder / f"adapter-{alpha}")
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": alpha}))
        stamp = {key: str(values[key]) for key in values if key.startswith("ftr.")}
        target = server.store.blob("sha256-spoiled")
        merge_gguf(desk.base, folder, target, stamp=stamp, quantization="F16")
        request["files"] = {"model.gguf": "sha256-spoiled"}

    return change


def other_template(request: dict[str, Any]) -> None:
    request["template"] = str(request["template"]).replace("assistant", "Assistant")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("template", "parity check, template: prompt 1 differs at token"),
        ("adapter lost", "parity check, adapter lost: the served model is the bare base"),
        ("scale", "parity check, log-probabilities: the served model is .* its scale, its base"),
    ],
)
def test_a_parity_fault_stops_the_run_before_anything_is_registered(
    desk: Desk, server: OllamaServer, fault: str, said: str
) -> None:
    changes = {
        "template": other_template,
        "adapter lost": other_alpha(desk, server, 1e-6),
        "scale": other_alpha(desk, server, 32.0),  # four times
    }
    spoil(server, changes[fault])
    with pytest.raises(ParityError, match=said):
        desk.submit(1)
    assert desk.runner().registry("small").entries() == ()
    assert desk.of("evaluation started") == []


def test_forgetting_takes_every_model_of_the_client_away(desk: Desk, server: OllamaServer) -> None:
    job = desk.submit(1)
    put_foreign(server, "small-client:mine")
    assert set(desk.served().forget([job.run_id], ["small-client:v1"])) == {"small-client:v1", LATEST}
    assert server.names == {"small-client:mine"}


def test_without_the_host_its_models_are_not_taken_for_deleted(desk: Desk) -> None:
    job = desk.submit(1)
    settings = desk.runner().settings
    embedded = Embedded(settings, load_client(settings, "small"))
    for runs, models in (([job.run_id], []), ([], ["small-client:v1"])):
        with pytest.raises(ServingError, match="is at an Ollama host; set OLLAMA_HOST"):
            embedded.forget(runs, models)
    assert embedded.forget([], ["small-client:v2"]) == ()


def test_a_failed_call_is_a_reply_with_its_reason(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    model = model_of(desk.active())
    with desk.served().serve([model]) as answerer:
        server.store.delete("small-client:v1")
        prompt = Prompt(question_id="q", k=0, messages=())
        (reply,) = answerer.replies(model.model_id, [prompt], Decoding(max_tokens=4))
    assert reply.text is None
    assert "model 'small-client:v1' not found" in (reply.error or "")


def test_without_the_host_its_versions_are_not_asked_elsewhere(desk: Desk) -> None:
    desk.submit(1)
    runner = desk.runner(host="http://127.0.0.1:9")
    with pytest.raises(ServingError, match="small-client:v1 is at http"):
        runner.ask("small", "Why?")


def put_base(server: OllamaServer, base: Path, name: str = "tiny:8b") -> None:
    """The tiny base as the host's own model."""
    from fine_tune_runner.private.gguf_base import folder_to_gguf

    folder_to_gguf(base, server.store.blob("sha256-base"), "F16")
    server.store.models[name] = Stored(name=name, gguf="sha256-base", template="{{ .Prompt }}")


@pytest.mark.parametrize(("version", "short"), [("0.29.0", True), ("0.34.1", False)])
def test_the_adapter_alone_is_sent_where_a_probe_shows_that_the_host_takes_it(
    tmp_path: Path, base: Path, version: str, short: bool
) -> None:
    with serving(tmp_path / "ollama", version=version) as server:
        put_base(server, base)
        desk = Desk(tmp_path, base, server.url)
        desk.write_config(ollama="tiny:8b")
        desk.submit(1)
        stored = server.store.find("small-client:v1")
        assert bool(stored.adapters) is short
        assert (stored.parent == "tiny:8b") is short
        assert (desk.active().status, digests(server)[LATEST]) == ("active", stored.digest)
        assert server.names == {"tiny:8b", "small-client:v1", LATEST}  # the probe is taken away
        assert server.store.pulls == []
        (exported,) = desk.of("exported")
        assert exported["way"] == ("adapter on tiny:8b" if short else "merged, F16")
        (run,) = desk.client.glob("runs/small-v1-*")
        said = dict(parse((run / "Modelfile").read_text()))
        assert ("adapter" in said, said["from"] == "tiny:8b") == (short, short)
        assert desk.served().forget([], ["small-client:v1"]) == ("small-client:v1",)


def test_a_base_that_is_itself_made_from_another_gets_no_second_adapter(tmp_path: Path, base: Path) -> None:
    with serving(tmp_path / "ollama", version="0.29.0") as server:
        put_base(server, base)
        derived = server.store.models["tiny:8b"]
        server.store.models["mine:8b"] = replace(derived, name="mine:8b", parent="tiny:8b")
        desk = Desk(tmp_path, base, server.url)
        desk.write_config(ollama="mine:8b")
        desk.submit(1)
        assert server.store.find("small-client:v1").adapters == ()
    (found,) = desk.of("host found")
    assert found["way"] == "the whole model is sent: mine:8b is itself made from tiny:8b"


def break_once(server: OllamaServer) -> None:
    """The next answer of a model fails, as on a host that has no memory left."""
    complete = server.store.complete

    def failing(*args: Any) -> dict[str, Any]:
        server.store.complete = complete  # type: ignore[method-assign]
        raise Refusal(500, "llama runner process has terminated")

    server.store.complete = failing  # type: ignore[method-assign]


def test_a_run_that_broke_after_making_goes_on_without_training_or_sending_again(
    desk: Desk, server: OllamaServer
) -> None:
    break_once(server)
    with pytest.raises(ProviderError, match="answers 500: llama runner process has terminated"):
        desk.submit(1)
    assert "small-client:v1" in server.names
    desk.submit(1)
    assert desk.active().model_id == "small-client:v1"
    assert (len(desk.of("train started")), server.asked("POST /api/blobs")) == (1, 1)
    assert server.asked("POST /api/create") == 1


def test_another_attempt_replaces_the_model_of_one_that_failed(desk: Desk, server: OllamaServer) -> None:
    break_once(server)
    with pytest.raises(ProviderError):
        desk.submit(1)
    job = desk.runner().submit("small", 1, again=True)
    stored = server.store.find("small-client:v1")
    assert server.store.info(stored)["ftr.run_id"] == job.run_id
    assert desk.active().run_id == job.run_id


def test_pruning_takes_an_archived_model_off_the_host(in_service: Desk, server: OllamaServer) -> None:
    prune(in_service.runner(), "small", keep=0)
    assert server.names == {"small-client:v2", LATEST}
    assert not list(in_service.client.glob("runs/small-v1-*/attempt-1"))
