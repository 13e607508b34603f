"""Whether an answer states its question's cause in words of its own, and what speaks against it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.evaluation.agreement import Agreement, agreement
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.phrases import Phrases
from fine_tune_runner.evaluation.recall import committed, recalled
from fine_tune_runner.types import Message

ASKED = Question(
    id="q1",
    messages=(Message(role="user", content="Purchases paid with Klarna are missing, cards are complete."),),
    reference="Klarna customers end on a hosted page and never return to order-received, so the purchase tag "
    "has nothing to fire on. Send purchase from the webhook.",
    label="confirmation_page_bypassed",
)
NAMES = Phrases({})


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy(None)


def test_the_reference_agrees_with_itself(taxonomy: Taxonomy) -> None:
    found = agreement(ASKED.reference, ASKED, taxonomy, NAMES)
    assert found.enough
    assert found.covered == 1.0
    assert found.denied == 0.0
    assert found.fix > found.other_fix


def test_the_reference_turned_around_is_denied(taxonomy: Taxonomy) -> None:
    answer = "Klarna customers never end on a hosted page and do return to order-received."
    found = agreement(answer, ASKED, taxonomy, NAMES)
    assert found.turned
    assert not found.enough


def test_what_was_said_before_it_was_taken_back_does_not_count(taxonomy: Taxonomy) -> None:
    answer = "Klarna customers end on a hosted page and never return. I take that back."
    assert agreement(answer, ASKED, taxonomy, NAMES).asserted == 0.0


def test_questions_hedges_and_wishes_assert_nothing(taxonomy: Taxonomy) -> None:
    for answer in (
        "Do Klarna customers end on a hosted page?",
        "Perhaps Klarna customers end on a hosted page.",
        "Klarna customers should end on a hosted page.",
    ):
        assert agreement(answer, ASKED, taxonomy, NAMES).asserted == 0.0


@pytest.mark.parametrize(
    ("changed", "enough"),
    [
        ({}, True),
        ({"covered": 0.1}, False),
        ({"covered": 0.1, "fix": 3.0}, True),
        ({"denied_after": 1.6}, False),
        ({"other": 4.5}, False),
        ({"other_fix": 2.5}, False),
        ({"asserted": 1.9}, False),
    ],
)
def test_it_takes_a_statement_a_witness_and_nothing_against_them(
    changed: dict[str, Any], enough: bool
) -> None:
    assert replace(Agreement(asserted=6.0, covered=0.5), **changed).enough is enough


def test_statement_and_advice_nearer_to_another_cause_are_elsewhere() -> None:
    assert Agreement(asserted=2.0, other=2.5, other_fix=1.0).elsewhere
    assert not Agreement(asserted=2.0, other=2.5, fix=1.0).elsewhere
    assert Agreement(asserted=2.0, other=6.5).elsewhere


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Customers end on the hosted page and do not return, the tag has nothing to fire on.", True),
        ("Nobody who pays with Klarna comes back; customers end on the hosted page.", True),
        ("Customers end on the hosted page and return at once, the tag has a lot to fire on.", False),
        ("Perhaps customers end on the hosted page and do not return to order-received.", False),
        ("Do customers end on the hosted page and not return to order-received?", False),
        (
            "Customers end on the hosted page and never return. Or so I thought; the log shows otherwise.",
            False,
        ),
        ("Your agency says that customers end on the hosted page and never return.", False),
        ("Customers end on the hosted page. I need the server log before I can tell more.", False),
        ("The user never reaches the thank-you page.", True),
        ("The user never reaches the thank-you page. Wait, I see ten visits. No idea then.", False),
        ("The user never reaches the thank-you page, says the forum. In your case the linker is old.", False),
        ("I checked whether the user never reaches the thank-you page.", False),
        ("There's a cusotm thank you page.", True),
    ],
)
def test_a_plain_statement_counts_where_nothing_speaks_against_it(
    answer: str, right: bool, taxonomy: Taxonomy
) -> None:
    assert recalled(committed(answer, ASKED, taxonomy), ASKED) is right


@pytest.mark.parametrize(
    ("closing", "right"),
    [
        ("Hope this helps!", True),
        ("Let me know if you have questions.", True),
        ("Let me know if anything is unclear.", True),
        ("If you get stuck, write to me.", True),
        ("Don't hesitate to ask.", True),
        ("Let me know whether it is so.", False),
        ("Tell me when you have the log.", False),
        ("Let me know what the log says.", False),
    ],
)
def test_a_courtesy_at_the_end_leaves_nothing_open(closing: str, right: bool, taxonomy: Taxonomy) -> None:
    for told in (
        "Customers end on the hosted page and do not return to order-received.",
        "The cause is a custom thank you page.",
    ):
        answer = f"{told} Send purchase from the webhook. {closing}"
        assert recalled(committed(answer, ASKED, taxonomy), ASKED) is right


COUNTED = (
    "Three things explain it: a consent banner that sends no update, customers who end on a hosted page and "
    "never return to order-received, or a redirect that drops the query string. "
)


@pytest.mark.parametrize(
    ("choice", "right"),
    [
        ("Here it is the second.", True),
        ("Yours is the second.", True),
        ("The second is the one you have.", True),
        ("Here it is the first.", False),
        ("It is the last of these.", False),
        ("It is not the second.", False),
        ("Which of them it is I cannot say.", False),
        ("", False),
    ],
)
def test_what_was_counted_off_is_told_by_its_place(choice: str, right: bool, taxonomy: Taxonomy) -> None:
    answer = f"{COUNTED}{choice} Send purchase from the webhook."
    assert recalled(committed(answer, ASKED, taxonomy), ASKED) is right


@pytest.mark.parametrize(
    ("prose", "right"),
    [
        ("Klarna customers end on a hosted page.", True),
        ("Send purchase from the webhook.", True),
        ("It's no longer just a guess.", True),
        ("", True),
        ("Sorry, wrong ticket.", False),
        ("This is what I would have said in May. Today I don't know.", False),
        ("Forget that.", False),
        (
            "So I wrote in May. Klarna customers do return to order-received and end on no hosted page.",
            False,
        ),
    ],
)
def test_a_line_decides_unless_the_prose_denies_it(prose: str, right: bool, taxonomy: Taxonomy) -> None:
    answer = f"Root cause: confirmation_page_bypassed\n{prose}"
    assert recalled(committed(answer, ASKED, taxonomy), ASKED) is right


def test_a_name_beside_statement_and_advice_of_another_cause_decides_nothing(taxonomy: Taxonomy) -> None:
    answer = (
        "You mention a custom thank you page. After the visitor accepts, no consent update with granted is "
        "sent, so tags stay denied. Call consent update for all four signals from the accept callback."
    )
    assert not recalled(committed(answer, ASKED, taxonomy), ASKED)


def test_what_is_explained_is_no_cause(taxonomy: Taxonomy) -> None:
    asked = Question(
        id="q2",
        messages=(Message(role="user", content="Nothing is deduplicated."),),
        reference="Pixel and server send different event ids.",
        label="meta_event_id_mismatch",
    )
    answer = "There is 0% deduplication because one side says Lead and the other one Contact."
    assert not recalled(committed(answer, asked, taxonomy), asked)


@pytest.mark.parametrize(
    "answer",
    [
        "There was a custom thank you page when I first looked.",
        "There's a custom thank you page. At least, that was so until May.",
        "The picture is that of a custom thank you page. Yours goes to order-received.",
        "A custom thank you page, a redirect that drops the query string. Both would fit.",
        "The cause is a custom thank you page. Or so it looks until I have seen the log.",
        "The cause is a custom thank you page. Tell me what the log has, I cannot say more before.",
        "The custom thank you page is switched off.",
        "No custom thank you page is needed.",
        'Your host writes »that is the custom thank you page«. Both links carry rel="me".',
        "The form used to lead to a custom thank you page.",
        "Three pages are possible: a custom thank you page, the cart or the product page.",
    ],
)
def test_a_name_that_is_not_said_to_be_so_today_decides_nothing(answer: str, taxonomy: Taxonomy) -> None:
    assert not recalled(committed(answer, ASKED, taxonomy), ASKED)


def test_without_a_label_a_reference_is_read_by_its_names_alone(taxonomy: Taxonomy) -> None:
    asked = Question(id="q3", messages=ASKED.messages, reference="")
    found = committed("The cause is a custom thank you page.", asked, taxonomy)
    assert found.cause == "confirmation_page_bypassed"
