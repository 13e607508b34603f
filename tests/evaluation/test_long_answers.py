"""What in a long answer is its diagnosis: not what it sets aside, not its advice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.evaluation.agreement import Agreement
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.recall import committed, recalled
from fine_tune_runner.evaluation.sentences import sentences
from fine_tune_runner.types import Message

DNS = "sgtm_domain_dns"
ASKED = "Nothing arrives at our tagging server, the browser says that it cannot find sst.shop.example."
REFERENCE = (
    "The DNS record of the tagging subdomain was deleted in the move, so the host name does not resolve. "
    "Create the record again."
)
STATED = "The DNS record of the tagging subdomain was deleted, so the host name does not resolve."


@pytest.fixture(scope="module")
def taxonomy() -> Taxonomy:
    return load_taxonomy(None)


def recognised(answer: str, taxonomy: Taxonomy) -> bool:
    messages = (Message(role="user", content=ASKED),)
    asked = Question(id="q", messages=messages, reference=REFERENCE, label=DNS)
    return recalled(committed(answer, asked, taxonomy), asked)


@pytest.mark.parametrize(
    "answer",
    [
        f"{STATED}\n\nWhat it isn't:\n- A wrong server URL in the tag.\n- Consent, which is granted.",
        f"{STATED}\n\nWhat else we looked at:\n- The container. Could it be unpublished? It is live.",
        f"Ideas that do not apply:\n- A certificate that expired.\n\nThe cause: {STATED}",
    ],
)
def test_what_a_part_sets_aside_is_neither_a_rival_nor_a_doubt(answer: str, taxonomy: Taxonomy) -> None:
    assert recognised(answer, taxonomy)


@pytest.mark.parametrize(
    "answer",
    [
        "What it is not:\n- The DNS record of the tagging subdomain was deleted.\n\n"
        "What to do:\n- Create the record again.",
        f"Ruled out: {STATED}\n\nWhat to do: create the record again.",
        f"{STATED}\n\nWhat turned out not to apply: the tagging subdomain's DNS record was deleted.",
    ],
)
def test_a_cause_that_heads_what_is_set_aside_is_denied(answer: str, taxonomy: Taxonomy) -> None:
    assert not recognised(answer, taxonomy)


def test_what_is_set_aside_ends_where_the_cause_is_said() -> None:
    told = sentences("Excluded: the firewall and consent. The root cause is the record.")
    assert [sentence.aside for sentence in told] == [True, False]


@pytest.mark.parametrize(
    "advice",
    [
        "What we suggest:\n- Create the record again.\n- If you keep two servers, add the second as well.",
        "How to repair it:\n- Create the record again. Either host will do, keep one of the two.",
        "Our advice: create the record again, unless you would rather move the server.",
        "Create the record again. If you plan another brand one day, give it a subdomain of its own.",
    ],
)
def test_conditions_of_the_advice_are_no_doubts(advice: str, taxonomy: Taxonomy) -> None:
    assert recognised(f"{STATED}\n\n{advice}", taxonomy)


@pytest.mark.parametrize(
    "advice",
    [
        "What we suggest:\n- Create the record again.\n- If it is there, it was something else.",
        "What to do: create the record again. The reason may just as well be the firewall.",
        "Create the record again. Perhaps it is only the firewall.",
        "Plan:\n- Create the record again, then write to us: we cannot say which of the two it was.",
    ],
)
def test_a_doubt_of_the_cause_stands_wherever_it_is_said(advice: str, taxonomy: Taxonomy) -> None:
    assert not recognised(f"{STATED}\n\n{advice}", taxonomy)


def test_what_solves_it_is_advice(taxonomy: Taxonomy) -> None:
    assert recognised(f"{STATED}\nA new record solves it.", taxonomy)


def test_a_part_headed_as_the_verdict_decides_over_what_came_before(taxonomy: Taxonomy) -> None:
    verdict = "**What it is:** the firewall of the new provider turns every visitor away."
    advice = "**What to do:** create the record again."
    assert not recognised(f"{STATED}\n\n{verdict}\n\n{advice}", taxonomy)
    assert recognised(f"**What it is:** {STATED}\n\n{advice}", taxonomy)


def test_what_most_cases_are_or_a_closer_look_undoes_is_not_said_of_this_one(taxonomy: Taxonomy) -> None:
    advice = "Create the record again."
    assert not recognised(f"{STATED} That is how most such tickets end. {advice}", taxonomy)
    assert not recognised(f"{STATED} On closer inspection it is there. {advice}", taxonomy)


def test_what_was_found_where_one_looked_is_said(taxonomy: Taxonomy) -> None:
    advice = "What to do: create the record again."
    found = "the DNS record of the tagging subdomain was deleted and the host name does not resolve."
    assert recognised(f"I looked at the provider: {found}\n{advice}", taxonomy)
    assert not recognised(
        f"I looked for three things: a deleted record, consent, a firewall.\n{advice}", taxonomy
    )


def test_what_is_denied_before_the_cause_is_stated_weighs_half_of_what_is_denied_after() -> None:
    stated = Agreement(asserted=4.0, denied=1.5, covered=1.0)
    assert stated.enough
    assert not replace(stated, denied_after=1.5).enough
    assert not replace(stated, denied=2.5).enough
