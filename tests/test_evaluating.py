"""How a run is judged, as the command or config.json says: `--strict`, `--answers`, and what is on record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.cli.transcript import Transcript
from fine_tune_runner.errors import ConfigError, Interrupted
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import EvalConfig, load_client
from fine_tune_runner.types import Decoding, Run
from tests.scripted_track import Letters
from tests.small_client import holdout_rows, write_rows
from tests.test_runner import Desk, right, right_below, wrong


def right_but_for(*wrong_ids: int) -> Callable[[str], str]:
    return lambda question_id: (wrong if int(question_id[-3:]) in wrong_ids else right)(question_id)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Version 2 loses one question of twelve and gains another one: no change, and weak evidence for it."""
    desk = Desk(tmp_path, track_preference="b")
    desk.track.script = {0: wrong, 1: right_but_for(0), 2: right_but_for(1)}
    desk.runner().submit("small", 1)
    return desk


def test_weak_evidence_promotes_unless_strict(desk: Desk) -> None:
    job = desk.runner().submit("small", 2, strict=True)
    assert job.verdict is not None
    assert (job.verdict.decision, job.verdict.strength, job.verdict.strict) == ("hold", "weak", True)
    assert "does not promote under --strict" in job.verdict.reason
    assert desk.statuses() == {1: "active", 2: "held"}
    again = desk.runner().submit("small", 2, again=True)
    assert again.verdict is not None
    assert (again.verdict.decision, again.verdict.strict) == ("promote", False)


def test_strong_evidence_promotes_also_under_strict(desk: Desk) -> None:
    desk.track.script = {0: wrong, 1: wrong, 2: right}
    job = desk.runner().submit("small", 2, strict=True)
    assert job.verdict is not None
    assert (job.verdict.decision, job.verdict.strength) == ("promote", "strong")


def test_evaluate_takes_both(desk: Desk) -> None:
    desk.runner().submit("small", 2, strict=True)
    report, verdict = desk.runner().evaluate("small", 2, strict=True, answers=2)
    assert (report.answers_per_question, verdict.answers_per_question, verdict.decision) == (2, 2, "hold")
    assert desk.runner().evaluate("small", 2)[1].decision == "promote"


def test_the_number_of_answers_is_the_commands_before_the_configs(desk: Desk) -> None:
    desk.write_config(track_preference="b", eval={"answers": 4})
    first = desk.runner().submit("small", 2)
    assert first.verdict is not None
    assert first.verdict.answers_per_question == 4
    report, _ = desk.runner().evaluate("small", 2, answers=6)
    assert (report.answers_per_question, report.new.answers) == (6, 72)


def test_both_are_on_the_runs_record_and_not_lost_by_going_on(desk: Desk) -> None:
    desk.track.cost_usd = 12.5
    with pytest.raises(Interrupted):
        desk.runner(confirm=lambda estimate: False).submit("small", 2, strict=True, answers=2)
    (path,) = desk.client.glob("runs/small-v2-*/run.json")
    run = json.loads(path.read_text())
    assert (run["strict"], run["answers"]) == (True, 2)
    job = desk.runner().submit("small", 2)
    assert job.verdict is not None
    assert (job.verdict.decision, job.verdict.answers_per_question) == ("hold", 2)
    known: Run = desk.runner().engine.find(job.run_id).run
    assert known.strict


def test_a_shared_row_that_was_edited_is_said_by_name_and_line(desk: Desk) -> None:
    rows = holdout_rows()
    rows[3]["messages"][-1]["content"] += " Then publish."
    write_rows(desk.client / "v2_eval.jsonl", rows)
    desk.runner().submit("small", 2)
    (said,) = [event.data["message"] for event in desk.events if event.event == "warning"]
    assert "v2_eval.jsonl asks questions of" in said
    assert "line 4 (small-003; line 4 there); earlier scores" in said


def test_a_comparison_across_tracks_names_the_track(desk: Desk) -> None:
    desk.write_config()
    desk.track.script = {0: wrong, 1: right, 2: right}
    desk.runner().submit("small", 2, "A")
    (report,) = [e.data for e in desk.events if e.event == "evaluated" and e.data["report"]["previous_key"]]
    assert report["report"]["previous_key"] == {"version": 1, "track": "B"}
    assert "    Regression vs v1 on track B: ✓ +0.00 no change" in printed(desk)


def printed(desk: Desk, **changes: int) -> str:
    """What the terminal shows of the last evaluation, with changes laid over the new version's card."""
    event = next(e for e in reversed(desk.events) if e.event == "evaluated")
    event.data["report"]["new"] |= changes
    with CliRunner().isolation() as (out, _, _):
        Transcript("SMALL", live=False)(event)
        return out.getvalue().decode()


def test_a_sample_of_the_answers_is_said_to_be_one(desk: Desk) -> None:
    assert re.search(r"✓ \d\.\d\d cosine sim\n", printed(desk))
    assert " cosine sim (of 200 of 1000 questions)\n" in printed(
        desk, questions=1000, similarity_questions=200
    )


@pytest.mark.parametrize("command", ["submit", "eval"])
def test_a_number_of_answers_that_is_none_is_refused(command: str) -> None:
    words = [command, "--client", "small", "--version", "2", "--answers", "0"]
    result = CliRunner().invoke(fine_tune, words)
    assert result.exit_code == 2
    assert "--answers" in result.output


def test_a_worse_version_is_refused_under_strict_too(desk: Desk) -> None:
    desk.track.script = {0: wrong, 1: right, 2: right_below(9)}
    job = desk.runner().submit("small", 2, strict=True)
    assert job.verdict is not None
    assert job.verdict.decision == "refuse"


@pytest.mark.parametrize(
    ("wrong_value", "said"),
    [
        ({"answers": 0}, "eval.answers is 0; give 1 to 100"),
        ({"answers": 101}, "eval.answers is 101"),
        ({"temperature": -0.1}, "eval.temperature is -0.1; give 0 to 2"),
        ({"max_tokens": 0}, "eval.max_tokens is 0; give 1 or more"),
    ],
)
def test_a_wrong_value_is_named_before_any_work(desk: Desk, wrong_value: dict[str, float], said: str) -> None:
    desk.write_config(eval=wrong_value)
    with pytest.raises(ConfigError, match=said):
        load_client(desk.settings, "small")


def test_every_word_of_decoding_comes_from_the_config() -> None:
    config = EvalConfig(temperature=0.7, max_tokens=9, seed=3, answers=4)
    assert config.decoding == Decoding(temperature=0.7, max_tokens=9, seed=3)
    assert len(Decoding.__struct_fields__) == 3  # a new one has to be handed on, too


class Broken(Letters):
    """An embedder that fails once answers are to be scored."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if any("in other words" in text for text in texts):
            raise RuntimeError("the scorer broke")
        return super().embed(texts)


def test_a_scorer_that_breaks_ends_the_run_and_the_version_in_service_stays(desk: Desk) -> None:
    desk.track.script = {0: wrong, 1: right, 2: lambda question_id: f"{right(question_id)} in other words"}
    runner = FineTuneRunner(
        desk.settings,
        tracks={"A": desk.track.maker(), "B": desk.track.maker()},
        embedder=lambda settings: Broken(),
        who="anna",
    )
    with pytest.raises(RuntimeError, match="the scorer broke"):
        runner.submit("small", 2)
    assert desk.statuses() == {1: "active", 2: "eval"}
