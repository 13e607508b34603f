"""How a cause is named in running text: canonical words, phrases of labels and aliases, and their matches.

A match is a span of words and a label; whether the sentence affirms, denies or only mentions it is not
known here.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    "different": "differ",
    "param": "parameter",
    "parameters": "parameter",
    "params": "parameter",
}
# "isnt", "is'nt", "dosn't": a negation is one however its apostrophe stands.
_NEGATED_VERB = re.compile(
    r"\b(is|was|are|were|do|does|dos|did|has|have|had|ca|could|would|should|wo)'?n'?t\b", re.I
)
_IS = re.compile(r"\b(that|there|here|what)s\b", re.I)
_SHORTHAND = re.compile(r"\bw/o\b", re.I)
_WORD = re.compile(r"n't\b|[^\W_]+|[,;:()\u2013\u2014]")
BREAKS = frozenset(",;:()\u2013\u2014")
_GAP = 2  # words that may stand between two words of a phrase: "container was not [yet] published"
_NOT_THERE = ("send", "set", "call", "present", "found", "install")
NOBODY = frozenset({"nobody", "nothing", "nowhere"})
_THERE = ("present", "set", "send", "found", "exist", "plac", "right", "correct", "fir")
_FAULTS = ("wrong", "differ", "invalid", "expir", "broken")
_RIGHT = ("right", "correct", "fin", "valid", "equal", "sam", "identical", "match")
_OF_A_SAYING = frozenset({"way", "doubt", "question", "reason", "trouble", "sign", "evidenc", "problem"})
_LOOSE = 3  # words of a phrase in another order: how many others may stand among them
_SPELT = 6  # letters from which on one slip of the keyboard is forgiven


Phrase = tuple[str, ...]
Index = dict[str, list[tuple[Phrase, str]]]


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
    text = re.sub(r"\b([Dd])ata[ -](?=[Ll]ayer)", r"\1ata", _SHORTHAND.sub("without", text))
    text = _IS.sub(r"\1's", text)
    text = _NEGATED_VERB.sub(r"\1n't", text)
    return re.sub(
        r"\b([Cc])a n't", r"\1an n't", re.sub(r"n't\b", " n't", re.sub(r"\b([Cc])annot\b", r"\1an not", text))
    )


@lru_cache(maxsize=4096)
def words_of(folded: str) -> tuple[Word, ...]:
    """Canonical words in order; stop words are left out, punctuation that ends a clause stays."""
    found = ((m[0].casefold(), m.start(), m.end()) for m in _WORD.finditer(folded))
    return tuple(Word(_canonical(raw), start, end) for raw, start, end in found if raw not in _STOP)


@lru_cache(maxsize=16384)
def _canonical(raw: str) -> str:
    if raw in _NO:
        return "no"
    if raw in _NOT or raw == "n't":
        return "not"
    if raw in NOBODY:
        return raw
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
        self._by_first = _indexed(labels, lambda phrase: phrase[0])
        self._by_rarest = _indexed({p: n for p, n in labels.items() if _is_loose(p)}, _rarest(labels))
        self._spelling = _Spelling(word for phrase in labels for word in phrase)
        contrary: dict[tuple[str, ...], set[str]] = {}
        for phrase, named in labels.items():
            for form in _contrary(phrase):
                if form not in labels:
                    contrary.setdefault(form, set()).update(named)
        self._contrary = _indexed(contrary, lambda phrase: phrase[0])
        self.mentions = lru_cache(maxsize=4096)(self._mentions)  # each sentence is looked up several times

    def contradicted(self, folded: str) -> list[Mention]:
        """Where a sentence says the opposite of a label: "the ecommerce object is cleared"."""
        words = self._spelling.corrected(words_of(folded))
        if any(word.negates or word.text in NOBODY for word in words):
            return []
        return list(_in_order(words, self._contrary))

    def _mentions(self, folded: str) -> list[Mention]:
        """Every label named in a folded sentence, in order; a longer match hides the shorter ones in it."""
        words = self._spelling.corrected(words_of(folded))
        exact = sorted(_in_order(words, self._by_first), key=lambda m: (-m.words, m.start, m.end))
        loose = sorted(_in_any_order(words, self._by_rarest), key=lambda m: (m.end - m.start, m.start))
        found = (*exact, *(m for m in loose if not any(k.start < m.end and m.start < k.end for k in exact)))
        kept: list[Mention] = []
        for mention in found:
            inside = [k for k in kept if k.start < mention.end and mention.start < k.end]
            if all(k.words == mention.words and k.label != mention.label for k in inside):
                kept.append(mention)
        return sorted(kept, key=lambda m: m.start)


def _indexed(labels: Mapping[Phrase, set[str]], key: Callable[[Phrase], str]) -> Index:
    index: Index = {}
    for phrase, named in labels.items():
        index.setdefault(key(phrase), []).extend((phrase, label) for label in sorted(named))
    return index


def _rarest(labels: Iterable[Phrase]) -> Callable[[Phrase], str]:
    counts = Counter(word for phrase in labels for word in phrase)
    return lambda phrase: min(phrase, key=lambda word: (counts[word], word))


def _is_loose(phrase: Phrase) -> bool:
    return len({*phrase} - {"no", "not"}) >= 3


def _in_order(words: Sequence[Word], index: Index) -> Iterator[Mention]:
    there = {word.text for word in words}
    for at, word in enumerate(words):
        for phrase, label in index.get(word.text, ()):
            last = _match_end(words, at, phrase) if there.issuperset(phrase) else None
            if last is not None:
                yield Mention(label, word.start, words[last].end, len(phrase))


def _in_any_order(words: Sequence[Word], index: Index) -> Iterator[Mention]:
    """Phrases of three words and more whose words stand together in one clause, denied alike."""
    there = {word.text for word in words}
    for at, word in enumerate(words):
        for phrase, label in index.get(word.text, ()):
            if not there.issuperset(phrase):
                continue
            window = _window(words, at, len(phrase) + _LOOSE)
            span = _narrowest(window, phrase)
            if span and _denied_word(span) == _denied_word([Word(text, 0, 0) for text in phrase]):
                yield Mention(label, span[0].start, span[-1].end, len(phrase))


def _window(words: Sequence[Word], at: int, reach: int) -> Sequence[Word]:
    start = end = at
    while start > 0 and at - start < reach and words[start - 1].text not in BREAKS:
        start -= 1
    while end + 1 < len(words) and end - at < reach and words[end + 1].text not in BREAKS:
        end += 1
    return words[start : end + 1]


def _narrowest(window: Sequence[Word], phrase: Phrase) -> Sequence[Word] | None:
    """The first stretch of the window with all words of the phrase and few others."""
    wanted = Counter(phrase)
    for start in range(len(window)):
        if window[start].text not in wanted:
            continue
        left = wanted.copy()
        for end in range(start, min(len(window), start + len(phrase) + _LOOSE)):
            left -= Counter([window[end].text])
            if not left:
                return window[start : end + 1]
    return None


def _denied_word(words: Sequence[Word]) -> list[str]:
    """What follows each negator."""
    return [after.text for word, after in pairwise([*words, Word("", 0, 0)]) if word.negates]


def _contrary(phrase: Phrase) -> Iterator[Phrase]:
    """Ways to say the opposite of a phrase without any negation."""
    denied = [at for at, word in enumerate(phrase) if word == "not"]
    if len(denied) == 1 and len(phrase) >= 3:
        yield (*phrase[: denied[0]], *phrase[denied[0] + 1 :])
    if phrase[-1] == "missing" and len(phrase) >= 2:
        yield from ((*phrase[:-1], verb) for verb in _THERE)
    if phrase[-1] in _FAULTS and len(phrase) >= 2:
        yield from ((*phrase[:-1], word) for word in _RIGHT)
    if phrase[0] in _FAULTS and len(phrase) >= 2:
        yield from (form for word in _RIGHT for form in ((*phrase[1:], word), (word, *phrase[1:])))


class _Spelling:
    """Words as the phrases spell them, where one letter is missing, doubled, wrong or swapped."""

    def __init__(self, vocabulary: Iterable[str]) -> None:
        self._known = frozenset(vocabulary)
        self._near: dict[str, str] = {}
        for word in sorted(self._known):
            if len(word) >= _SPELT and word.isalpha():
                self._near |= dict.fromkeys(_slips(word), word)
        for word, canonical in _SYNONYMS.items():
            if len(word) >= _SPELT and canonical in self._known:
                self._near |= dict.fromkeys(_slips(word), canonical)
        self._seen: dict[str, str] = {}

    def corrected(self, words: Sequence[Word]) -> list[Word]:
        """The same words and spans; what is not near to a known word stays as it is."""
        return [Word(self._correct(word.text), word.start, word.end) for word in words]

    def _correct(self, word: str) -> str:
        if word in self._known or len(word) < _SPELT - 1 or not word.isalpha():
            return word
        if word not in self._seen:
            near = {self._near[slip] for slip in _slips(word) if slip in self._near}
            near = {known for known in near if known[0] == word[0]}
            self._seen[word] = near.pop() if len(near) == 1 else word
        return self._seen[word]


def _slips(word: str) -> set[str]:
    return {word, *(word[:at] + word[at + 1 :] for at in range(len(word)))}


def _match_end(words: Sequence[Word], at: int, phrase: tuple[str, ...]) -> int | None:
    """Index of the last word of `phrase` begun at `at`, or None; no gap across a clause or over a negator."""
    for before, wanted in pairwise(phrase):
        at += 1
        gap = 0
        # What follows a negator must follow at once: "no consent update", not "no trouble with consent".
        allowed = 1 if before in ("no", "not") else _GAP
        while at < len(words) and words[at].text != wanted:
            gap += 1
            said_no = allowed == 1 and words[at].text in _OF_A_SAYING  # "no way", "no sign of"
            twice_denied = (
                words[at].text == "missing" or words[at].text in NOBODY
            )  # "does not lack a version"
            if gap > allowed or said_no or twice_denied or words[at].text in BREAKS or words[at].negates:
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
    phrase = tuple(w.text for w in words_of(fold(text)) if w.text not in BREAKS)
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
    if phrase[0] in _FAULTS:
        yield (*phrase[1:], phrase[0])  # "wrong measurement id", "the measurement id is wrong"
    for at, word in enumerate(phrase[:-1]):
        if word == "not":
            yield (*phrase[:at], "un" + phrase[at + 1], *phrase[at + 2 :])
