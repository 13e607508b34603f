"""Whether an answer says in other words what its reference says, and where it denies it."""

from __future__ import annotations

import pytest

from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.recall import committed, recalled
from fine_tune_runner.evaluation.wording import wording
from fine_tune_runner.types import Message

ASKED = Question(
    id="q1",
    messages=(Message(role="user", content="Purchases paid with Klarna are missing, cards are complete."),),
    reference="Klarna customers end on a hosted page and never return to order-received, so the purchase tag "
    "has nothing to fire on. Send purchase from the webhook.",
    label="confirmation_page_bypassed",
)


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy(None)


def test_the_reference_itself_says_all_and_nothing_else(taxonomy: Taxonomy) -> None:
    told = wording([ASKED.reference.split(". ")[0]], ASKED, taxonomy)
    assert (told.covered, told.own, told.denied) == (1.0, 1.0, ())


def test_what_the_reference_denies_and_the_answer_does_not_is_a_denial(taxonomy: Taxonomy) -> None:
    told = wording(["customers return to order-received from the hosted page"], ASKED, taxonomy)
    assert "return" in told.denied


def test_words_of_the_question_alone_say_little_of_the_answer(taxonomy: Taxonomy) -> None:
    assert wording(["Purchases paid with Klarna are missing"], ASKED, taxonomy).covered < 0.2


def test_the_fix_is_no_part_of_the_diagnosis(taxonomy: Taxonomy) -> None:
    assert wording(["Send purchase from the webhook"], ASKED, taxonomy).covered < 0.2


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Customers end on the hosted page and do not return, the tag has nothing to fire on.", True),
        ("Customers end on the hosted page and return at once, the tag has a lot to fire on.", False),
        ("Perhaps customers end on the hosted page and do not return to order-received.", False),
        ("Do customers end on the hosted page and not return to order-received?", False),
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


def test_an_id_that_the_reference_sets_against_another_is_denied_where_it_is_affirmed(
    taxonomy: Taxonomy,
) -> None:
    asked = Question(
        id="q2",
        messages=(Message(role="user", content="Realtime is empty."),),
        reference="The tag sends to G-OLD123 rather than to G-NEW456.",
        label="ga4_wrong_measurement_id",
    )
    assert wording(["The tag sends to G-NEW456"], asked, taxonomy).denied == ("new456",)
    assert wording(["The tag sends to G-OLD123 and not to G-NEW456"], asked, taxonomy).denied == ()
