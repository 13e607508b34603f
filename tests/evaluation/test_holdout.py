from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.holdout import Holdout, edited, load_holdout


def row(question: str, answer: str, **labels: Any) -> dict[str, Any]:
    turns = (("system", "You are an expert."), ("user", question), ("assistant", answer))
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"messages": messages, "eval": labels} if labels else {"messages": messages}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "v3_eval.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy(None)


def test_a_given_label_stands_over_the_line_of_the_reference(tmp_path: Path, taxonomy: Taxonomy) -> None:
    path = write(
        tmp_path, row("Why?", "Root cause: csp_blocks_tags", id="hre-1", root_cause="consent_update_missing")
    )
    question = load_holdout(path, taxonomy).questions[0]
    assert (question.id, question.label, question.labelled) == ("hre-1", "consent_update_missing", "given")


def test_a_label_is_derived_from_the_reference_through_the_taxonomy(
    tmp_path: Path, taxonomy: Taxonomy
) -> None:
    path = write(tmp_path, row("Why?", "Root cause: banner does not send update\nFix: call it."))
    question = load_holdout(path, taxonomy).questions[0]
    assert (question.label, question.labelled) == ("consent_update_missing", "derived")


def test_the_reference_is_not_part_of_what_is_asked(tmp_path: Path, taxonomy: Taxonomy) -> None:
    question = load_holdout(write(tmp_path, row("Why?", "Because.")), taxonomy).questions[0]
    assert [(m.role, m.content) for m in question.messages] == [
        ("system", "You are an expert."),
        ("user", "Why?"),
    ]
    assert (question.reference, question.label, question.labelled) == ("Because.", None, None)


def test_every_question_can_be_asked_under_one_system_prompt(tmp_path: Path, taxonomy: Taxonomy) -> None:
    holdout = load_holdout(write(tmp_path, row("Why?", "Because.")), taxonomy, "You know HRE.")
    systems = [m.content for m in holdout.questions[0].messages if m.role == "system"]
    assert systems == ["You know HRE."]
    assert holdout.system_prompt == "You know HRE."


def test_accepted_and_rejected_names_are_labels_where_known_else_wordings(
    tmp_path: Path, taxonomy: Taxonomy
) -> None:
    labels = {
        "root_cause": "consent_update_missing",
        "accept": ["first page view lost", "tags wait for ever"],
        "aliases": ["banner is mute"],
        "reject": ["no consent default", "cookie too short"],
    }
    question = load_holdout(write(tmp_path, row("Why?", "Because.", **labels)), taxonomy).questions[0]
    assert question.accept == ("first_pageview_before_consent",)
    assert question.aliases == ("banner is mute", "tags wait for ever")
    assert question.reject == ("consent_default_missing_or_late",)
    assert question.denials == ("cookie too short",)
    assert question.right == {"consent_update_missing", "first_pageview_before_consent"}


LABELLED = row("Why?", "Root cause: csp_blocks_tags")


@pytest.mark.parametrize(
    ("rows", "measure"),
    [
        ([LABELLED, row("How?", "Root cause: sgtm_domain_dns")], "recall"),
        ([LABELLED], "recall"),
        ([LABELLED, row("How?", "The banner is mute.")], "contrast"),
        ([row("Why?", "The banner is mute."), row("How?", "The tag is late.")], "contrast"),
        ([row("Why?", "The banner is mute."), row("How?", "the  banner is MUTE.")], "similarity"),
        ([row("Why?", "The banner is mute.")], "similarity"),
    ],
)
def test_the_measure_is_what_all_questions_allow(
    rows: list[dict[str, Any]], measure: str, tmp_path: Path, taxonomy: Taxonomy
) -> None:
    assert load_holdout(write(tmp_path, *rows), taxonomy).measure == measure


def test_leaving_rows_out_keeps_the_rest_and_its_measure(tmp_path: Path, taxonomy: Taxonomy) -> None:
    rows = [row("Why?", "Root cause: csp_blocks_tags", id="a"), row("How?", "The banner is mute.", id="b")]
    whole = load_holdout(write(tmp_path, *rows), taxonomy)
    less = whole.without(["b"])
    assert [q.id for q in less.questions] == ["a"]
    assert (whole.measure, less.measure) == ("contrast", "recall")
    assert less.sha256 == whole.sha256


def test_two_rows_with_one_id_are_refused(tmp_path: Path, taxonomy: Taxonomy) -> None:
    path = write(tmp_path, row("Why?", "A.", id="x"), row("How?", "B.", id="x"))
    with pytest.raises(DataError, match=r"rows 1 and 2 have the same id 'x'"):
        load_holdout(path, taxonomy)


def test_prompts_are_one_a_question_and_repeat(tmp_path: Path, taxonomy: Taxonomy) -> None:
    holdout = load_holdout(write(tmp_path, row("Why?", "A.", id="a"), row("How?", "B.", id="b")), taxonomy)
    assert [(p.question_id, p.k) for p in holdout.prompts(range(2))] == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
    ]


def test_rows_that_both_ask_but_answer_in_another_way_are_found(tmp_path: Path, taxonomy: Taxonomy) -> None:
    def in_folder(name: str, *rows: dict[str, Any]) -> Holdout:
        (tmp_path / name).mkdir()
        return load_holdout(write(tmp_path / name, *rows), taxonomy)

    fix, other = "Root cause: csp_blocks_tags", "Root cause: consent_update_missing"
    old = in_folder(
        "old",
        row("same", fix),
        row("reworded", fix),
        row("relabelled", "x", root_cause="a"),
        row("gone", fix),
    )
    new = in_folder(
        "new",
        row("new", fix),
        row("relabelled", "x", root_cause="b", id="r-7"),
        row("same", fix, id="named since"),
        row("reworded", other),
    )
    assert [(q.id, q.line, was.line) for q, was in edited(new, old)] == [
        ("r-7", 2, 3),
        ("v3_eval:4", 4, 2),
    ]
