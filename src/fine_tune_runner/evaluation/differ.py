"""Two answers side by side: which words only one of them has.

Pure; words are compared, white space is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import accumulate

LONGEST = 2000  # words and gaps; comparing takes time in line with the square of it
SPECKS = 3  # words and gaps; so few equal ones between two changes are chance, and only make it hard to read

Span = tuple[int, int]  # (start, end) in characters
Piece = tuple[str, bool]  # (text, whether only this side has it)


def spans(left: str, right: str) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Where each text has words that the other lacks; nowhere where one of them is very long.

    A word that both have between two changes counts with them.
    """
    a, b = re.findall(r"\s+|\S+", left), re.findall(r"\s+|\S+", right)
    if max(len(a), len(b)) > LONGEST:
        return (), ()
    starts_a, starts_b = ([0, *accumulate(map(len, words))] for words in (a, b))
    changes: list[list[int]] = []
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        if changes and a0 - changes[-1][1] <= SPECKS:
            changes[-1][1], changes[-1][3] = a1, b1
        else:
            changes.append([a0, a1, b0, b1])
    return (
        tuple((starts_a[a0], starts_a[a1]) for a0, a1, _, _ in changes if a1 > a0),
        tuple((starts_b[b0], starts_b[b1]) for _, _, b0, b1 in changes if b1 > b0),
    )


def pieces(text: str, only: Sequence[Span]) -> list[Piece]:
    """A text cut at its spans, in order."""
    found: list[Piece] = []
    position = 0
    for start, end in [*only, (len(text), len(text))]:
        found += [(text[position:start], False), (text[start:end], True)]
        position = end
    return [piece for piece in found if piece[0]]
