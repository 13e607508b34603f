"""Two answers side by side: which words only one of them has.

Pure; words are compared, white space is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

LONGEST = 2000  # words and gaps; comparing takes time in line with the square of it

Piece = tuple[str, bool]  # (text, whether only this side has it)


def marked(left: str, right: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts as pieces; without marks where one of them is very long."""
    a, b = re.findall(r"\s+|\S+", left), re.findall(r"\s+|\S+", right)
    if max(len(a), len(b)) > LONGEST:
        return [(left, False)], [(right, False)]
    sides: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, words in zip(sides, (a[a0:a1], b[b0:b1]), strict=True):
            if words:
                side.append(("".join(words), tag != "equal"))
    return sides


def plain(text: str) -> Sequence[Piece]:
    """A text that stands alone."""
    return [(text, False)]
