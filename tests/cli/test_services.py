"""The unit files in the docs: each parses, and starts a command that there is."""

from __future__ import annotations

import configparser
import plistlib
import re
from pathlib import Path

import pytest

from fine_tune_runner.cli import COMMANDS

DOCS = Path(__file__).parents[2] / "docs"


def block(name: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / f"{name}.md").read_text(), re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("name", ["worker", "watch"])
def test_the_systemd_unit_starts_the_command_and_lets_it_end_in_peace(name: str) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.read_string(block(name, "ini"))
    service = unit["Service"]
    program, command = service["ExecStart"].split()
    assert (Path(program).name, command, command in COMMANDS) == ("fine-tune", name, True)
    assert int(service["TimeoutStopSec"]) > 150  # how long the engine waits for a step
    assert service["KillMode"] == "mixed"


@pytest.mark.parametrize("name", ["worker", "watch"])
def test_the_launchd_agent_starts_the_command_and_keeps_it_up(name: str) -> None:
    agent = plistlib.loads(block(name, "xml").encode())
    assert [Path(agent["ProgramArguments"][0]).name, *agent["ProgramArguments"][1:]] == ["fine-tune", name]
    assert agent["KeepAlive"] is True
    assert agent["ExitTimeOut"] > 150
