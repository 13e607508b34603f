"""What a watch decides: by case, and by property over histories of a folder with restarts in between."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from fine_tune_runner.workflow.watch import (
    Action,
    Attempt,
    Check,
    Folder,
    Leave,
    Say,
    Seen,
    Submit,
    decide,
    faults_of,
)


def whole(version: int, rows: int = 60, key: str = "k") -> Seen:
    return Seen(version=version, still=True, rows=rows, key=f"{key}{version}")


def steps(folder: Folder, told: dict[str, str] | None = None, passed: set[str] | None = None) -> list[Action]:
    return decide(folder, told or {}, passed or set())


def test_a_ready_version_is_checked_and_then_submitted() -> None:
    folder = Folder(seen=[whole(1)])
    assert steps(folder) == [Check(version=1, key="k1")]
    assert steps(folder, passed={"k1"}) == [Submit(version=1)]


def test_of_two_ready_versions_the_higher_is_taken_and_the_other_noted_once() -> None:
    assert steps(Folder(seen=[whole(1), whole(2)]), passed={"k1", "k2"}) == [Submit(version=2)]
    after = Folder(seen=[whole(1), whole(2)], runs=[Attempt(version=2, run_id="r", state="queued")])
    (said,) = steps(after)
    assert isinstance(said, Say)
    assert (said.event, said.version, said.message) == ("skipped", 1, "v2 is newer")
    assert steps(after, {said.subject: said.key}) == []


def test_a_lower_version_waits_while_a_higher_one_is_being_written() -> None:
    written = Seen(version=2, still=False)
    assert steps(Folder(seen=[whole(1), written]), passed={"k1"}) == []
    halfway = Seen(version=2, still=True, rows=60, fault="v2_eval.jsonl is missing")
    assert Submit(version=1) in steps(Folder(seen=[whole(1), halfway]), passed={"k1"})


def test_where_the_higher_one_has_faults_the_lower_one_is_taken() -> None:
    told = {faults_of(2): "k2"}
    assert steps(Folder(seen=[whole(1), whole(2)]), told) == [Check(version=1, key="k1")]


def test_faults_are_looked_at_again_with_another_content_only() -> None:
    assert steps(Folder(seen=[whole(1)]), {faults_of(1): "k1"}) == []
    assert steps(Folder(seen=[whole(1, key="new")]), {faults_of(1): "k1"}) == [Check(version=1, key="new1")]


def test_what_is_registered_or_has_a_run_is_left_alone() -> None:
    assert steps(Folder(seen=[whole(3)], registered=[3])) == []
    for state in ("queued", "running", "failed", "cancelled", "finished", "interrupted"):
        run = Attempt(version=3, run_id="r", state=state)  # type: ignore[arg-type]
        assert steps(Folder(seen=[whole(3)], runs=[run])) == []


def test_too_few_examples_say_how_many_are_missing_also_before_the_first_version() -> None:
    (said,) = steps(Folder(seen=[whole(1, rows=31)]))
    assert isinstance(said, Say)
    assert (said.event, said.missing, said.message) == ("queued", 19, "awaiting 50 examples (has 31)")
    (none,) = steps(Folder(seen=[]))
    assert isinstance(none, Say)
    assert none.missing == 50


def test_a_run_that_waits_for_a_yes_is_named_with_the_command() -> None:
    (said,) = steps(Folder(seen=[whole(1)], runs=[Attempt(version=1, run_id="r1", state="waiting")]))
    assert isinstance(said, Say)
    assert (said.event, said.message.split(" (")[0]) == ("needs approval", "fine-tune approve r1")


def test_a_run_that_a_crash_left_to_nobody_is_left_to_the_workers() -> None:
    run = Attempt(version=1, run_id="r1", state="interrupted", begun=False)
    assert steps(Folder(seen=[whole(1)], runs=[run])) == [Leave(run_id="r1")]


@dataclass
class World:
    """A client's folder, and a watch that keeps its word: what it did and said, in order."""

    files: dict[int, tuple[Seen, bool]] = field(default_factory=dict)  # version → how it lies there, good
    told: dict[str, str] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)
    submitted: list[int] = field(default_factory=list)
    said: list[tuple[str, str]] = field(default_factory=list)

    def folder(self) -> Folder:
        runs = [Attempt(version=v, run_id=f"r{v}", state="running") for v in self.submitted]
        return Folder(seen=[self.files[v][0] for v in sorted(self.files)], runs=runs)

    def watch(self) -> None:
        """Look until nothing is left to do."""
        for _ in range(50):
            actions = decide(self.folder(), self.told, self.passed)
            if not actions:
                return
            for action in actions:
                self.act(action)
        raise AssertionError("it never comes to rest")

    def act(self, action: Action) -> None:
        if isinstance(action, Say):
            self.said.append((action.subject, action.key))
            self.told[action.subject] = action.key
        elif isinstance(action, Check):
            if self.files[action.version][1]:
                self.passed.add(action.key)
            else:
                self.said.append((faults_of(action.version), action.key))
                self.told[faults_of(action.version)] = action.key
        elif isinstance(action, Submit):
            seen, good = self.files[action.version]
            assert good
            assert seen.still
            assert (seen.rows or 0) >= 50
            assert action.version > max(self.submitted, default=0)
            assert all(other.still for v, (other, _) in self.files.items() if v > action.version)
            self.submitted.append(action.version)

    def ready(self) -> list[int]:
        return [v for v, (seen, good) in self.files.items() if good and seen.still and (seen.rows or 0) >= 50]


WRITES = st.tuples(
    st.integers(1, 5), st.sampled_from([10, 49, 50, 60]), st.booleans(), st.booleans(), st.integers(0, 2)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(WRITES, st.just("restart"), st.just("event")), max_size=25))
def test_every_history_submits_the_highest_that_is_ready_once_and_says_nothing_twice(
    history: list[tuple[int, int, bool, bool, int] | str],
) -> None:
    world = World()
    for event in history:
        if isinstance(event, tuple):
            version, rows, still, good, content = event
            key = f"{version} {rows} {good} {content}"
            world.files[version] = (Seen(version=version, still=still, rows=rows, key=key), good)
        elif event == "restart":
            world.passed.clear()  # all that is not on record
        world.watch()
    for version, (seen, good) in world.files.items():
        world.files[version] = (Seen(version=version, still=True, rows=seen.rows, key=seen.key), good)
    world.watch()
    assert len(set(world.submitted)) == len(world.submitted)
    assert max(world.ready(), default=0) <= max(world.submitted, default=0)
    again = list(world.said)
    world.watch()
    assert world.said == again
    notes = [subject for subject, _ in world.said if "skipped" in subject]
    assert len(set(notes)) == len(notes)
