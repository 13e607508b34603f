"""The hand-written wordings of `data/`, and which of them a seed gives to which part of the data.

A wording belongs to one part only, so holdout and fresh questions never repeat a sentence that was trained.
Knows no file format of a client.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.types import T

Part = Literal["train", "holdout", "fresh"]
# Shares of a list of wordings: 10 + 1 + 7 of 18 evidences, 7 + 1 + 4 of 12 symptoms. The numbers of evidences
# and symptoms of a part have no common divisor, so stepping through both meets every combination.
SHARES: Mapping[int, Mapping[Part, slice]] = {
    18: {"train": slice(0, 10), "holdout": slice(10, 11), "fresh": slice(11, 18)},
    12: {"train": slice(0, 7), "holdout": slice(7, 8), "fresh": slice(8, 12)},
}


class CauseText(msgspec.Struct, frozen=True):
    """What an answer about one cause says beside the taxonomy's definition and fix."""

    pair: str
    cause: str
    because: tuple[str, ...]
    verify: tuple[str, ...]


class ClientText(msgspec.Struct, frozen=True):
    """One sample client: its files' fixed parts, its pairs of causes, and its own words for the slots."""

    client_id: str
    client_name: str
    config: dict[str, Any]
    account_state_version: str
    pairs: tuple[str, ...]
    words: dict[str, tuple[str, ...]]
    prompt: tuple[str, ...]


class Wordings(msgspec.Struct, frozen=True):
    """The wordings of one part: symptoms by pair, evidence by cause, and the frame around them."""

    symptoms: dict[str, tuple[str, ...]]
    evidence: dict[str, tuple[str, ...]]
    openers: tuple[str, ...]
    closers: tuple[str, ...]


class _Symptom(msgspec.Struct, frozen=True):
    pair: str
    text: str


class _Evidence(msgspec.Struct, frozen=True):
    cause: str
    text: str


class _Frames(msgspec.Struct, frozen=True):
    openers: tuple[str, ...]
    closers: tuple[str, ...]
    notes: tuple[str, ...]


@cache
def clients() -> Mapping[str, ClientText]:
    """The sample clients by id."""
    rows = msgspec.json.decode(_data("clients.json"), type=threadsafe(tuple[ClientText, ...]))
    return {row.client_id: row for row in rows}


@cache
def causes() -> Mapping[str, CauseText]:
    """All causes that have wordings, by label; the two of a pair stand one after the other."""
    return {row.cause: row for row in _rows("causes.jsonl", CauseText)}


def neighbour(cause: str) -> str:
    """The other cause of the same pair: the one that shares the symptom."""
    pair = causes()[cause].pair
    return next(other for other, text in causes().items() if text.pair == pair and other != cause)


def part_of(seed: int, part: Part) -> Wordings:
    """The wordings that `seed` gives to `part`; the parts of one seed have no wording in common."""
    frames = _frames()
    symptoms = _grouped((row.pair, row.text) for row in _rows("symptoms.jsonl", _Symptom))
    evidence = _grouped((row.cause, row.text) for row in _rows("evidence.jsonl", _Evidence))
    return Wordings(
        symptoms={pair: _deal(seed, pair, texts, part) for pair, texts in symptoms.items()},
        evidence={cause: _deal(seed, cause, texts, part) for cause, texts in evidence.items()},
        openers=_deal(seed, "openers", frames.openers, part),
        closers=_deal(seed, "closers", frames.closers, part),
    )


def notes() -> tuple[str, ...]:
    """Sentences that can end an answer, whatever its cause."""
    return _frames().notes


@cache
def _frames() -> _Frames:
    return msgspec.json.decode(_data("frames.json"), type=threadsafe(_Frames))


def _deal(seed: int, name: str, texts: Sequence[str], part: Part) -> tuple[str, ...]:
    # Seeded by text, so that every list is shuffled on its own and a new list moves no other.
    shuffled = random.Random(f"{seed} {name}").sample(texts, len(texts))
    return tuple(shuffled[SHARES[len(texts)][part]])


def _grouped(items: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, text in items:
        groups.setdefault(key, []).append(text)
    return groups


def _rows(name: str, kind: type[T]) -> list[T]:
    return [msgspec.json.decode(line, type=threadsafe(kind)) for line in _data(name).splitlines()]


def _data(name: str) -> bytes:
    return files("fine_tune_runner.sample").joinpath("data", name).read_bytes()
