"""The registry file: crashes, edits by hand, full disks, two writers."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fine_tune_runner.errors import RegistryError
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.audit import read_audit
from fine_tune_runner.registry.edits import Entries
from fine_tune_runner.registry.store import FILE, Registry
from fine_tune_runner.types import RegistryEntry
from tests.registry.test_edits import entry, key


class Ticking:
    """A clock that goes on by a second at each look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 22, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class Crash(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


def registry(folder: Path, crash_at: str | None = None, notices: list[str] | None = None) -> Registry:
    def crash(point: str) -> None:
        if point == crash_at:
            raise Crash

    return Registry(
        folder, Ticking(), notice=(notices if notices is not None else []).append, crash_point=crash
    )


def change(r: Registry, action: str, edit: Callable[[Entries], Entries]) -> Entries:
    return r.change(action, edit, who="anna", why="test")


def add(r: Registry, version: int) -> None:
    change(r, "register", lambda e: edits.registered(e, entry(version)))


def promote(r: Registry, version: int) -> None:
    change(r, "promote", lambda e: edits.overridden(e, key(version)))


def test_the_six_keys_of_the_router_come_first_and_keep_their_types(tmp_path: Path) -> None:
    r = registry(tmp_path)
    add(r, 1)
    promote(r, 1)
    (row,) = json.loads((tmp_path / FILE).read_text())
    assert list(row)[:6] == ["version", "track", "model_id", "eval_score", "active", "created_at"]
    assert (row["version"], row["track"], row["active"], row["eval_score"]) == (1, "B", True, None)
    assert row["created_at"].endswith("Z")


POINTS = ("before temporary file", "before audit line", "before rename", "before folder sync")


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_at_any_point_leaves_the_old_or_the_new(tmp_path: Path, point: str) -> None:
    r = registry(tmp_path)
    add(r, 1)
    promote(r, 1)
    add(r, 2)
    with pytest.raises(Crash):
        promote(registry(tmp_path, crash_at=point), 2)
    assert registry(tmp_path).active() is not None  # a reader in between finds one version in service
    registry(tmp_path).recover()
    after = registry(tmp_path)
    done = point in ("before rename", "before folder sync")  # the audit line is the moment of truth
    assert after.active().version == (2 if done else 1)  # type: ignore[union-attr]
    assert after.verify() == []


def test_a_torn_audit_line_never_took_effect(tmp_path: Path) -> None:
    r = registry(tmp_path)
    add(r, 1)
    with r.audit_path.open("ab") as file:
        file.write(b'{"seq":2,"at":"2026-11-')
    add(registry(tmp_path), 2)
    assert [line.seq for line in registry(tmp_path).history()] == [1, 2]
    assert registry(tmp_path).verify() == []


def test_an_edit_by_hand_is_kept_and_recorded(tmp_path: Path) -> None:
    r = registry(tmp_path)
    add(r, 1)
    path = tmp_path / FILE
    path.write_text(path.read_text().replace('"m1"', '"renamed"'))
    assert "changed by hand" in r.verify()[0]
    notices: list[str] = []
    add(registry(tmp_path, notices=notices), 2)
    assert [e.model_id for e in registry(tmp_path).entries()] == ["renamed", "m2"]
    assert [line.action for line in registry(tmp_path).history()] == [
        "register",
        "edited by hand",
        "register",
    ]
    assert "edited by hand" in notices[0]
    assert registry(tmp_path).verify() == []


@pytest.mark.parametrize("damage", ["cut", "two active", "gone"])
def test_a_damaged_file_is_answered_and_restored_from_its_record(tmp_path: Path, damage: str) -> None:
    r = registry(tmp_path)
    add(r, 1)
    promote(r, 1)
    add(r, 2)
    path = tmp_path / FILE
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "gone":
        path.unlink()
    else:
        rows = [{**row, "active": True, "status": "active"} for row in json.loads(path.read_text())]
        path.write_text(json.dumps(rows))
    assert registry(tmp_path).active().version == 1  # type: ignore[union-attr]
    registry(tmp_path).recover()
    assert [e.status for e in registry(tmp_path).entries()] == ["active", "eval"]
    assert registry(tmp_path).verify() == []
    assert len(list(tmp_path.glob(f"{FILE}.broken-*"))) == (0 if damage == "gone" else 1)


def test_a_changed_audit_line_breaks_the_chain(tmp_path: Path) -> None:
    r = registry(tmp_path)
    for version in (1, 2, 3):
        add(r, version)
    text = r.audit_path.read_text().replace('"who":"anna"', '"who":"bert"', 1)
    r.audit_path.write_text(text)
    assert r.verify() == ["line 2: does not follow from the line before; one of the two was changed"]


def test_history_answers_what_was_in_service_then(tmp_path: Path) -> None:
    r = registry(tmp_path)
    add(r, 1)
    promote(r, 1)
    then = r.history()[-1].at
    add(r, 2)
    promote(r, 2)
    assert edits.active(r.at(then)).version == 1  # type: ignore[union-attr]
    assert r.at(then - timedelta(days=1)) == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB; mounting one needs root, which CI has."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room_left", [0, 4096])
def test_a_full_disk_leaves_the_version_in_service(small_disk: Path, room_left: int) -> None:
    r = registry(small_disk)
    add(r, 1)
    promote(r, 1)
    before, record = (small_disk / FILE).read_bytes(), r.audit_path.read_bytes()
    fill(small_disk / "filler", room_left)
    with pytest.raises(RegistryError, match="No space left on device; free the disk"):
        for version in range(2, 20):
            add(r, version)
    (small_disk / "filler").unlink()
    assert r.active().version == 1  # type: ignore[union-attr]
    assert r.verify() == []
    if room_left == 0:
        assert (small_disk / FILE).read_bytes() == before
        assert r.audit_path.read_bytes() == record
    assert list(small_disk.glob(".*.tmp")) == []


def fill(path: Path, room_left: int) -> None:
    """Write until the disk is full, then give `room_left` bytes back."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            file.truncate(file.tell() - room_left)


def _writer(folder: Path, first: int) -> None:
    r = Registry(folder, lambda: datetime.now(UTC))
    for version in range(first, first + 10):
        add(r, version)
        promote(r, version)


def test_two_writers_at_once_lose_nothing_and_readers_never_see_two_active(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_writer, args=(tmp_path, first)) for first in (1, 101)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        assert sum(e.active for e in registry(tmp_path).entries()) <= 1
        reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert reads > 10
    assert sorted(e.version for e in registry(tmp_path).entries()) == [*range(1, 11), *range(101, 111)]
    assert registry(tmp_path).verify() == []


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["register", "promote", "rollback", "override", "hand"]),
        st.integers(1, 4),
        st.sampled_from([None, *POINTS]),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_any_interleaving_keeps_one_active_loses_nothing_and_keeps_the_chain(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int, str | None]]
) -> None:
    folder = tmp_path_factory.mktemp("registry")
    seen: set[int] = set()
    for action, version, crash_at in actions:
        r = registry(folder, crash_at=crash_at)
        edit: dict[str, Callable[[Entries], Entries]] = {
            "register": lambda e, v=version: edits.registered(e, entry(v)),
            "promote": lambda e, v=version: edits.promoted(e, key(v), _active_key(e), "hre"),
            "rollback": lambda e, v=version: edits.rolled_back(e, key(v)),
            "override": lambda e, v=version: edits.overridden(e, key(v)),
        }
        try:
            if action == "hand":
                _edit_by_hand(folder)
            else:
                change(r, action, edit[action])
        except (Crash, RegistryError):
            pass
        entries = registry(folder).entries()
        assert sum(e.active for e in entries) <= 1
        assert seen <= {e.version for e in entries}, "a version was lost"
        seen = {e.version for e in entries}
    registry(folder).recover()
    assert registry(folder).verify() == []
    assert seen <= {e.version for e in registry(folder).entries()}


def _active_key(entries: Entries) -> object:
    now = edits.active(entries)
    return now.key if now else None


def _edit_by_hand(folder: Path) -> None:
    path = folder / FILE
    if not path.exists():
        return
    rows = msgspec.json.decode(path.read_bytes(), type=tuple[RegistryEntry, ...])
    changed = [msgspec.structs.replace(row, cost_usd=(row.cost_usd or 0) + 1) for row in rows]
    path.write_bytes(msgspec.json.encode(changed))


def test_the_record_holds_the_whole_registry_of_every_instant(tmp_path: Path) -> None:
    r = registry(tmp_path)
    add(r, 1)
    promote(r, 1)
    contents = [json.loads(line.content) for line in read_audit(r.audit_path).lines]
    assert [[row["active"] for row in rows] for rows in contents] == [[False], [True]]


def test_a_lock_held_elsewhere_names_the_process(tmp_path: Path) -> None:
    from fine_tune_runner.files import lock_owner, locked

    with locked(tmp_path / "lock"):
        assert lock_owner(tmp_path / "lock") == os.getpid()
    assert lock_owner(tmp_path / "lock") is None
