"""How a cause is named in running text: canonical words, phrases of labels and aliases, and their matches.

A match is a span of words and a label; whether the sentence affirms, denies or only mentions it is not
known here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

# Negators of a noun are the word "no", all others are "not", so that "never published" is the alias
# "not published" while "is not the consent update" is not "no consent update". Words of other languages
# are there because clients' answers quote and mix them.
_NO = frozenset(
    {"no", "without", "none", "kein", "keine", "keinen", "keinem", "geen", "ingen", "sin", "sans"}
)
_NOT = frozenset(
    {
        "not",
        "never",
        "neither",
        "nor",
        "cannot",
        "nicht",
        "nie",
        "nunca",
        "non",
        "pas",
        "não",
        "jamais",
        "niet",
    }
)
_STOP = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was were be been being am has have had having do does did of to in on at by for "
        "from with your our its their his her this that these those it and as which who s still then there "
        "also",
    )
)
_SYNONYMS = {
    "lacking": "missing",
    "lack": "missing",
    "lacks": "missing",
    "absent": "missing",
    "sent": "send",
    "lost": "lose",
    "strips": "strip",
    "overwritten": "overwrite",
    "dropped": "drop",
    "stripped": "strip",
}
_WORD = re.compile(r"n't\b|[^\W_]+|[,;:()\u2013\u2014]")
_BREAKS = frozenset(",;:()\u2013\u2014")
_GAP = 2  # words that may stand between two words of a phrase: "container was not [yet] published"
_NOT_THERE = ("send", "set", "call", "present", "found", "install")


@dataclass(frozen=True, slots=True)
class Word:
    """One canonical word with its character span in the sentence."""

    text: str
    start: int
    end: int

    @property
    def negates(self) -> bool:
        """Whether it is a negator."""
        return self.text in ("no", "not")


@dataclass(frozen=True, slots=True)
class Mention:
    """One label named in a sentence; `words` is the length of the phrase that matched."""

    label: str
    start: int
    end: int
    words: int


def fold(text: str) -> str:
    """NFKC, straight apostrophes, and negations as words of their own, so that spans are stable."""
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    text = re.sub(r"\b([Dd])ata[ -](?=[Ll]ayer)", r"\1ata", text)
    return re.sub(r"n't\b", " n't", re.sub(r"\b([Cc])annot\b", r"\1an not", text))


def words_of(folded: str) -> list[Word]:
    """Canonical words in order; stop words are left out, punctuation that ends a clause stays."""
    found = ((m[0].casefold(), m.start(), m.end()) for m in _WORD.finditer(folded))
    return [Word(_canonical(raw), start, end) for raw, start, end in found if raw not in _STOP]


def _canonical(raw: str) -> str:
    if raw in _NO:
        return "no"
    if raw in _NOT or raw == "n't":
        return "not"
    word = _SYNONYMS.get(raw, raw)
    for ending, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", ""), ("e", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and word != "missing":
            return word[: len(word) - len(ending)] + rest
    return word


class Phrases:
    """Labels and aliases as sequences of canonical words, found in sentences with small gaps.

    `names` maps each label to the texts that name it; the label itself is always one of them. A text in
    `overrides` names that label alone, whatever else it names elsewhere.
    """

    def __init__(
        self, names: Mapping[str, Iterable[str]], overrides: Mapping[str, Iterable[str]] | None = None
    ) -> None:
        labels: dict[tuple[str, ...], set[str]] = {}
        for label, texts in names.items():
            for phrase in frozenset().union(*map(_forms, (label, *texts))):
                labels.setdefault(phrase, set()).add(label)
        for label, texts in (overrides or {}).items():
            for phrase in frozenset().union(*map(_forms, texts)):
                labels[phrase] = {label}
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for phrase, named in labels.items():
            self._by_first.setdefault(phrase[0], []).extend((phrase, label) for label in sorted(named))

    def mentions(self, folded: str) -> list[Mention]:
        """Every label named in a folded sentence, in order; a longer match hides the shorter ones in it."""
        words = words_of(folded)
        found = sorted(self._matches(words), key=lambda m: (-m.words, m.start, m.end))
        kept: list[Mention] = []
        for mention in found:
            inside = [k for k in kept if k.start < mention.end and mention.start < k.end]
            if all(k.words == mention.words and k.label != mention.label for k in inside):
                kept.append(mention)
        return sorted(kept, key=lambda m: m.start)

    def _matches(self, words: list[Word]) -> Iterator[Mention]:
        for at, word in enumerate(words):
            for phrase, label in self._by_first.get(word.text, ()):
                last = _match_end(words, at, phrase)
                if last is not None:
                    yield Mention(label, word.start, words[last].end, len(phrase))


def _match_end(words: list[Word], at: int, phrase: tuple[str, ...]) -> int | None:
    """Index of the last word of `phrase` begun at `at`, or None; no gap across a clause or over a negator."""
    for before, wanted in pairwise(phrase):
        at += 1
        gap = 0
        # What follows a negator must follow at once: "no consent update", not "no trouble with consent".
        allowed = 1 if before in ("no", "not") else _GAP
        while at < len(words) and words[at].text != wanted:
            gap += 1
            if gap > allowed or words[at].text in _BREAKS or words[at].negates:
                return None
            at += 1
        if at >= len(words):
            return None
    return at


@lru_cache(maxsize=16384)
def _forms(text: str) -> frozenset[tuple[str, ...]]:
    return frozenset(_written(text))


def _written(text: str) -> Iterator[tuple[str, ...]]:
    """The phrase, and the other ways to say the "missing" or "not" that is in it."""
    phrase = tuple(w.text for w in words_of(fold(text)) if w.text not in _BREAKS)
    if not phrase:
        return
    yield phrase
    thing: tuple[str, ...] = ()
    if phrase[-1] == "missing":
        thing = phrase[:-1]
    elif phrase[0] == "no":
        thing = phrase[1:]
    if len(thing) > 1:
        yield from (("no", *thing), ("missing", *thing), (*thing, "missing"))
        yield from (form for verb in _NOT_THERE for form in ((*thing, "not", verb), ("not", verb, *thing)))
    if len(phrase) > 1 and not {"no", "not", _canonical("nothing")} & set(phrase):
        yield (phrase[-1], *phrase[:-1])  # "access token expired", "expired access token"
    for at, word in enumerate(phrase[:-1]):
        if word == "not":
            yield (*phrase[:at], "un" + phrase[at + 1], *phrase[at + 2 :])
