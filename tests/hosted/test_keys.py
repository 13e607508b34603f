"""Keys never show: not in what a run leaves, prints or logs, nor in a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from fine_tune_runner.errors import ProviderError
from tests.contract.openai_server.misbehave import Fault
from tests.contract.openai_server.server import KEY, ContractServer
from tests.hosted.world import HostedRun, make_settings, write_client

ROOT = Path(__file__).parents[2]


def everything(data_dir: Path) -> bytes:
    return b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())


@pytest.mark.parametrize("point", ["", "created create", "after poll"])
def test_no_key_in_what_a_run_leaves_prints_and_logs(
    tmp_path: Path, server: ContractServer, point: str
) -> None:
    write_client(tmp_path)
    arguments = [str(tmp_path), server.url, KEY, point, "raise"]
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "tests.hosted.world", *arguments],
        cwd=ROOT,
        env={**os.environ, "OPENAI_LOG": "debug", "OPENAI_API_KEY": KEY},
        capture_output=True,
        check=False,
    )
    assert (b"ZeroDivisionError" in done.stderr) == bool(point)
    assert b"POST" in done.stderr  # the SDK did log its requests
    left = everything(tmp_path)
    assert b"hre-v3-a-" in left
    for text in (left, done.stdout, done.stderr):
        assert KEY.encode() not in text


def test_a_key_that_the_provider_repeats_is_masked(tmp_path: Path, server: ContractServer) -> None:
    write_client(tmp_path)
    words = f"key {KEY} may not do this"
    server.faults.append(Fault("POST", "/fine_tuning/jobs", "error before", status=403, message=words))
    hosted = HostedRun(make_settings(tmp_path, server.url, KEY))
    with pytest.raises(ProviderError) as caught:
        hosted.start()
    assert "key *** may not do this" in str(caught.value)
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY.encode() not in everything(tmp_path)


def test_a_provider_of_no_known_name_prints_no_key(tmp_path: Path, server: ContractServer) -> None:
    write_client(tmp_path)
    hosted = HostedRun(make_settings(tmp_path, server.url, KEY))
    assert KEY not in repr(vars(hosted.track))
    assert KEY not in repr(hosted.settings)
