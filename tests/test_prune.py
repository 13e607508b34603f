"""Pruning: archived versions by the keep rule, never one in service, and whole again after a crash."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from fine_tune_runner.errors import RegistryError, ServingError, UsageError
from fine_tune_runner.prune import prunable, prune
from fine_tune_runner.registry import edits
from fine_tune_runner.types import RegistryEntry, Status, VersionKey
from tests.test_runner import Desk


def entry(version: int, status: Status) -> RegistryEntry:
    return RegistryEntry(
        version=version,
        track="B",
        model_id=f"m{version}",
        eval_score=1.0,
        active=status == "active",
        created_at=datetime(2026, 11, version, tzinfo=UTC),
        status=status,
        run_id=f"small-v{version}-b-00000000-1",
    )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Versions 1 to 3 are archived, 4 is in service; each has what its training left."""
    desk = Desk(tmp_path, track_preference="b")
    found = (*(entry(version, "archived") for version in (1, 2, 3)), entry(4, "active"))
    desk.runner().registry("small").change("register", lambda _: found, who="anna", why="for the test")
    for one in found:
        attempt = desk.client / "runs" / str(one.run_id) / "attempt-1"
        attempt.mkdir(parents=True)
        (attempt / "adapter.gguf").write_bytes(b"x")
        (attempt.parent / "report.json").write_text("{}")
    return desk


def models(desk: Desk) -> dict[int, str | None]:
    return {e.version: e.model_id for e in desk.runner().registry("small").entries()}


def test_the_newest_archived_versions_stay_and_the_one_in_service_too(desk: Desk) -> None:
    gone = prune(desk.runner(), "small", keep=1)
    assert [one.version for one in gone] == [1, 2]
    assert models(desk) == {1: None, 2: None, 3: "m3", 4: "m4"}
    assert desk.track.forgotten == ["m1", "m2"]


def test_keeping_none_still_keeps_the_version_in_service(desk: Desk) -> None:
    prune(desk.runner(), "small", keep=0)
    assert models(desk) == {1: None, 2: None, 3: None, 4: "m4"}
    assert desk.statuses() == {1: "archived", 2: "archived", 3: "archived", 4: "active"}


def test_the_training_output_goes_and_answers_and_reports_stay(desk: Desk) -> None:
    (run,) = desk.client.glob("runs/small-v1-*")
    prune(desk.runner(), "small", keep=2)
    assert not (run / "attempt-1").exists()
    assert (run / "report.json").is_file()


def test_nobody_can_roll_back_to_a_pruned_version(desk: Desk) -> None:
    prune(desk.runner(), "small", keep=0)
    with pytest.raises(RegistryError, match=r"v1 \(track B\) has no model .*submit it again"):
        desk.runner().rollback("small", 1)


def test_a_crash_between_registry_and_host_is_finished_by_the_next_call(desk: Desk) -> None:
    desk.track.forget_fault = "host is away"
    with pytest.raises(ServingError, match="host is away"):
        prune(desk.runner(), "small", keep=2)
    assert models(desk)[1] is None
    desk.track.forget_fault = None
    assert [one.version for one in prune(desk.runner(), "small", keep=2)] == [1]
    assert desk.track.forgotten == ["m1"]
    assert prune(desk.runner(), "small", keep=2) == ()


def test_a_version_that_went_into_service_meanwhile_is_not_retired(desk: Desk) -> None:
    entries = desk.runner().registry("small").entries()
    with pytest.raises(RegistryError, match="only archived versions are pruned"):
        edits.retired(entries, VersionKey(version=4, track="B"))


def test_a_pruned_version_may_be_trained_again(desk: Desk) -> None:
    prune(desk.runner(), "small", keep=0)
    entries = desk.runner().registry("small").entries()
    edits.check_replaceable(entries, VersionKey(version=1, track="B"))
    with pytest.raises(RegistryError, match="is in service"):
        edits.check_replaceable(entries, VersionKey(version=4, track="B"))


def test_the_record_says_who_pruned_and_verifies(desk: Desk) -> None:
    registry = desk.runner().registry("small")
    prune(desk.runner(), "small", keep=2)
    assert [(x.action, x.who) for x in registry.history()][-2:] == [("retire", "anna"), ("prune", "anna")]
    assert registry.verify() == []


def test_names_that_others_ask_by_follow_after_a_rollback_and_a_fault_is_only_said(desk: Desk) -> None:
    desk.track.alias_fault = "host is away"
    assert desk.runner().rollback("small", 2).active
    assert desk.track.followed == ["m2"]
    desk.track.alias_fault = None
    desk.runner().promote("small", 4, override="back")
    assert desk.track.followed == ["m2", "m4"]


def test_a_negative_number_is_refused() -> None:
    nothing: tuple[RegistryEntry, ...] = ()
    with pytest.raises(UsageError, match="give a number from 0"):
        prunable(nothing, -1)


def test_a_model_that_another_version_serves_with_is_left_where_it_is(desk: Desk) -> None:
    def shared(entries: tuple[RegistryEntry, ...]) -> tuple[RegistryEntry, ...]:
        return tuple(msgspec.structs.replace(e, model_id="m4") if e.version == 1 else e for e in entries)

    desk.runner().registry("small").change("register", shared, who="anna", why="the same model by hand")
    prune(desk.runner(), "small", keep=2)
    assert desk.track.forgotten == []
    assert models(desk) == {1: None, 2: "m2", 3: "m3", 4: "m4"}
