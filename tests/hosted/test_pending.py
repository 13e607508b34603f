"""Whether the job of a run that failed here is over there, which another attempt waits for."""

from __future__ import annotations

import pytest

from fine_tune_runner.errors import Interrupted, ProviderError, RunError
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.types import Request
from fine_tune_runner.workflow.engine import Event
from tests.contract.openai_server.misbehave import Bend, Fault
from tests.contract.openai_server.server import ContractServer
from tests.hosted.world import HostedRun


def cut_off(hosted: HostedRun, server: ContractServer) -> None:
    """Leave the run while its job runs on."""
    server.account.script = ("running",)

    def press(event: Event) -> None:
        if event.event == "job status" and event.data["status"] == "running":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=press).start()


def say(server: ContractServer, status: str) -> None:
    """Let the provider say that of every job."""
    server.bends[:] = [Bend("GET", "/fine_tuning/jobs/.*", lambda job: job | {"status": status})]


def test_nothing_is_pending_of_a_run_that_sent_nothing(hosted: HostedRun) -> None:
    assert hosted.track.pending(hosted.run()) is None


def test_a_job_that_runs_is_pending_until_the_provider_says_that_it_is_over(
    hosted: HostedRun, server: ContractServer
) -> None:
    cut_off(hosted, server)
    (job_id,) = server.account.jobs
    assert hosted.track.pending(hosted.run()) == f'its job {job_id} is "running" at OpenAI'
    for status, going in (("paused", True), ("cancelling", True), ("failed", False), ("succeeded", False)):
        say(server, status)
        assert (hosted.track.pending(hosted.run()) is not None) is going, status


def test_with_the_ledger_lost_the_job_is_found_by_its_run(hosted: HostedRun, server: ContractServer) -> None:
    cut_off(hosted, server)
    (hosted.settings.data_dir / ".fine-tune" / "ledger.sqlite").unlink()
    assert "running" in (hosted.track.pending(hosted.run()) or "")


def test_a_provider_that_is_away_leaves_it_open(hosted: HostedRun, server: ContractServer) -> None:
    cut_off(hosted, server)
    server.faults.append(Fault("GET", "/fine_tuning/jobs/.*", "error before", times=99))
    assert "nobody can tell whether its job still runs" in (hosted.track.pending(hosted.run()) or "")


def test_a_job_that_the_provider_does_not_know_is_over_once_it_was_cancelled(
    hosted: HostedRun, server: ContractServer
) -> None:
    cut_off(hosted, server)
    server.account.jobs.clear()
    assert "nobody can tell" in (hosted.track.pending(hosted.run()) or "")
    hosted.track.cancel(hosted.run())
    assert hosted.track.pending(hosted.run()) is None


def test_a_create_that_was_cut_off_is_pending_until_it_can_take_effect_no_more(
    hosted: HostedRun, server: ContractServer
) -> None:
    def crash(point: str) -> None:
        if point == "intent create":
            raise ProviderError("gone")

    with pytest.raises(ProviderError):
        HostedRun(hosted.settings, crash_point=crash, time=hosted.time).start()
    assert hosted.track.pending(hosted.run()) == "a call that was cut off may still start its job"
    hosted.time.sleep(70)  # the time for one request, and the grace
    assert hosted.track.pending(hosted.run()) is None


def test_submit_again_pays_no_second_job_while_the_first_may_run(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.account.script = ("running",)
    server.faults.append(Fault("GET", "/fine_tuning/jobs/[^/]+", "error before", times=10**6))
    with pytest.raises(ProviderError):  # the provider was away for longer than a run waits
        hosted.start()
    server.faults.clear()
    runner = FineTuneRunner(hosted.settings)
    again = Request(client_id="hre", version=3, track="A", again=True)
    with pytest.raises(
        RunError, match=r"is failed here, but its job ftjob-\d+ is .*fine-tune resume hre-v3-a-"
    ):
        runner.run_for(again)
    runner.cancel(hosted.run().run_id)
    assert runner.run_for(again).attempt == 2
    assert (server.asked("POST /fine_tuning/jobs"), len(server.account.jobs)) == (1, 1)


def test_a_job_that_could_not_be_cancelled_is_not_said_to_have_stopped(
    hosted: HostedRun, server: ContractServer
) -> None:
    cut_off(hosted, server)
    server.faults.append(Fault("POST", "/fine_tuning/jobs/.*/cancel", "error before", status=403, times=99))
    with pytest.raises(ProviderError, match=r"cancel job: 403 .*job ftjob-\d+ may still run and cost"):
        hosted.track.cancel(hosted.run())


def test_a_job_that_ended_meanwhile_counts_as_cancelled(hosted: HostedRun, server: ContractServer) -> None:
    cut_off(hosted, server)
    say(server, "failed")
    server.faults.append(Fault("POST", "/fine_tuning/jobs/.*/cancel", "error before", status=400, times=99))
    assert "no longer runs" in (hosted.track.cancel(hosted.run()) or "")
