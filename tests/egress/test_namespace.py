"""Zero egress as a fact: runs in a network namespace, and a recorder of every packet that leaves it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.egress.network import IPV6, NAME, Network, laid, ollama, why_not
from tests.small_client import Result, Workplace

CHATTY = Path(__file__).parent / "chatty.py"


class Inside(Workplace):
    """The commands of a sensitive client, in the namespace."""

    network: Network

    def command(self, *arguments: str) -> list[str]:
        return self.network.within(self.network.here, *super().command(*arguments))

    def depend_on_chatty(self, *names: str) -> None:
        """Put the chatty dependency in the place of packages that the run imports."""
        folder = self.folder / "chatty"
        folder.mkdir()
        for name in names:
            shutil.copy(CHATTY, folder / f"{name}.py")
        self.env["PYTHONPATH"] = str(folder)

    def reached(self) -> list[dict[str, Any]]:
        """`fine-tune egress --json` of the one run."""
        (run,) = self.client.glob("runs/*")
        return self.run("egress", run.name, "--json").events


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    with laid(tmp_path) as network:
        yield network


@pytest.fixture
def inside(network: Network, tmp_path: Path, tiny_base: Path, models_dir: Path) -> Inside:
    place = Inside(tmp_path / "place", tiny_base, models_dir)
    place.network = network
    return place


def whole(result: Result) -> None:
    assert result.code == 0, result.out + result.err


def test_the_recorder_sees_what_a_dependency_sends_where_no_guard_is(
    network: Network, inside: Inside
) -> None:
    """The control: without it, no packet would prove nothing."""
    inside.depend_on_chatty("colorsys")  # of the standard library: the control needs nothing real behind it
    command = network.within(
        network.here, sys.executable, "-c", "import colorsys; colorsys.rgb_to_hls(1, 1, 1)"
    )
    subprocess.run(command, env=inside.env, check=True, timeout=60)
    seen = set(network.packets())
    assert seen >= {
        "tcp 192.0.2.10 80",
        "udp 192.0.2.53 53 ingest.example.org",
        "udp 192.0.2.10 8125",
        "udp 192.0.2.10 8126",
    }
    assert ("tcp 2001:db8::10 80" in seen) == IPV6


def test_a_run_into_ollama_sends_nothing_elsewhere(network: Network, inside: Inside) -> None:
    with ollama(network, inside.folder / "ollama") as url:
        inside.env["OLLAMA_HOST"] = url
        whole(inside.submit())
        whole(inside.run("ask", "--client", "small", "Why does the brook look odd?"))
    assert network.packets() == []
    rows = inside.reached()
    assert {(row["what"], row["host"], tuple(row["addresses"])) for row in rows} == {
        ("connect", NAME, ("10.77.1.2",))
    }
    assert sum(row["sent"] for row in rows) > 100_000, "the model was uploaded"


def test_a_dependency_that_calls_out_is_refused_and_named_and_nothing_is_sent(
    network: Network, inside: Inside
) -> None:
    inside.depend_on_chatty("xllamacpp", "safetensors")
    result = inside.submit()
    whole(result)
    assert network.packets() == []
    chatty = inside.folder / "chatty" / "xllamacpp.py"
    assert f"xllamacpp ({chatty}:" in result.err
    refused = [row for row in inside.reached() if row["refused"]]
    assert {(row["what"], row["host"]) for row in refused} >= {
        ("connect", "192.0.2.10"),
        ("lookup", "ingest.example.org"),
        ("connect", "statsd.example.org"),
        ("program", "bash"),
    }
    lines = [
        json.loads(line) for line in next(inside.client.glob("runs/*/egress.jsonl")).read_text().splitlines()
    ]
    (run,) = inside.client.glob("runs/*")
    told = inside.run("egress", run.name).out
    assert "✗ connect 192.0.2.10:80" in told
    assert f"by xllamacpp ({chatty}:" in told
    by_module = {line["by"].partition(" ")[0] for line in lines if line.get("refused")}
    assert by_module >= {"xllamacpp", "safetensors"}
    assert len({line["pid"] for line in lines}) > 2, "children of the run wrote to its record too"
