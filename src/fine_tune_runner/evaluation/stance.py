"""What an answer says of each cause, sentence by sentence: affirmed, asserted, denied, doubted or only told.

Affirmed is "the cause is X"; asserted is a plain "X". A sentence is read arm by arm ("it looks like X, but
the cause is Y"), an answer in order, so that a later sentence may take back an earlier one. Which cause
is right is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise

from fine_tune_runner.evaluation.clauses import (
    AFFIRMING,
    AMOUNT,
    BESIDE_OR,
    CLAUSE,
    CLAUSE_AFTER,
    CLEARED,
    CONCEDED,
    CONCLUDES,
    CONDITION,
    CONFIRMS,
    CONSEQUENCE,
    COUNTED,
    COURTESY,
    DEFINES,
    DENIED_COMMIT,
    DISCARDS,
    DISMISSES,
    DOUBTS_DIAGNOSIS,
    ENDS_AT_COMMA,
    EXPLAINED,
    FRAME,
    MEMBERS,
    MODAL,
    OF_DIAGNOSIS,
    OR_AFTER,
    OR_BEFORE,
    OTHER_PLACE,
    PARTLY,
    POINTS_BACK,
    RELATIVE_MODAL,
    RESUMES,
    STATES,
    TAKES_BACK,
    TURN,
    UNDONE,
    VERDICT_NO,
    VERDICT_PART,
    VERDICT_YES,
    YES,
)
from fine_tune_runner.evaluation.phrases import NOBODY, Mention, Phrases, Word, fold, words_of
from fine_tune_runner.evaluation.rules import PATTERNS, Kind
from fine_tune_runner.evaluation.sentences import Sentence, sentences

UNNAMED = "(another cause)"
_DROPS: tuple[Kind, ...] = ("hedge", "attributed", "general", "elsewhere", "echo")
_VERDICT_WORDS = frozenset(
    {"root", "caus", "problem", "issu", "reason", "no", "not", "so", ",", ";", ":", "(", ")"}
)
_OR = re.compile(r"\W*or(?: an?| the| that)?\W*", re.I)
_TROUBLE = re.compile(r"\s*(?:problem|issue|error|fault|trouble|bug)s?\b", re.I)
# Somebody's opinion up to what it is about, for a sentence that confirms it.
_SUSPECTS = re.compile(
    r"^[^,;:]*?\b(?:suspect\w*|sa(?:ys?|id)|thinks?|thought|believ\w+|blam\w+|assum\w+|guess\w*|claim\w*)\b"
    r"(?: that| it is| it was)?|\b(?:suspicion|guess|theory|opinion|idea|hunch)\b",
    re.I,
)
_BE = re.compile(r"\b(?:is|was|are|were|be|been|'s|ist|war|est|es|è)\s*$", re.I)


@dataclass(slots=True)
class Reading:
    """What one sentence, or all so far, say of each label.

    `said` and `against` hold where (sentence number) a label was last affirmed or asserted, and where it was
    last denied; `opened`, `refused` and `hedged` where anything was left open, refused or hedged;
    `verdict` where a part headed as the verdict begins.
    `plain` are the arms of a sentence that assert anything, `rest` those after the last name, `unnamed` the
    sentences that commit outright to what no label names.
    """

    affirmed: dict[str, str] = field(default_factory=dict)
    asserted: dict[str, str] = field(default_factory=dict)
    named: dict[str, set[str]] = field(default_factory=dict)
    doubted: set[str] = field(default_factory=set)
    doubts: dict[str, int] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    contradicted: set[str] = field(default_factory=set)
    rivals: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    unnamed: list[str] = field(default_factory=list)
    said: dict[str, int] = field(default_factory=dict)
    against: dict[str, int] = field(default_factory=dict)
    strong: bool = False
    withdrawn: bool = False
    taken_back: bool = False
    open: bool = False
    opened: int = -1
    refused: int = -1
    hedged: int = -1
    verdict: int = -1

    def last_word_is_against(self, label: str) -> bool:
        """Whether the label was denied after it was last affirmed or asserted."""
        return self.against.get(label, -1) > self.said.get(label, -1)

    def stands(self, label: str) -> bool:
        """Whether it was never denied, and not doubted since it was last affirmed or asserted."""
        return label not in self.denied and self.doubts.get(label, -1) < self.said.get(label, -1)


def read(answer: str, phrases: Phrases, asked: str = "", reference: str = "") -> Reading:
    """All sentences in order, to the fix; a retraction, also one after the fix, takes back what was said.

    A name made of the question's own words is told again, not asserted. A place or platform that neither
    question nor reference speaks of is another one.
    """
    known = f"{asked}\n{reference}".casefold()
    echo = {word.text for word in words_of(fold(asked))}
    whole = Reading()
    before, told, advising = "", False, False
    for index, sentence in enumerate(sentences(answer)):
        if TAKES_BACK.match(sentence.text) and not phrases.mentions(sentence.text):
            whole.taken_back = True
        advising = advising or sentence.after_fix
        told = told or (sentence.after_fix and bool(whole.affirmed))
        if (told or advising) and DOUBTS_DIAGNOSIS.search(sentence.text):
            whole.open, whole.opened = True, index
        if VERDICT_PART.match(sentence.text):
            whole.verdict = index
        if told or COURTESY.match(sentence.text):
            continue
        if sentence.aside:
            named = {mention.label for mention in phrases.mentions(sentence.text)}
            _add_denied(whole, Reading(denied=named, doubted=named), index)
            before = sentence.text
            continue
        judged = judge(sentence.text, phrases, known)
        of_other_place = any(m[1].casefold() not in known for m in OTHER_PLACE.finditer(sentence.text))
        if of_other_place or COUNTED.search(sentence.text):
            judged = Reading(doubted={*judged.affirmed, *judged.asserted, *judged.doubted})
        if POINTS_BACK.match(sentence.text) and not judged.affirmed and not judged.withdrawn:
            judged = judge(f"the cause is that {before}", phrases)
        elif YES.match(sentence.text) and before.endswith("?"):
            judged = _but_names(judged, judge(before.rstrip(" ?"), phrases, known))
        elif CONFIRMS.search(sentence.text):
            judged = _but_names(judged, _confirmed(before, sentence.text, phrases, known))
        before = sentence.text
        told_again = {label for label, words in judged.named.items() if words <= echo}
        asserted = {label: text for label, text in judged.asserted.items() if label not in told_again}
        judged = replace(judged, asserted=asserted)
        _add(whole, judged, sentence, index, advising)
        advising = advising or _instructs(sentence.text)
    return whole


def _but_names(judged: Reading, earlier: Reading) -> Reading:
    """A sentence that says yes to one before it, with the one label named there as asserted."""
    names = earlier.affirmed | earlier.asserted
    if len(names) != 1 or earlier.doubted or not judged.doubted <= set(names):
        return judged
    return replace(judged, asserted=judged.asserted | names, doubted=set())


def _confirmed(before: str, text: str, phrases: Phrases, known: str) -> Reading:
    """What somebody else is said to suspect, read as said by the answer, which confirms it."""
    told = text if phrases.mentions(text) else f"{before} {text}"
    if denies(text) or _dropped(_SUSPECTS.sub(_blank, text), [], known, ("hedge", "general", "elsewhere")):
        return Reading()
    return judge(_SUSPECTS.sub(_blank, told), phrases, known)


def _instructs(text: str) -> bool:
    """Whether the answer has turned to what to do, heading or not."""
    return PATTERNS["fix_step"].search(text) is not None and not DISCARDS.match(text)


def _add_denied(whole: Reading, judged: Reading, index: int) -> None:
    whole.doubted |= judged.doubted
    whole.doubts |= dict.fromkeys(judged.doubted, index)
    whole.denied |= judged.denied
    whole.against |= dict.fromkeys(judged.denied, index)


def _add(whole: Reading, judged: Reading, sentence: Sentence, index: int, advising: bool) -> None:
    text = sentence.text
    of_advice = advising and not OF_DIAGNOSIS.search(text)
    if judged.withdrawn:
        whole.affirmed.clear()
        whole.asserted.clear()
        whole.commits.clear()
    of_amount = AMOUNT.search(text) is not None and not judged.doubted
    if judged.open or (PATTERNS["open"].search(text) is not None and not of_amount and not of_advice):
        whole.open, whole.opened = True, index
    instruction = PATTERNS["fix_step"].search(text) and not judged.strong
    if not instruction or DISCARDS.match(text):
        _add_denied(whole, judged, index)
    meant = RELATIVE_MODAL.sub(_blank, text)
    doubts = [m for m in PATTERNS["hedge"].finditer(meant) if not m[0].casefold().startswith("should")]
    if of_advice:
        doubts = [m for m in doubts if not CONDITION.fullmatch(m[0])]
    if doubts and not (judged.affirmed or judged.asserted or instruction or of_amount):
        whole.hedged = index
    if PATTERNS["refusal"].search(text) and not judged.affirmed and not of_advice:
        whole.refused = index
    whole.against |= dict.fromkeys(_acquitted(text, whole.affirmed), index)
    if instruction or (sentence.after_fix and not judged.strong):
        return
    contradicted = judged.contradicted - set(judged.affirmed) - set(judged.asserted)
    whole.doubted |= contradicted
    whole.doubts |= dict.fromkeys(contradicted, index)
    # What was weighed before the commitment is no second answer; what comes with or after it is.
    if whole.affirmed or judged.affirmed:
        whole.rivals |= judged.rivals
    if PATTERNS["plural"].search(text) and judged.strong:
        whole.rivals.add(UNNAMED)
    if PATTERNS["now"].search(text):
        whole.asserted.clear()
    whole.affirmed = judged.affirmed | whole.affirmed
    whole.asserted = judged.asserted | whole.asserted
    whole.said |= dict.fromkeys(judged.affirmed | judged.asserted, index)
    whole.taken_back &= not (judged.affirmed or judged.asserted)
    whole.commits += judged.commits
    plain = [] if CONCLUDES.match(text) else judged.plain
    whole.rest = [] if judged.affirmed or judged.asserted else whole.rest + plain
    whole.unnamed += judged.unnamed


def _acquitted(text: str, affirmed: Mapping[str, str]) -> list[str]:
    """Labels of which a sentence takes up a word to say that this is not the cause."""
    verdict = PATTERNS["acquits"].search(text)
    if verdict is None:
        return []
    told = {word.text for word in words_of(text[: verdict.start()])} - _VERDICT_WORDS
    return [label for label, said in affirmed.items() if told & {word.text for word in words_of(said)}]


@lru_cache(maxsize=256)  # stance and agreement ask for the same sentences
def judge(sentence: str, phrases: Phrases, known: str = "") -> Reading:
    """What one sentence affirms and doubts, arm by arm: "it looks like X, but the cause is Y".

    The same value for all who ask: not to be changed.
    """
    text = RELATIVE_MODAL.sub(_blank, CONCEDED.sub(_blank, AFFIRMING.sub(_blank, sentence)))
    found = Reading()
    retract = PATTERNS["retract"].search(text)
    start, carried = 0, False
    turns = [m for m in TURN.finditer(text) if m[0] != "," or DISMISSES.search(text, 0, m.start())]
    for turn in (*turns, None):
        arm = text[start : turn.start() if turn else len(text)]
        if FRAME.match(arm):
            found.doubted |= {mention.label for mention in phrases.mentions(arm)}
            carried, start = False, turn.end() if turn else start
            continue
        if retract and start <= retract.start() < start + len(arm):
            found = Reading(withdrawn=True)
            arm = arm[retract.end() - start :]
        carried = _judge_arm(arm, phrases, found, carried, sentence, known)
        start = turn.end() if turn else start
    return found


def _judge_arm(arm: str, phrases: Phrases, found: Reading, carried: bool, sentence: str, known: str) -> bool:
    """Add one arm to `found`; True where it denied its commitment, which the next arm then takes up."""
    whole = arm
    arm = _cut_consequence(arm, phrases)
    mentions = phrases.mentions(arm)
    strong, commits, live = _commitments(arm, mentions)
    if carried and mentions and len(arm[: mentions[0].start].split()) <= 3:
        live.append(0)
    asked = sentence.rstrip("\"')").endswith("?")
    undecided = asked or PARTLY.search(sentence) or (mentions and PATTERNS["open"].search(sentence))
    if undecided or _dropped(arm, mentions, known) or _one_of_several(arm, mentions):
        labels = {m.label for m in mentions}
        found.doubted |= labels
        if found.affirmed or PATTERNS["alternative"].search(arm):
            found.rivals |= labels - set(found.affirmed)
        return False
    contrary = phrases.contradicted(arm)
    denied = {m for m in mentions if _denied(m, arm, mentions, live) or any(_covers(c, m) for c in contrary)}
    found.denied |= {m.label for m in denied}
    found.doubted |= found.denied
    looked_at = PATTERNS["looked"].search(arm)
    found.open |= any(_OR.fullmatch(arm[a.end : b.start]) for a, b in pairwise(mentions))
    for mention in mentions:
        if mention in denied or _is_effect(mention, arm, mentions):
            continue
        if DEFINES.match(arm[mention.end :]):
            found.doubted.add(mention.label)
        elif live or VERDICT_YES.match(arm[mention.end :]):
            found.affirmed.setdefault(mention.label, sentence)
        elif not (
            looked_at
            and looked_at.start() < mention.start
            and not RESUMES.search(arm[looked_at.end() : mention.start])
        ):
            found.asserted.setdefault(mention.label, sentence)
            found.named.setdefault(mention.label, set()).update(
                word.text for word in words_of(arm[mention.start : mention.end])
            )
    copular = _copular_denial(arm, live)
    if live and not denied and not copular:
        found.commits.append(arm.strip())
        if strong and not mentions and not VERDICT_NO.search(arm):
            found.unnamed.append(sentence)
    found.contradicted |= {m.label for m in contrary}
    found.strong |= bool(live and strong)
    if mentions or not CLEARED.search(whole):  # "DNS is fine" clears DNS and asserts no cause
        found.plain.append(whole.strip())
    return bool(denied or (commits and not live) or copular)


def _commitments(arm: str, mentions: list[Mention]) -> tuple[list[re.Match[str]], bool, list[int]]:
    """(outright commitments, whether there is any, ends of those that nothing denies)."""
    strong = [m for m in PATTERNS["strong"].finditer(arm) if not _inside(m.start(), m.end(), mentions)]
    others = [m for m in PATTERNS["commit"].finditer(arm) if not _inside(m.start(), m.end(), mentions)]
    live = [
        m.end()
        for m in strong + others
        if not DENIED_COMMIT.search(arm[: m.start()])
        and not (m in strong and _negated_clause(arm, m.start(), mentions))
    ]
    return strong, bool(strong or others), live


def _denied(mention: Mention, arm: str, mentions: list[Mention], live: list[int]) -> bool:
    """Whether a negation of the sentence (not one inside the name) reaches this mention."""
    if VERDICT_NO.match(arm[mention.end :]) or UNDONE.search(arm, mention.start, mention.end):
        return True
    if words_of(arm[mention.start :])[0].negates and _TROUBLE.match(arm[mention.end :]):
        return True
    negators = [(w.start, w.end, False) for w in words_of(arm) if w.negates or _is_nobody(w, mention)]
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
            resumed = any(mention.end < at <= start for at in live) and arm[end:].strip(" .,;:!)") != ""
            if not resumed and not CLAUSE_AFTER.search(between) and not ENDS_AT_COMMA.match(arm[start:end]):
                return True
    tail = CLAUSE_AFTER.split(arm[mention.end :], maxsplit=1)[0]
    return PATTERNS["denied_after"].search(tail) is not None


def _is_effect(mention: Mention, arm: str, mentions: list[Mention]) -> bool:
    """Whether a name is what is explained, by something that has no name: "0 % because the names differ"."""
    tie = EXPLAINED.search(arm, mention.end)
    return tie is not None and not any(m.start >= tie.end() for m in mentions)


def _one_of_several(arm: str, mentions: list[Mention]) -> bool:
    """Whether a name is offered as one among others: before or after "or", or in a list without a verb."""
    if not mentions:
        return False
    first, last = mentions[0].start, max(m.end for m in mentions)
    if any(w.negates and w.end <= first for w in words_of(arm)):
        return False
    if any(not _inside(m.start(), m.end(), mentions) for m in BESIDE_OR.finditer(arm)):
        return True
    alone = len({m.label for m in mentions}) == 1
    return bool(alone and (OR_BEFORE.search(arm[:first]) or OR_AFTER.match(arm[last:]))) or _listed(
        arm, mentions
    )


def _listed(arm: str, mentions: list[Mention]) -> bool:
    """Whether a name is a member of a list of three or more of which no other member states anything."""
    cuts = [m.span() for m in MEMBERS.finditer(arm) if not _inside(m.start(), m.end(), mentions)]
    summed = all(arm[a:b].strip() in ("+", "/") for a, b in cuts)
    starts, ends = [0, *(end for _, end in cuts)], [*(start for start, _ in cuts), len(arm)]
    members = list(zip(starts, ends, strict=True))
    named = {(a, b): m for m in mentions for a, b in members if a <= m.start < b}
    others = [arm[a:b].strip(" .:") for a, b in members if (a, b) not in named and arm[a:b].strip(" .:")]
    leads = [arm[a : m.start].rstrip() for (a, _), m in named.items()]
    return (
        len(others) + len(named) >= 3
        and len(others) >= 2 - (len(named) > 1)
        and (summed or all(len(text.split()) <= 4 and not STATES.search(text) for text in others))
        and all(len(lead.split()) <= 1 or lead.endswith(("is", "are", ":")) for lead in leads)
    )


def _covers(contrary: Mention, mention: Mention) -> bool:
    """Whether a name is only part of its opposite: "unwanted referrals are configured"."""
    return (
        contrary.label == mention.label
        and contrary.words > mention.words
        and contrary.start <= mention.start
        and mention.end <= contrary.end
    )


def _is_nobody(word: Word, mention: Mention) -> bool:
    return word.text in NOBODY and word.end <= mention.start


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


def _dropped(arm: str, mentions: list[Mention], known: str = "", kinds: tuple[Kind, ...] = _DROPS) -> bool:
    return any(
        MODAL.match(m[0]) or not _inside(m.start(), m.end(), mentions)
        for kind in kinds
        for m in PATTERNS[kind].finditer(arm)
        if kind != "elsewhere" or m[0].casefold() not in known
    )


def dropped(text: str, phrases: Phrases) -> bool:
    """Whether a hedge, another's voice, another time or the like keeps a text from committing."""
    return _dropped(text, phrases.mentions(text))


def denies(text: str) -> bool:
    """Whether a folded text denies anything at all."""
    return any(w.negates for w in words_of(text)) or PATTERNS["denier"].search(text) is not None


def _inside(start: int, end: int, mentions: list[Mention]) -> bool:
    return any(m.start <= start and end <= m.end for m in mentions)


def _blank(match: re.Match[str]) -> str:
    return " " * len(match[0])
