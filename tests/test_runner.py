"""The line from request to registry entry, on a scripted track: every way a run can end."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.driving import Confirm
from fine_tune_runner.errors import (
    Interrupted,
    PolicyError,
    RegistryError,
    RunError,
    UsageError,
)
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import load_settings
from fine_tune_runner.types import Estimate, Request, VersionKey
from fine_tune_runner.workflow.engine import Event
from tests.scripted_track import Letters, Scripted, folder_of, in_process
from tests.small_client import CAUSES, PROMPT, holdout_rows, train_rows, write_rows, write_version


def right(question_id: str) -> str:
    """The holdout's own answer: `small-007` has the cause number 7 mod 4."""
    return f"Root cause: {CAUSES[int(question_id[-3:]) % 4]}\nThe evidence points there."


def wrong(question_id: str) -> str:
    """The neighbour's cause."""
    return f"Root cause: {CAUSES[(int(question_id[-3:]) + 1) % 4]}\nThe evidence points there."


def right_below(limit: int) -> Callable[[str], str]:
    return lambda question_id: (right if int(question_id[-3:]) < limit else wrong)(question_id)


def silent(question_id: str) -> None:
    return None


class Desk:
    """A data folder with the client `small`, a scripted track, and the library over both."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self.client = folder_of(folder)
        self.track = Scripted({0: wrong, 1: right, 2: wrong})
        self.events: list[Event] = []
        self.settings = load_settings({"CLIENT_DATA_DIR": str(folder / "clients")}, folder)
        self.write_config(**config)
        state = {"version": "1.0.0", "system_prompt": PROMPT}
        (self.client / "account_state.json").write_text(json.dumps(state))
        write_version(self.client, 1)
        write_version(self.client, 2, train_rows(61))

    def write_config(self, **config: Any) -> None:
        (self.client / "config.json").write_text(json.dumps({"client_id": "small", **config}))

    def runner(self, confirm: Confirm = lambda estimates: True) -> FineTuneRunner:
        return FineTuneRunner(
            self.settings,
            listener=self.events.append,
            tracks={"A": self.track.maker(), "B": self.track.maker()},
            embedder=lambda settings: Letters(),
            confirm=confirm,
            who="anna",
            engine=in_process,
        )

    def statuses(self) -> dict[int, str]:
        return {entry.version: entry.status for entry in self.runner().registry("small").entries()}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path, track_preference="b")


def test_a_first_version_is_promoted_once_evaluated(desk: Desk) -> None:
    job = desk.runner().submit("small", 1)
    assert job.verdict is not None
    assert (job.state, job.model_id, job.verdict.decision) == ("finished", "m1", "promote")
    (entry,) = desk.runner().registry("small").entries()
    assert (entry.active, entry.eval_score, entry.training_examples) == (True, 1.0, 60)
    assert entry.evaluation is not None
    assert entry.evaluation.method == "recall"


def test_the_base_is_scored_beside_a_first_version(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    (report,) = [event.data["report"] for event in desk.events if event.event == "evaluated"]
    assert (report["new"]["recall"], report["base"]["recall"], report["previous"]) == (1.0, 0.0, None)


def test_a_model_is_known_with_status_eval_before_it_is_scored(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    actions = [(line.action, line.who) for line in desk.runner().registry("small").history()]
    assert actions == [("register", "anna"), ("evaluate", "anna"), ("promote", "anna")]
    first = json.loads(desk.runner().registry("small").history()[0].content)[0]
    assert (first["status"], first["eval_score"], first["active"]) == ("eval", None, False)


def test_a_worse_version_is_refused_with_an_alert_and_the_old_one_stays(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    job = desk.runner().submit("small", 2)
    assert job.verdict is not None
    assert (job.verdict.decision, job.verdict.delta) == ("refuse", -1.0)
    assert desk.statuses() == {1: "active", 2: "refused"}
    (alert,) = [event.data for event in desk.events if event.event == "alert"]
    assert alert["decision"] == "refuse"


@pytest.mark.parametrize(("questions_right", "decision"), [(12, "promote"), (11, "refuse")])
def test_the_guard_allows_the_tolerance_and_no_more(desk: Desk, questions_right: int, decision: str) -> None:
    """1 of 12 questions lost is 0.083, above the tolerance of 0.05."""
    desk.track.script = {0: wrong, 1: right, 2: right_below(questions_right)}
    desk.runner().submit("small", 1)
    job = desk.runner().submit("small", 2)
    assert job.verdict is not None
    assert job.verdict.decision == decision


def test_a_better_version_replaces_and_archives(desk: Desk) -> None:
    desk.track.script = {0: wrong, 1: wrong, 2: right}
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    assert desk.statuses() == {1: "archived", 2: "active"}


def test_the_version_in_service_is_asked_again_on_the_new_holdout(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    job = desk.runner().submit("small", 2)
    assert job.verdict is not None
    assert (job.verdict.previous, job.verdict.compared_with) == (1.0, VersionKey(version=1, track="B"))
    folder = desk.client / "runs" / job.run_id / "answers"
    assert sorted(path.name for path in folder.iterdir()) == ["1-B.jsonl", "2-B.jsonl"]


def test_a_previous_model_that_cannot_be_called_is_compared_by_its_stored_answers(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    desk.track.script = {2: right_below(9)}
    job = desk.runner().submit("small", 2)
    assert job.verdict is not None
    assert (job.verdict.decision, job.verdict.new, job.verdict.previous) == ("refuse", 0.75, 1.0)
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert f"by its stored answers of {today} to 12 shared questions" in job.verdict.reason
    assert desk.statuses() == {1: "active", 2: "refused"}


def test_a_previous_model_that_shares_four_questions_and_cannot_be_called_holds(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    rows = holdout_rows(20)
    write_rows(desk.client / "v2_eval.jsonl", [*rows[:4], *rows[12:]])
    desk.track.script = {2: right}
    job = desk.runner().submit("small", 2)
    assert job.verdict is not None
    assert job.verdict.decision == "hold"
    assert "m1 was switched off; its stored answers cover only 4 of the questions" in job.verdict.reason
    assert desk.statuses() == {1: "active", 2: "held"}


def test_failed_calls_hold_instead_of_counting_as_wrong(desk: Desk) -> None:
    desk.track.script = {0: wrong, 1: silent}
    job = desk.runner().submit("small", 1)
    assert job.verdict is not None
    assert job.verdict.decision == "hold"
    assert desk.statuses() == {1: "held"}


def test_submitting_again_what_is_at_its_end_trains_nothing(desk: Desk) -> None:
    first = desk.runner().submit("small", 1)
    assert desk.runner().submit("small", 1) == first
    assert desk.track.trained == [1]


def test_override_promotes_against_the_verdict_and_says_who_and_why(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    entry, _ = desk.runner().promote("small", 2)
    assert entry.status == "refused"
    entry, _ = desk.runner().promote("small", 2, override="the holdout is wrong")
    assert entry.active
    last = desk.runner().registry("small").history()[-1]
    assert (last.action, last.who, last.why) == ("override", "anna", "the holdout is wrong")


def test_an_override_needs_a_reason(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    with pytest.raises(UsageError, match="needs a reason"):
        desk.runner().promote("small", 1, override=" ")


def test_rollback_goes_back_at_once_and_is_on_record(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    desk.runner().promote("small", 2, override="test")
    entry = desk.runner().rollback("small", 1, why="v2 is worse")
    assert (entry.version, entry.active) == (1, True)
    assert desk.statuses() == {1: "active", 2: "archived"}
    assert desk.runner().registry("small").history()[-1].why == "v2 is worse"


def test_a_verdict_about_another_version_in_service_does_not_promote(desk: Desk) -> None:
    desk.track.script = dict.fromkeys(range(4), right)
    write_version(desk.client, 3, train_rows(63))
    for version in (1, 2, 3):
        desk.runner().submit("small", version)
    desk.runner().rollback("small", 1)
    # The verdict of v3 compared it with v2; v1 is in service by now.
    with pytest.raises(
        RegistryError, match=r"v3 .* compared with v2 .* v1 .* in service now; evaluate it again"
    ):
        desk.runner().promote("small", 3)


def test_a_registered_model_without_evaluation_is_not_promoted(desk: Desk) -> None:
    desk.runner().register("small", 1, "m1", "B")
    with pytest.raises(RegistryError, match="never evaluated; first: fine-tune eval"):
        desk.runner().promote("small", 1)


def test_eval_scores_a_registered_version_and_stores_the_verdict(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    desk.track.script = {0: wrong, 1: right, 2: right}
    report, verdict = desk.runner().evaluate("small", 2)
    assert (report.new.recall, verdict.decision) == (1.0, "promote")
    assert desk.statuses() == {1: "active", 2: "eval"}
    assert desk.runner().promote("small", 2)[0].active


def test_the_same_version_on_both_tracks_asks_for_one(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.runner().submit("small", 1, "A")
    desk.runner().submit("small", 1, "B")
    with pytest.raises(UsageError, match="exists on both tracks"):
        desk.runner().rollback("small", 1)
    assert desk.runner().rollback("small", 1, "A").track == "A"


def test_a_sensitive_client_never_reaches_track_a(tmp_path: Path) -> None:
    desk = Desk(tmp_path, sensitive=True)
    with pytest.raises(PolicyError, match="nothing was sent"):
        desk.runner().submit("small", 1, "A")
    assert desk.track.trained == []


def test_a_track_that_is_not_available_is_never_switched_silently(desk: Desk) -> None:
    desk.track.reason = "no key; set OPENAI_API_KEY, or use --track b"
    with pytest.raises(PolicyError, match=r"Track B .* is not available: no key"):
        desk.runner().submit("small", 1)
    assert list(desk.client.glob("runs/*")) == []


def test_a_cost_limit_stops_before_training(desk: Desk) -> None:
    desk.track.cost_usd = 12.5
    with pytest.raises(PolicyError, match=r"\$12.50 is above --max-cost 10.00; nothing was sent"):
        desk.runner().submit("small", 1, max_cost_usd=10.0)
    assert desk.track.trained == []


def test_a_cost_limit_cannot_be_kept_where_the_price_is_unknown(desk: Desk) -> None:
    desk.track.cost_usd = None
    with pytest.raises(PolicyError, match=r"made up, so --max-cost 10.00 cannot be kept; nothing was sent"):
        desk.runner().submit("small", 1, max_cost_usd=10.0)
    assert desk.track.trained == []
    asked: list[Mapping[str, Estimate]] = []
    desk.runner(confirm=lambda estimates: asked.append(estimates) is None).submit("small", 1)
    assert [estimate.cost_usd for estimates in asked for estimate in estimates.values()] == [None]


def test_a_raised_cost_limit_counts_for_the_run_that_it_stopped(desk: Desk) -> None:
    desk.track.cost_usd = 12.5
    with pytest.raises(PolicyError):
        desk.runner().submit("small", 1, max_cost_usd=10.0)
    job = desk.runner().submit("small", 1, max_cost_usd=20.0)
    assert (job.state, job.run_id[-2:]) == ("finished", "-1")


def test_cancel_stops_what_goes_on_elsewhere_and_says_what_is_true_there(desk: Desk) -> None:
    desk.track.cost_usd = 12.5
    with pytest.raises(Interrupted):
        desk.runner(confirm=lambda estimate: False).submit("small", 1)
    (state,) = desk.runner().engine.runs()
    assert desk.runner().cancel(state.run.run_id) == "stopped elsewhere"
    assert desk.track.cancelled == [state.run.run_id]
    assert desk.runner().poll(state.run.run_id).state == "cancelled"


def test_money_is_asked_for_once_and_a_no_sends_nothing(desk: Desk) -> None:
    desk.track.cost_usd = 12.5
    with pytest.raises(Interrupted, match="nothing was sent"):
        desk.runner(confirm=lambda estimate: False).submit("small", 1)
    asked: list[Mapping[str, Estimate]] = []
    desk.runner(confirm=lambda estimates: asked.append(estimates) is None).submit("small", 1)
    assert [estimate.cost_usd for estimates in asked for estimate in estimates.values()] == [12.5]


def test_a_preview_writes_nothing(desk: Desk) -> None:
    before = sorted(desk.client.rglob("*"))
    preview = desk.runner().preview(Request(client_id="small", version=1))
    assert (preview.choice.track, preview.findings.failed) == ("B", False)
    assert preview.estimate is not None
    assert sorted(desk.client.rglob("*")) == before


def test_poll_tells_state_and_last_step(desk: Desk) -> None:
    job = desk.runner().submit("small", 1)
    status = desk.runner().poll(job.run_id)
    assert (status.state, status.stage) == ("finished", "promote")


def test_ask_lets_the_model_in_service_answer(desk: Desk) -> None:
    desk.track.script = {
        0: wrong,
        1: lambda question_id: right("small-000") if question_id == "ask" else right(question_id),
    }
    desk.runner().submit("small", 1)
    assert desk.runner().ask("small", "What is wrong?").startswith("Root cause: duplicate_tag_install")


def test_a_client_that_became_sensitive_is_not_put_back_on_track_a(tmp_path: Path) -> None:
    desk = Desk(tmp_path, track_preference="a")
    desk.track.script = {0: wrong, 1: right, 2: right}
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    desk.write_config(track_preference="a", sensitive=True)
    with pytest.raises(PolicyError, match="may not leave the network"):
        desk.runner().rollback("small", 1)
    with pytest.raises(PolicyError, match="may not leave the network"):
        desk.runner().promote("small", 1, override="all the same")


def test_a_torn_event_line_loses_nothing_else(desk: Desk) -> None:
    job = desk.runner().submit("small", 1)
    path = desk.client / "runs" / job.run_id / "events.jsonl"
    whole = len(desk.runner().engine.events(job.run_id))
    path.write_bytes(path.read_bytes() + b'{"at":"20')
    assert desk.runner().poll(job.run_id).state == "finished"
    path.write_bytes(path.read_bytes() + b"\n")
    assert len(desk.runner().engine.events(job.run_id)) == whole


def test_at_answers_what_was_in_service_then(desk: Desk) -> None:
    desk.runner().submit("small", 1)
    registry = desk.runner().registry("small")
    assert [entry.active for entry in registry.at(datetime.now(UTC))] == [True]


def test_a_version_that_is_not_registered_is_sought_on_the_track_that_was_named_only(desk: Desk) -> None:
    with pytest.raises(RegistryError, match=r"^v7 is not in the registry \(registered: nothing yet\)"):
        desk.runner().entry("small", 7, None)
    with pytest.raises(RegistryError, match=r"^v7 \(track A\) is not in the registry"):
        desk.runner().entry("small", 7, "A")


def test_a_run_that_is_unknown_is_an_error(desk: Desk) -> None:
    with pytest.raises(RunError, match="unknown"):
        desk.runner().poll("small-v9-b-00000000-1")
