"""Choosing a run: which attempt a request means, and when another one may begin."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fine_tune_runner.errors import DataError, Interrupted, PolicyError, RegistryError, RunError, ServingError
from fine_tune_runner.types import Request
from fine_tune_runner.workflow.engine import Event
from tests.small_client import train_rows, write_rows
from tests.test_runner import Desk, right, wrong


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, track_preference="b")


def test_another_attempt_at_the_version_in_service_trains_nothing(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    with pytest.raises(RegistryError, match=r"v1 .* is in service; publish a new version"):
        desk.runner().submit("small", 1, again=True)
    assert desk.track.trained == [1]


def test_run_ids_can_be_derived_again(desk: Desk) -> None:
    job = desk.runner().submit("small", 1)
    (entry,) = desk.runner().registry("small").entries()
    assert entry.dataset_sha256 is not None
    assert job.run_id == f"small-v1-b-{entry.dataset_sha256[:8]}-1"


def test_again_makes_a_new_attempt_with_a_run_id_of_its_own(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    refused = desk.runner().submit("small", 2)
    desk.track.script = {0: wrong, 1: right, 2: right}
    again = desk.runner().submit("small", 2, again=True)
    assert (refused.run_id[-2:], again.run_id[-2:]) == ("-1", "-2")
    assert desk.statuses() == {1: "archived", 2: "active"}


def test_another_content_under_the_same_version_is_refused(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    write_rows(desk.client / "v1.jsonl", train_rows(62))
    with pytest.raises(DataError, match="publish v2"):
        desk.runner().submit("small", 1)


def test_a_run_that_was_begun_goes_on_where_the_track_takes_no_new_ones(desk: Desk) -> None:
    desk.track.cost_usd = 12.5
    with pytest.raises(Interrupted):
        desk.runner(confirm=lambda estimate: False).submit("small", 1)
    desk.track.reason = "closed since 2027-01-06"
    assert desk.runner().submit("small", 1).state == "finished"
    with pytest.raises(PolicyError, match="closed since"):
        desk.runner().submit("small", 1, again=True)


def test_a_run_at_its_end_points_to_another_attempt(desk: Desk) -> None:
    desk.track.cost_usd = 12.5
    with pytest.raises(Interrupted):
        desk.runner(confirm=lambda estimate: False).submit("small", 1)
    desk.track.end = "job ftjob-1 failed"
    with pytest.raises(RunError, match=r"-1 is at its end \(job ftjob-1 failed\); .* --again"):
        desk.runner().submit("small", 1)
    assert desk.runner().submit("small", 1, again=True).run_id[-2:] == "-2"


def test_another_attempt_waits_while_a_failed_one_may_still_cost_elsewhere(desk: Desk) -> None:
    desk.track.script = {}
    with pytest.raises(ServingError):
        desk.runner().submit("small", 1)
    (run,) = desk.client.glob("runs/*")
    desk.track.elsewhere = 'its job ftjob-1 is "running" at OpenAI'
    with pytest.raises(
        RunError,
        match=f"is failed here, but its job .*: fine-tune resume {run.name}, or stop it: .* {run.name}",
    ):
        desk.runner().submit("small", 1, again=True)
    desk.track.end = "cancelled"  # and the provider was away then
    with pytest.raises(RunError, match=rf"so nothing new was begun; stop it: fine-tune cancel {run.name}$"):
        desk.runner().submit("small", 1, again=True)
    desk.track.end = desk.track.elsewhere = None
    desk.track.script = {0: wrong, 1: right}
    assert desk.runner().submit("small", 1, again=True).run_id[-2:] == "-2"


def test_a_run_that_this_disk_lost_is_begun_again_by_its_name(desk: Desk) -> None:
    run = desk.runner().run_for(Request(client_id="small", version=1))
    named = desk.runner().named(run.run_id[:-1] + "2")
    assert (named.attempt, named.dataset_sha256, named.track) == (2, run.dataset_sha256, "B")
    with pytest.raises(RunError, match=r"small-v2-b-00000000-1 is unknown here, and .* not the content"):
        desk.runner().named("small-v2-b-00000000-1")
    with pytest.raises(RunError, match="unknown"):
        desk.runner().named("small")


def test_another_attempt_waits_for_an_unfinished_one(desk: Desk) -> None:
    desk.track.script = {}
    with pytest.raises(ServingError):
        desk.runner().submit("small", 1)
    (run,) = desk.client.glob("runs/*")
    lines = (run / "events.jsonl").read_text().splitlines()
    (run / "events.jsonl").write_text("\n".join(lines[:-1]) + "\n")  # as a kill -9 leaves it
    with pytest.raises(RunError, match=f"unfinished: fine-tune resume {run.name}"):
        desk.runner().submit("small", 1, again=True)


def test_a_version_that_was_in_service_is_not_replaced(desk: Desk) -> None:
    desk.track.script = {0: wrong, 1: right, 2: right}
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    with pytest.raises(RegistryError, match="was in service and can be rolled back to"):
        desk.runner().submit("small", 1, again=True)


def test_an_earlier_attempt_that_goes_on_puts_no_verdict_on_the_model_of_a_later_one(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    desk.track.script = {0: wrong, 1: right}
    with pytest.raises(ServingError):
        desk.runner().submit("small", 2)  # trained and registered, not evaluated
    (first,) = desk.client.glob("runs/small-v2-*-1")
    desk.track.first, desk.track.script = 10, {0: wrong, 1: right, 2: right, 12: wrong}
    desk.runner().submit("small", 2, again=True)  # m12, refused
    with pytest.raises(RegistryError, match=r"v2 \(track B\) is the model of run small-v2-b-.*-2 by now"):
        desk.runner().start(desk.runner().named(first.name))
    assert desk.statuses() == {1: "active", 2: "refused"}


def test_an_earlier_attempt_that_goes_on_promotes_no_model_of_a_later_one(desk: Desk) -> None:
    class Pressed(list[Event]):
        def append(self, event: Event) -> None:
            if event.event == "step started" and event.data["step"] == "promote":
                raise KeyboardInterrupt

    desk.runner().submit("small", 1)
    desk.track.script, desk.events = {0: wrong, 1: right, 2: right}, Pressed()
    with pytest.raises(Interrupted):
        desk.runner().submit("small", 2)  # the verdict is on record: promote
    desk.events = []
    (first,) = desk.client.glob("runs/small-v2-*-1")
    desk.runner().cancel(first.name)
    desk.track.first, desk.track.script = 10, {0: wrong, 1: right, 2: right, 12: wrong}
    desk.runner().submit("small", 2, again=True)  # m12, refused
    with pytest.raises(RegistryError, match=r"v2 \(track B\) is the model of run small-v2-b-.*-2 by now"):
        desk.runner().start(desk.runner().named(first.name))
    assert desk.statuses() == {1: "active", 2: "refused"}


def test_an_attempt_that_was_begun_again_from_its_name_takes_no_later_number(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    first = desk.runner().submit("small", 2)
    desk.runner().submit("small", 2, again=True)
    shutil.rmtree(desk.client / "runs" / first.run_id)
    desk.runner().start(desk.runner().named(first.run_id))
    assert desk.runner().submit("small", 2, again=True).run_id[-2:] == "-3"


def test_a_run_at_its_end_is_not_queued_again(desk: Desk) -> None:
    done = desk.runner().submit("small", 1)
    runner = desk.runner()
    runner.leave(runner.run_for(Request(client_id="small", version=1)), approved=True)
    assert runner.engine.find(done.run_id).state == "finished"
    assert not (desk.client / "runs" / done.run_id / "approved").exists()
