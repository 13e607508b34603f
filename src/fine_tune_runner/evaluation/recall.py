"""Problem recall: to which cause did an answer commit, and is that the right one?

Pure functions of text; the words they go by stand in rules.py. Nothing here asks a model; the nearest cause
by embedding is handed over, and only used where no rule could read a committed sentence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from fine_tune_runner.dataset.taxonomy import Taxonomy, cause_line
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.phrases import Mention, Phrases, fold, words_of
from fine_tune_runner.evaluation.rules import (
    AFFIRMING,
    CLAUSE,
    CLAUSE_AFTER,
    CONCEDED,
    CONSEQUENCE,
    DENIED_COMMIT,
    ENDS_AT_COMMA,
    PATTERNS,
    POINTS_BACK,
    TURN,
    Kind,
)
from fine_tune_runner.evaluation.sentences import LONGEST, blocks, sentences
from fine_tune_runner.types import Method

MARGIN = 0.05  # cosine by which the nearest cause must lead (facts/evaluation.md)
ECHO = ""  # the key under which `Nearest` gives the cosine to the question's own text
REJECTED = "(rejected wording)"
UNNAMED = "(another cause)"
_DROPS: tuple[Kind, ...] = ("hedge", "attributed", "general", "elsewhere", "echo")
# What ends the name in `Root cause: name - explanation`.
_EXPLAINS = re.compile(
    r"\.(?=\s|$)|[;:(]|\s[-\u2013\u2014]+\s|,\s+(?=(?:because|since|as|so|which|where|not|i\.e|the|it)\b)",
    re.I,
)
_SECOND = re.compile(r"\W*(?:or|and|and/or|plus|as well as|alternatively)\b", re.I)
_TROUBLE = re.compile(r"\s*(?:problem|issue|error|fault|trouble|bug)s?\b", re.I)
_BE = re.compile(r"\b(?:is|was|are|were|be|been|'s|ist|war|est|es|è)\s*$", re.I)


class Nearest(Protocol):
    """How near a text is to each cause, and (under ECHO) to the question itself, as cosines."""

    def __call__(self, text: str, question: Question) -> Mapping[str, float]: ...


@dataclass(frozen=True, slots=True)
class Commitment:
    """The cause an answer stands for, None where it named none or several; `evidence` is what decided.

    Several causes come as method "committed" with no cause: read, and wrong. "unresolved" was not read.
    """

    cause: str | None
    method: Method
    evidence: str


@dataclass(slots=True)
class _Reading:
    """What one sentence, or all so far, say of each label."""

    affirmed: dict[str, str] = field(default_factory=dict)
    doubted: set[str] = field(default_factory=set)
    rivals: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    strong: bool = False
    withdrawn: bool = False


def committed(answer: str, question: Question, taxonomy: Taxonomy, nearest: Nearest | None) -> Commitment:
    """Which cause the answer committed to (facts/evaluation.md, "Problem recall").

    An own `Root cause:` line decides alone. Else the committed sentences before the fix do, negated and
    hedged ones left out: one label is the answer, several are wrong, none leaves it to `nearest`, if given.
    """
    phrases = _phrases(_causes(taxonomy), question.label, question.aliases, question.denials)
    lines = _own_lines(answer)
    if lines:
        return _from_lines(lines, question, taxonomy, phrases)
    reading = _read(answer, phrases)
    if reading.affirmed:
        return _one_of(reading.affirmed, reading.rivals, question, "committed")
    # An embedding is blind to "not", so only what denies nothing at all is left to it.
    plain = [text for text in reading.commits if not _denies(text)]
    if nearest is not None and plain and not reading.withdrawn and not reading.rivals:
        return _nearest_cause(" ".join(plain), reading.doubted, question, nearest)
    return Commitment(None, "unresolved", _short(" ".join(reading.commits) or answer))


def recalled(commitment: Commitment, question: Question) -> bool:
    """Whether the cause committed to is the question's, or one it accepts; a rejected one never is."""
    return commitment.cause is not None and commitment.cause in question.right


def committed_sentences(answer: str) -> list[str]:
    """The sentences that commit and neither deny nor hedge, whatever they name; for contrast and review.

    An answer with a `Root cause:` line gives that line, if it neither denies nor hedges.
    """
    names = Phrases({})
    lines = _own_lines(answer)
    if lines:
        return [line for line in lines if _judge(f"root cause is {line}", names).commits]
    return _read(answer, names).commits


def _own_lines(answer: str) -> list[str]:
    return [line[:LONGEST] for block in blocks(answer) if (line := cause_line(block))]


def _causes(taxonomy: Taxonomy) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((cause.label, tuple(cause.aliases)) for cause in taxonomy.causes.values())


@lru_cache(maxsize=2048)
def _phrases(
    causes: tuple[tuple[str, tuple[str, ...]], ...],
    label: str | None,
    aliases: tuple[str, ...],
    denials: tuple[str, ...],
) -> Phrases:
    names = dict(causes) | ({} if label is None or label in dict(causes) else {label: ()})
    return Phrases(names, ({label: aliases} if label else {}) | ({REJECTED: denials} if denials else {}))


def _from_lines(lines: list[str], question: Question, taxonomy: Taxonomy, phrases: Phrases) -> Commitment:
    """What `Root cause:` lines say: the name before the explanation, and no other cause named beside it."""
    affirmed: dict[str, str] = {}
    for line in lines:
        affirmed |= dict.fromkeys(_named_in_line(line, taxonomy, phrases), line)
    if not affirmed:
        return Commitment(None, "unresolved", _short(lines[0]))
    return _one_of(affirmed, set(), question, "line")


def _named_in_line(line: str, taxonomy: Taxonomy, phrases: Phrases) -> list[str]:
    head, rest = line, ""
    if (cut := _EXPLAINS.search(line)) and not _SECOND.match(line[cut.start() :]):
        head, rest = line[: cut.start()], line[cut.start() :]
    if _dropped(head, phrases.mentions(head)) or PATTERNS["retract"].search(rest) or head.endswith("?"):
        return []
    named = [*_judge(f"root cause is {head}", phrases).affirmed]
    if not named and not _denies(head):
        found = taxonomy.resolve(head)
        named = [found] if found else [*_judge(f"root cause is {line}", phrases).affirmed]
    # In the explanation an alias may be a symptom told; another label is a second answer.
    labels = _phrases(tuple((label, ()) for label in taxonomy.causes), None, (), ())
    return [*named, *_judge(f"root cause is {rest}", labels).affirmed] if named and rest else named


def _denies(text: str) -> bool:
    return any(w.negates for w in words_of(text)) or PATTERNS["denier"].search(text) is not None


def _one_of(affirmed: dict[str, str], rivals: set[str], question: Question, method: Method) -> Commitment:
    labels = [*affirmed, *(rivals - set(affirmed))]
    evidence = _short(next(iter(affirmed.values())))
    if len(labels) == 1 or set(labels) <= question.right:
        return Commitment(labels[0], method, evidence)
    return Commitment(None, method, _short(f"several: {', '.join(labels)}: {evidence}"))


def _nearest_cause(text: str, doubted: set[str], question: Question, nearest: Nearest) -> Commitment:
    cosines = dict(nearest(text, question))
    echo = cosines.pop(ECHO, -1.0)
    ranked = sorted(cosines.items(), key=lambda pair: (-pair[1], pair[0]))
    unresolved = Commitment(None, "unresolved", _short(text))
    if not ranked or ranked[0][0] in doubted or ranked[0][1] <= echo:
        return unresolved
    lead = ranked[0][1] - (ranked[1][1] if len(ranked) > 1 else 0.0)
    return Commitment(ranked[0][0], "nearest", _short(text)) if lead >= MARGIN else unresolved


def _read(answer: str, phrases: Phrases) -> _Reading:
    """All sentences in order, to the fix; a retraction takes back what was said before it."""
    whole = _Reading()
    before = ""
    for index, sentence in enumerate(sentences(answer)):
        if sentence.after_fix and whole.affirmed:
            break
        judged = _judge(sentence.text, phrases, opening=index == 0)
        if POINTS_BACK.match(sentence.text) and not judged.affirmed and not judged.withdrawn:
            judged = _judge(f"the cause is that {before}", phrases)
        before = sentence.text
        instruction = PATTERNS["fix_step"].search(sentence.text) and not judged.strong
        if judged.withdrawn:
            whole.affirmed.clear()
            whole.commits.clear()
            whole.withdrawn = True
        whole.doubted |= judged.doubted
        if instruction or (sentence.after_fix and not judged.strong):
            continue
        # What was weighed before the commitment is no second answer; what comes with or after it is.
        if whole.affirmed or judged.affirmed:
            whole.rivals |= judged.rivals
        if PATTERNS["plural"].search(sentence.text) and judged.strong:
            whole.rivals.add(UNNAMED)
        whole.affirmed = judged.affirmed | whole.affirmed
        whole.commits += judged.commits
    return whole


def _judge(sentence: str, phrases: Phrases, *, opening: bool = False) -> _Reading:
    """What one sentence affirms and doubts, arm by arm: "it looks like X, but the cause is Y"."""
    text = CONCEDED.sub(_blank, AFFIRMING.sub(_blank, sentence))
    read = _Reading()
    retract = PATTERNS["retract"].search(text)
    start, carried = 0, False
    for turn in (*TURN.finditer(text), None):
        arm = text[start : turn.start() if turn else len(text)]
        if retract and start <= retract.start() < start + len(arm):
            read = _Reading(withdrawn=True)
            arm = arm[retract.end() - start :]
        carried = _judge_arm(arm, phrases, read, carried, opening and start == 0, sentence)
        start = turn.end() if turn else start
    return read


def _judge_arm(
    arm: str, phrases: Phrases, read: _Reading, carried: bool, opening: bool, sentence: str
) -> bool:
    """Add one arm to `read`; True where it denied its commitment, which the next arm then takes up."""
    arm = _cut_consequence(arm, phrases)
    mentions = phrases.mentions(arm)
    strong = [m for m in PATTERNS["strong"].finditer(arm) if not _inside(m.start(), m.end(), mentions)]
    commits = strong + [
        m for m in PATTERNS["commit"].finditer(arm) if not _inside(m.start(), m.end(), mentions)
    ]
    live = [
        m.end()
        for m in commits
        if not DENIED_COMMIT.search(arm[: m.start()])
        and not (m in strong and _negated_clause(arm, m.start(), mentions))
    ]
    if (carried and mentions and len(arm[: mentions[0].start].split()) <= 3) or (
        opening and mentions and not commits and _names_only(arm, mentions[0])
    ):
        live.append(0)
    if _dropped(arm, mentions) or sentence.rstrip("\"')").endswith("?"):
        labels = {m.label for m in mentions}
        read.doubted |= labels
        if read.affirmed or PATTERNS["alternative"].search(arm):
            read.rivals |= labels - set(read.affirmed)
        return False
    denied = {m for m in mentions if _denied(m, arm, mentions, live)}
    read.doubted |= {m.label for m in denied}
    if live:
        for mention in mentions:
            if mention not in denied:
                read.affirmed.setdefault(mention.label, sentence)
        read.strong |= bool(strong)
        if not denied and not _copular_denial(arm, live):
            read.commits.append(arm.strip())
    return bool(denied or (commits and not live) or _copular_denial(arm, live))


def _denied(mention: Mention, arm: str, mentions: list[Mention], live: list[int]) -> bool:
    """Whether a negation of the sentence (not one inside the name) reaches this mention."""
    if words_of(arm[mention.start :])[0].negates and _TROUBLE.match(arm[mention.end :]):
        return True
    negators = [(w.start, w.end, False) for w in words_of(arm) if w.negates]
    negators += [
        (m.start(), m.end(), not ENDS_AT_COMMA.match(m[0])) for m in PATTERNS["denier"].finditer(arm)
    ]
    for start, end, lasting in negators:
        if _inside(start, end, mentions):
            continue
        if end <= mention.start and not any(end < at <= mention.start for at in live):
            copular = lasting or _copular(arm, start, live)
            if copular or not CLAUSE.search(arm[end : mention.start]):
                return True
        if start >= mention.end and not lasting:
            between = arm[mention.end : start]
            resumed = any(mention.end < at <= start for at in live)
            if not resumed and not CLAUSE_AFTER.search(between) and not ENDS_AT_COMMA.match(arm[start:end]):
                return True
    tail = CLAUSE_AFTER.split(arm[mention.end :], maxsplit=1)[0]
    return PATTERNS["denied_after"].search(tail) is not None


def _negated_clause(arm: str, end: int, mentions: list[Mention]) -> bool:
    """Whether a negator stands before `end` in the same clause: "by no stretch is the root cause"."""
    start = max((m.end() for m in CLAUSE_AFTER.finditer(arm, 0, end)), default=0)
    return any(
        w.negates and start <= w.start < end and not _inside(w.start, w.end, mentions) for w in words_of(arm)
    )


def _copular(arm: str, start: int, live: list[int]) -> bool:
    """Whether the negator at `start` denies the commitment itself: "the root cause is not"."""
    before = arm[:start]
    return _BE.search(before) is not None and any(at <= start and at > start - 40 for at in live)


def _copular_denial(arm: str, live: list[int]) -> bool:
    return any(w.negates and _copular(arm, w.start, live) for w in words_of(arm))


def _cut_consequence(arm: str, phrases: Phrases) -> str:
    named = phrases.mentions(arm)
    earliest = named[0].end if named else 0
    if not named:
        commit = PATTERNS["strong"].search(arm) or PATTERNS["commit"].search(arm)
        earliest = commit.end() + 12 if commit else len(arm)
    cut = CONSEQUENCE.search(arm, earliest)
    return arm[: cut.start()] if cut else arm


def _names_only(arm: str, mention: Mention) -> bool:
    rest = arm[mention.end :].strip()
    return mention.start <= 2 and (not rest or rest[0] in ".:;!-\u2013\u2014")


def _dropped(arm: str, mentions: list[Mention]) -> bool:
    return any(
        not _inside(m.start(), m.end(), mentions) for kind in _DROPS for m in PATTERNS[kind].finditer(arm)
    )


def _inside(start: int, end: int, mentions: list[Mention]) -> bool:
    return any(m.start <= start and end <= m.end for m in mentions)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])


def _short(text: str) -> str:
    line = " ".join(fold(text).split())
    return line if len(line) <= 240 else line[:239] + "\u2026"
