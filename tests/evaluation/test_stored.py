"""Stored answers of a version that was switched off: when they stand in, and when nothing can be said."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.told_models import RIGHT, WRONG, Models, always, first, old_run, report, write_holdout

from fine_tune_runner.dataset.labels import Label, add_labels, labels_path
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import PolicyError
from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.evaluation.sentence import headline
from fine_tune_runner.types import Answerer, Decoding, Model

TEN = [f"q{i}" for i in range(10)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_holdout(tmp_path, 2, TEN)
    return tmp_path


def test_stored_answers_stand_in_for_a_version_that_was_switched_off(folder: Path) -> None:
    stored = old_run(folder, ["q1", "q3", "q5", "q7", "q8", "elsewhere"], always(RIGHT))
    found = report(folder, Models(new=first(6)), stored=stored)
    assert found.shared == ("v2-q1", "v2-q3", "v2-q5", "v2-q7", "v2-q8")
    verdict = decide(found, 0.05)
    # q1, q3, q5 right, q7 and q8 wrong, against five right ones.
    assert (verdict.decision, verdict.new, verdict.previous) == ("refuse", pytest.approx(0.6), 1.0)
    assert found.new.recall == 0.6  # over all ten questions
    assert "old was switched off; its answers of 2026-11-20 to 5 shared questions were" in found.warnings[0]
    assert "of v1 (track B), by its stored answers of 2026-11-20 to 5 shared questions" in verdict.reason


def test_stored_answers_are_used_where_every_call_fails(folder: Path) -> None:
    stored = old_run(folder, TEN, first(5))
    found = report(folder, Models(new=always(RIGHT), old=lambda q, k: None), stored=stored)
    assert len(found.shared) == 10
    assert decide(found, 0.05).decision == "promote"


def test_under_five_shared_questions_it_holds(folder: Path) -> None:
    stored = old_run(folder, ["q1", "q3", "q5", "q7"], always(WRONG))
    found = report(folder, Models(new=always(RIGHT)), stored=stored)
    verdict = decide(found, 0.05)
    assert (found.previous, verdict.decision) == (None, "hold")
    assert "cover only 4 of the questions" in verdict.reason


def test_a_broken_file_of_stored_answers_holds(folder: Path) -> None:
    stored = old_run(folder, TEN, always(WRONG))
    stored.path.write_text("{}\n")
    verdict = decide(report(folder, Models(new=always(RIGHT)), stored=stored), 0.05)
    assert verdict.decision == "hold"
    assert "old was switched off; its stored answers cannot be read: " in verdict.reason
    assert "1-B.jsonl line 1" in verdict.reason


def test_a_version_that_answers_nothing_and_left_nothing_holds(folder: Path) -> None:
    found = report(folder, Models(new=always(RIGHT), old=lambda q, k: None))
    assert decide(found, 0.05).reason == "old answered no question; nothing it answered is stored"


def test_answers_to_a_holdout_that_was_changed_since_hold(folder: Path) -> None:
    """An id may stand for another question by now."""
    stored = old_run(folder, TEN, always(WRONG))
    write_holdout(folder, 1, [f"q{i}" for i in range(9, -1, -1)])
    verdict = decide(report(folder, Models(new=always(RIGHT)), stored=stored), 0.05)
    assert verdict.decision == "hold"
    assert "v1_eval.jsonl was changed since" in verdict.reason


def test_answers_stand_in_also_where_a_label_was_confirmed_since(folder: Path) -> None:
    """A label changes no question."""
    stored = old_run(folder, TEN, always(RIGHT))
    row = load_holdout(stored.holdout, load_taxonomy(folder)).questions[0].row_sha256
    label = Label(row=row, root_cause="csp_blocks_tags", source="person", who="anna", at=stored.at)
    add_labels(labels_path(stored.holdout), [label])
    assert load_holdout(stored.holdout, load_taxonomy(folder)).sha256 != stored.holdout_sha256
    verdict = decide(report(folder, Models(new=always(RIGHT)), stored=stored), 0.05)
    assert verdict.decision == "promote"


def test_answers_that_were_given_as_today_compare_strongly(folder: Path) -> None:
    found = report(folder, Models(new=always(RIGHT)), stored=old_run(folder, TEN, always(WRONG)))
    assert decide(found, 0.05, strict=True).strength == "strong"
    assert "another system prompt" not in found.warnings[0] + headline(found, decide(found, 0.05))


@pytest.mark.parametrize(
    "drawn", [{"system_prompt": "Another."}, {"decoding": Decoding(temperature=0.7)}], ids=str
)
def test_answers_that_were_given_in_another_way_are_weak_evidence_and_said_to_be(
    folder: Path, drawn: dict[str, Any]
) -> None:
    stored = old_run(folder, TEN, always(WRONG), **drawn)
    found = report(folder, Models(new=always(RIGHT)), stored=stored)
    verdict, strict = decide(found, 0.05), decide(found, 0.05, strict=True)
    assert (verdict.decision, verdict.strength, strict.decision) == ("promote", "weak", "hold")
    for said in (found.warnings[0], verdict.reason, strict.reason, headline(found, verdict)):
        assert "under another system prompt or decoding" in said


def test_answers_that_were_scored_by_another_holdout_or_taxonomy_are_as_good(folder: Path) -> None:
    """They are scored again today; only how they were given cannot be made up for."""
    stored = old_run(folder, TEN, always(WRONG))
    (folder / "taxonomy.jsonl").write_text('{"label": "of_this_client_alone"}\n')
    found = report(folder, Models(new=always(RIGHT)), stored=stored)
    assert decide(found, 0.05).strength == "strong"


def test_scores_on_record_are_not_taken_over(folder: Path) -> None:
    stored = old_run(folder, TEN, first(5))
    lines = stored.path.read_bytes().replace(b'"score":1.0', b'"score":0.0')
    stored.path.write_bytes(lines)
    found = report(folder, Models(new=always(RIGHT)), stored=stored)
    assert found.previous is not None
    assert found.previous.recall == 0.5


def test_failed_calls_among_stored_answers_are_no_answers(folder: Path) -> None:
    failing = old_run(folder, TEN, lambda q, k: RIGHT if int(q[-1]) > 3 else None)
    found = report(folder, Models(new=always(RIGHT)), stored=failing)
    assert found.shared == tuple(f"v2-q{i}" for i in range(4, 10))
    assert decide(found, 0.05).decision == "promote"


class Forbidden(Models):
    """The old model's track may not be asked: no key, or a client that became sensitive."""

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Mapping[str, Answerer]]:
        if any(model.model_id in self.forbidden for model in models):
            raise PolicyError("Track A has no key")
        yield {model.model_id: self for model in models}

    forbidden: tuple[str, ...] = ("old",)


def test_stored_answers_stand_in_where_the_old_track_may_not_be_asked(folder: Path) -> None:
    stored = old_run(folder, TEN, always(RIGHT))
    found = report(folder, Forbidden(new=always(RIGHT)), stored=stored)
    assert decide(found, 0.05).decision == "promote"
    assert "Track A has no key; its answers of 2026-11-20" in found.warnings[0]


def test_a_new_model_that_may_not_be_asked_ends_the_evaluation(folder: Path) -> None:
    stored = old_run(folder, TEN, always(RIGHT))
    models = Forbidden(new=always(RIGHT))
    models.forbidden = ("new",)
    with pytest.raises(PolicyError, match="no key"):
        report(folder, models, stored=stored)
