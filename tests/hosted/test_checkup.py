"""What `fine-tune doctor` sees at a provider, and what it may do there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fine_tune_runner.doctor import Checkup, examine
from fine_tune_runner.errors import Interrupted, ProviderError
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.types import VersionKey
from fine_tune_runner.workflow.engine import Event
from tests.contract.openai_server.misbehave import Fault
from tests.contract.openai_server.server import KEY, ContractServer
from tests.hosted.world import BASE, HostedRun, Time, make_settings, write_client

TODAY = date(2026, 11, 22)


@dataclass
class House:
    """The client `hre` at the contract server, and what its doctor says."""

    data_dir: Path
    server: ContractServer
    notices: list[str] = field(default_factory=list)

    def look(self, key: str | None = KEY) -> Checkup:
        settings = make_settings(self.data_dir, self.server.url, key)
        time = Time()
        return examine(
            FineTuneRunner(settings, clock=time),
            TODAY,
            self.notices.append,
            lambda settings, client: Hosted(settings, client, clock=time, sleep=time.sleep),
        )

    def run(self, **words: Any) -> HostedRun:
        return HostedRun(make_settings(self.data_dir, self.server.url, KEY), **words)

    def cut_off(self) -> HostedRun:
        """A run that was left while its job runs."""

        def press(event: Event) -> None:
            if event.event == "job status":
                raise KeyboardInterrupt

        run = self.run(listener=press)
        with pytest.raises(Interrupted):
            run.start()
        return run


@pytest.fixture
def house(tmp_path: Path, server: ContractServer) -> House:
    write_client(tmp_path)
    return House(tmp_path, server)


def put_into_service(run: HostedRun) -> None:
    def promoted(entries: Any) -> Any:
        return [msgspec.structs.replace(e, status="active", active=True, base_model=BASE) for e in entries]

    run.registry.change("override", promoted, who="anna", why="test")


def test_the_provider_says_how_long_a_model_in_service_lives(house: House) -> None:
    run = house.run()
    run.start()
    put_into_service(run)
    house.server.account.shutdown_dates[BASE] = "2026-12-22"
    (one,) = house.look().serving
    assert (one.client_id, one.days_left, one.source) == ("hre", 30, "provider")
    assert (one.within(31), one.within(30)) == (True, False)


def test_without_a_key_nobody_is_asked_and_models_are_listed_all_the_same(house: House) -> None:
    run = house.run()
    run.start()
    put_into_service(run)
    house.server.seen.clear()
    (one,) = house.look(key=None).serving
    assert (one.days_left, one.source) == (None, "unknown")  # published dates do not hold at this host
    assert house.server.seen == []


def test_a_sensitive_client_opens_no_connection(house: House) -> None:
    config = {"client_id": "hre", "sensitive": True}
    (house.data_dir / "hre" / "config.json").write_bytes(msgspec.json.encode(config))
    assert house.look().strays == []
    assert house.server.seen == []


def test_a_provider_that_cannot_be_asked_is_noticed(house: House) -> None:
    house.server.faults.append(Fault("GET", ".*", "error before", status=401, times=99))
    assert house.look().strays == []
    (notice,) = house.notices
    assert notice.startswith("OpenAI was not asked: ")


def test_a_run_that_waits_watches_its_job(house: House) -> None:
    house.cut_off()
    found = house.look()
    assert (found.strays, found.doubts) == ([], [])


def test_a_job_whose_run_is_lost_can_be_adopted_and_is_not_paid_again(house: House) -> None:
    lost = house.cut_off()
    shutil.rmtree(house.data_dir / "hre" / "runs")
    shutil.rmtree(house.data_dir / ".fine-tune")
    (stray,) = house.look().strays
    assert (stray.ours, stray.found.adopt) == (True, f"fine-tune resume {lost.run().run_id}")
    run = FineTuneRunner(lost.settings).named(lost.run().run_id)
    assert run.run_id == lost.run().run_id
    house.run().journal.run(run)
    assert len(house.server.account.jobs) == 1
    assert house.look().strays == []


def test_deleting_a_stray_job_stops_it_and_its_run_can_begin_no_more(house: House) -> None:
    lost = house.cut_off()
    shutil.rmtree(house.data_dir / "hre" / "runs")
    (stray,) = house.look().strays
    stray.hosted.discard(stray.found)
    (job,) = house.server.account.jobs.values()
    assert (job.public["status"], house.server.training_files) == ("cancelled", [])
    assert stray.hosted.ended(lost.run()) == "discarded by fine-tune doctor"
    assert house.look().strays == []


def test_a_file_that_a_failed_run_left_is_listed_and_deleted(house: House) -> None:
    run = house.cut_off()
    run.track.ledger.close(run.run().run_id, "job failed")  # and the process died before it deleted the file
    for job in house.server.account.jobs.values():
        job.public["status"] = "failed"
    (stray,) = house.look().strays
    assert (stray.found.kind, stray.ours) == ("file", True)
    stray.hosted.discard(stray.found)
    assert house.server.training_files == []


def test_what_belongs_to_nobody_here_is_left_alone(house: House) -> None:
    house.server.account.add_file("somebody-elses.jsonl", "fine-tune", b"")
    house.server.account.add_file("rtt-v1-a-1a2b3c4d-1.jsonl", "fine-tune", b"")
    assert [stray.ours for stray in house.look().strays] == [False, False]


def test_a_call_that_was_cut_off_is_in_doubt_until_its_run_is_closed(house: House) -> None:
    def crash(point: str) -> None:
        if point == "created create":
            raise ZeroDivisionError

    run = house.run(crash_point=crash)
    with pytest.raises(ZeroDivisionError):
        run.start()
    (doubt,) = house.look().doubts
    assert (doubt.run_id, doubt.step) == (run.run().run_id, "create")
    run.track.cancel(run.run())
    assert house.look().doubts == []


def test_a_job_whose_run_failed_but_can_go_on_is_adopted_rather_than_deleted(house: House) -> None:
    house.server.account.script = ("running",)
    house.server.faults.append(Fault("GET", "/fine_tuning/jobs/[^/]+", "error before", times=10**6))
    run = house.run()
    with pytest.raises(ProviderError, match="nothing is lost, go on with: fine-tune resume"):
        run.start()  # the provider was away for longer than a run waits
    house.server.faults.clear()
    (stray,) = house.look().strays
    assert stray.found.adopt == f"fine-tune resume {run.run().run_id}"
    run.track.ledger.close(run.run().run_id, "cancelled")
    (stray,) = house.look().strays
    assert stray.found.adopt is None


def test_a_model_that_the_provider_deleted_is_told(house: House) -> None:
    run = house.run()
    model = run.start()
    assert house.look().gone == []
    house.server.account.delete_model(model.model_id)
    assert house.look().gone == [("hre", VersionKey(version=3, track="A"))]
