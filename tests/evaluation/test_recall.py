"""Which cause an answer committed to. `worked_answers.jsonl` are the answers the rules were written with;
`hard_answers.jsonl` were written before they were first run, and no rule was changed for one of them.

Those that failed at their first run and led to a rule were moved to the worked ones: 5 of 92 right and 18
of 122 wrong answers, most of the wrong ones from the last two batches, which set out to find holes. So expect
a new set of such answers to find more; this table guards against falling back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.recall import committed, committed_sentences, recalled
from fine_tune_runner.types import Message

UPDATE = "consent_update_missing"
DEFAULT = "consent_default_missing_or_late"


def question(label: str | None, **labels: Any) -> Question:
    asked = (Message(role="user", content="Conversions fell after the banner launch. Why?"),)
    return Question(id="q1", messages=asked, reference="", label=label, **labels)


def table(name: str) -> list[dict[str, Any]]:
    lines = (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def judge(row: dict[str, Any], taxonomy: Taxonomy) -> bool:
    asked = question(row["label"])
    return recalled(committed(row["answer"], asked, taxonomy), asked)


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy(None)


@pytest.mark.parametrize("row", table("worked_answers.jsonl"), ids=lambda row: row["answer"][:40])
def test_the_answers_the_rules_were_written_with_are_read_as_meant(
    row: dict[str, Any], taxonomy: Taxonomy
) -> None:
    assert judge(row, taxonomy) is row["right"]


def test_no_wrong_hard_answer_is_accepted(taxonomy: Taxonomy) -> None:
    wrong = [row for row in table("hard_answers.jsonl") if not row["right"]]
    assert len(wrong) >= 60
    assert [row["answer"] for row in wrong if judge(row, taxonomy)] == []


def test_nine_in_ten_right_hard_answers_are_recognised(taxonomy: Taxonomy) -> None:
    right = [row for row in table("hard_answers.jsonl") if row["right"]]
    assert len(right) >= 60
    assert sum(judge(row, taxonomy) for row in right) >= 0.9 * len(right)


AFFIRMED = (
    "Root cause: {}.\nFix: it.",
    "The root cause is {}.",
    "This is caused by {}, so nothing arrives.",
    "{}. That is the root cause.",
)
DENIED = (
    "Root cause: not {}",
    "The root cause is not {}.",
    "{}, tempting as it is, is not the root cause.",
    "The root cause has nothing to do with {}.",
    "I ruled out {} as the cause.",
    "You suspect that {} is the cause.",
    "The cause may be {}.",
    "Is the cause {}?",
)


@pytest.mark.parametrize("template", AFFIRMED)
def test_every_name_of_every_cause_is_read_where_it_is_affirmed(template: str, taxonomy: Taxonomy) -> None:
    names = [(label, name) for label, cause in taxonomy.causes.items() for name in (label, *cause.aliases)]
    found = {
        name: committed(template.format(name), question(label), taxonomy).cause == label
        for label, name in names
    }
    assert [name for name, right in found.items() if not right] == []


@pytest.mark.parametrize("template", DENIED)
def test_no_name_of_any_cause_is_read_where_it_is_denied_or_doubted(
    template: str, taxonomy: Taxonomy
) -> None:
    names = [name for label, cause in taxonomy.causes.items() for name in (label, *cause.aliases)]
    found = [committed(template.format(name), question(None), taxonomy).cause for name in names]
    assert [cause for cause in found if cause] == []


def test_an_own_line_decides_alone(taxonomy: Taxonomy) -> None:
    answer = f"Root cause: {UPDATE}\nThe root cause is {DEFAULT}."
    found = committed(answer, question(UPDATE), taxonomy)
    assert (found.cause, found.method) == (UPDATE, "line")


def test_a_line_that_names_nothing_known_is_unresolved_whatever_follows(taxonomy: Taxonomy) -> None:
    answer = f"Root cause: gremlins\nThe root cause is {UPDATE}."
    found = committed(answer, question(UPDATE), taxonomy)
    assert (found.cause, found.method) == (None, "unresolved")


def test_two_causes_in_one_line_are_wrong(taxonomy: Taxonomy) -> None:
    found = committed(f"Root cause: {UPDATE} or {DEFAULT}", question(UPDATE), taxonomy)
    assert (found.cause, found.method) == (None, "line")


def test_several_committed_causes_are_read_and_wrong(taxonomy: Taxonomy) -> None:
    answer = f"The root cause is {UPDATE}. The cause is also {DEFAULT}."
    found = committed(answer, question(UPDATE), taxonomy)
    assert (found.cause, found.method) == (None, "committed")
    assert UPDATE in found.evidence
    assert DEFAULT in found.evidence


def test_an_accepted_cause_counts_as_right(taxonomy: Taxonomy) -> None:
    asked = question(UPDATE, accept=("first_pageview_before_consent",))
    found = committed("The cause is first_pageview_before_consent.", asked, taxonomy)
    assert recalled(found, asked)


def test_a_rejected_cause_never_counts_even_where_it_is_accepted(taxonomy: Taxonomy) -> None:
    asked = question(UPDATE, accept=(DEFAULT,), reject=(DEFAULT,))
    assert not recalled(committed(f"Root cause: {DEFAULT}", asked, taxonomy), asked)


def test_an_alias_of_the_question_names_its_cause(taxonomy: Taxonomy) -> None:
    asked = question(UPDATE, aliases=("accept button does nothing",))
    found = committed("The root cause is that the accept button does nothing.", asked, taxonomy)
    assert recalled(found, asked)


def test_an_alias_of_the_question_stands_over_the_same_alias_of_another_cause(taxonomy: Taxonomy) -> None:
    asked = question(UPDATE, aliases=("no consent default",))
    found = committed("The root cause is that there is no consent default.", asked, taxonomy)
    assert found.cause == UPDATE


def test_a_rejected_wording_beside_the_right_cause_is_wrong(taxonomy: Taxonomy) -> None:
    asked = question(UPDATE, denials=("cookie lifetime too short",))
    answer = f"The root cause is {UPDATE} and cookie lifetime too short."
    assert not recalled(committed(answer, asked, taxonomy), asked)


def test_a_label_that_the_taxonomy_lacks_is_read_all_the_same() -> None:
    asked = question("printer_on_fire")
    assert recalled(committed("Root cause: printer on fire", asked, Taxonomy({})), asked)


def test_what_comes_after_the_fix_is_not_read(taxonomy: Taxonomy) -> None:
    answer = f"The root cause is {UPDATE}.\nFix: call update.\nThe root cause of other trouble is {DEFAULT}."
    assert committed(answer, question(UPDATE), taxonomy).cause == UPDATE


def test_committed_sentences_leave_out_the_denied_the_hedged_and_the_fix() -> None:
    answer = "It is not A. It might be B. The root cause is C.\nFix: do D because of E."
    assert committed_sentences(answer) == ["The root cause is C."]


@pytest.mark.parametrize(
    "answer", ["", " \n", "```", ">", "**", "Root cause:", "\x00", "." * 5000, "not " * 3000]
)
def test_degenerate_answers_are_unresolved(answer: str, taxonomy: Taxonomy) -> None:
    assert committed(answer, question(UPDATE), taxonomy).cause is None
