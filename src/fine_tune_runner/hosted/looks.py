"""When a job was looked at, and when it is next: on disk, so that a reboot wakes at the original time.

How long a job has been in a phase outlives the process too. It opens no socket and knows no provider.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.files import write_atomic

NAME = "look.json"


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The newest look at a job: its status, since when it has it, and when it is looked at again."""

    job_id: str
    status: str
    since: datetime
    again_at: datetime


def note(attempt_dir: Path, job_id: str, status: str, since: datetime, again_at: datetime) -> None:
    """Put a look on record; raises OSError."""
    look = Look(job_id=job_id, status=status, since=since, again_at=again_at)
    write_atomic(attempt_dir / NAME, msgspec.json.encode(look))


def last_look(attempt_dir: Path, job_id: str) -> Look | None:
    """The newest look at that job; None where there was none, or its file is no such thing."""
    try:
        look = msgspec.json.decode((attempt_dir / NAME).read_bytes(), type=threadsafe(Look))
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None
    return look if look.job_id == job_id else None


def wait_s(look: Look | None, now: datetime, poll_s: float) -> float:
    """Seconds until the next look; never more than one interval, whatever was done to the clock."""
    return 0.0 if look is None else min(max(0.0, (look.again_at - now) / timedelta(seconds=1)), poll_s)
