"""Who asked for a connection: the innermost frame outside the standard library and outside HTTP libraries.

It knows no policy; guard.py asks it while the call stands on the stack.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

# They carry what others send, so they are named only where nobody else stands behind them.
CARRIERS = frozenset(
    (
        *(
            "aiohttp",
            "aiohappyeyeballs",
            "anyio",
            "botocore",
            "certifi",
            "h11",
            "h2",
            "httpcore",
            "httpcore2",
        ),
        *("httpx", "httpx2", "openai", "pycurl", "requests", "urllib3", "websockets"),
    )
)
_STDLIB = tuple({sysconfig.get_path("stdlib") + "/", sysconfig.get_path("platstdlib") + "/"})
_OWN = str(Path(__file__).parent) + "/"


def calling_frame() -> str:
    """`module (file:line)` of the code that asked, as well as it can be told from the stack."""
    frames = [frame for frame in _stack() if not _is_machinery(frame.f_code.co_filename)]
    askers = [frame for frame in frames if _module(frame).partition(".")[0] not in CARRIERS]
    named = askers[0] if askers else frames[-1] if frames else None
    if named is None:
        return "the standard library, in a thread of its own"
    return f"{_module(named)} ({named.f_code.co_filename}:{named.f_lineno})"


def _stack() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_machinery(file: str) -> bool:
    packages = ("/site-packages/", "/dist-packages/")
    stdlib = file.startswith(_STDLIB) and not any(part in file for part in packages)
    return stdlib or file.startswith(("<frozen", _OWN))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "?"))
