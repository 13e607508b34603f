"""Clauses as statements: which words they say, under an even or an odd number of negations.

Two clauses with the same words of which one has a negation more say the opposite of each other. Knows the
causes of a taxonomy and no answer as a whole; what an answer makes of its clauses is for agreement.py.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from fine_tune_runner.dataset.taxonomy import Cause
from fine_tune_runner.evaluation.phrases import BREAKS, fold, words_of
from fine_tune_runner.evaluation.rules import PATTERNS, Kind

_CLAUSE = re.compile(
    r"[,;:()|\u2013\u2014]|\s-\s|\b(?:and|but|while|whereas|because|so|since|which|where|when|whose|until|yet|"
    r"though|although|as(?! an? | well| if))\b|\b(?=without\b|with no\b|rather than\b|instead of\b)",
    re.I,
)
_VERB = re.compile(r"^(?:fix|then|next|now|please|so|first|to)?\W*[a-z]+\b", re.I)
_ASIDE = re.compile(r"\s*\([^)]*\)")
_NEGATION = re.compile(
    r"\b(?:no|not|never|nothing|nobody|none|without|neither|nor|missing|lacks?|lacking|absent|nowhere|hardly|"
    r"kein\w*|nicht|fails? to|failed to|stop(?:s|ped)? \w+ing|gone|in place of|"
    r"(?:empty|blank)(?!\s+(?!in|on|at|when|for|by)\w))\b|n't\b",
    re.I,
)
_BESIDE = re.compile(r"missing|absent|gone|empty|blank|lack", re.I)  # denies what stands before it as well
_REACH = 2  # words behind a negator that it is about
_PREFIX = re.compile(r"^(?:un|dis|in|non|im|mis)(?=\w{4})")
# Pairs of opposites as one stem and a parity, and what people call the same thing as one stem.
_POLES: dict[str, tuple[str, int]] = {
    word: (stem, odd)
    for stem, even, opposite in (
        (
            "(alike)",
            "sam equal identical agre match coincid exactly shar common",
            "differ another other unequal mismatch foreign",
        ),
        (
            "(sound)",
            "right correct valid fin proper healthy",
            "wrong incorrect invalid fals expir revok broken",
        ),
        ("(kept)", "keep kept preserv surviv retain intact", "drop strip los remov discard cut throw"),
        ("(let)", "allow permit", "block refus reject forbid"),
        ("(order)", "befor abov early", "after below lat"),
        ("person", "person buyer customer visitor user guest people shopper", ""),
        ("mail", "mail email", ""),
    )
    for odd, words in enumerate((even, opposite))
    for word in words.split()
}
_SAYS_NOTHING = frozenset(
    re.findall(
        r"\w+",
        "no not missing nothing nobody lack absent empty blank gone never can will would could shall yet any "
        "ever becaus sinc whil when wher if just so only all each every more up out into than but or dur "
        "between they he she i me we us them what how why you her ther one two now",
    )
)
_DENIES: tuple[Kind, ...] = ("denier", "acquits")
_RULED_OUT = re.compile(
    r"\b(?:ruled out|excluded|eliminated|dismissed|discarded|disproved|refuted|unlikely|innocent|red herring|"
    r"off the (?:table|list)|irrelevant|unrelated|a myth|impossible|out of the question|false lead)\b",
    re.I,
)
Weight = Callable[[str], float]


@dataclass(frozen=True, slots=True)
class Statement:
    """Canonical words of a clause, negations left out; `odd` where an odd number of negations is in it, and
    `focus` the words that these stand next to; `opposite` the stems said by the second word of a pair."""

    words: frozenset[str]
    odd: bool
    focus: frozenset[str]
    opposite: frozenset[str]

    def parity(self, other: Statement) -> int:
        """0 where both assert the same of what they share, 1 where one denies it."""
        turned = (self.opposite ^ other.opposite) & self.words & other.words
        return (self.odd + other.odd + len(turned)) % 2


@lru_cache(maxsize=16384)
def statement(clause: str, prefixed: frozenset[str] = frozenset()) -> Statement:
    """What a folded clause says; a word like "disconnected" is a denied one where `prefixed` has the rest."""
    clause = clause.replace("_", " ")
    negated = [(m.start(), m.end()) for m in _NEGATION.finditer(clause)]
    whole = any(PATTERNS[kind].search(clause) for kind in _DENIES) or _RULED_OUT.search(clause) is not None
    negations = len(negated) + whole
    words: list[tuple[str, int]] = []
    focus: set[str] = set()
    opposite: set[str] = set()
    for word in words_of(clause):
        text = word.text
        if text in BREAKS or text in _SAYS_NOTHING or len(text) < 2:
            continue
        text, odd = _POLES.get(text, (text, 0))
        prefix = _PREFIX.match(text)
        if prefix and text[prefix.end() :] in prefixed:
            text, negations = text[prefix.end() :], negations + 1
            focus.add(text)
        if odd:
            opposite.add(text)
        words.append((text, word.start))
    for start, end in negated:
        after = [text for text, at in words if at >= end]
        before = [text for text, at in words if at < start]
        focus.update(after[:_REACH] if after else before[-_REACH:])
        if _BESIDE.match(clause, start):
            focus.update(before[-1:])
    said = frozenset(text for text, _ in words)
    return Statement(said, negations % 2 == 1, said if whole else frozenset(focus), frozenset(opposite))


def clauses(folded: str) -> list[str]:
    """The parts of a sentence that each state one thing."""
    return [part.strip() for part in _CLAUSE.split(folded) if len(part.split()) >= 2]


class Causes:
    """What is known of each cause, as statements: its label, its aliases, the clauses of its definition.

    A word is worth more the fewer causes have it (inverse document frequency).
    """

    def __init__(self, causes: Sequence[Cause]) -> None:
        texts = {cause.label: _texts(cause) for cause in causes}
        self.vocabulary = frozenset(
            w.text for said in texts.values() for text in said for w in words_of(text)
        )
        self.of = {label: [self.statement(text) for text in said] for label, said in texts.items()}
        self.fixes = {cause.label: self.objects(fold(cause.typical_fix)) for cause in causes}
        self._by_word: dict[str, list[tuple[str, Statement]]] = defaultdict(list)
        for label, known in self.of.items():
            for said in known:
                for word in said.words:
                    self._by_word[word].append((label, said))
        counts = Counter(
            w for known in self.of.values() for w in frozenset[str]().union(*(s.words for s in known))
        )
        self._rarity = {w: 0.2 + math.log((len(self.of) + 1) / (1 + n)) for w, n in counts.items()}
        self._unknown = 0.2 + math.log(len(self.of) + 1)

    def statement(self, clause: str) -> Statement:
        """A clause in the words of the causes."""
        return statement(clause, self.vocabulary)

    def objects(self, advice: str) -> frozenset[str]:
        """What steps that are not warned against are about: the verb, first of each, is left out."""
        steps = [self.statement(_VERB.sub("", step)) for step in clauses(advice)]
        return frozenset[str]().union(*(step.words for step in steps if not step.odd))

    def rarity(self, word: str) -> float:
        """What a word is worth; one that no cause has is worth most."""
        return self._rarity.get(word, self._unknown)

    def nearest(self, said: Statement, weight: Weight, but: frozenset[str]) -> float:
        """How much of a statement of any other cause a clause says, with the same parity."""
        near: dict[str, dict[int, Statement]] = defaultdict(dict)
        for word in said.words:
            for label, known in self._by_word.get(word, ()):
                if label not in but:
                    near[label][id(known)] = known
        found = (likeness(said, list(known.values()), weight) for known in near.values())
        return max((asserted for asserted, denied in found if asserted > denied), default=0.0)


def likeness(said: Statement, known: Sequence[Statement], weight: Weight) -> tuple[float, float]:
    """(asserted, denied): how much of the nearest of some statements a clause says with the same parity, and
    with the other: shared weight times the share of the statement that it is."""
    asserted = denied = 0.0
    for other in known:
        shared = math.fsum(map(weight, said.words & other.words))
        if shared:
            worth = shared * shared / math.fsum(map(weight, other.words))
            if not said.parity(other):
                asserted = max(asserted, worth)
            elif _gainsays(said, other):
                denied = max(denied, worth)
    return asserted, denied


def _gainsays(said: Statement, other: Statement) -> bool:
    """Whether what the two share is what one of them negates; a clause without any negation has to say
    all that the other one negates."""
    shared = said.words & other.words
    if not said.focus and not said.opposite and other.focus:
        return other.focus <= shared
    return bool((said.focus | other.focus | (said.opposite ^ other.opposite)) & shared)


def _texts(cause: Cause) -> list[str]:
    return [
        *clauses(_ASIDE.sub("", fold(cause.definition))),
        *map(fold, cause.aliases),
        cause.label.replace("_", " "),
    ]
