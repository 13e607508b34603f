"""The identity of a data set: sha256 over its normalised content.

Metadata keys, key order, JSON escapes and white space between tokens do not matter; row order, every
character of a message, and the `eval` object of a holdout do.
"""

from __future__ import annotations

import hashlib

import msgspec

from fine_tune_runner.types import Example

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
