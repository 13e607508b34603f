"""What the readers of other tools' evaluations share: a row, why one could not be read, chat turns, keys.

Values of a row never go into a message: they may be anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from fine_tune_runner.types import Message

QUESTION_KEYS = ("messages", "input", "question", "query", "prompt", "user_input", "message")
REFERENCE_KEYS = (
    "ideal",
    "reference",
    "reference_answer",
    "expected",
    "expected_output",
    "expected_answer",
    "ground_truth",
    "answer",
    "target",
)
_ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One question: `turns` without system prompt, the last one the user's; `place` is where it stands.

    `reference` is the answer expected; `accept` and `reject` hold names or wordings as `eval` has them.
    """

    place: str
    turns: tuple[Message, ...]
    reference: str
    id: str | None = None
    accept: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """A row that could not be read, and what to do about it."""

    place: str
    why: str
    remedy: str


class CannotRead(Exception):
    """Inside one row: why it cannot be read, and the remedy; becomes an `Unread`."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy

    def at(self, place: str) -> Unread:
        """With the place of its row."""
        return Unread(place=place, why=self.why, remedy=self.remedy)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One value of a file before it is known what it means."""

    place: str
    value: Any


class Keys(msgspec.Struct, frozen=True, kw_only=True):
    """Under which names question and reference stand, where somebody said so."""

    question: str | None = None
    reference: str | None = None


def chosen(row: Mapping[str, Any], key: str | None, usual: Sequence[str]) -> str | None:
    """The key that counts in a row: the one named, else the first usual one that is there; None for none."""
    names = (key,) if key else usual
    return next((name for name in names if row.get(name) not in (None, "", [])), None)


def turns_of(value: Any) -> tuple[Message, ...]:
    """A question as turns: plain text, or a list of chat messages; system prompts are left out.

    Raises CannotRead for anything but text and for an unknown role.
    """
    if isinstance(value, list):
        return tuple(turn for turn in map(_turn, value) if turn.role != "system")
    return (Message(role="user", content=text_of(value)),)


def _turn(value: Any) -> Message:
    if not isinstance(value, dict) or "role" not in value:
        raise CannotRead("a message has no role", "give each message role and content")
    role = _ROLES.get(str(value["role"]))
    if role is None:
        raise CannotRead("a message is from a tool or an unknown role", "leave system, user and assistant")
    return Message(role=role, content=text_of(value.get("content")))


def text_of(value: Any) -> str:
    """A text, a number, or the text parts of a message's content; CannotRead for anything else."""
    text = "\n".join(_parts(value)) if isinstance(value, list | dict) else str(value)
    if value is None or not text.strip():
        raise CannotRead("a text is empty", "add the text or drop the row")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates, from a JSON escape
        raise CannotRead("a text holds half a character", "export it again as UTF-8") from None
    return text


def _parts(value: Any) -> Iterator[str]:
    for part in value if isinstance(value, list) else [value]:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise CannotRead("it holds something that is no text", "leave texts only")
        yield text


def checked_turns(turns: Sequence[Message]) -> tuple[Message, ...]:
    """The turns themselves; CannotRead unless they are user (assistant user)*."""
    if [turn.role for turn in turns] != [("user", "assistant")[i % 2] for i in range(len(turns))]:
        raise CannotRead("its turns are not user and assistant by turns", "correct or drop the row")
    if not turns or turns[-1].role != "user":
        raise CannotRead("its last turn is not the user's question", "correct or drop the row")
    return tuple(turns)
