"""The identity of a data set: sha256 over its normalised content; and that of a row that people judged.

Metadata keys, key order, JSON escapes and white space between tokens do not matter; row order, every
character of a message, and the `eval` object of a holdout do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec

from fine_tune_runner.dataset.duplicates import fold
from fine_tune_runner.types import Example, Message

_ENCODER = msgspec.json.Encoder()  # writes struct fields in their declared order


class Fingerprint:
    """Rows in, sha256 out; `holdout` takes the `eval` objects in."""

    def __init__(self, *, holdout: bool = False) -> None:
        self._hash = hashlib.sha256()
        self._holdout = holdout

    def add(self, example: Example) -> None:
        """Take in the next row."""
        content = (example.messages, example.eval) if self._holdout else (example.messages,)
        self._hash.update(_ENCODER.encode(content) + b"\n")

    def hexdigest(self) -> str:
        """sha256 of the rows so far, 64 hex digits."""
        return self._hash.hexdigest()


def text_sha256(*texts: str) -> str:
    """sha256 over texts in order, NFKC, case and white space folded; line ends count, for rules read lines.

    Each text goes in with its length, so that no two lists of texts run into one another.
    """
    digest = hashlib.sha256()
    for text in texts:
        lines = (fold(line) for line in text.splitlines())
        data = "\n".join(line for line in lines if line).encode(errors="surrogatepass")
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()


def row_sha256(messages: Iterable[Message], *more: str) -> str:
    """`text_sha256` of a row's turns without the system prompt, and of what else makes it the same row."""
    turns = [text for m in messages if m.role != "system" for text in (m.role, m.content)]
    return text_sha256(*turns, "=", *more)
