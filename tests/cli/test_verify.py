"""`fine-tune verify` over all clients: one that is wrong does not hide the others."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from fine_tune_runner.cli import fine_tune
from tests.test_runner import Desk


def verify(data_dir: Path, *words: str) -> Result:
    env = {"CLIENT_DATA_DIR": str(data_dir)}
    return CliRunner().invoke(fine_tune, ["verify", *words], env=env, standalone_mode=False)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """`small` is right, `broken` has no config that can be read, `torn` a record damaged in the middle."""
    desk = Desk(tmp_path)
    desk.runner().submit("small", 1)
    for name, text in (("broken", "{"), ("torn", '{"client_id":"torn"}')):
        (desk.client.parent / name).mkdir()
        (desk.client.parent / name / "config.json").write_text(text)
    (desk.client.parent / "torn" / "model_registry.json.audit").write_text("{}\n{}\n")
    return desk


def test_a_client_that_is_wrong_does_not_hide_the_others(desk: Desk) -> None:
    done = verify(desk.client.parent)
    assert done.return_value == 1
    assert "✗ broken: cannot be read" in done.stdout
    assert "config.json: not valid JSON" in done.stdout
    assert "✓ small: 3 changes on record" in done.stdout
    assert "✗ torn: cannot be read" in done.stdout
    assert "line 1: damaged" in done.stdout
    assert "wrong: broken, torn" in done.stderr
    lines = [msgspec.json.decode(line) for line in verify(desk.client.parent, "--json").stdout.splitlines()]
    assert [(line["client_id"], bool(line["faults"])) for line in lines] == [
        ("broken", True),
        ("small", False),
        ("torn", True),
    ]


def test_one_client_that_is_right_passes(desk: Desk) -> None:
    assert verify(desk.client.parent, "--client", "small").return_value == 0


def test_without_clients_it_says_so(tmp_path: Path) -> None:
    done = verify(tmp_path)
    assert (done.return_value, f"No clients in {tmp_path}, so nothing was verified." in done.stdout) == (
        0,
        True,
    )
