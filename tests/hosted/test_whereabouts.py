"""Settings that name another provider than a run or a model is at: nothing is claimed, nothing begun."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fine_tune_runner.erasure import forget
from fine_tune_runner.errors import Interrupted, ProviderError, RunError
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.types import Request
from fine_tune_runner.workflow.engine import Event
from tests.contract.openai_server.server import KEY, ContractServer, serving
from tests.hosted.world import HostedRun, make_settings


@pytest.fixture
def other() -> Iterator[ContractServer]:
    """Another provider, which never heard of anything."""
    with serving() as running:
        yield running


@pytest.fixture
def moved(hosted: HostedRun, other: ContractServer, server: ContractServer) -> HostedRun:
    """A run whose job goes on at `server`, while the settings name `other`."""
    server.account.script = ("running",)

    def press(event: Event) -> None:
        if event.event == "job status":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=press).start()
    return HostedRun(make_settings(hosted.settings.data_dir, other.url, KEY))


def test_a_job_at_another_address_is_not_said_to_be_cancelled(
    moved: HostedRun, hosted: HostedRun, server: ContractServer
) -> None:
    with pytest.raises(ProviderError, match=rf"hre-v3-a-.*-1 is at {server.url}, .*set OPENAI_BASE_URL="):
        moved.track.cancel(moved.run())
    assert moved.track.ended(moved.run()) is None
    hosted.track.cancel(hosted.run())
    assert [job.public["status"] for job in server.account.jobs.values()] == ["cancelled"]
    assert moved.track.pending(moved.run()) is None  # stopped where it was


def test_no_second_job_is_begun_while_one_may_run_at_another_address(
    moved: HostedRun, other: ContractServer
) -> None:
    runner = FineTuneRunner(moved.settings)
    with pytest.raises(ProviderError, match="set OPENAI_BASE_URL"):
        runner.cancel(moved.run().run_id)
    with pytest.raises(RunError, match="nobody can tell whether its job still runs"):
        runner.run_for(Request(client_id="hre", version=3, track="A", again=True))
    assert other.seen == []


def test_a_run_does_not_go_on_at_another_address(moved: HostedRun, other: ContractServer) -> None:
    with pytest.raises(ProviderError, match="set OPENAI_BASE_URL"):
        moved.start()
    assert other.seen == []


def test_a_run_that_sent_nothing_may_be_cancelled_from_anywhere(
    hosted: HostedRun, other: ContractServer
) -> None:
    def press(event: Event) -> None:
        if event.event == "step started" and event.data["step"] == "upload":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=press).start()
    moved = HostedRun(make_settings(hosted.settings.data_dir, other.url, KEY))
    assert "no job runs" in (moved.track.cancel(moved.run()) or "")


def test_a_client_of_two_addresses_is_forgotten_in_two_goes(
    hosted: HostedRun, other: ContractServer, server: ContractServer
) -> None:
    hosted.start()
    moved = make_settings(hosted.settings.data_dir, other.url, KEY)
    HostedRun(moved).start(attempt=2)
    with pytest.raises(RunError, match=rf"-1 is at {server.url}.*--here-only"):
        forget(FineTuneRunner(moved), "hre")
    assert "ft:" not in str(other.account.models())
    assert "ft:" in str(server.account.models())
    forget(FineTuneRunner(hosted.settings), "hre")
    assert "ft:" not in str(server.account.models())
    assert not hosted.client.dir.exists()


def test_pruning_deletes_no_model_at_the_wrong_address(
    hosted: HostedRun, other: ContractServer, server: ContractServer
) -> None:
    model = hosted.start()
    moved = HostedRun(make_settings(hosted.settings.data_dir, other.url, KEY))
    with pytest.raises(ProviderError, match=rf"{model.model_id} is at {server.url}"):
        moved.track.forget([], [model.model_id])
    assert hosted.track.forget([], [model.model_id]) == (model.model_id,)


def test_models_of_earlier_attempts_are_forgotten_too(hosted: HostedRun, server: ContractServer) -> None:
    earlier, latest = hosted.start(), HostedRun(hosted.settings).start(attempt=2)
    assert [entry.model_id for entry in hosted.registry.entries()] == [latest.model_id]
    assert set(forget(FineTuneRunner(hosted.settings), "hre").elsewhere) == {
        earlier.model_id,
        latest.model_id,
    }
    assert "ft:" not in str(server.account.models())
