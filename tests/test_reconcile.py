"""What `fine-tune doctor` finds where registry, runs and workflows disagree, and what it does about each."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.errors import RunError
from fine_tune_runner.reconcile import Disagreement, disagreements, mend
from fine_tune_runner.registry import edits
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.types import Request, Run, VersionKey
from fine_tune_runner.workflow.durable import Durable
from tests.contract.ollama_server.server import serving
from tests.private.ollama_world import put_foreign
from tests.scripted_track import Letters
from tests.test_runner import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, track_preference="b")


def durable(desk: Desk) -> FineTuneRunner:
    """The library over the engine of the product, whose workflows nobody does."""
    tracks = {"A": desk.track.maker(), "B": desk.track.maker()}
    return FineTuneRunner(desk.settings, tracks=tracks, embedder=lambda settings: Letters(), who="anna")


def left(runner: FineTuneRunner) -> Run:
    """A run of version 1 that waits for a worker."""
    run = runner.run_for(Request(client_id="small", version=1))
    runner.leave(run)
    return run


def look(runner: FineTuneRunner) -> list[Disagreement]:
    notices: list[str] = []
    found = disagreements(runner, notices.append)
    assert notices == []
    return found


def test_where_all_agree_nothing_is_listed(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    runner = durable(desk)
    runner.leave(runner.run_for(Request(client_id="small", version=2)))
    assert look(runner) == []


def test_looking_makes_no_database(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    assert look(durable(desk)) == []
    assert not (desk.settings.data_dir / ".fine-tune" / "engine.sqlite").exists()


def test_a_workflow_whose_run_is_gone_is_taken_out(desk: Desk) -> None:
    runner = durable(desk)
    run = left(runner)
    shutil.rmtree(desk.client / "runs")
    (found,) = look(runner)
    assert (found.kind, found.subject, found.how) == ("stale workflow", run.run_id, "clean up")
    assert "its folder is gone" in found.message
    mend(runner, found)
    assert (look(runner), list(runner.engine.live())) == ([], [])


def test_a_workflow_whose_run_is_finished_is_taken_out(desk: Desk) -> None:
    job = desk.runner().submit("small", 1)
    runner = durable(desk)
    assert isinstance(runner.engine, Durable)
    with runner.engine.database() as database:
        database.enqueue_run("small", job.run_id, None, 10)
    (found,) = look(runner)
    assert (found.kind, "it is finished" in found.message) == ("stale workflow", True)
    mend(runner, found)
    assert look(runner) == []
    assert runner.engine.find(job.run_id).state == "finished"


def test_a_queued_run_that_the_database_lost_is_put_back(desk: Desk) -> None:
    runner = durable(desk)
    run = left(runner)
    for path in (desk.settings.data_dir / ".fine-tune").glob("engine.sqlite*"):
        path.unlink()
    (found,) = look(runner)
    assert (found.kind, found.run_id, found.how) == ("not queued", run.run_id, "adopt")
    mend(runner, found)
    assert look(runner) == []
    assert [one.run_id for one in runner.engine.live()] == [run.run_id]


def test_a_finished_run_without_entry_is_registered_but_not_put_into_service(desk: Desk) -> None:
    runner = desk.runner()
    job = runner.submit("small", 1)
    registry = runner.registry("small")
    registry.change("lost", lambda entries: (), who="x", why="test")
    (found,) = look(runner)
    assert (found.kind, found.subject, found.how) == ("not registered", job.run_id, "adopt")
    mend(runner, found)
    (entry,) = registry.entries()
    assert (entry.model_id, entry.active, entry.status) == ("m1", False, "archived")
    assert look(runner) == []


def without_file(desk: Desk, version: int) -> None:
    """As after somebody deleted what was trained."""

    def edit(entries: edits.Entries) -> edits.Entries:
        lost = "runs/x/adapter.gguf"
        return tuple(
            msgspec.structs.replace(e, artifact=lost) if e.version == version else e for e in entries
        )

    desk.runner().registry("small").change("edit", edit, who="x", why="test")


def test_a_model_whose_file_is_gone_is_taken_off_the_record(desk: Desk) -> None:
    runner = desk.runner()
    runner.submit("small", 1)
    runner.submit("small", 2)
    without_file(desk, 2)
    (found,) = look(runner)
    assert (found.kind, found.subject, found.how) == ("model gone", "small v2 (track B)", "clean up")
    assert "no file" in found.message
    mend(runner, found)
    assert [entry.model_id for entry in runner.registry("small").entries()] == ["m1", None]
    assert look(runner) == []


def test_a_model_in_service_that_is_gone_is_left_to_a_person(desk: Desk) -> None:
    runner = desk.runner()
    runner.submit("small", 1)
    without_file(desk, 1)
    (found,) = look(runner)
    assert (found.how, "in service" in found.message) == (None, True)
    with pytest.raises(RunError, match="fine-tune rollback --client small"):
        mend(runner, found)


def test_what_a_provider_does_not_have_is_listed(desk: Desk) -> None:
    runner = desk.runner()
    runner.submit("small", 1)
    (found,) = disagreements(runner, lambda _text: None, [("small", VersionKey(version=1, track="B"))])
    assert "the provider has no such model" in found.message


def at(desk: Desk, host: str) -> FineTuneRunner:
    """The library with an Ollama host, where version 1 is registered."""

    def edit(entries: edits.Entries) -> edits.Entries:
        words = {"provider": "ollama", "endpoint": host, "model_id": "small-client:v1", "artifact": None}
        return tuple(msgspec.structs.replace(e, **words) if e.version == 1 else e for e in entries)

    runner = desk.runner()
    runner.registry("small").change("edit", edit, who="x", why="test")
    runner.settings = msgspec.structs.replace(runner.settings, ollama_host=host)
    return runner


def test_a_model_that_was_deleted_at_the_ollama_host_is_listed(desk: Desk, tmp_path: Path) -> None:
    desk.runner().submit("small", 1)
    with serving(tmp_path / "ollama") as server:
        runner = at(desk, server.url)
        (found,) = look(runner)
        assert found.message == f"its model small-client:v1 is in service, but missing at {server.url}"
        assert (found.how, "fine-tune rollback --client small" in found.remedy) == (None, True)
        put_foreign(server, "small-client:V1")  # names ignore case
        assert look(runner) == []


def test_an_ollama_host_that_is_away_is_noticed_and_tells_nothing(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    notices: list[str] = []
    assert disagreements(at(desk, "http://127.0.0.1:9"), notices.append) == []
    (said,) = notices
    assert said.startswith("http://127.0.0.1:9 was not asked for its models: ")


def test_the_command_exits_1_until_what_disagrees_is_settled(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    desk.runner().registry("small").change("lost", lambda entries: (), who="x", why="test")
    env = {"CLIENT_DATA_DIR": str(desk.settings.data_dir), "OPENAI_API_KEY": ""}
    listed = CliRunner().invoke(fine_tune, ["doctor"], env=env, standalone_mode=False)
    assert (listed.return_value, "the registry has no v1 (track B)" in listed.output) == (1, True)
    settled = CliRunner().invoke(fine_tune, ["doctor", "--yes"], env=env, standalone_mode=False)
    assert (settled.return_value, "-1: adopted" in settled.output) == (0, True)
    again = CliRunner().invoke(fine_tune, ["doctor", "--json"], env=env, standalone_mode=False)
    events = [msgspec.json.decode(line)["event"] for line in again.stdout.splitlines()]
    assert (again.return_value, set(events)) == (0, {"set-up"})
