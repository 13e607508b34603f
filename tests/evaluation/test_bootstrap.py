from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fine_tune_runner.evaluation.bootstrap import p_worse, smallest_visible_drop

DIFFERENCES = st.lists(st.floats(-1, 1), min_size=1, max_size=40)


def test_one_question_without_a_difference_follows_the_uniform_triangle() -> None:
    # Weights (a, b, c) ~ Dirichlet(1, 1, 1) on 0, +0.5, -0.5: the mean is (b - c) / 2, whose law is
    # P(mean < -t) = (1 - 2t)^2 / 2, as b - c has density 1 - |x|. At t = 0.05: 0.405. 10 % quantile of the
    # mean: (1 - 2q)^2 / 2 = 0.1, q = 0.2764.
    p, low, high = p_worse([0.0], 0.05)
    assert p == pytest.approx(0.405, abs=0.03)  # 4,000 draws: sd 0.008
    assert low == pytest.approx(-0.2764, abs=0.02)
    assert high == pytest.approx(0.2764, abs=0.02)


def test_many_questions_agree_with_the_normal_law() -> None:
    rng = np.random.default_rng(7)
    differences = [float(d) for d in rng.choice([-1.0, 0.0, 1.0], size=400, p=[0.2, 0.6, 0.2])]
    values = np.array([*differences, 0.5, -0.5])
    mean, error = values.mean(), values.std() / math.sqrt(len(values) + 1)
    p, low, high = p_worse(differences, 0.05)
    expected = 0.5 * math.erfc((mean + 0.05) / (error * math.sqrt(2)))
    assert p == pytest.approx(expected, abs=0.03)
    assert (high - low) == pytest.approx(2 * 1.2816 * error, rel=0.1)


def test_all_lost_is_worse_and_all_gained_is_not() -> None:
    assert p_worse([-1.0] * 20, 0.05)[0] > 0.99
    assert p_worse([1.0] * 20, 0.05)[0] < 0.01


def test_the_same_data_give_the_same_figures_in_any_order() -> None:
    assert p_worse([0.0, -1.0, 1.0, -0.2], 0.05) == p_worse([-0.2, 1.0, -1.0, 0.0], 0.05)


def test_another_seed_gives_other_draws() -> None:
    assert p_worse([0.0, -1.0, 1.0], 0.05, seed=1) != p_worse([0.0, -1.0, 1.0], 0.05, seed=2)


@given(DIFFERENCES, st.floats(0, 0.5), st.floats(0, 0.5))
def test_more_tolerance_is_never_more_worry(differences: list[float], a: float, b: float) -> None:
    few, much = sorted((a, b))
    p_few, low, high = p_worse(differences, few)
    p_much, _, _ = p_worse(differences, much)
    assert 0 <= p_much <= p_few <= 1
    assert -1 <= low <= high <= 1


@pytest.mark.parametrize("differences", [[], [math.nan], [0.0, math.inf]])
def test_nothing_is_said_without_numbers(differences: list[float]) -> None:
    with pytest.raises(ValueError, match="all of them numbers"):
        p_worse(differences, 0.05)
    with pytest.raises(ValueError, match="all of them numbers"):
        smallest_visible_drop(differences)


def test_the_smallest_visible_drop_is_hand_computed() -> None:
    # sd of (1, -1, 0, 0) with n - 1: sqrt(2 / 3) = 0.8165; 2.49 * 0.8165 / 2
    assert smallest_visible_drop([1.0, -1.0, 0.0, 0.0]) == pytest.approx(1.01654, abs=1e-4)
    # No spread at all: 2.49 * 0.15 / sqrt(9)
    assert smallest_visible_drop([0.0] * 9) == pytest.approx(0.1245)
