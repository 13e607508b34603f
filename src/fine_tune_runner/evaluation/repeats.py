"""Asking a question again: a repeat ends after the line that names the cause, where answers begin with one.

That line alone decides recall (facts/evaluation.md), so the rest of a repeat would be thrown away. Knows no
scores; what has no whole line is asked for again in full.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fine_tune_runner.dataset.taxonomy import cause_line
from fine_tune_runner.evaluation.answers import OnReply, ask
from fine_tune_runner.evaluation.holdout import Holdout
from fine_tune_runner.types import Answerer, Decoding, Model, Reply

LINE_TOKENS = 32  # the longest label's line has about 20
LINE_CHARACTERS = 80  # a line that ends later may not fit into LINE_TOKENS
USUAL = 0.5  # share of first answers that begin with the line, from which on repeats are cut


def collect_repeats(
    answerer: Answerer,
    model: Model,
    holdout: Holdout,
    decoding: Decoding,
    repeats: range,
    firsts: Sequence[Reply],
    on_reply: OnReply | None = None,
) -> tuple[Reply, ...]:
    """The replies to `repeats` (1 or more) of every question, cut where `firsts` (k = 0) allow it."""
    prompts = holdout.prompts(repeats)
    if holdout.measure != "recall" or decoding.max_tokens <= LINE_TOKENS or not may_be_cut(firsts):
        return ask(answerer, model, prompts, decoding, on_reply)
    short = msgspec.structs.replace(decoding, max_tokens=LINE_TOKENS)
    replies = {(r.question_id, r.k): r for r in ask(answerer, model, prompts, short, on_reply)}
    torn = [p for p in prompts if _is_torn(replies[p.question_id, p.k])]
    if torn:
        replies |= {(r.question_id, r.k): r for r in ask(answerer, model, torn, decoding)}
    return tuple(replies[p.question_id, p.k] for p in prompts)


def may_be_cut(firsts: Sequence[Reply]) -> bool:
    """Whether most first answers begin with a short `Root cause:` line."""
    early = [reply.text is not None and _has_whole_line(reply.text[:LINE_CHARACTERS]) for reply in firsts]
    return bool(early) and sum(early) >= USUAL * len(early)


def _is_torn(reply: Reply) -> bool:
    """A reply that stopped at the limit, and not after its line."""
    ended = 0 < reply.tokens < LINE_TOKENS
    return reply.text is not None and not ended and not _has_whole_line(reply.text)


def _has_whole_line(text: str) -> bool:
    """Whether a `Root cause:` line is there and a further line follows it."""
    return any(cause_line(line) is not None for line in text.splitlines()[:-1])
