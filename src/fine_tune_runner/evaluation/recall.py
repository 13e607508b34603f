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
from fine_tune_runner.evaluation.clauses import TAKES_BACK, TAKES_UP
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.phrases import Phrases, fold
from fine_tune_runner.evaluation.rules import PATTERNS
from fine_tune_runner.evaluation.sentences import LONGEST, blocks, sentences
from fine_tune_runner.evaluation.stance import Reading, denies, dropped, judge, read
from fine_tune_runner.types import Method

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

    An own `Root cause:` line decides alone, unless the rest of the answer denies it. Else the committed
    sentences before the fix do, negated and hedged ones left out: one label is the answer, several are wrong,
    and none leaves it to the one cause that the answer plainly names, or states in words of its own.
    """
    # Questions without wordings of their own share one index, and what was found by it.
    label = question.label if question.aliases or question.label not in taxonomy.causes else None
    phrases = _phrases(_causes(taxonomy), label, question.aliases, question.denials)
    lines = _own_lines(answer)
    if lines:
        found = _from_lines(lines, question, taxonomy, phrases)
        if found.cause in question.right and (
            _withdrawn(answer) or agreement(answer, question, taxonomy, phrases).turned
        ):
            return Commitment(None, "unresolved", _short(lines[0]))
        return found
    reading = read(answer, phrases, question.text, question.reference)
    unresolved = Commitment(None, "unresolved", _short(" ".join(reading.commits) or answer))
    if reading.taken_back or any(reading.last_word_is_against(label) for label in reading.affirmed):
        return unresolved
    named = _one_of(reading.affirmed, reading.rivals, question, "committed") if reading.affirmed else None
    if (named and named.cause not in question.right) or question.label is None:
        return named or _asserted(reading) or unresolved
    prose = agreement(answer, question, taxonomy, phrases)
    left_open = named and reading.opened > max(reading.said[label] for label in reading.affirmed)
    if prose.elsewhere or prose.turned or left_open:
        return unresolved
    return named or _asserted(reading) or _agreed(prose, reading, question) or unresolved


def _withdrawn(answer: str) -> bool:
    """Whether one of the two sentences after a `Root cause:` line takes it back."""
    told = [sentence.text for sentence in sentences(answer)]
    after = next((at + 1 for at, text in enumerate(told) if cause_line(text)), len(told))
    return any(TAKES_BACK.match(text) or PATTERNS["retract"].search(text) for text in told[after : after + 2])


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


def _asserted(reading: Reading) -> Commitment | None:
    """The one cause that the answer plainly names, where the symptom is tied to nothing else."""
    if len(reading.asserted) != 1 or reading.rivals or reading.open or reading.unnamed:
        return None
    [(label, sentence)] = reading.asserted.items()
    if not reading.stands(label) or max(reading.refused, reading.hedged) >= reading.said[label]:
        return None
    if reading.verdict > reading.said[label]:
        return None
    if any(_ties(text) for text in reading.rest):
        return None
    return Commitment(label, "committed", _short(sentence))


def _ties(text: str) -> bool:
    """Whether a sentence that names nothing ties the symptom to something new."""
    tie = PATTERNS["commit"].search(text) or PATTERNS["strong"].search(text)
    return tie is not None and not TAKES_UP.match(text)


def _agreed(prose: Agreement, reading: Reading, question: Question) -> Commitment | None:
    """The question's cause, where the answer states it in its own words, names no other and ends on it."""
    named = {*reading.asserted, *reading.rivals}
    if question.label is None or not named <= question.right or reading.denied & question.right:
        return None
    doubted = [reading.doubts.get(label, -1) for label in question.right]
    later = max(reading.opened, reading.hedged, *doubted)
    if not prose.enough or later >= prose.last or max(reading.refused, reading.verdict) > prose.last:
        return None
    return Commitment(question.label, "committed", _short(prose.evidence))


def _short(text: str) -> str:
    line = " ".join(fold(text).split())
    return line if len(line) <= 240 else line[:239] + "\u2026"
