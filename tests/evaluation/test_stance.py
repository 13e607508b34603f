"""What one answer says of a cause: the principles by which a name in it counts as asserted or does not."""

from __future__ import annotations

import pytest

from fine_tune_runner.evaluation.phrases import Phrases
from fine_tune_runner.evaluation.stance import read

LINKER = "linker_missing"
NAMES = Phrases({LINKER: ("no linker", "old linker script")})


def asserts(answer: str) -> bool:
    reading = read(answer, NAMES)
    named = LINKER in reading.affirmed or (LINKER in reading.asserted and reading.stands(LINKER))
    return named and not reading.open


@pytest.mark.parametrize(
    "answer",
    [
        "Linker missing, or a redirect.",
        "50:50 between a missing linker and a redirect.",
        "linker missing / tag paused / wrong label",
        "Wrong label, missing linker, paused tag.",
        "Linker missing, wrong label, paused tag. I can't say which.",
    ],
)
def test_one_of_several_names_is_not_asserted(answer: str) -> None:
    assert not asserts(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "A missing linker has been the usual story.",
        "The old linker script is one reading.",
        "A missing linker is what support answers to everyone.",
        "Linker missing is among the things that people find.",
    ],
)
def test_a_name_that_something_else_is_said_of_is_not_asserted(answer: str) -> None:
    assert not asserts(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Everything is possible with the exception of a missing linker.",
        "Nobody has shown a missing linker.",
        "There's no way it's a linker missing.",
        "This is more than a missing linker.",
        "A missing linker is nothing I can confirm.",
        "The old linker script was corrected on Tuesday.",
        "Linker missing, claims the agency.",
        "Linker missing explains Ads, but not Meta.",
        "It's as if the linker was missing.",
        "A missing linker it was, which is no longer the case.",
    ],
)
def test_a_name_that_is_denied_past_partial_or_somebody_elses_is_not_asserted(answer: str) -> None:
    assert not asserts(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Linker missing - the container has nothing that would store the click.",
        "Linker missing. Caches may take 20 minutes after you publish, maybe 30 minutes.",
        "Consent: no. That leaves a missing linker.",
        "I looked at consent and the label, and the container has no linker.",
        "I wrote old redirect. Cross that out and write linker_missing.",
    ],
)
def test_what_a_thing_is_for_an_amount_and_what_was_ruled_out_before_are_no_doubt(answer: str) -> None:
    assert asserts(answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Linker missing? Yes: in every container.", True),
        ("Linker missing? No, it is there.", False),
        ("Linker missing? Yes and no.", False),
        ("Anna suspected a missing linker, and I can confirm it.", True),
        ("Anna suspected a missing linker. She was right.", True),
        ("Anna suspected a missing linker. She was not right.", False),
        ("Anna suspected a missing linker. Last year she was right.", False),
    ],
)
def test_a_yes_or_a_confirmation_makes_the_name_the_answers_own(answer: str, said: bool) -> None:
    assert asserts(answer) is said
