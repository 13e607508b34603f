"""Polling outlives its process: the next look is at its original time, and a phase lasts since it began."""

from __future__ import annotations

from datetime import timedelta

import pytest

from fine_tune_runner.errors import Interrupted, ProviderError
from fine_tune_runner.hosted.flow import Pace
from fine_tune_runner.hosted.looks import Look, wait_s
from tests.contract.openai_server.server import ContractServer
from tests.hosted.world import START, HostedRun, Time


class Cut(Time):
    """A clock whose process ends after so many seconds of sleep."""

    def __init__(self, begins_s: float, lasts_s: float) -> None:
        super().__init__(START + timedelta(seconds=begins_s))
        self.end = self.now + timedelta(seconds=lasts_s)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        if self.now >= self.end:
            raise KeyboardInterrupt


def test_a_reboot_in_mid_poll_wakes_at_the_original_time(hosted: HostedRun, server: ContractServer) -> None:
    server.account.script = ("queued", "running", "succeeded")
    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, time=Cut(0, 80)).start()
    again = HostedRun(hosted.settings, time=Time(START + timedelta(seconds=90)))
    again.start()
    assert again.time.now - START == timedelta(seconds=120)
    (status,) = [event for event in again.events if event.event == "job status"]
    assert (status.data["status"], status.at - START) == ("succeeded", timedelta(seconds=120))


def test_a_phase_lasts_since_it_began_however_often_the_process_did(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.account.script = ("validating_files",)
    pace = Pace(poll_s=1800)
    for number in range(2):
        with pytest.raises(Interrupted):
            HostedRun(hosted.settings, pace=pace, time=Cut(3600 * number, 3600)).start()
    time = Time(START + timedelta(hours=2))
    with pytest.raises(ProviderError, match='"validating_files" for over 2 h and was cancelled'):
        HostedRun(hosted.settings, pace=pace, time=time).start()
    assert time.now - START == timedelta(hours=2, minutes=30)


def test_whoever_resumes_a_job_that_took_too_long_gives_it_as_long_again(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.account.script = ("running",)
    pace = Pace(poll_s=36_000)
    first = HostedRun(hosted.settings, pace=pace)
    with pytest.raises(ProviderError, match="over 48 h"):
        first.start()
    second = HostedRun(hosted.settings, pace=pace, time=Time(first.time.now))
    with pytest.raises(ProviderError, match="over 48 h"):
        second.start()
    assert second.time.now - first.time.now >= timedelta(hours=48)


@pytest.mark.parametrize(("ahead_s", "waits"), [(20.0, 20.0), (-5.0, 0.0), (3620.0, 60.0)])
def test_a_clock_set_back_delays_no_look_by_more_than_an_interval(ahead_s: float, waits: float) -> None:
    look = Look(job_id="j", status="running", since=START, again_at=START + timedelta(seconds=ahead_s))
    assert wait_s(look, START, 60.0) == waits
