"""Where the marks of the report's pictures stand; the template draws them.

Coordinates are in the units of a 360 wide view box, so that text keeps its size on a phone. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from fine_tune_runner.evaluation.bootstrap import p_worse
from fine_tune_runner.types import Verdict

LEFT, RIGHT = 16.0, 344.0
TOP, BOTTOM = 14.0, 116.0


class Dot(msgspec.Struct, frozen=True, kw_only=True):
    """One value on an axis; `low` and `high` bound its whisker, where it has one."""

    label: str
    text: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """Values on one axis; `limit` is the lowest that still passes."""

    dots: tuple[Dot, ...]
    ticks: tuple[tuple[float, str], ...]
    limit: float | None = None


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """A training curve: `points` as SVG wants them, and what to write at its ends."""

    points: str
    first: float
    last: float
    highest: float
    lowest: float
    steps: int


Bounds = tuple[float, float]


def interval(scores: Sequence[float]) -> Bounds | None:
    """The central 80 % of a score, from its means by question: the gate's own draws, set on 0.5.

    Its two pseudo-questions are then one that is right and one that is wrong. None without a question.
    """
    if not scores or not all(map(math.isfinite, scores)):
        return None
    _, low, high = p_worse([score - 0.5 for score in scores], 0.0)
    return low + 0.5, high + 0.5


def score_axis(scores: Sequence[tuple[str, float, Bounds | None]], *, percent: bool) -> Axis:
    """(label, score, interval) from the older version to the new one, from 0 to 1."""
    dots = tuple(
        Dot(
            label=label,
            text=f"{score:.0%}" if percent else f"{score:.2f}",
            x=_x(score),
            y=34.0 + 40 * row,
            low=_x(bounds[0]) if bounds else None,
            high=_x(bounds[1]) if bounds else None,
        )
        for row, (label, score, bounds) in enumerate(scores)
    )
    ticks = tuple((_x(t / 4), f"{t * 25} %" if percent else f"{t / 4:g}") for t in range(5))
    return Axis(dots=dots, ticks=ticks)


def change_axis(verdict: Verdict) -> Axis | None:
    """The change between two versions in points, with its interval and the tolerance; None without one."""
    if verdict.delta is None or verdict.low is None or verdict.high is None:
        return None
    reach = max(abs(verdict.delta), abs(verdict.low), abs(verdict.high), 2 * verdict.tolerance)
    reach = next((r for r in (0.1, 0.2, 0.5, 1.0) if r >= reach), 1.0)

    def x(change: float) -> float:
        return _x((change + reach) / (2 * reach))

    text = f"{100 * verdict.delta:+.0f} points".replace("-", "\u2212")
    dot = Dot(label="change", text=text, x=x(verdict.delta), y=34.0, low=x(verdict.low), high=x(verdict.high))
    marks = [t * reach / 2 for t in range(-2, 3)]
    ticks = tuple((x(mark), f"{100 * mark:+.3g}".replace("-", "\u2212") if mark else "0") for mark in marks)
    return Axis(dots=(dot,), ticks=ticks, limit=x(-verdict.tolerance))


def curve(losses: Sequence[tuple[int, float]]) -> Curve | None:
    """The loss by optimizer step; None below two finite values."""
    kept = [(step, loss) for step, loss in losses if math.isfinite(loss)]
    if len(kept) < 2:
        return None
    steps, values = [s for s, _ in kept], [v for _, v in kept]
    lowest, highest = min(values), max(values)
    width, height = max(steps) - min(steps) or 1, highest - lowest or 1.0
    points = " ".join(
        f"{LEFT + (RIGHT - LEFT) * (s - min(steps)) / width:.1f},"
        f"{BOTTOM - (BOTTOM - TOP) * (v - lowest) / height:.1f}"
        for s, v in kept
    )
    return Curve(
        points=points, first=values[0], last=values[-1], highest=highest, lowest=lowest, steps=max(steps)
    )


def _x(score: float) -> float:
    return round(LEFT + (RIGHT - LEFT) * min(1.0, max(0.0, score)), 1)
