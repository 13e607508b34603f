"""Root causes: the shipped taxonomy with the client's own laid over it, and how a text names a cause.

Names match exactly after normalisation; nothing here guesses by similarity, and nothing knows what an
answer is worth.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError

_SPACE = re.compile(r"[\s_\-\u2010-\u2015]+")
_EDGES = " \t.,;:!?()*`\"'“”‘’«»"
# `Root cause: X`, also as a heading, a list item, quoted or in bold (`**Root cause:** X`).
_CAUSE_LINE = re.compile(r"^[ \t>#*_-]*root cause[*_]*[ \t]*[:\uff1a][ \t*_]*(\S.*)$", re.I | re.M)


class Cause(msgspec.Struct, frozen=True):
    """One root cause; `label` is what a holdout and an answer's `Root cause:` line name."""

    label: str
    area: str = ""
    definition: str = ""
    aliases: tuple[str, ...] = ()
    typical_symptom: str = ""
    typical_fix: str = ""
    confusable_with: tuple[str, ...] = ()


def normalise(text: str) -> str:
    """NFKC, case folded, underscores and hyphens as spaces, white space folded, edge punctuation dropped."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip(_EDGES)


@dataclass(frozen=True, eq=False)  # by identity, so that what was read by it can be looked up
class Taxonomy:
    """The causes of one client by label; where two entries share an alias the later entry has it."""

    causes: Mapping[str, Cause]

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Normalised label or alias → label; a label always keeps its own name."""
        aliases = {normalise(alias): cause.label for cause in self.causes.values() for alias in cause.aliases}
        return aliases | {normalise(label): label for label in self.causes}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.names, key=len, reverse=True)
        return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")

    def resolve(self, text: str) -> str | None:
        """The label that `text` is, or begins with before an explanation; None where none or not clear.

        "consent_update_missing - the banner never sends it" resolves; a text that goes on to name another
        label ("X or Y") does not.
        """
        found = normalise(text)
        if not self.causes or found in self.names:
            return self.names.get(found)
        lead = self._pattern.match(found)
        if lead is None:
            return None
        label = self.names[lead[0]]
        rest = (m[0] for m in self._pattern.finditer(found, lead.end()))
        others = {name for name in rest if self.names[name] != label}
        # Another cause's alias in the explanation is a symptom told; another label is a second answer.
        return None if any(name == normalise(self.names[name]) for name in others) else label

    def mentions(self, sentence: str) -> tuple[str, ...]:
        """Labels named by label or alias as whole words, in order of appearance; a longer name hides the
        shorter ones inside it."""
        if not self.causes:
            return ()
        found = self._pattern.findall(normalise(sentence))
        return tuple(dict.fromkeys(self.names[name] for name in found))


def cause_line(answer: str) -> str | None:
    """The text after `Root cause:` on the first line that begins so, in any case; None where none does."""
    match = _CAUSE_LINE.search(answer)
    return match[1].strip(" \t*_") or None if match else None


def load_taxonomy(client_dir: Path | None) -> Taxonomy:
    """The shipped causes, with the client's `taxonomy.jsonl` laid over them entry by label.

    Raises DataError naming every broken line of the client's file.
    """
    shipped = files("fine_tune_runner.dataset").joinpath("taxonomy.jsonl").read_bytes()
    causes = _parse(shipped, "taxonomy.jsonl")
    path = client_dir / "taxonomy.jsonl" if client_dir else None
    if path is not None and path.exists():
        try:
            own = _parse(path.read_bytes(), str(path))
        except OSError as error:
            raise DataError(
                f"{path} cannot be read: {error.strerror}; check what it is and who may read it"
            ) from None
        # Own entries come last, so that an alias which both files use is the client's.
        causes = {label: cause for label, cause in causes.items() if label not in own} | own
    return Taxonomy(causes)


def _parse(data: bytes, path: str) -> dict[str, Cause]:
    causes: dict[str, Cause] = {}
    owner: dict[str, str] = {}
    faults: list[str] = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            cause = msgspec.json.decode(line, type=threadsafe(Cause))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            faults.append(f"{where}: not a cause ({error}); correct or drop the line")
            continue
        if cause.label in causes:
            faults.append(f"{where}: label {cause.label!r} is there twice; keep one entry")
        for name in map(normalise, (cause.label, *cause.aliases)):
            other = owner.setdefault(name, cause.label)
            if not name:
                faults.append(f"{where}: an empty label or alias; give it a name or drop it")
            elif other != cause.label:
                faults.append(f"{where}: {name!r} names {other!r} already; keep it with one of the two")
        causes[cause.label] = cause
    if faults:
        raise DataError("\n".join(faults))
    return causes
