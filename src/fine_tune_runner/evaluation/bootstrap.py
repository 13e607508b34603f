"""How sure one may be that a new version is worse, from few questions: a Bayesian bootstrap.

Pure statistics over one difference a question; knows no model, no holdout and no verdict. It describes the
evidence, and does not decide (facts/evaluation.md: a significance test as the gate lets 93 % of 20-point
drops through at ten questions).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

DRAWS = 4_000
PSEUDO = (0.5, -0.5)  # two questions nobody asked: without them ten questions look too sure of themselves
INTERVAL = 0.80
VISIBLE = 2.49  # z(.95) + z(.80): seen at one-sided 5 % with 80 % power
LEAST_SD = 0.15  # ten equal differences are no proof of no spread


def p_worse(differences: Sequence[float], tolerance: float, *, seed: int = 0) -> tuple[float, float, float]:
    """(P(mean difference < -tolerance), low, high): low and high bound the central 80 % of the same draws.

    `differences` holds mean answers new minus mean answers previous, one a question, in -1..1. Each draw
    weighs the questions by Dirichlet(1, ..., 1) (Rubin 1981, "The Bayesian Bootstrap"), so questions
    are the unit and answers to one question are not taken for independent (Miller 2024, "Adding Error Bars
    to Evals", arXiv 2411.00640: clustered standard errors, and paired differences between models). We
    depart from both: two pseudo-questions with differences +0.5 and -0.5 are added, and no normal
    approximation is made. The draws are seeded by the data and `seed`, so the same answers give the same
    figures. Raises ValueError where there is no difference, or one that is no number: then nothing can be
    said, and the caller holds.
    """
    if not differences or not all(map(math.isfinite, differences)):
        raise ValueError("p_worse needs at least one difference, and all of them numbers")
    # Rounded, so that 1 - 2/3 and 1/3 are equal.
    return _posterior(tuple(sorted(round(d, 12) for d in (*differences, *PSEUDO))), tolerance, seed)


@lru_cache(maxsize=4096)
def _posterior(differences: tuple[float, ...], tolerance: float, seed: int) -> tuple[float, float, float]:
    # Questions with one difference share one weight: Dirichlet(1, ..., 1) summed over equal values is
    # Dirichlet(counts), which needs far fewer draws.
    values, counts = np.unique(differences, return_counts=True)
    digest = hashlib.sha256(
        values.tobytes() + counts.tobytes() + seed.to_bytes(8, "big", signed=True)
    ).digest()
    draws = np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_gamma(
        counts, size=(DRAWS, len(values))
    )
    means = (draws @ values) / draws.sum(axis=1)
    low, high = np.quantile(means, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    # The edge belongs to the tolerance, as in the gate's rule.
    return float((means < -tolerance - 1e-9).mean()), float(low), float(high)


def smallest_visible_drop(differences: Sequence[float]) -> float:
    """The drop in the mean that this many questions would show: 2.49 * max(sd, 0.15) / sqrt(n).

    Power analysis of paired differences (Miller 2024, arXiv 2411.00640), with n - 1 in the sd; we depart with
    the floor under the sd. Raises ValueError without a difference or with one that is no number.
    """
    if not differences or not all(map(math.isfinite, differences)):
        raise ValueError("smallest_visible_drop needs at least one difference, and all of them numbers")
    n = len(differences)
    sd = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    return VISIBLE * max(sd, LEAST_SD) / math.sqrt(n)
