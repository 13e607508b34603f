"""Track B at an Ollama host: the whole line against a server on loopback, and the alias that follows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.contract.ollama_server.server import OllamaServer, serving
from tests.contract.ollama_server.store import key_of
from tests.private.modelfile_grammar import parse
from tests.scripted_track import Letters, folder_of, in_process
from tests.small_client import PROMPT, TRAINING, train_rows, write_version
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.errors import ConfigError, MissingModel, ParityError, ProviderError, ServingError
from fine_tune_runner.private.served import Served
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_client, load_settings
from fine_tune_runner.types import Decoding, Job, Model, Prompt
from fine_tune_runner.workflow.engine import Event

LATEST = "small-client:latest"


class Desk:
    """A data folder with the client `small`, a tiny base, and the library with `OLLAMA_HOST` set."""

    def __init__(self, folder: Path, base: Path, url: str) -> None:
        self.folder = folder
        self.client = folder_of(folder)
        self.base = base
        self.url = url
        self.events: list[Event] = []
        self.notices: list[str] = []
        self.write_config()
        state = {"version": "1.0.0", "system_prompt": PROMPT}
        (self.client / "account_state.json").write_text(json.dumps(state))
        write_version(self.client, 1)
        write_version(self.client, 2, train_rows(61))

    def write_config(self, **base_model: str) -> None:
        config = {
            "client_id": "small",
            "track_preference": "b",
            "base_model": {"weights": str(self.base), **base_model},
            "training": {**TRAINING, "learning_rate": 0.03},
            "eval": {"max_tokens": 8, "answers": 1},
        }
        (self.client / "config.json").write_text(json.dumps(config))

    def runner(self, host: str | None = None) -> FineTuneRunner:
        env = {
            "CLIENT_DATA_DIR": str(self.folder / "clients"),
            "FINE_TUNE_MODELS_DIR": str(self.folder / "models"),
            "OLLAMA_HOST": self.url if host is None else host,
        }
        return FineTuneRunner(
            load_settings(env, self.folder),
            listener=self.events.append,
            notice=self.notices.append,
            embedder=lambda settings: Letters(),
            engine=in_process,
            who="anna",
        )

    def served(self) -> Served:
        settings = self.runner().settings
        return Served(settings, load_client(settings, "small"))

    def submit(self, version: int = 1) -> Job:
        return self.runner().submit("small", version)

    def of(self, event: str) -> list[dict[str, object]]:
        return [dict(e.data) for e in self.events if e.event == event]


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
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[tuple[Desk, OllamaServer]]:
    """v1 and v2 trained, put into Ollama, evaluated and promoted: the tests of this fixture only look."""
    folder = tmp_path_factory.mktemp("whole")
    with serving(folder / "ollama") as running:
        desk = Desk(folder, base, running.url)
        desk.submit(1)
        desk.submit(2)
        yield desk, running


def digests(server: OllamaServer) -> dict[str, str]:
    return {name: stored.digest for name, stored in server.store.models.items()}


def test_two_versions_are_trained_made_compared_and_promoted(whole: tuple[Desk, OllamaServer]) -> None:
    desk, server = whole
    first, second = desk.runner().registry("small").entries()
    assert (first.status, second.status) == ("archived", "active")
    assert (second.model_id, second.provider, second.endpoint) == ("small-client:v2", "ollama", server.url)
    assert (second.artifact, len(second.artifact_sha256 or "")) == ("small-client:v2", 64)
    assert server.store.pulls == []
    header = desk.of("run planned")[0]["title"]
    assert header == f"Track B (Ollama at {server.url.removeprefix('http://')})"


def test_parity_was_checked_before_the_evaluation(whole: tuple[Desk, OllamaServer]) -> None:
    desk, _ = whole
    order = [e.event for e in desk.events if e.event in ("created", "compared", "confirmed", "registered")]
    assert order[:4] == ["created", "compared", "confirmed", "registered"]
    assert [data["prompts"] for data in desk.of("compared")] == [3, 3]


def test_the_alias_is_the_version_in_service(whole: tuple[Desk, OllamaServer]) -> None:
    _, server = whole
    assert digests(server)[LATEST] == digests(server)["small-client:v2"]
    assert digests(server)[LATEST] != digests(server)["small-client:v1"]


def test_the_model_carries_prompt_parameters_and_stamp(whole: tuple[Desk, OllamaServer]) -> None:
    _, server = whole
    stored = server.store.find("small-client:v2")
    assert stored.system == PROMPT
    assert stored.parameters == {"temperature": 0.2, "num_ctx": 1024, "stop": ["<|im_end|>"]}
    info = server.store.info(stored)
    assert (info["ftr.client_id"], info["ftr.version"]) == ("small", "2")
    assert info["ftr.run_id"].startswith("small-v2-b-")


def test_the_modelfile_beside_the_run_is_valid_and_names_the_file(whole: tuple[Desk, OllamaServer]) -> None:
    desk, _ = whole
    (run,) = desk.client.glob("runs/small-v2-*")
    said = dict(parse((run / "Modelfile").read_text()))
    assert (run / said["from"]).is_file()
    assert said["system"] == PROMPT
    assert "# account_state_version: 1.0.0\n" in (run / "Modelfile").read_text()


def test_a_rollback_copies_back_and_a_crash_before_it_is_mended(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    desk.submit(2)
    runner = desk.runner()
    runner.rollback("small", 1)
    assert digests(server)[LATEST] == digests(server)["small-client:v1"]
    assert desk.notices == [f"{LATEST} → small-client:v1"]
    # A crash between registry and copy: the alias is another version's, or gone.
    server.store.copy("small-client:v2", LATEST)
    runner.promote("small", 2, override="back again")
    assert digests(server)[LATEST] == digests(server)["small-client:v2"]
    server.store.delete(LATEST)
    runner.evaluate("small", 1)
    assert digests(server)[LATEST] == digests(server)["small-client:v2"]
    # The host is away: the registry changes all the same, and the next command mends the alias.
    away = desk.runner(host="http://127.0.0.1:9")
    away.rollback("small", 1)
    assert runner.registry("small").active() == runner.entry("small", 1, None)


def test_a_copy_that_is_another_model_is_an_error(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    server.store.broken_copy = True
    server.store.delete(LATEST)
    with pytest.raises(ProviderError, match="not the same as small-client:v1 after copying"):
        desk.served().follow(active(desk))


def active(desk: Desk) -> Model:
    entry = desk.runner().registry("small").active()
    assert entry is not None
    return Model(
        model_id=entry.model_id or "",
        track="B",
        provider="ollama",
        base_model=entry.base_model or "",
        dataset_sha256=entry.dataset_sha256 or "",
        endpoint=entry.endpoint,
    )


def test_the_alias_goes_where_nothing_there_is_in_service(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    hosted = Model(model_id="ft:gpt", track="A", provider="openai", base_model="gpt", dataset_sha256="")
    assert desk.served().follow(hosted) == f"{LATEST} taken away: nothing at this host is in service"
    assert (LATEST in server.names, desk.served().follow(hosted)) == (False, None)


def test_an_alias_of_somebody_else_is_left_alone(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    other = server.store.blob("sha256-other")
    make_foreign(server, LATEST, other)
    with pytest.raises(ProviderError, match="was not made by this system"):
        desk.served().follow(active(desk))


def make_foreign(server: OllamaServer, name: str, path: Path) -> None:
    """A model that somebody put there by hand: the bare base without a stamp."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_string("general.name", "somebody else's")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stored = replace(server.store.models.get("x") or _stored(name), gguf="sha256-other")
    server.store.models[key_of(name)] = stored


def _stored(name: str):  # type: ignore[no-untyped-def]
    from tests.contract.ollama_server.store import Stored

    return Stored(name=name, gguf="")


def test_a_name_that_is_taken_stops_the_run_before_training(desk: Desk, server: OllamaServer) -> None:
    make_foreign(server, "Small-Client:V1", server.store.blob("sha256-other"))
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
    model = active(desk)
    make_foreign(server, "small-client:v1", server.store.blob("sha256-other"))
    with (
        pytest.raises(ServingError, match="is not the model on record; somebody replaced it"),
        desk.served().serve([model]),
    ):
        pass


def test_a_wrong_template_on_the_server_stops_the_run(desk: Desk, server: OllamaServer) -> None:
    """Somebody exchanged the template between making and comparing."""
    made = server.store.create

    def spoiled(request):  # type: ignore[no-untyped-def]
        return made({**request, "template": str(request["template"]).replace("system", "System")})

    server.store.create = spoiled  # type: ignore[method-assign]
    with pytest.raises(ParityError, match="parity check, template"):
        desk.submit(1)
    assert desk.runner().registry("small").entries() == ()


def test_forgetting_takes_every_model_of_the_client_away(desk: Desk, server: OllamaServer) -> None:
    job = desk.submit(1)
    make_foreign(server, "small-client:mine", server.store.blob("sha256-other"))
    assert set(desk.served().forget([job.run_id], ["small-client:v1"])) == {"small-client:v1", LATEST}
    assert server.names == {"small-client:mine"}


def test_a_failed_call_is_a_reply_with_its_reason(desk: Desk, server: OllamaServer) -> None:
    desk.submit(1)
    model = active(desk)
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
