"""Settings and client configs: sources, wrong values by name, secrets that never print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fine_tune_runner.errors import ConfigError, UsageError
from fine_tune_runner.settings import (
    BASES,
    BaseModel,
    ClientConfig,
    Secret,
    base_model,
    check_client_id,
    client_ids,
    load_account_state,
    load_client,
    load_settings,
)

KEY = "sk-" + "not-a-real-one"


def write_client(folder: Path, **config: object) -> None:
    (folder / "hre").mkdir(exist_ok=True)
    (folder / "hre" / "config.json").write_text(json.dumps({"client_id": "hre", **config}))


def test_the_environment_wins_over_dotenv_and_dotenv_over_the_default(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CLIENT_DATA_DIR=from-dotenv\nEVAL_REGRESSION_TOLERANCE=0.1\n")
    settings = load_settings({"CLIENT_DATA_DIR": "from-env"}, tmp_path)
    assert (settings.data_dir, settings.tolerance) == (Path("from-env"), 0.1)
    assert settings.sources["data_dir"] == "environment (CLIENT_DATA_DIR)"
    assert settings.sources["tolerance"] == ".env (EVAL_REGRESSION_TOLERANCE)"
    assert load_settings({}, tmp_path / "elsewhere").sources["tolerance"] == "default"


def test_the_poll_interval_is_a_setting(tmp_path: Path) -> None:
    assert load_settings({}, tmp_path).poll_s == 60.0
    assert load_settings({"FINE_TUNE_POLL_INTERVAL": "5"}, tmp_path).poll_s == 5.0
    with pytest.raises(ConfigError, match="FINE_TUNE_POLL_INTERVAL='0'"):
        load_settings({"FINE_TUNE_POLL_INTERVAL": "0"}, tmp_path)


def test_every_wrong_variable_is_named_at_once_and_an_address_is_not_repeated(tmp_path: Path) -> None:
    url = f"https://anna:{KEY}@api.example/v1"
    wrong = {"EVAL_REGRESSION_TOLERANCE": "5", "OPENAI_BASE_URL": url, "OLLAMA_HOST": f"ftp://{KEY}"}
    with pytest.raises(ConfigError) as caught:
        load_settings({**wrong, "OPENAI_API_KEY": f"{KEY} {KEY}"}, tmp_path)
    said = str(caught.value)
    assert "EVAL_REGRESSION_TOLERANCE='5'" in said
    for variable in ("OPENAI_BASE_URL", "OLLAMA_HOST", "OPENAI_API_KEY"):
        assert f"{variable} (environment): " in said
    assert KEY not in said


def test_ollama_host_is_taken_as_ollama_takes_it(tmp_path: Path) -> None:
    assert load_settings({"OLLAMA_HOST": "0.0.0.0"}, tmp_path).ollama_host == "http://127.0.0.1:11434"


def test_an_inference_url_in_the_config_is_checked_and_not_repeated(tmp_path: Path) -> None:
    write_client(tmp_path, inference_url=f"https://{KEY}@api.example/v1")
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)
    with pytest.raises(ConfigError, match="inference_url: leave user and password out") as caught:
        load_client(settings, "hre")
    assert KEY not in str(caught.value)


def test_a_dotenv_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"OPENAI_API_KEY=\xff\n")
    with pytest.raises(ConfigError, match=r"\.env is not UTF-8 text; save it as UTF-8"):
        load_settings({}, tmp_path)


def test_a_data_folder_that_cannot_be_read_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path / "file")}, tmp_path)
    with pytest.raises(ConfigError, match=r"file cannot be read: Not a directory.*CLIENT_DATA_DIR"):
        client_ids(settings)
    with pytest.raises(ConfigError, match=r"file cannot be read: Not a directory.*CLIENT_DATA_DIR"):
        load_client(settings, "hre")


@pytest.mark.parametrize("value", ["nan", "-0.1", "1.5", "much"])
def test_a_tolerance_that_is_no_fraction_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="EVAL_REGRESSION_TOLERANCE"):
        load_settings({"EVAL_REGRESSION_TOLERANCE": value}, tmp_path)


def test_a_secret_prints_as_stars(tmp_path: Path) -> None:
    settings = load_settings({"OPENAI_API_KEY": KEY}, tmp_path)
    assert KEY not in repr(settings)
    assert KEY not in f"{settings.openai_api_key}"
    assert isinstance(settings.openai_api_key, Secret)
    assert settings.openai_api_key.reveal() == KEY


@pytest.mark.parametrize("client_id", ["../x", "", "-a", "A", "a/b", "a" * 64, "a\n", "é", ".."])
def test_a_client_id_that_is_no_plain_name_is_refused_before_a_path_is_built(client_id: str) -> None:
    with pytest.raises(UsageError, match="client id"):
        check_client_id(client_id)


@pytest.mark.parametrize(
    ("preference", "sensitive", "expected"),
    [(None, None, False), ("a", None, False), ("b", None, True), ("b", False, False), ("a", True, True)],
)
def test_sensitive_is_true_where_the_preference_is_b_and_nothing_is_said(
    preference: str | None, sensitive: bool | None, expected: bool
) -> None:
    config = ClientConfig(client_id="hre", track_preference=preference, sensitive=sensitive)  # type: ignore[arg-type]
    assert config.is_sensitive is expected


def test_unknown_top_level_keys_belong_to_others_and_are_ignored(tmp_path: Path) -> None:
    write_client(tmp_path, meta={"pixel": "1"}, gtm="GTM-1")
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)
    assert load_client(settings, "hre").config.client_id == "hre"


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"training": {"epochs": "three"}}, r"Expected `int \| null`, got `str` - at `\$.training.epochs`"),
        ({"training": {"epoch": 3}}, "unknown field `epoch`"),
        ({"training": {"rank": 0, "alpha": -1}}, "training.rank is 0; give 1 to 512\n.*training.alpha is -1"),
        ({"sensitive": "yes"}, "Expected `bool"),
        ({"client_id": "rtt"}, "client_id is 'rtt', but the folder is 'hre'"),
        ({"track_preference": "c"}, "Invalid enum value 'c'"),
    ],
)
def test_a_wrong_config_names_file_key_and_remedy(
    tmp_path: Path, config: dict[str, object], fault: str
) -> None:
    write_client(tmp_path, **config)
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)
    with pytest.raises(ConfigError, match=rf"(?s)config\.json.*{fault}"):
        load_client(settings, "hre")


def test_an_unknown_client_is_told_which_there_are(tmp_path: Path) -> None:
    write_client(tmp_path)
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)
    with pytest.raises(ConfigError, match=r"'rtt' is unknown.*known: hre.*fine-tune init --client rtt"):
        load_client(settings, "rtt")


def test_hidden_folders_are_never_taken_for_clients(tmp_path: Path) -> None:
    write_client(tmp_path)
    (tmp_path / ".fine-tune").mkdir()
    assert client_ids(load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)) == ["hre"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "account_state.json is missing"),
        ("{", "not valid JSON"),
        ('{"version":"1.0.0"}', "missing required field `system_prompt`"),
        ('{"version":"1.0.0","system_prompt":" "}', "system_prompt is empty"),
        ('\ufeff{"version":"1","system_prompt":"x"}', "byte order mark"),
    ],
)
def test_a_wrong_account_state_is_named(tmp_path: Path, text: str | None, fault: str) -> None:
    write_client(tmp_path)
    if text is not None:
        (tmp_path / "hre" / "account_state.json").write_text(text)
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)
    with pytest.raises(ConfigError, match=fault):
        load_account_state(load_client(settings, "hre"))


def test_a_config_that_is_not_utf_8_is_one_line(tmp_path: Path) -> None:
    write_client(tmp_path)
    (tmp_path / "hre" / "config.json").write_bytes(b'{"client_id":"hre","client_name":"Caf\xe9"}')
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_client(settings, "hre")


@pytest.mark.parametrize(
    ("host", "named", "expected"),
    [
        (None, None, BASES["smollm2"]),
        ("http://100.86.248.8:11434", None, BASES["llama3.1"]),
        ("http://100.86.248.8:11434", "smollm2", BASES["smollm2"]),
        (None, "meta-llama/Llama-3.1-8B-Instruct", BASES["llama3.1"]),
        (None, "mistral:7b", BASES["mistral"]),
        (None, "/weights/own", BaseModel(weights="/weights/own")),
        (
            None,
            {"weights": "/weights/own", "ollama": "own:8b"},
            BaseModel(weights="/weights/own", ollama="own:8b"),
        ),
    ],
)
def test_a_base_is_named_for_training_and_for_the_ollama_host(
    host: str | None, named: object, expected: BaseModel, tmp_path: Path
) -> None:
    write_client(tmp_path, base_model=named)
    env = {"CLIENT_DATA_DIR": str(tmp_path)} | ({"OLLAMA_HOST": host} if host else {})
    settings = load_settings(env, tmp_path)
    config = load_client(settings, "hre").config
    assert base_model(settings, config) == expected
    assert config.weights == (named["weights"] if isinstance(named, dict) else named)


def test_a_misspelt_key_of_the_base_is_named(tmp_path: Path) -> None:
    write_client(tmp_path, base_model={"weights": "smollm2", "olama": "x"})
    settings = load_settings({"CLIENT_DATA_DIR": str(tmp_path)}, tmp_path)
    with pytest.raises(ConfigError, match=r"unknown field `olama` - at `\$\.base_model`"):
        load_client(settings, "hre")


def test_headers_for_a_proxy_are_secrets_and_a_wrong_one_is_not_repeated() -> None:
    env = {"OLLAMA_HEADERS": "Authorization: Bearer abc; X-Team: b"}
    headers = load_settings(env).ollama_headers
    assert headers is not None
    assert {name: value.reveal() for name, value in headers.items()} == {
        "Authorization": "Bearer abc",
        "X-Team": "b",
    }
    assert "abc" not in repr(headers)
    with pytest.raises(ConfigError, match=r"OLLAMA_HEADERS \(environment\): give `Name: value`") as caught:
        load_settings({"OLLAMA_HEADERS": "hush-hush"})
    assert "hush" not in str(caught.value)
