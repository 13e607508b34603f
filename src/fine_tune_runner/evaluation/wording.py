"""Does an answer say in other words what its reference says? By shared words and by what each denies.

For answers that name no cause by label or alias. Knows nothing of hedges or quotations: it is handed the
sentences that assert (stance.py). A sentence with "not" put in shares every word with the reference, so a
shared word that one of the two denies and the other does not is taken as a denial of the whole.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.evaluation.holdout import Question
from fine_tune_runner.evaluation.phrases import BREAKS, words_of
from fine_tune_runner.evaluation.rules import PATTERNS
from fine_tune_runner.evaluation.sentences import sentences

ELSE = 0.22  # below this share of common words, both ways, a passage is about something else
ECHO_WEIGHT = 0.3  # of a word that the question says as well
# Words denied: "no History Change", "never sends", "nobody ever pressed Publish".
_REACH = {"no": 2, "not": 1, "nothing": 5, "nobody": 5}
_FUNCTION = frozenset(
    [
        "can",
        "will",
        "would",
        "could",
        "shall",
        "yet",
        "any",
        "ever",
        "becaus",
        "sinc",
        "whil",
        "when",
        "wher",
        "if",
        "just",
        "so",
        "only",
        "all",
        "each",
        "every",
        "more",
        "up",
        "out",
        "into",
        "than",
        "but",
        "or",
        "after",
        "befor",
        "dur",
        "between",
        "they",
        "he",
        "she",
        "i",
        "me",
        "we",
        "us",
        "them",
        "what",
        "how",
        "why",
        "you",
    ]
)
_LINE = re.compile(r"^root cause:[^.]*\.", re.I)

_PLAIN, _WITHIN, _DENIED = 0, 1, 2  # not denied; near a negator; the very word it denies
_SET_AGAINST = 3  # "to A rather than to B"; counts for ids, as other words have more ways to say it
Bag = dict[str, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Wording:
    """What of a reference an answer says: shares of weight, and the words on which they contradict.

    `covered` is the share of the reference that is said, `own` the share of what is said that belongs to it.
    """

    covered: float
    own: float
    words: int
    denied: tuple[str, ...]

    @property
    def other(self) -> bool:
        """Whether something else is told here, at length."""
        return self.words >= 5 and self.own < ELSE and self.covered < ELSE


def wording(said: Sequence[str], question: Question, taxonomy: Taxonomy) -> Wording:
    """Compare folded sentences that assert with the reference's diagnosis, its fix left out."""
    reference = _diagnosis(question.reference)
    bag, asked = _bag(" ; ".join(said)), _bag(question.text)
    names = tuple((cause.label, cause.definition, cause.aliases) for cause in taxonomy.causes.values())
    weights, documents = _weights(names)
    own = reference.keys() | documents.get(question.label or "", frozenset())

    def weight(word: str) -> float:
        return weights.get(word, weights[""]) * (ECHO_WEIGHT if word in asked else 1.0)

    shared = [word for word in bag if word in reference]
    return Wording(
        covered=_share(sum(map(weight, shared)), sum(map(weight, reference))),
        own=_share(sum(weight(w) for w in bag if w in own), sum(map(weight, bag))),
        words=len(bag),
        denied=tuple(
            word for word in shared if word not in asked and _contradict(word, bag[word], reference[word])
        ),
    )


def _contradict(word: str, said: frozenset[int], meant: frozenset[int]) -> bool:
    if word.isalpha():
        return said | meant == {_PLAIN, _DENIED} and not said & meant
    return said == {_PLAIN} and meant == {_SET_AGAINST}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


@lru_cache(maxsize=2048)
def _diagnosis(reference: str) -> Bag:
    told = [s.text for s in sentences(reference) if not s.after_fix]
    kept = [_LINE.sub("", text) for text in told if not PATTERNS["fix_step"].search(text)]
    return _bag(" ; ".join(kept))


@lru_cache(maxsize=8)
def _weights(
    causes: tuple[tuple[str, str, tuple[str, ...]], ...],
) -> tuple[dict[str, float], dict[str, frozenset[str]]]:
    """Rarer among the causes counts more (inverse document frequency); "" is a word that none has."""
    documents = {
        label: frozenset(_bag(" ; ".join((label.replace("_", " "), definition, *aliases))))
        for label, definition, aliases in causes
    }
    counts = Counter(word for words in documents.values() for word in words)
    weights = {word: 0.2 + math.log((len(causes) + 1) / (1 + n)) for word, n in counts.items()}
    return weights | {"": 0.2 + math.log(len(causes) + 1)}, documents


@lru_cache(maxsize=4096)
def _bag(folded: str) -> Bag:
    """Canonical word → the ways in which it is said."""
    found: dict[str, set[int]] = {}
    reach, way, before = 0, _PLAIN, ""
    for word in words_of(folded):
        if word.text in BREAKS:
            reach, before = 0, ""
        elif word.text in _REACH:
            reach, way = _REACH[word.text], _DENIED
        elif word.text in ("rather", "instead"):
            reach, way = 1, _SET_AGAINST
        elif word.text == "missing":
            reach, way = 1, _DENIED
            found.setdefault(before, set()).add(_DENIED)
        elif word.text not in _FUNCTION:
            found.setdefault(word.text, set()).add(way if reach else _PLAIN)
            before = word.text
            if len(word.text) > 1:  # a letter alone begins an id: "not to G-NEW456"
                reach, way = max(0, reach - 1), _WITHIN
    found.pop("", None)
    return {word: frozenset(ways) for word, ways in found.items()}
