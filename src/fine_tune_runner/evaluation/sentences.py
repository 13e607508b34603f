"""An answer as the sentences of its diagnosis: markdown taken off, lists joined to what introduces them,
quotations and code left out, and each sentence marked as before or after the fix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from fine_tune_runner.evaluation.clauses import ASIDE, VERDICT_PART
from fine_tune_runner.evaluation.phrases import fold
from fine_tune_runner.evaluation.rules import PATTERNS

# Nobody's sentence is longer; what is, is left out, so that reading takes time in line with length.
LONGEST = 1500
_FENCE = re.compile(r"```.*?(?:```|\Z)", re.S)
_MARKS = re.compile(r"\*+|`+|(?<!\w)_+(?=\w)|(?<=\w)_+(?!\w)")
_BULLET = re.compile(r"^(?:[-*+\u2022]|\d+[.)])\s+")
_BOLD_LINE = re.compile(r"^(?:\*\*|__)(?=[^*_]{1,60}(?:\*\*|__):?$)")
_HEADING = re.compile(r"^#+\s*")
_END = re.compile(
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?<!\bcf\.)(?<!\bapprox\.)(?!(?<=\bno\.)\s*\d)"
    r"(?:(?<=;)|(?<=[.!?]))[\"\u201d\u2019\u00bb)\]]*\s+(?=[\"\u201c\u201e\u00ab(\[]?[^\W_])"
)
_ENDS = (".", "!", "?")
_OPEN, _CLOSE = '"\u201c\u201e\u00ab\u201a\u2039\u300c\u300e', '"\u201d\u201c\u00bb\u2018\u203a\u300d\u300f'
_TURNED = str.maketrans("\u00ab\u00bb\u2039\u203a", "\u00bb\u00ab\u203a\u2039")
# A quotation of four words or more is somebody's voice, unless the sentence itself leads into it.
_QUOTE = re.compile(
    rf"(?P<lead>(?:(?:\b(?:is|was|that|by|to|because|of|est|ist|es|è|de|von|van|da)|"
    rf":)\s*)?)[{_OPEN}](?P<said>[^{_OPEN}{_CLOSE}]*)[{_CLOSE}]"
)
_SPEECH = re.compile(
    r"\b(?:sa(?:y|ys|id|ying)|wr(?:ite|ites|ote)|writ\w+|report\w*|claim\w*|ask\w*|told|tell\w*|mention\w*|"
    r"states?|stated|reads|quot\w+|note[sd]?|subject|complain\w*|message|(?<!other )words|ticket|comment\w*|"
    r"schreib\w*|sagt\w*|meint\w*|nenn\w+|heiß\w*|laut\w*|list(?:s|ed)?|names?|calls?|puts?|parle\w*|dice|"
    r"dijo|escrib\w+|dit|écrit|zegt|schrijft|scrive)\b[^.;:]*:?[^.;:]{0,3}$",
    re.I,
)
_LED_IN = 200  # characters before a quotation in which its speaker is looked for
_SPOKEN = re.compile(
    r"[\s,]*(?:steht|heißt|lautet|schreibt|sagt|meint|says?|said|wrote|writes|read|reads|reported|"
    r"is what|was the|"
    r"as (?:the|your|you)|so (?:says|said)|according|dit|dice|the (?:ticket|agency|report|forum|"
    r"vendor|plugin)|you (?:say|write|wrote|said)|they)\b|[\s,]*\u3068",
    re.I,
)
_BACK = re.compile(
    r"^(?:the |our |my )?(?:root cause|cause|diagnosis|why|explanation|what happened|analysis)\b", re.I
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One folded sentence; `after_fix` once the answer has turned to what to do, `aside` in a part that
    tells what is not the cause."""

    text: str
    after_fix: bool
    aside: bool = False


def blocks(answer: str) -> list[str]:
    """Folded paragraphs, each list item by itself with the line that introduces its list in front of it."""
    text = (
        fold(_FENCE.sub("\n", answer)) if _FENCE.sub("", answer).strip() else fold(answer.replace("```", ""))
    )
    lines = text.splitlines()
    own_words = [line for line in lines if not line.lstrip().startswith(">")]
    if not any(line.strip() for line in own_words):
        own_words = [line.lstrip("> \t") for line in lines]
    return list(_joined(own_words))


def _joined(lines: list[str]) -> Iterator[str]:
    lead, listed, paragraph = "", False, ""
    for raw in (*lines, ""):
        stripped = _BOLD_LINE.sub("# ", raw.strip())
        line = _MARKS.sub("", _HEADING.sub("\0", stripped)).strip()
        bullet = bool(_BULLET.match(line))
        heading = line.startswith("\0") or (line.endswith(":") and len(line.split()) <= 14)
        line = _BULLET.sub("", line.lstrip("\0"))
        wraps = bool(paragraph) and not bullet and not heading and bool(re.match(r"[^\W\dA-Z_]|\d", line))
        if paragraph and wraps and paragraph[-1] not in ".!?:":
            paragraph += " " + line
            continue
        if paragraph:
            yield paragraph
            paragraph = ""
        if heading:
            if lead and not listed:
                yield lead
            lead, listed = line.rstrip(": ") + ":", False
        elif line:
            paragraph = f"{lead} {line}" if lead and (bullet or not listed) else line
            listed = bool(lead)
            lead = lead if bullet else ""
    if lead and not listed:
        yield lead


@lru_cache(maxsize=64)  # an answer's are asked for by each who reads it
def sentences(answer: str) -> tuple[Sentence, ...]:
    """The answer's own sentences in order, quotations taken out."""
    found: list[Sentence] = []
    after_fix = False
    for block in blocks(answer):
        aside = ASIDE.match(block) is not None
        for part in _END.split(_without_quotes(block)):
            if len(part) > LONGEST:
                continue
            text = part.strip()
            aside = aside and not (VERDICT_PART.match(text) or PATTERNS["strong"].search(text))
            if PATTERNS["fix_heading"].match(text):
                after_fix = True
            elif _BACK.match(text):
                after_fix = False
            if text:
                found.append(Sentence(text, after_fix, aside))
    return tuple(found)


def _without_quotes(block: str) -> str:
    def keep(match: re.Match[str]) -> str:
        spoken = bool(
            _SPEECH.search(block[max(0, match.start() - _LED_IN) : match.start()])
            or _SPOKEN.match(block, match.end())
        )
        claim = PATTERNS["strong"].search(match["said"]) is not None
        own = len(match["said"].split()) < 4 or (match["lead"] and not claim)
        if own and not spoken:
            return match["lead"] + match["said"]
        return match["lead"] + (match["said"].strip()[-1:] if match["said"].strip().endswith(_ENDS) else "")

    block = block.replace(",,", "\u201e").replace("''", "\u201d")
    first = re.search("[\u00ab\u00bb\u2039\u203a]", block)
    if first and first[0] in "\u00bb\u203a":  # as in German books
        block = block.translate(_TURNED)
    return _QUOTE.sub(keep, block)
