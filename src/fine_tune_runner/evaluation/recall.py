"""Problem recall: to which cause did an answer commit, and is that the right one?

Pure functions of text; the words they go by stand in rules.py. Nothing here asks a model, an embedder
neither: what no rule can read is unresolved.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from fine_tune_runner.dataset.taxonomy import Taxonomy, cause_line
from fine_tune_runner.evaluation.agreement import Agreement, agreement
from fine_tune_runner.evaluation.clauses import TAKES_UP
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.phrases import Phrases, fold, words_of
from fine_tune_runner.evaluation.rules import PATTERNS
from fine_tune_runner.evaluation.sentences import LONGEST, blocks
from fine_tune_runner.evaluation.stance import Reading, denies, dropped, judge, read
from fine_tune_runner.evaluation.wording import wording
from fine_tune_runner.types import Method

OVERLAPS = 0.1  # share of the reference that a nameless verdict must say to be about the same
TURNED = 0.4  # share of the reference from which on a contradiction to it is one to the whole
REJECTED = "(rejected wording)"
# What ends the name in `Root cause: name - explanation`.
_EXPLAINS = re.compile(
    r"\.(?=\s|$)|[;:(]|\s[-\u2013\u2014]+\s|,\s+(?=(?:because|since|as|so|which|where|not|i\.e|the|it)\b)",
    re.I,
)
_SECOND = re.compile(r"\W*(?:or|and|and/or|plus|as well as|alternatively)\b", re.I)


@dataclass(frozen=True, slots=True)
class Commitment:
    """The cause an answer stands for, None where it named none or several; `evidence` is what decided.

    Several causes come as method "committed" with no cause: read, and wrong. "unresolved" was not read.
    """

    cause: str | None
    method: Method
    evidence: str


def committed(answer: str, question: Question, taxonomy: Taxonomy) -> Commitment:
    """Which cause the answer committed to (facts/evaluation.md, "Problem recall").

    An own `Root cause:` line decides alone. Else the committed sentences before the fix do, negated and
    hedged ones left out: one label is the answer, several are wrong, and none leaves it to the one cause that
    the answer plainly says.
    """
    # Questions without wordings of their own share one index, and what was found by it.
    label = question.label if question.aliases or question.label not in taxonomy.causes else None
    phrases = _phrases(_causes(taxonomy), label, question.aliases, question.denials)
    lines = _own_lines(answer)
    unresolved = Commitment(None, "unresolved", _short(answer))
    if lines:
        found = _from_lines(lines, question, taxonomy, phrases)
        prose = agreement(answer, question, taxonomy, phrases)
        return unresolved if found.cause in question.right and prose.turned else found
    reading = read(answer, phrases, question.text, question.reference)
    told = "" if reading.affirmed else reading.asserted.get(question.label or "", "")
    turned = (
        bool(told) and str(question.label) not in told and _turned_around(told, phrases, question, taxonomy)
    )
    if turned or reading.taken_back or any(reading.last_word_is_against(label) for label in reading.affirmed):
        return unresolved
    prose = agreement(answer, question, taxonomy, phrases)
    if reading.affirmed:
        found = _one_of(reading.affirmed, reading.rivals, question, "committed")
        against = prose.elsewhere or prose.turned
        return unresolved if found.cause in question.right and against else found
    unresolved = Commitment(None, "unresolved", _short(" ".join(reading.commits) or answer))
    if prose.elsewhere or prose.turned:
        return unresolved
    plain = None if reading.open else _asserted(reading, question, taxonomy)
    return plain or _agreed(prose, reading, question) or unresolved


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
        return [line for line in lines if judge(f"root cause is {line}", names).commits]
    return read(answer, names).commits


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


@lru_cache(maxsize=4096)  # answers trained on lines say the same few
def _named_in_line(line: str, taxonomy: Taxonomy, phrases: Phrases) -> list[str]:
    head, rest = line, ""
    if (cut := _EXPLAINS.search(line)) and not _SECOND.match(line[cut.start() :]):
        head, rest = line[: cut.start()], line[cut.start() :]
    if dropped(head, phrases) or PATTERNS["retract"].search(rest) or head.endswith("?"):
        return []
    named = [*judge(f"root cause is {head}", phrases).affirmed]
    if not named and not denies(head):
        found = taxonomy.resolve(head)
        named = [found] if found else [*judge(f"root cause is {line}", phrases).affirmed]
    # In the explanation an alias may be a symptom told; another label is a second answer.
    labels = _phrases(tuple((label, ()) for label in taxonomy.causes), None, (), ())
    return [*named, *judge(f"root cause is {rest}", labels).affirmed] if named and rest else named


def _one_of(affirmed: dict[str, str], rivals: set[str], question: Question, method: Method) -> Commitment:
    labels = [*affirmed, *(rivals - set(affirmed))]
    evidence = _short(next(iter(affirmed.values())))
    if len(labels) == 1 or set(labels) <= question.right:
        return Commitment(labels[0], method, evidence)
    return Commitment(None, method, _short(f"several: {', '.join(labels)}: {evidence}"))


def _asserted(reading: Reading, question: Question, taxonomy: Taxonomy) -> Commitment | None:
    """The one cause that the answer plainly says, where nothing it says later goes against it."""
    if len(reading.asserted) != 1 or reading.rivals:
        return None
    [(label, sentence)] = reading.asserted.items()
    if not reading.stands(label) or max(reading.refused, reading.hedged) >= reading.said[label]:
        return None
    if reading.rest and _another(reading.rest, question, taxonomy):
        return None
    if any(wording([text], question, taxonomy).covered < OVERLAPS for text in reading.unnamed):
        return None
    return Commitment(label, "committed", _short(sentence))


def _agreed(prose: Agreement, reading: Reading, question: Question) -> Commitment | None:
    """The question's cause, where the answer states it in its own words, names no other and ends on it."""
    named = {*reading.asserted, *reading.rivals}
    if question.label is None or not named <= question.right or reading.denied & question.right:
        return None
    doubted = [reading.doubts.get(label, -1) for label in question.right]
    later = max(reading.opened, reading.refused, reading.hedged, *doubted)
    if not prose.enough or later >= prose.last:
        return None
    return Commitment(question.label, "committed", _short(prose.evidence))


def _another(rest: list[str], question: Question, taxonomy: Taxonomy) -> bool:
    """Whether the sentences after the last name tell something else at length and tie the symptom to it."""
    ties = any(
        (PATTERNS["commit"].search(text) or PATTERNS["strong"].search(text)) and not TAKES_UP.match(text)
        for text in rest
    )
    return ties and wording(rest, question, taxonomy).other


def _turned_around(sentence: str, phrases: Phrases, question: Question, taxonomy: Taxonomy) -> bool:
    """Whether a sentence says much of the reference but denies a word that it does not, or the reverse.

    A word of the name itself may be denied where the reference has another name: "does not match".
    """
    said = wording([sentence], question, taxonomy)
    if said.covered < TURNED:
        return False
    names = {w.text for m in phrases.mentions(sentence) for w in words_of(sentence[m.start : m.end])}
    return not names.issuperset(said.denied)


def _short(text: str) -> str:
    line = " ".join(fold(text).split())
    return line if len(line) <= 240 else line[:239] + "\u2026"
