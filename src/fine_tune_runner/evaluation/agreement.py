"""Does an answer state its question's cause in words of its own, and nothing against it or beside it?

Two witnesses are asked: what the answer asserts, clause by clause, and what it advises to do. Reads only what
the sentences assert (stance.py), and gives figures; which of them are enough is decided here too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.evaluation.clauses import ASIDE, COUNTED, STATES, VERDICT_PART
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.phrases import Phrases, fold
from fine_tune_runner.evaluation.rules import PATTERNS
from fine_tune_runner.evaluation.sentences import sentences
from fine_tune_runner.evaluation.stance import denies, judge
from fine_tune_runner.evaluation.statements import Causes, Statement, Weight, clauses, likeness

ECHO_WEIGHT = 0.3  # of a word that the question says as well
# Chosen on six sets of hard answers, each with room to the nearest wrong one (docs/evaluation.md, "Recall").
SAYS = 1.5  # from which on a clause is one about the cause
STATED = 1.0
NET = 2.0
DENIED = 0.25  # share of what is asserted that may be gone against
DENIED_BEFORE = 0.5  # the same for what stands before it: a digression, or what was first thought
ADVICE = 0.3  # worth of advice beside statements
BACKED, COVERED = 1.0, 0.35
OTHER_ADVICE = 2.0
TURNED, FAR = 4.0, 4.0
_LINE = re.compile(r"^root cause:[^.]*\.?\s*", re.I)
_BETWEEN = re.compile(r"[,;]\s*(?:and |or )?|\b(?:or|and)\b (?=an? |the )")
_PLACES = ("last", "first", "second", "third", "fourth", "fifth")
_CHOICE = re.compile(
    r"(?:\b(?:it|this|that|yours|here) (?:is |was )|'s )(?:\w+ )?the "
    r"(last|first|second|third|fourth|fifth)\b|"
    r"\bthe (last|first|second|third|fourth|fifth)(?: one)? is (?:the one|it|yours|ours|what)\b",
    re.I,
)
# Says what should be, or what a word means, and not what is.
_UNSAID = re.compile(
    r"\b(?:needs?|must|should|ought|(?:has|have|supposed|required) to)\b|^an? [\w -]{1,40} (?:is|are) an?\b",
    re.I,
)


@dataclass(slots=True)
class Agreement:
    """How far an answer agrees with a cause, in units of word rarity.

    `asserted` and `denied` are its clause nearest to a statement of the cause, with the same parity and with
    the other, `denied_after` the latter after the former; `set_aside` what heads a part that tells what is
    not the cause; `other` by how much a clause is nearer to another cause; `covered` the share of the
    reference's diagnosis that asserted clauses say; `fix` and `other_fix` what its advice shares with the
    cause's remedy, and with that of the nearest other cause; `last` the last sentence that asserts the cause
    and `evidence` the clause behind `asserted`.
    """

    asserted: float = 0.0
    denied: float = 0.0
    denied_after: float = 0.0
    set_aside: float = 0.0
    other: float = 0.0
    covered: float = 0.0
    fix: float = 0.0
    other_fix: float = 0.0
    last: int = -1
    evidence: str = ""

    @property
    def elsewhere(self) -> bool:
        """Whether what is stated is far nearer to another cause, or nearer to one and so is the advice."""
        beside = self.other - self.asserted
        return beside > FAR or (beside > 0 and self.other_fix > self.fix)

    @property
    def turned(self) -> bool:
        """Whether the cause is denied far more than it is stated, or set aside in the same words."""
        return self.denied > self.asserted + TURNED or self.set_aside >= max(self.asserted, SAYS)

    @property
    def enough(self) -> bool:
        """Whether the cause is stated, backed by advice or reference, and not gone against."""
        backed = self.fix >= self.other_fix + BACKED or self.covered >= COVERED
        net = self.asserted - self.other + ADVICE * (self.fix - self.other_fix)
        return (
            backed
            and self.asserted >= STATED
            and self.denied_after <= DENIED * self.asserted
            and self.denied <= DENIED_BEFORE * self.asserted
            and self.other_fix <= self.fix + OTHER_ADVICE
            and net >= NET
        )


def agreement(answer: str, question: Question, taxonomy: Taxonomy, phrases: Phrases) -> Agreement:
    """Compare what an answer asserts and advises with what is known of the question's cause and of others."""
    known = _causes(taxonomy)
    expected = _expected(question.text, question.reference, question.right, question.aliases, taxonomy)
    own, weight = expected.statements, expected.weight
    found, said, advice = Agreement(), set[str](), set[str]()
    listed: list[str] = []
    place = f"{question.text}\n{question.reference}".casefold()
    for index, sentence in enumerate(sentences(answer)):
        if PATTERNS["retract"].search(sentence.text):
            found, said = Agreement(), set()
        if sentence.after_fix or PATTERNS["fix_step"].search(sentence.text):
            advice |= known.objects(sentence.text)
            continue
        if VERDICT_PART.match(sentence.text):
            found.asserted, found.last, said = 0.0, -1, set()
        if sentence.aside:
            _set_aside(found, sentence.text, known, own, weight)
            continue
        if COUNTED.search(sentence.text):
            listed = _items(sentence.text)
            continue
        for clause in (*_asserted(sentence.text, phrases, place), *_chosen(sentence.text, listed)):
            said |= _add(found, clause, known, own, question.right, weight, index) & expected.diagnosis
    found.covered = _worth(said, weight) / (_worth(expected.diagnosis, weight) or 1.0)
    found.fix = _worth(advice & expected.remedy, weight)
    others = [fix for label, fix in known.fixes.items() if label not in question.right]
    found.other_fix = max((_worth(advice & fix, weight) for fix in others), default=0.0)
    return found


def _asserted(text: str, phrases: Phrases, place: str) -> list[str]:
    """The clauses of a sentence that the answer itself says are so, no question, list, wish or test."""
    if _LINE.match(text) or text.endswith("?") or _list(text):
        return []
    arms = map(_resumed, judge(text, phrases, place).plain)
    return [clause for arm in arms for clause in clauses(arm) if not _UNSAID.search(clause)]


def _resumed(arm: str) -> str:
    """An arm that tells what was looked at is left out, but for what a colon says was found there."""
    looked = PATTERNS["looked"].search(arm)
    if looked is None:
        return arm
    found = arm[looked.end() :].partition(":")[2]
    return found if STATES.search(found) and not _list(found) else ""


def _items(text: str) -> list[str]:
    """What a sentence counts off."""
    return [item.strip(" .") for item in _BETWEEN.split(text.split(":", 1)[-1]) if item.strip(" .")]


def _chosen(text: str, listed: list[str]) -> list[str]:
    """The item that "it is the third" means, of those counted off before."""
    found = _CHOICE.search(text)
    if not found or len(listed) < 2 or denies(text):
        return []
    place = _PLACES.index((found[1] or found[2]).casefold())
    return listed[place - 1 :][:1] if place else listed[-1:]


def _add(
    found: Agreement,
    clause: str,
    known: Causes,
    own: list[Statement],
    right: frozenset[str],
    weight: Weight,
    index: int,
) -> frozenset[str]:
    """Weigh one clause; gives its words where it asserts the cause rather than denies it."""
    said = known.statement(clause)
    if len(said.words) < 2:
        return frozenset()
    asserted, denied = likeness(said, own, weight)
    other = known.nearest(said, weight, right) - max(asserted, denied)
    found.other = max(found.other, other)
    if denied > asserted:
        _deny(found, denied)
        return frozenset()
    if asserted > found.asserted:
        found.asserted, found.evidence, found.denied_after = asserted, clause, 0.0
    if asserted > SAYS:
        found.last = index
    return said.words


def _deny(found: Agreement, worth: float) -> None:
    found.denied_after = max(found.denied_after, worth)
    found.denied = max(found.denied, worth)


def _set_aside(found: Agreement, text: str, known: Causes, own: list[Statement], weight: Weight) -> None:
    """What such a part is headed by is denied; the rest of it says why, of whatever cause."""
    head = ASIDE.match(text)
    for clause in clauses(text[head.end() :]) if head else ():
        stated, _ = likeness(known.statement(clause), own, weight)
        found.set_aside = max(found.set_aside, stated)
        _deny(found, stated)


def _list(text: str) -> bool:
    """Whether a sentence begins with three parts or more that only name something."""
    parts = text.split(":")[0].split(",")
    named = [len(part.split()) <= 4 and not STATES.search(part) for part in parts]
    return len(named) >= 3 and all(named[:3])


def _worth(words: Iterable[str], weight: Weight) -> float:
    return math.fsum(map(weight, words))


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a question's cause: statements, and words of the diagnosis and of the remedy."""

    statements: list[Statement]
    diagnosis: frozenset[str]
    remedy: frozenset[str]
    weight: Weight


@lru_cache(maxsize=2048)
def _expected(
    asked: str, reference: str, right: frozenset[str], aliases: tuple[str, ...], taxonomy: Taxonomy
) -> Expected:
    known = _causes(taxonomy)
    told, advised = _parts(reference)
    statements = [known.statement(clause) for text in told for clause in clauses(text)]
    statements += [s for label in sorted(right) for s in known.of.get(label, ())]
    statements += [known.statement(fold(alias)) for alias in aliases]
    remedy = frozenset[str]().union(*(known.objects(text) for text in advised))
    remedy |= frozenset[str]().union(*(known.fixes.get(label, frozenset()) for label in right))
    diagnosis = frozenset[str]().union(*(known.statement(text).words for text in told))
    return Expected(statements, diagnosis, remedy, _weight(known.statement(fold(asked)).words, known))


def _weight(echo: frozenset[str], known: Causes) -> Weight:
    @cache
    def weight(word: str) -> float:
        return known.rarity(word) * (ECHO_WEIGHT if word in echo else 1.0)

    return weight


@lru_cache(maxsize=8)
def _causes(taxonomy: Taxonomy) -> Causes:
    return Causes(tuple(taxonomy.causes.values()))


def _parts(reference: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(diagnosis, advice) of a reference, its `Root cause:` line left out."""
    told: list[str] = []
    advised: list[str] = []
    for sentence in sentences(reference):
        text = _LINE.sub("", sentence.text)
        is_advice = sentence.after_fix or PATTERNS["fix_step"].search(text)
        (advised if is_advice else told).append(text)
    return tuple(filter(None, told)), tuple(advised)
