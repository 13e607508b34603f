"""The submit process is killed at every step boundary and inside each create; resumed, it has paid once."""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import openai
import pytest

from tests.contract.openai_server.misbehave import Fault
from tests.contract.openai_server.server import KEY, ContractServer
from tests.hosted import world
from tests.hosted.world import HostedRun, make_settings, write_client

STEPS = ("eligible", "upload", "create", "poll", "ready", "register")
BOUNDARIES = [f"{where} {step}" for step in STEPS for where in ("after", "recorded")]
INSIDE = [f"{where} {step}" for step in ("upload", "create") for where in ("intent", "created", "done")]


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Children with the SDK imported already: a kill costs milliseconds, not seconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["fine_tune_runner.hosted.wire", "tests.hosted.world"])
    return context


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    write_client(tmp_path)
    return tmp_path


def resume(data_dir: Path, server: ContractServer) -> HostedRun:
    hosted = HostedRun(make_settings(data_dir, server.url, KEY))
    hosted.start()
    return hosted


def paid(server: ContractServer) -> tuple[int, int]:
    """(jobs ever made, files still there)."""
    return len(server.account.jobs), len(server.account.files)


@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("point", [*BOUNDARIES, *INSIDE])
def test_killed_anywhere_it_pays_once(
    data_dir: Path, server: ContractServer, processes: ForkServerContext, point: str, how: str
) -> None:
    child = processes.Process(target=world.main, args=(str(data_dir), server.url, KEY, point, how))
    child.start()
    child.join()
    assert child.exitcode == (9 if how == "exit" else -9)
    hosted = resume(data_dir, server)
    assert paid(server) == (1, 0)
    assert server.asked("POST /files") == 1
    assert [entry.run_id for entry in hosted.registry.entries()] == [hosted.run().run_id]


@pytest.mark.parametrize("path", ["/files", "/fine_tuning/jobs"])
def test_killed_while_a_create_is_under_way_it_pays_once(
    data_dir: Path, server: ContractServer, processes: ForkServerContext, path: str
) -> None:
    server.faults.append(Fault("POST", path, "silence after"))
    child = processes.Process(target=world.main, args=(str(data_dir), server.url, KEY))
    child.start()
    made = server.account.files if path == "/files" else server.account.jobs
    while not made:
        time.sleep(0.01)
    child.kill()
    child.join()
    resume(data_dir, server)
    assert paid(server) == (1, 0)
    assert server.asked(f"POST {path}") == 1


def test_killed_at_every_point_in_turn_it_pays_once(
    data_dir: Path, server: ContractServer, processes: ForkServerContext
) -> None:
    for point in ("after eligible", *INSIDE, "after poll", "after ready", "after register"):
        child: BaseProcess = processes.Process(
            target=world.main, args=(str(data_dir), server.url, KEY, point, "kill")
        )
        child.start()
        child.join()
    resume(data_dir, server)
    assert paid(server) == (1, 0)


def _without_ledger(url: str, marker: str, die: bool) -> None:
    """The control: the same creates with a file for a memory, written after the call."""
    client = openai.OpenAI(api_key=KEY, base_url=url, max_retries=0)
    if not Path(marker).exists():
        row = b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}\n'
        file = client.files.create(file=("run.jsonl", row * 12), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)
        if die:
            os._exit(9)
        Path(marker).write_text(job.id)


def test_without_the_ledger_it_pays_twice(
    data_dir: Path, server: ContractServer, processes: ForkServerContext
) -> None:
    for die in (True, False):
        child = processes.Process(target=_without_ledger, args=(server.url, str(data_dir / "job"), die))
        child.start()
        child.join()
    assert len(server.account.jobs) == 2
