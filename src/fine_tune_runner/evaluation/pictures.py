"""Where the marks of the report's two pictures stand; the template draws them.

Coordinates are in the units of a 360 wide view box, so that text keeps its size on a phone. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from fine_tune_runner.types import Verdict

LEFT, RIGHT = 16.0, 344.0
TOP, BOTTOM = 14.0, 116.0


class Dot(msgspec.Struct, frozen=True, kw_only=True):
    """One version's score; `low` and `high` bound its whisker, where it has one."""

    label: str
    text: str
    x: float
    y: float
    low: float | None = None
    high: float | None = None


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """The scores on one axis; `limit` is the lowest score that still passes."""

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


def scale(scores: Sequence[tuple[str, float]], verdict: Verdict, *, percent: bool) -> Scale:
    """(label, score) from the older version to the new one, which gets the interval of its change.

    The whisker spans previous score plus the 80 % interval of the change, cut at 0 and 1.
    """
    dots = []
    for row, (label, score) in enumerate(scores):
        low = high = None
        if row == len(scores) - 1 and None not in (verdict.previous, verdict.low, verdict.high):
            low, high = (_x((verdict.previous or 0) + (d or 0)) for d in (verdict.low, verdict.high))
        text = f"{score:.0%}" if percent else f"{score:.2f}"
        dots.append(Dot(label=label, text=text, x=_x(score), y=34.0 + 40 * row, low=low, high=high))
    ticks = tuple((_x(t / 4), f"{t * 25} %" if percent else f"{t / 4:g}") for t in range(5))
    limit = None if verdict.previous is None else _x(verdict.previous - verdict.tolerance)
    return Scale(dots=tuple(dots), ticks=ticks, limit=limit)


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
