"""`fine-tune import-eval`: what is written and said, and that nothing is written twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.errors import ConfigError, DataError


@pytest.fixture
def client(tmp_path: Path) -> Path:
    folder = tmp_path / "clients" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"client_id": "small"}')
    (folder / "account_state.json").write_text('{"version": "1", "system_prompt": "You know Small."}')
    return folder


def run(client: Path, text: str, *more: str) -> Result:
    file = client.parent.parent / "export.jsonl"
    file.write_text(text)
    words = ["import-eval", str(file), "--client", "small", "--version", "3", *more]
    environment = {"CLIENT_DATA_DIR": str(client.parent)}
    return CliRunner().invoke(fine_tune, words, env=environment, standalone_mode=False)


GOOD = json.dumps({"item": {"input": "Why?", "ideal": "csp_blocks_tags"}}) + "\n"
BAD = json.dumps({"item": {"input": "How?"}}) + "\n"


def test_rows_are_written_and_counted(client: Path) -> None:
    result = run(client, GOOD)
    assert result.return_value == 0
    assert "v3_eval.jsonl: 1 rows written (openai), 1 with a label" in result.stdout
    (line,) = (client / "v3_eval.jsonl").read_text().splitlines()
    assert [m["content"] for m in json.loads(line)["messages"]] == [
        "You know Small.",
        "Why?",
        "csp_blocks_tags",
    ]


def test_rows_that_could_not_be_read_are_named_and_the_others_written(client: Path) -> None:
    result = run(client, GOOD + BAD)
    assert result.return_value == 1
    assert "export.jsonl line 2: has no reference answer under a usual key (keys: input)" in result.stderr
    assert "name its key: --reference" in result.stderr
    assert len((client / "v3_eval.jsonl").read_text().splitlines()) == 1


def test_a_dry_run_writes_nothing(client: Path) -> None:
    result = run(client, GOOD, "--dry-run")
    assert (result.return_value, "1 rows would be written" in result.stdout) == (0, True)
    assert not (client / "v3_eval.jsonl").exists()


def test_where_nothing_could_be_read_nothing_is_written(client: Path) -> None:
    result = run(client, BAD)
    assert (result.return_value, "no row could be read" in result.stderr) == (1, True)
    assert not (client / "v3_eval.jsonl").exists()


def test_a_holdout_that_is_there_is_not_touched(client: Path) -> None:
    run(client, GOOD)
    before = (client / "v3_eval.jsonl").read_bytes()
    result = run(client, GOOD.replace("Why", "When"))
    assert isinstance(result.exception, DataError)
    assert "v3_eval.jsonl is there already" in str(result.exception)
    assert (client / "v3_eval.jsonl").read_bytes() == before


def test_json_says_the_same(client: Path) -> None:
    fault, end = [json.loads(line) for line in run(client, GOOD + BAD, "--json").stdout.splitlines()]
    assert (fault["event"], fault["place"]) == ("not read", "line 2")
    assert end == {
        "event": "imported",
        "format": "openai",
        "path": str(client / "v3_eval.jsonl"),
        "written": True,
        "rows": 1,
        "labelled": 1,
        "repeated": 0,
        "not_read": 1,
    }


def test_a_client_that_is_unknown_is_named(client: Path) -> None:
    (client / "config.json").unlink()
    client.joinpath("account_state.json").unlink()
    client.rmdir()
    assert isinstance(run(client.parent / "small", GOOD).exception, ConfigError)
