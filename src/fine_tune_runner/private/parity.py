"""Whether a server answers with the model that was trained: three checks, made before any evaluation.

The prompt is the training template's, the log-probabilities are those of the local model, and they are not
those of the bare base. Functions of callables: no server, no model and no client's folder is known here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple, Protocol

import msgspec

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ParityError
from fine_tune_runner.settings import Quantization
from fine_tune_runner.types import Message

# Tokens so far → natural-log probabilities of the likeliest next ones (100 are plenty), by id.
NextTokens = Callable[[Sequence[int]], Mapping[int, float]]

# Mean difference in nats that still counts as the same model; benchmarks/parity.py measures it. SmolLM2-135M
# after 10 steps, which move log-probabilities by 1.4: 0.072 merged as F32 or F16, 0.073 as Q8_0, nearly all
# of it from its Q4_1 base (llama.cpp rounds what a quantised matrix is multiplied with); a scale off by
# a tenth gives 0.20, by half 0.87. The K kinds are not measured, only allowed for.
TOLERANCE: Mapping[Quantization, float] = {
    "F32": 0.15,
    "F16": 0.15,
    "Q8_0": 0.15,
    "Q6_K": 0.2,
    "Q5_K_M": 0.3,
    "Q4_K_M": 0.5,
}


class TokenLogprob(Protocol):
    """One generated token as Ollama and llama.cpp report it; `top_logprobs` the likeliest there."""

    @property
    def token(self) -> str: ...
    @property
    def logprob(self) -> float: ...
    @property
    def bytes(self) -> Sequence[int] | None: ...
    @property
    def top_logprobs(self) -> Sequence[TokenLogprob]: ...


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared, and how far apart: mean absolute differences of log-probabilities, in nats."""

    prompts: int
    prompt_tokens: int
    positions: int
    compared: int
    quantization: str
    tolerance: float
    served_local: float
    served_bare: float
    local_bare: float


def check_parity(
    *,
    tokenizer: ChatTokenizer,
    prompts: Sequence[Sequence[Message]],
    rendered: Callable[[Sequence[Message]], str],
    served: Callable[[Sequence[Message]], Sequence[TokenLogprob]],
    local: NextTokens,
    bare: NextTokens,
    quantization: Quantization,
    adds_bos: bool,
) -> ParityReport:
    """Compare a served model with the trained one on a few prompts, each without its answer.

    `rendered` gives the server's prompt as text, `served` its greedy answer of a few tokens with the 20
    likeliest at each; `adds_bos` says whether the server puts the beginning-of-sequence token before the text
    (`tokenizer.ggml.add_bos_token` of its file). `local` is the base with the adapter, `bare` without it,
    both unmerged. Raises ParityError naming the check that failed: template, adapter lost, or other numbers.
    """
    ours = [tokenizer.prompt(messages) for messages in prompts]
    for number, (tokens, messages) in enumerate(zip(ours, prompts, strict=True), 1):
        _check_template(tokenizer, number, tokens, rendered(messages), adds_bos)
    places = [
        place
        for tokens, messages in zip(ours, prompts, strict=True)
        for place in _led(tokenizer, tokens, served(messages), local)
    ]
    # All of one model, then all of the other: a server that changes between them begins each prompt anew.
    gaps = [_gaps(tokenizer, place, bare(place.tokens)) for place in places]
    compared = [difference for position in gaps for difference in position]
    if not compared:
        raise ParityError(
            "parity check, log-probabilities: the server gave none to compare; update it to a version that "
            "answers with logprobs and top_logprobs"
        )
    means = [sum(column) / len(compared) for column in zip(*compared, strict=True)]
    report = ParityReport(
        prompts=len(prompts),
        prompt_tokens=sum(map(len, ours)),
        positions=len(gaps),
        compared=len(compared),
        quantization=quantization,
        tolerance=TOLERANCE[quantization],
        served_local=means[0],
        served_bare=means[1],
        local_bare=means[2],
    )
    _judge(report)
    return report


def _check_template(
    tokenizer: ChatTokenizer, number: int, ours: Sequence[int], text: str, adds_bos: bool
) -> None:
    # Only a template that begins with that token can have been trained with one.
    theirs = [*(ours[:1] if adds_bos else ()), *tokenizer.text_ids(text)]
    for place, (own, other) in enumerate(zip_longest(ours, theirs), 1):
        if own != other:
            own_text, other_text = (
                "nothing" if token is None else repr(tokenizer.token_text(token)) for token in (own, other)
            )
            raise ParityError(
                f"parity check, template: prompt {number} differs at token {place} of {len(ours)}: trained "
                f"with {own_text}, the server renders {other_text}; create it with the template that was "
                "trained"
            )


class _Place(NamedTuple):
    """One generated token: what the server said, what came before it, and what the local model expects."""

    said: TokenLogprob
    tokens: tuple[int, ...]
    expected: Mapping[int, float]


def _led(
    tokenizer: ChatTokenizer, prompt: Sequence[int], answer: Iterable[TokenLogprob], local: NextTokens
) -> list[_Place]:
    """The local model led along the served answer, so that a near tie does not make another text of the rest.

    Tokens are known by their bytes, since a server tells no ids; it ends where the local model finds none.
    """
    tokens, places = tuple(prompt), []
    for said in answer:
        expected = local(tokens)
        places.append(_Place(said, tokens, expected))
        same = [token for token in expected if tokenizer.token_bytes(token) == _bytes_of(said)]
        if not _bytes_of(said) or not same:
            break
        tokens = (*tokens, max(same, key=lambda token: expected[token]))
    return places


def _gaps(
    tokenizer: ChatTokenizer, place: _Place, by_bare: Mapping[int, float]
) -> list[tuple[float, float, float]]:
    """|served - local|, |served - bare|, |local - bare| of each token that the server finds likely here."""
    of_local, of_bare = (_by_bytes(tokenizer, found) for found in (place.expected, by_bare))
    gaps = []
    for likely in place.said.top_logprobs:
        text = _bytes_of(likely)
        # Special tokens have no bytes; what a list does not hold is at most as likely as its last entry.
        if text:
            there, base = (known.get(text, min(known.values())) for known in (of_local, of_bare))
            gaps.append((abs(likely.logprob - there), abs(likely.logprob - base), abs(there - base)))
    return gaps


def _by_bytes(tokenizer: ChatTokenizer, logprobs: Mapping[int, float]) -> dict[bytes, float]:
    """Two tokens that spell the same bytes count as the likelier one."""
    found: dict[bytes, float] = {}
    for token, logprob in logprobs.items():
        text = tokenizer.token_bytes(token)
        found[text] = max(logprob, found.get(text, -math.inf))
    return found


def _bytes_of(said: TokenLogprob) -> bytes:
    return bytes(said.bytes) if said.bytes else said.token.encode()


def _judge(report: ParityReport) -> None:
    limit = f"tolerance {report.tolerance} for {report.quantization}"
    moves = f"the adapter moves log-probabilities by {report.local_bare:.3f} nats"
    if report.local_bare <= report.tolerance:
        raise ParityError(
            f"parity check, adapter: {moves}, too little to be told from the bare base ({limit}); train "
            "longer, or with a higher training.learning_rate"
        )
    if report.served_bare <= report.tolerance:
        raise ParityError(
            f"parity check, adapter lost: the served model is the bare base, {report.served_bare:.3f} nats "
            f"from it ({limit}), where {moves}; export and create it again"
        )
    if report.served_local > report.tolerance:
        raise ParityError(
            f"parity check, log-probabilities: the served model is {report.served_local:.3f} nats from the "
            f"trained one ({limit}) and {report.served_bare:.3f} from the bare base, where {moves}: its "
            "scale, its base or its encoding is another one; export and create it again"
        )
