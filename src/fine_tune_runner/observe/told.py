"""What of an event may leave the record: ids, numbers and words of our own, never the client's text.

An allow list, so that a new field of an event shows nowhere until it is named here. Pure.
"""

from __future__ import annotations

import re

from fine_tune_runner.workflow.engine import Event

# Fields whose texts are ours or a provider's: names, ids and states. Numbers may leave under any name.
TEXTS = frozenset(
    (
        "step",
        "status",
        "code",
        "job_id",
        "file_id",
        "model_id",
        "digest",
        "decision",
        "queue",
        "way",
        "version",
    )
)
_WORD = re.compile(r"[\w.:/@+-]{1,160}")  # no sentence, whatever its field is called
# Events after which nothing goes on until somebody, or a queue, sets the run going again.
ENDS = {
    "run finished": "finished",
    "run failed": "failed",
    "run cancelled": "cancelled",
    "run interrupted": "interrupted",
    "approval needed": "waiting",
}


def client_of(run_id: str) -> str:
    """The client of `{client}-v{N}-{track}-{hash}-{attempt}`."""
    return run_id.rsplit("-", 4)[0]


def facts(event: Event) -> dict[str, str | float]:
    """The fields of an event that may leave."""
    return {
        name: value
        for name, value in event.data.items()
        if isinstance(value, int | float)
        or (name in TEXTS and isinstance(value, str) and _WORD.fullmatch(value))
    }
