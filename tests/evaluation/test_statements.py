"""Clauses as words under a parity of negation, and how much of one statement another says."""

from __future__ import annotations

import pytest

from fine_tune_runner.dataset.taxonomy import Cause
from fine_tune_runner.evaluation.phrases import fold
from fine_tune_runner.evaluation.statements import Causes, clauses, likeness, statement


@pytest.mark.parametrize(
    ("said", "meant", "parity"),
    [
        ("the lamp never lights the hall", "the lamp does not light the hall", 0),
        ("the lamp lights the hall", "the lamp does not light the hall", 1),
        ("it is not so that the lamp does not light the hall", "the lamp lights the hall", 0),
        ("no key is in the door", "the key is missing in the door", 0),
        ("both doors have the same key", "the doors have different keys", 1),
        ("the doors do not have the same key", "the doors have different keys", 0),
        ("the wall comes before the roof", "the wall comes after the roof", 1),
        ("the courier keeps the parcel", "the courier loses the parcel", 1),
        ("the wrong key", "the key isn't wrong", 1),
    ],
)
def test_a_negation_or_an_opposite_more_turns_a_statement_around(said: str, meant: str, parity: int) -> None:
    assert statement(fold(said)).parity(statement(fold(meant))) == parity


def test_an_opposite_counts_only_where_both_speak_of_it() -> None:
    assert statement("the bell rings after dinner").parity(statement("the bell rings")) == 0


def test_a_prefix_denies_a_word_that_is_known_without_it() -> None:
    known = frozenset({"connect"})
    assert statement("the pump is disconnected", known).words == statement("the pump is connected").words
    assert statement("the pump is disconnected", known).odd
    assert not statement("the pump is displaced", known).odd


def test_clauses_end_at_commas_and_conjunctions() -> None:
    assert clauses("the pump runs, so the tank fills because nobody looks") == [
        "the pump runs",
        "the tank fills",
        "nobody looks",
    ]


def test_likeness_is_shared_weight_times_share_of_the_statement() -> None:
    said, other = statement("the pump fills a red tank"), statement("the pump fills the tank")
    weights = {"pump": 2.0, "fill": 1.0, "tank": 1.0}
    assert likeness(said, [other], lambda word: weights.get(word, 5.0)) == (4.0, 0.0)
    half = statement("the pump fills the boiler")  # 3 of 8 shared: 9 / 8
    assert likeness(said, [half], lambda word: weights.get(word, 5.0)) == (9 / 8, 0.0)


def test_another_parity_is_a_denial_only_where_the_negated_word_is_shared() -> None:
    denial = statement(fold("the pump does not fill the tank"))
    aside = statement(fold("the pump fills the tank with no noise at all"))
    plain = [statement("the pump fills the tank")]
    assert likeness(denial, plain, lambda word: 1.0) == (0.0, 3.0)
    assert likeness(aside, plain, lambda word: 1.0) == (0.0, 0.0)


def test_a_word_of_few_causes_is_worth_more() -> None:
    causes = Causes([Cause(label="pump_dry"), Cause(label="pump_loud"), Cause(label="tank_leaks")])
    assert causes.rarity("pump") < causes.rarity("loud") < causes.rarity("submarine")


def test_what_another_cause_has_the_other_way_round_is_not_near_to_it() -> None:
    causes = Causes([Cause(label="pump_dry"), Cause(label="tank_full", aliases=("tank is full",))])
    but = frozenset({"pump_dry"})
    assert causes.nearest(causes.statement("the tank is full"), causes.rarity, but) > 0
    assert causes.nearest(causes.statement("the tank is not full"), causes.rarity, but) == 0


def test_advice_is_what_its_steps_are_about() -> None:
    causes = Causes([Cause(label="pump_dry", typical_fix="Fill the tank, and do not touch the valve.")])
    assert causes.fixes["pump_dry"] == {"tank"}


def test_only_what_a_statement_negates_can_be_said_against_it() -> None:
    known = [statement("the new door does not lock the shed")]
    _, denied = likeness(statement("the new door locks the shed"), known, lambda _: 1.0)
    _, beside = likeness(statement("the new door is painted green"), known, lambda _: 1.0)
    assert denied > 0
    assert beside == 0
