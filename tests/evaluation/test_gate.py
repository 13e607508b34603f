"""The plain rule against hand-computed cases, and that missing evidence never promotes."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.told_reports import card, report

from fine_tune_runner.evaluation.gate import (
    Comparison,
    Scores,
    behind_best,
    compare,
    decide,
    judge,
    passes,
    schedule,
    undecided,
)
from fine_tune_runner.types import Evaluation, Verdict, VersionKey


def right(count: int, of: int) -> dict[str, float]:
    return {f"q{i}": float(i < count) for i in range(of)}


def test_one_lost_of_twenty_passes_although_floating_point_says_otherwise() -> None:
    assert not 0.35 >= 0.40 - 0.05  # the trap
    verdict = decide(report(card(right(7, 20)), card(right(8, 20))), 0.05)
    assert verdict.decision == "promote"
    assert verdict.delta == pytest.approx(-0.05)


def test_two_lost_of_twenty_are_refused_with_their_names() -> None:
    verdict = decide(report(card(right(6, 20)), card(right(8, 20))), 0.05)
    assert verdict.decision == "refuse"
    assert verdict.delta == pytest.approx(-0.10)
    assert verdict.lost == ("q6", "q7")
    assert verdict.gained == ()
    assert (verdict.new, verdict.previous) == (pytest.approx(0.30), pytest.approx(0.40))


def test_below_twenty_questions_one_lost_answer_is_too_many() -> None:
    assert decide(report(card(right(7, 10)), card(right(8, 10))), 0.05).decision == "refuse"


def test_gained_and_lost_are_named_side_by_side() -> None:
    verdict = decide(report(card({"a": 1.0, "b": 0.0}), card({"a": 0.0, "b": 1.0})), 0.05)
    assert verdict.decision == "promote"
    assert (verdict.lost, verdict.gained) == (("b",), ("a",))


def test_a_first_version_is_promoted() -> None:
    verdict = decide(report(card(right(0, 10))), 0.05)
    assert verdict.decision == "promote"
    assert verdict.compared_with is None


def test_a_version_in_service_that_could_not_be_asked_holds() -> None:
    key = VersionKey(version=2, track="A")
    verdict = decide(report(card(right(9, 10)), previous_key=key, not_comparable="v2 is switched off"), 0.05)
    assert (verdict.decision, verdict.reason) == ("hold", "v2 is switched off")


def test_a_missing_previous_score_holds_even_without_a_reason_given() -> None:
    verdict = decide(report(card(right(9, 10)), previous_key=VersionKey(version=2, track="A")), 0.05)
    assert verdict.decision == "hold"


def test_every_question_weighs_the_same_however_many_answers_it_has() -> None:
    compared = compare({"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0]}, {"a": [1.0], "b": [0.0, 1.0]})
    # a: 0.5 - 1 = -0.5; b: 1 - 0.5 = 0.5
    assert isinstance(compared, Comparison)
    assert compared.differences == {"a": -0.5, "b": 0.5}
    assert compared.delta == 0.0
    assert (compared.new, compared.previous) == (0.75, 0.75)


def test_similarity_is_compared_where_it_is_the_measure() -> None:
    new = card({"a": 0.70, "b": 0.80}, recall=None, similarity=0.75)
    previous = card({"a": 0.90, "b": 0.80}, recall=None, similarity=0.85)
    verdict = decide(report(new, previous, measure="similarity"), 0.05)
    assert (verdict.decision, verdict.delta) == ("refuse", pytest.approx(-0.10))


SCORES = st.dictionaries(
    st.sampled_from([f"q{i}" for i in range(12)]), st.sampled_from([0.0, 0.5, 1.0]), min_size=1
)
NO_SCORE = st.sampled_from([math.nan, math.inf, -math.inf, 7.0, -3.0])


@given(SCORES, st.data())
def test_a_score_that_is_no_number_never_promotes(scores: dict[str, float], data: st.DataObject) -> None:
    broken = scores | {data.draw(st.sampled_from(sorted(scores))): data.draw(NO_SCORE)}
    good, bad = card(scores), card(scores, per_question=broken)
    for new, previous in ((bad, good), (good, bad), (bad, bad), (bad, None)):
        assert decide(report(new, previous), 0.05).decision == "hold"


@given(SCORES, st.data())
def test_a_pooled_score_that_is_no_number_never_promotes(
    scores: dict[str, float], data: st.DataObject
) -> None:
    good, bad = card(scores), card(scores, recall=data.draw(NO_SCORE | st.none()))
    for new, previous in ((bad, good), (good, bad), (bad, None)):
        assert decide(report(new, previous), 0.05).decision == "hold"


@given(SCORES, st.data())
def test_a_question_without_an_answer_never_promotes(scores: dict[str, float], data: st.DataObject) -> None:
    missing = data.draw(st.sampled_from(sorted(scores)))
    fewer = {q: s for q, s in scores.items() if q != missing}
    good, bad = card(scores), card(scores, per_question=fewer, failed=1)
    for new, previous in ((bad, good), (good, bad), (bad, bad), (bad, None)):
        assert decide(report(new, previous), 0.05).decision == "hold"


@given(SCORES, SCORES)
def test_other_questions_never_promote(new: dict[str, float], previous: dict[str, float]) -> None:
    renamed = {f"other-{q}": s for q, s in previous.items()}
    assert decide(report(card(new), card(renamed)), 0.05).decision == "hold"


@given(SCORES)
def test_another_fingerprint_never_promotes(scores: dict[str, float]) -> None:
    good, bad = card(scores), card(scores, fingerprint="g")
    for new, previous in ((bad, good), (good, bad), (bad, bad), (good, card(scores, fingerprint=""))):
        assert decide(report(new, previous), 0.05).decision == "hold"


@given(SCORES)
def test_an_empty_set_never_promotes(scores: dict[str, float]) -> None:
    good, bad = card(scores), card({})
    for new, previous in ((bad, good), (good, bad), (bad, bad), (bad, None)):
        assert decide(report(new, previous), 0.05).decision == "hold"


@pytest.mark.parametrize("tolerance", [math.nan, math.inf, -0.1])
def test_a_tolerance_that_is_no_fraction_never_promotes(tolerance: float) -> None:
    scores = right(5, 10)
    assert decide(report(card(scores), card(scores)), tolerance).decision == "hold"


@given(SCORES, st.data(), st.floats(0, 1))
def test_sound_evidence_is_decided_by_the_rule(
    previous: dict[str, float], data: st.DataObject, tolerance: float
) -> None:
    new = {q: data.draw(st.sampled_from([0.0, 0.5, 1.0])) for q in previous}
    delta = (sum(new.values()) - sum(previous.values())) / len(new)
    verdict = decide(report(card(new), card(previous)), tolerance)
    assert verdict.decision == ("promote" if passes(delta, tolerance) else "refuse")


def test_the_rule_fails_for_nan() -> None:
    assert not passes(math.nan, 0.05)


REPEATED = st.dictionaries(
    st.sampled_from([f"q{i}" for i in range(12)]),
    st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=10),
    min_size=1,
)


def both_ways(good: Scores, bad: Scores, *, strict: bool) -> set[str]:
    """Decisions with the bad set on either side and on both; asking more never helps it."""
    pairs = ((bad, good), (good, bad), (bad, bad))
    assert not any(undecided(new, previous, 0.05) for new, previous in pairs)
    return {judge(new, previous, 0.05, strict=strict).decision for new, previous in pairs}


@given(REPEATED, st.data(), st.booleans())
def test_one_answer_that_is_no_score_never_promotes(
    scores: dict[str, list[float]], data: st.DataObject, strict: bool
) -> None:
    name = data.draw(st.sampled_from(sorted(scores)))
    at = data.draw(st.integers(0, len(scores[name])))
    answers = [*scores[name][:at], data.draw(NO_SCORE), *scores[name][at:]]
    assert both_ways(scores, scores | {name: answers}, strict=strict) == {"hold"}


@given(REPEATED, st.data(), st.booleans())
def test_a_question_with_no_answers_left_never_promotes(
    scores: dict[str, list[float]], data: st.DataObject, strict: bool
) -> None:
    name = data.draw(st.sampled_from(sorted(scores)))
    assert both_ways(scores, scores | {name: []}, strict=strict) == {"hold"}


@given(REPEATED, st.data())
def test_another_set_of_questions_never_promotes(scores: dict[str, list[float]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(scores)))
    fewer = {q: s for q, s in scores.items() if q != name}
    renamed = {("other" if q == name else q): s for q, s in scores.items()}
    for other in (fewer, renamed, {}):
        assert judge(scores, other, 0.05).decision == "hold"
        assert judge(other, scores, 0.05).decision == "hold"


@given(REPEATED, st.sampled_from([math.nan, math.inf, -math.inf, -0.01]))
def test_no_tolerance_is_taken_for_a_pass(scores: dict[str, list[float]], tolerance: float) -> None:
    assert judge(scores, scores, tolerance).decision == "hold"


@given(REPEATED, st.data(), st.booleans())
def test_certainty_is_said_and_only_strict_lets_it_decide(
    previous: dict[str, list[float]], data: st.DataObject, strict: bool
) -> None:
    new = {q: data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=10)) for q in previous}
    verdict = judge(new, previous, 0.05, strict=strict)
    assert verdict.delta is not None
    assert verdict.p_worse is not None
    rule = "promote" if passes(verdict.delta, 0.05) else "refuse"
    held = strict and rule == "promote" and verdict.strength == "weak"
    assert verdict.decision == ("hold" if held else rule)
    sure = verdict.p_worse < 0.1 if rule == "promote" else verdict.p_worse > 0.9
    assert verdict.strength == ("strong" if sure else "weak")
    assert undecided(new, previous, 0.05) == (0.1 <= verdict.p_worse <= 0.9)


@given(REPEATED, st.data(), st.booleans())
def test_answers_drawn_in_another_way_are_decided_by_the_rule_but_never_strongly(
    previous: dict[str, list[float]], data: st.DataObject, strict: bool
) -> None:
    new = {q: data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=10)) for q in previous}
    alike, apart = (judge(new, previous, 0.05, strict=strict, drawn_alike=way) for way in (True, False))
    rule = judge(new, previous, 0.05).decision
    assert apart.strength == "weak"
    assert "under another system prompt or decoding" in apart.reason
    assert apart.decision == ("hold" if strict and rule == "promote" else rule)
    assert (apart.delta, apart.p_worse, apart.lost) == (alike.delta, alike.p_worse, alike.lost)


@given(SCORES, st.booleans())
def test_a_stand_in_that_was_drawn_in_another_way_never_promotes_under_strict(
    scores: dict[str, float], drawn_alike: bool
) -> None:
    shared = tuple(scores)
    found = report(card(scores), card(dict.fromkeys(shared, 0.0)), shared=shared, drawn_alike=drawn_alike)
    strict, plain = decide(found, 0.05, strict=True), decide(found, 0.05)
    assert drawn_alike or (strict.decision, plain.strength) in (("hold", "weak"), ("hold", None))
    assert strict.decision in ("hold", plain.decision)


@given(SCORES, st.integers(1, 20))
def test_many_failed_calls_never_promote(scores: dict[str, float], failed: int) -> None:
    good, bad = card(scores), card(scores, failed=len(scores) + failed)
    for new, previous in ((bad, good), (good, bad), (bad, bad), (bad, None)):
        assert decide(report(new, previous), 0.05).decision == "hold"


@given(SCORES, st.data())
def test_stored_answers_that_are_not_the_shared_ones_never_promote(
    scores: dict[str, float], data: st.DataObject
) -> None:
    shared = tuple(data.draw(st.lists(st.sampled_from([*scores, "other"]), unique=True, min_size=1)))
    stored = card(dict.fromkeys(shared, 0.0))
    verdict = decide(report(card(scores), stored, shared=shared), 0.05)
    sound = len(shared) >= 5 and set(shared) <= set(scores)
    assert verdict.decision == ("promote" if sound else "hold")


def test_only_shared_questions_count_where_stored_answers_stand_in() -> None:
    new = card(right(5, 10))
    stored = card(right(5, 5))
    verdict = decide(report(new, stored, shared=("q0", "q1", "q2", "q3", "q4")), 0.05)
    assert (verdict.decision, verdict.new, verdict.previous) == ("promote", 1.0, 1.0)


def test_what_is_sure_is_strong_and_what_is_not_is_weak() -> None:
    ten = {f"q{i}": [1.0] for i in range(10)}
    lost_one = ten | {"q0": [0.0]}
    none = {q: [0.0] for q in ten}
    assert judge(ten, none, 0.05).strength == "strong"
    assert judge(none, ten, 0.05).strength == "strong"
    assert (judge(lost_one, ten, 0.05).decision, judge(lost_one, ten, 0.05).strength) == ("refuse", "weak")
    assert "weak: " in judge(lost_one, ten, 0.05).reason


def evaluation(delta: float | None, against: int | None) -> Evaluation:
    key = None if against is None else VersionKey(version=against, track="A")
    verdict = Verdict(
        decision="promote", reason="", measure="recall", tolerance=0.05, delta=delta, compared_with=key
    )
    return Evaluation(
        method="recall",
        recall=0.5,
        similarity=None,
        questions=10,
        answers=10,
        fingerprint="f",
        verdict=verdict,
        at=datetime(2026, 11, 22, tzinfo=UTC),
    )


def warned(*deltas: float) -> str | None:
    """Version 1, then one version for each change; asks about the last."""
    known = {VersionKey(version=1, track="A"): evaluation(None, None)}
    for n, delta in enumerate(deltas, 2):
        known[VersionKey(version=n, track="A")] = evaluation(delta, n - 1)
    last = VersionKey(version=len(deltas) + 1, track="A")
    return behind_best(last, known[last].verdict, known, 0.05)


def test_small_steps_down_that_add_up_are_said() -> None:
    text = warned(*[-0.03] * 8)
    assert text is not None
    assert "v9 (track A) is 24 points below v1 (track A), the best so far" in text


def test_the_best_is_the_highest_point_on_the_way() -> None:
    text = warned(0.20, -0.04, -0.04)
    assert text is not None
    assert "8 points below v2" in text


@pytest.mark.parametrize("deltas", [(-0.04,), (-0.04, 0.04, -0.04), (0.1, 0.1), (-0.02, -0.03)])
def test_what_stays_within_the_tolerance_is_not_said(deltas: tuple[float, ...]) -> None:
    assert warned(*deltas) is None


def test_versions_that_were_compared_in_a_circle_come_to_an_end() -> None:
    one, two = VersionKey(version=1, track="A"), VersionKey(version=2, track="A")
    known = {one: evaluation(-0.04, 2), two: evaluation(-0.04, 1)}
    assert behind_best(two, known[two].verdict, known, 0.05) is None


def test_steps_that_were_judged_by_another_score_are_not_added_up() -> None:
    one, two, three = (VersionKey(version=n, track="A") for n in (1, 2, 3))
    by_recall = evaluation(-0.04, 1)
    verdict = msgspec.structs.replace(by_recall.verdict, measure="similarity")
    known = {
        one: evaluation(None, None),
        two: msgspec.structs.replace(by_recall, verdict=verdict),
        three: evaluation(-0.04, 2),
    }
    assert behind_best(three, known[three].verdict, known, 0.05) is None
    known[two] = by_recall
    assert "the two were not compared" in (behind_best(three, known[three].verdict, known, 0.05) or "")


def test_a_card_without_a_fingerprint_never_promotes() -> None:
    nameless = card(right(9, 10), fingerprint="")
    for new, previous in ((nameless, None), (nameless, nameless), (card(right(9, 10)), nameless)):
        assert decide(report(new, previous), 0.05).decision == "hold"


def test_below_twenty_questions_the_first_stage_has_three_answers() -> None:
    assert (schedule(10), schedule(19)) == ((3, 5, 10), (3, 5, 10))
    assert (schedule(20), schedule(1000)) == ((1, 3, 5, 10), (1, 3, 5, 10))
