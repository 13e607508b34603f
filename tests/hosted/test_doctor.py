"""What a look at hosted models finds."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from fine_tune_runner.doctor import delete, examine
from fine_tune_runner.errors import Interrupted
from fine_tune_runner.hosted.doctor import adopt, in_doubt, in_service, unwatched
from fine_tune_runner.hosted.records import RemoteFile, RemoteJob, RemoteModel
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.types import RegistryEntry, Track
from fine_tune_runner.workflow.engine import Event
from fine_tune_runner.workflow.ledger import Found, Ledger
from tests.contract.openai_server.server import KEY, serving
from tests.hosted.world import HostedRun, make_settings, write_client

TODAY = date(2026, 11, 22)
BASE = "gpt-4o-mini-2024-07-18"
TUNED = f"ft:{BASE}:org:hre-v3:abc"
RUN = "hre-v3-a-1a2b3c4d-1"


def entry(
    model_id: str = TUNED, *, track: Track = "A", endpoint: str = "https://api.openai.com/v1", **more: object
) -> RegistryEntry:
    return RegistryEntry(
        version=3,
        track=track,
        model_id=model_id,
        eval_score=0.8,
        active=True,
        created_at=datetime(2026, 11, 1, tzinfo=UTC),
        status="active",
        provider="openai",
        endpoint=endpoint,
        base_model=BASE,
        **more,  # type: ignore[arg-type]
    )


def test_a_published_end_is_known_without_a_key() -> None:
    (found,) = in_service({"hre": entry()}, TODAY)
    assert (found.life.shutdown_date, found.life.days_left) == (date(2027, 1, 14), 53)
    assert found.life.source == "published"
    assert found.within(60)
    assert not found.within(53)


def test_a_fine_tune_dies_with_its_base() -> None:
    listed = {
        "https://api.openai.com/v1": [RemoteModel(id=BASE, shutdown_date="2026-12-01"), RemoteModel(id=TUNED)]
    }
    (found,) = in_service({"hre": entry()}, TODAY, listed)
    assert (found.life.days_left, found.life.source) == (9, "provider")


def test_published_dates_do_not_hold_elsewhere() -> None:
    (found,) = in_service({"hre": entry(endpoint="http://127.0.0.1:1/v1")}, TODAY)
    assert found.life.days_left is None
    assert not found.within(10_000)


def test_the_date_of_the_entry_counts_and_the_soonest_stands_first() -> None:
    active = {"hre": entry(), "rtt": entry(shutdown_date=date(2026, 11, 30)), "b": entry("b:v1", track="B")}
    assert [(one.client_id, one.life.days_left) for one in in_service(active, TODAY)] == [
        ("rtt", 8),
        ("hre", 53),
    ]


def job(status: str, run_id: str | None = RUN, model: str | None = None) -> RemoteJob:
    metadata = {"run_id": run_id} if run_id else None
    return RemoteJob(
        id="ftjob-1", status=status, metadata=metadata, training_file="file-1", fine_tuned_model=model
    )


def test_a_running_job_that_no_run_waits_for_is_listed_with_its_adoption() -> None:
    (found,) = unwatched([job("running")], [], {}, [])
    assert (found.kind, found.id, found.run_id) == ("job", "ftjob-1", RUN)
    assert (found.adopt, found.client_id) == (f"fine-tune resume {RUN}", "hre")


def test_a_job_of_a_live_or_interrupted_run_is_watched() -> None:
    assert unwatched([job("running")], [], {RUN: "running"}, []) == []
    assert unwatched([job("queued")], [], {RUN: "interrupted"}, []) == []
    (found,) = unwatched([job("queued")], [], {RUN: "failed"}, [])
    assert found.adopt == f"fine-tune resume {RUN}"
    (found,) = unwatched([job("queued")], [], {RUN: "cancelled"}, [])
    assert found.adopt is None  # a run that is at its end here cannot go on with it


def test_a_model_that_was_paid_and_never_registered_is_listed() -> None:
    assert unwatched([job("succeeded", model=TUNED)], [], {}, [TUNED]) == []
    (found,) = unwatched([job("succeeded", model=TUNED)], [], {}, [])
    assert ("no registry" in found.why, found.model_id) == (True, TUNED)


def test_the_model_of_a_run_that_was_cancelled_before_it_was_registered_is_listed() -> None:
    assert unwatched([job("succeeded", model=TUNED)], [], {RUN: "cancelled"}, [TUNED]) == []
    (found,) = unwatched([job("succeeded", model=TUNED)], [], {RUN: "cancelled"}, [])
    assert (found.model_id, found.adopt) == (TUNED, None)  # its run cannot go on with it


def test_a_cancelled_runs_model_is_seen_until_it_is_deleted(tmp_path: Path) -> None:
    def press(event: Event) -> None:
        if event.event == "step started" and event.data["step"] == "ready":
            raise KeyboardInterrupt  # its job has succeeded by now

    write_client(tmp_path)
    with serving() as server:
        settings = make_settings(tmp_path, server.url, KEY)
        with pytest.raises(Interrupted):
            HostedRun(settings, listener=press).start()
        runner = FineTuneRunner(settings)
        runner.cancel(HostedRun(settings).run().run_id)
        (stray,) = examine(runner, TODAY, print).strays
        assert str(stray.found.model_id).startswith("ft:")
        delete(runner, stray)
        assert examine(runner, TODAY, print).strays == []


def test_a_file_is_needed_while_its_job_or_its_run_goes_on() -> None:
    file = RemoteFile(id="file-1", filename=f"{RUN}.jsonl")
    assert [u.kind for u in unwatched([job("running")], [file], {}, [])] == ["job"]
    assert unwatched([], [file], {RUN: "running"}, []) == []
    (found,) = unwatched([job("failed")], [file], {RUN: "failed"}, [])
    assert (found.kind, found.id, found.run_id) == ("file", "file-1", RUN)


def test_what_carries_no_run_id_is_never_adopted() -> None:
    (found,) = unwatched([job("running", run_id=None)], [], {}, [])
    assert (found.run_id, found.adopt) == (None, None)
    assert adopt("somebody-elses-job") is None


def test_a_call_that_was_cut_off_is_in_doubt_until_its_run_settles_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    def cut() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.once(RUN, "create", {}, find=lambda: Found(None), create=cut)
    assert [e.run_id for e in in_doubt(ledger.effects(), {RUN: "interrupted"})] == [RUN]
    assert in_doubt(ledger.effects(), {RUN: "running"}) == []
    ledger.once(RUN, "create", {}, find=lambda: Found("ftjob-1"), create=cut)
    assert in_doubt(ledger.effects(), {RUN: "interrupted"}) == []
