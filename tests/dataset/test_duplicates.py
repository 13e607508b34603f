"""The same question, and nearly the same, against a plain reference."""

from __future__ import annotations

import random
from string import ascii_lowercase

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fine_tune_runner.dataset.duplicates import (
    ALL_PAIRS_BELOW,
    QuestionIndex,
    chunks,
    fold,
    grams,
    jaccard,
    masked,
    near_pairs,
)

TEXTS = st.lists(st.text("ab ", max_size=14), max_size=8)


def reference(texts: list[str]) -> list[tuple[int, int]]:
    sets = [grams(text) for text in texts]
    pairs = ((i, j) for i in range(len(sets)) for j in range(i + 1, len(sets)))
    return [(i, j) for i, j in pairs if len(sets[i] & sets[j]) >= 0.8 * len(sets[i] | sets[j])]


def test_fold_is_nfkc_lower_case_and_single_spaces() -> None:
    assert fold("  \uff30urchases\tcount\n\nTWICE ") == "purchases count twice"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("since 3,000.50 orders at 10:15", "since # orders at #"),
        ("see https://shop.test/a?b=1 now", "see # now"),
        ("tag gtm-abc1234 fires", "tag # fires"),
        ("ga4 purchase", "ga4 purchase"),
        ("gtm-abc1234 12", "gtm-abc1234 12"),
        ("x" * 9000, "x" * 4000),
    ],
)
def test_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_jaccard_by_hand() -> None:
    # abcdefg: abcde bcdef cdefg; bcdefgh: bcdef cdefg defgh; 2 shared of 4
    assert jaccard(grams("abcdefg"), grams("bcdefgh")) == 0.5
    assert grams("abc") == {"abc"}
    assert grams("") == {""}


@settings(deadline=None)
@given(TEXTS)
def test_all_pairs_are_those_of_the_reference(texts: list[str]) -> None:
    assert near_pairs(lambda: enumerate(texts), len(texts)) == reference(texts)


@settings(deadline=None)
@given(TEXTS, st.text("ab ", max_size=14))
def test_the_index_finds_what_the_reference_finds(texts: list[str], asked: str) -> None:
    index = QuestionIndex(texts)
    folded = fold(asked)
    found = dict(index.match(folded, masked(folded)))
    own = grams(masked(folded))
    near = {i for i, text in enumerate(texts) if jaccard(own, grams(masked(fold(text)))) >= 0.8}
    assert set(found) == near
    assert {i for i, exact in found.items() if exact} == {i for i, t in enumerate(texts) if fold(t) == folded}


def test_above_all_pairs_the_planted_ones_are_found_and_nothing_else() -> None:
    draw = random.Random(5)
    texts = ["".join(draw.choices(ascii_lowercase + " ", k=120)) for _ in range(ALL_PAIRS_BELOW + 200)]
    planted = [(i, i + 600) for i in range(0, 300, 7)]
    for first, second in planted:
        cut = draw.randint(1, 16)  # the shorter one shares 116 - cut of 116 grams
        texts[second] = texts[first][:-cut]
    assert near_pairs(lambda: enumerate(texts), len(texts)) == planted


def test_a_file_made_from_one_pattern_stays_bounded() -> None:
    texts = [f"purchases count twice since the new checkout of shop {i:04d} went live" for i in range(1500)]
    pairs = near_pairs(lambda: enumerate(texts), len(texts))
    assert {later for _, later in pairs} == set(range(1, 1500))
    assert len(pairs) < 1500 * 21 * 8


def test_chunks() -> None:
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []
