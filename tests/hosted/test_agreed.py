"""A run that goes on pays for no more than was agreed to when it began."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from fine_tune_runner.errors import Interrupted, PolicyError
from fine_tune_runner.workflow.engine import Event
from tests.contract.openai_server.server import ContractServer
from tests.hosted.world import HostedRun


@pytest.fixture
def uploaded(hosted: HostedRun) -> HostedRun:
    """A run that was left between its upload and its job; 3 epochs of gpt-4o-mini, $0.03, were agreed to."""

    def press(event: Event) -> None:
        if event.event == "uploaded":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=press).start()
    return hosted


def with_config(run: HostedRun, **config: Any) -> HostedRun:
    """The same run after somebody edited config.json."""
    whole = {"client_id": "hre", "track_preference": "a"} | config
    (run.client.dir / "config.json").write_bytes(msgspec.json.encode(whole))
    return HostedRun(run.settings)


def test_more_epochs_than_were_agreed_to_start_no_job(uploaded: HostedRun, server: ContractServer) -> None:
    with pytest.raises(PolicyError, match=r"3 epochs of gpt-4o-mini.*\$0\.03.* now .*20 epochs.*\$0\.18"):
        with_config(uploaded, training={"epochs": 20}).start()
    assert server.account.jobs == {}
    assert uploaded.track.ledger.effects()[-1].step == "upload"  # nothing of a job is in doubt


def test_a_dearer_base_model_starts_no_job(uploaded: HostedRun, server: ContractServer) -> None:
    with pytest.raises(PolicyError, match=r"now 3 epochs of gpt-4\.1-2025-04-14.*fine-tune cancel hre-v3-a-"):
        with_config(uploaded, base_model="gpt-4.1").start()
    assert server.account.jobs == {}


def test_a_limit_that_was_lowered_since_starts_no_job(uploaded: HostedRun, server: ContractServer) -> None:
    run = msgspec.structs.replace(uploaded.run(), max_cost_usd=0.01)
    with pytest.raises(PolicyError, match=r"for \$0\.03, which --max-cost 0\.01 forbids"):
        uploaded.journal.run(run)
    assert server.account.jobs == {}


def test_a_job_that_was_paid_for_goes_on_whatever_the_config_says(
    hosted: HostedRun, server: ContractServer
) -> None:
    def press(event: Event) -> None:
        if event.event == "job created":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=press).start()
    with_config(hosted, training={"epochs": 20}).start()
    assert len(server.account.jobs) == 1
