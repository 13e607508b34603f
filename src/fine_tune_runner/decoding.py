"""Types that many threads decode JSON into at once.

At its first use msgspec (0.22) takes a type apart, and shows it to other threads half done: one that decodes
into it just then ends the process with SIGSEGV. So one thread takes it apart, before any decodes into it.
"""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_one_at_a_time = threading.Lock()
_whole: set[Any] = set()


def threadsafe(kind: T) -> T:
    """The type itself, taken apart to its end, for `msgspec.json.decode(data, type=threadsafe(kind))`."""
    if kind not in _whole:
        with _one_at_a_time:
            msgspec.json.Decoder(kind)
            _whole.add(kind)
    return kind
