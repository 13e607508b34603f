"""The rules of a registry as pure functions."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from fine_tune_runner.errors import RegistryError
from fine_tune_runner.registry import edits
from fine_tune_runner.types import RegistryEntry, Status, Track, VersionKey

T0 = datetime(2026, 11, 22, tzinfo=UTC)


def entry(
    version: int, status: Status = "eval", track: Track = "B", model: str | None = "m"
) -> RegistryEntry:
    return RegistryEntry(
        version=version,
        track=track,
        model_id=model and f"{model}{version}",
        eval_score=None,
        active=status == "active",
        created_at=T0,
        status=status,
    )


def key(version: int, track: Track = "B") -> VersionKey:
    return VersionKey(version=version, track=track)


def test_promotion_archives_the_version_before() -> None:
    after = edits.promoted((entry(1, "active"), entry(2)), key(2), key(1), "hre")
    assert [(e.version, e.status, e.active) for e in after] == [(1, "archived", False), (2, "active", True)]


def test_promotion_is_compare_and_set_against_the_version_the_gate_compared_with() -> None:
    entries = (entry(1, "archived"), entry(2, "active"), entry(3))
    again = r"evaluate it again: fine-tune eval --client hre --version 3 --track b"
    with pytest.raises(RegistryError, match=rf"v2 \(track B\) is in service now; {again}"):
        edits.promoted(entries, key(3), key(1), "hre")


def test_promoting_what_is_in_service_changes_nothing() -> None:
    entries = (entry(1, "active"),)
    assert edits.promoted(entries, key(1), None, "hre") == entries


def test_rollback_takes_only_what_was_in_service_before() -> None:
    entries = (entry(1, "refused"), entry(2, "archived"), entry(3, "active"))
    assert edits.active(edits.rolled_back(entries, key(2))).version == 2  # type: ignore[union-attr]
    with pytest.raises(RegistryError, match=r"never in service \(status refused\); roll back to one of: v2"):
        edits.rolled_back(entries, key(1))


def test_a_version_in_service_is_not_registered_over() -> None:
    with pytest.raises(RegistryError, match="publish a new version"):
        edits.registered((entry(1, "active"),), entry(1))


def test_the_same_version_may_stand_on_both_tracks() -> None:
    after = edits.registered((entry(1, "active"),), entry(1, track="A"))
    assert [e.track for e in after] == ["B", "A"]


def test_a_version_without_a_model_is_not_promoted() -> None:
    with pytest.raises(RegistryError, match="has no model"):
        edits.overridden((entry(1, model=None),), key(1))


def test_a_version_whose_model_was_deleted_stays_on_record_and_cannot_be_rolled_back_to() -> None:
    entries = edits.without_model((entry(1, "archived"), entry(2, "archived"), entry(3, "active")), key(1))
    assert [(e.version, e.model_id is None, e.status) for e in entries[:2]] == [
        (1, True, "archived"),
        (2, False, "archived"),
    ]
    with pytest.raises(RegistryError, match="has no model"):
        edits.rolled_back(entries, key(1))
    with pytest.raises(RegistryError, match="roll back to one of: v2 "):
        edits.rolled_back((*entries, entry(4, "refused")), key(4))


def test_the_model_in_service_is_not_taken_off_the_record() -> None:
    with pytest.raises(RegistryError, match=r"v1 \(track B\) is in service"):
        edits.without_model((entry(1, "active"),), key(1))


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ((entry(1, "active"), entry(2, "active")), "more than one entry is active"),
        ((entry(1), entry(1)), "stands twice"),
        ((entry(1, "active", model=None),), "active without a model_id"),
    ],
)
def test_faults_name_the_broken_rule(entries: tuple[RegistryEntry, ...], fault: str) -> None:
    assert any(fault in found for found in edits.faults(entries))
