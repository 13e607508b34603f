"""Asking a model every question, scoring what came back, and keeping raw answers as JSON lines.

A call that failed is retried, then recorded as failed; it is never a wrong answer. Knows no track: models
come as an Answerer, vectors as an Embedder.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.decisions import Decided
from fine_tune_runner.evaluation.holdout import Holdout, Question, cause_key
from fine_tune_runner.evaluation.nearest import contrast
from fine_tune_runner.evaluation.recall import Commitment, committed, recalled
from fine_tune_runner.evaluation.similarity import floor, own_reference
from fine_tune_runner.files import write_atomic
from fine_tune_runner.types import (
    Answer,
    Answerer,
    Decoding,
    Embedder,
    Method,
    Model,
    Prompt,
    Reply,
    ScoreCard,
)

SCORER_VERSION = "9"  # raise it with every change here or in the rules of recall that moves a score
RETRIES = 2
_DIGITS = 8  # hex, of each half of a fingerprint
SAMPLED = 64  # questions whose answers are held against references, where that decides nothing

Read = dict[tuple[str, str], Commitment]  # (question id, answer) → what it commits to
OnReply = Callable[[int, int], None]  # (answers so far, answers in all)


def collect(
    answerer: Answerer,
    model: Model,
    holdout: Holdout,
    decoding: Decoding,
    k: int = 1,
    on_reply: OnReply | None = None,
) -> tuple[Reply, ...]:
    """Ask `model` every question `k` times; one reply a prompt, in the order of the prompts.

    A failed or missing reply is asked for again, twice at most, and then stays as an error. Calls the model.
    """
    return ask(answerer, model, holdout.prompts(range(k)), decoding, on_reply)


def ask(
    answerer: Answerer,
    model: Model,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    on_reply: OnReply | None = None,
) -> tuple[Reply, ...]:
    """One reply a prompt, in the order of the prompts; as `collect`."""
    replies: dict[tuple[str, int], Reply] = {}
    settled: set[tuple[str, int]] = set()
    open_prompts = prompts
    for attempt in range(RETRIES + 1):
        for reply in answerer.replies(model.model_id, open_prompts, decoding):
            replies[reply.question_id, reply.k] = reply
            if reply.text is not None or attempt == RETRIES:
                settled.add((reply.question_id, reply.k))
                if on_reply:
                    on_reply(len(settled), len(prompts))
        open_prompts = [p for p in prompts if _failed(replies.get((p.question_id, p.k)))]
        if not open_prompts:
            break
    return tuple(
        replies.get((p.question_id, p.k)) or Reply(question_id=p.question_id, k=p.k, error="no reply came")
        for p in prompts
    )


def _failed(reply: Reply | None) -> bool:
    return reply is None or reply.text is None


def fingerprint(
    *,
    embedder: str,
    decoding: Decoding,
    system_prompt: str | None,
    taxonomy: Taxonomy,
    holdout_sha256: str,
    decisions_sha256: str = "",
    judge: str | None = None,
) -> str:
    """What a score depends on beside the model; scores with two of them do not compare.

    16 hex digits: eight of how answers are drawn (`drawn_as`), eight of how they are scored; and after a "+"
    those of people's decisions, where there are any.
    """
    causes = [msgspec.to_builtins(cause) for cause in taxonomy.causes.values()]
    drawn = _digest(msgspec.to_builtins(decoding), system_prompt)
    measured = drawn + _digest(SCORER_VERSION, embedder, causes, holdout_sha256, judge)
    return f"{measured}+{decisions_sha256}" if decisions_sha256 else measured


def drawn_as(stamp: str) -> str:
    """The part of a fingerprint that says under which system prompt and decoding an answer was given.

    Scoring an answer again makes up for everything else in the fingerprint, and for nothing of this.
    """
    return stamp[:_DIGITS]


def _digest(*parts: object) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:_DIGITS]


def score(
    replies: Sequence[Reply],
    holdout: Holdout,
    taxonomy: Taxonomy,
    embedder: Embedder,
    decoding: Decoding,
    *,
    label: str,
    model_id: str,
    read: Read | None = None,
) -> tuple[ScoreCard, tuple[Answer, ...]]:
    """Judge every reply by the holdout's measure; the card, and the single answers in question order.

    Replies to questions that the holdout does not have are left out. Under recall a repeat may end after its
    `Root cause:` line (repeats.py), so similarity is that of first answers only, and of a sample (`sampled`).
    What is in `read` is not read again, and what was read is added to it: for one holdout and taxonomy.
    """
    stamp = fingerprint(
        embedder=embedder.fingerprint,
        decoding=decoding,
        system_prompt=holdout.system_prompt,
        taxonomy=taxonomy,
        holdout_sha256=holdout.sha256,
        decisions_sha256=holdout.decisions_sha256,
        judge=holdout.judge,
    )
    row_of = {question.id: row for row, question in enumerate(holdout.questions)}
    replies = sorted(
        (r for r in replies if r.question_id in row_of), key=lambda r: (row_of[r.question_id], r.k)
    )
    came = [reply for reply in replies if reply.text is not None]
    texts, rows = [str(reply.text) for reply in came], [row_of[reply.question_id] for reply in came]
    compared = _compared(came, rows, holdout, embedder)
    said = _read(texts, rows, holdout, taxonomy, embedder, {} if read is None else read)
    judged = {(r.question_id, r.k): (said[i], compared.cosine_of.get(i)) for i, r in enumerate(came)}
    answers = tuple(_answer(r, holdout, row_of, judged.get((r.question_id, r.k)), stamp) for r in replies)
    card = summarise(
        answers,
        holdout,
        label=label,
        model_id=model_id,
        similarity_floor=compared.floor,
        own_reference_share=compared.own_share,
    )
    return card, answers


class _Compared(NamedTuple):
    """`cosine_of`: position of the reply → cosine to its reference, of whole answers to the sampled rows."""

    cosine_of: dict[int, float]
    floor: float | None
    own_share: float | None


def _compared(came: Sequence[Reply], rows: Sequence[int], holdout: Holdout, embedder: Embedder) -> _Compared:
    sample = sampled(holdout)
    at = {row: i for i, row in enumerate(sample)}
    references_SD = embedder.embed([holdout.questions[row].reference for row in sample])
    whole = [
        i for i, reply in enumerate(came) if rows[i] in at and (reply.k == 0 or holdout.measure != "recall")
    ]
    own = [at[rows[i]] for i in whole]
    answers_ND = embedder.embed([str(came[i].text) for i in whole])
    cosines = (answers_ND * references_SD[own]).sum(axis=1)
    return _Compared(
        dict(zip(whole, cosines.tolist(), strict=True)),
        floor(references_SD),
        float(own_reference(answers_ND, own, references_SD).mean()) if whole else None,
    )


def sampled(holdout: Holdout) -> list[int]:
    """The rows whose answers are held against references: all where that decides, else at most SAMPLED.

    Drawn by the hash of question and reference, so that both models, and holdouts that share a row, take the
    same ones. Cosines to references spread by .19 (tests/evaluation/data/third.jsonl), so the mean of 64 is
    known to .023, by which nothing is decided; each text costs 30 ms of a core, and 1,000 rows 90 s.
    """
    rows = range(len(holdout.questions))
    if holdout.measure == "similarity" or len(rows) <= SAMPLED:
        return list(rows)
    drawn = sorted(rows, key=lambda row: _draw(holdout.questions[row]))
    return sorted(drawn[:SAMPLED])


def _draw(question: Question) -> bytes:
    return hashlib.blake2b(
        f"{question.text}\n{question.reference}".encode(errors="surrogatepass"), digest_size=8
    ).digest()


def _answer(
    reply: Reply,
    holdout: Holdout,
    row_of: dict[str, int],
    judged: tuple[Commitment | None, float | None] | None,
    stamp: str,
) -> Answer:
    commitment, cosine = judged or (None, None)
    row = row_of[reply.question_id]
    score = _right(commitment, holdout, row) if commitment else None
    cause = commitment.cause if commitment else None
    decided = _decided(reply, holdout, commitment)
    if decided is not None and decided.by_judge:
        score, cause = float(bool(decided.right)), decided.cause
    elif decided is not None and score != float(bool(decided.right)):
        score = float(bool(decided.right))
        cause = cause_key(holdout.questions[row]) if decided.right else None
    return Answer(
        question_id=reply.question_id,
        k=reply.k,
        text=reply.text,
        score=score,
        method=_method(decided, commitment),
        fingerprint=stamp,
        error=reply.error if judged else reply.error or "empty reply",
        cause=cause,
        similarity=cosine,
        tokens=reply.tokens,
        decided_by=decided.who if decided else None,
    )


def _decided(reply: Reply, holdout: Holdout, commitment: Commitment | None) -> Decided | None:
    """A person's word on any answer; a judge's only on one that no rule could read."""
    if commitment is None or not reply.text:
        return None
    decided = holdout.decision(reply.question_id, reply.text)
    if decided is None or not decided.by_judge:
        return decided
    return decided if commitment.method == "unresolved" and decided.right is not None else None


def _method(decided: Decided | None, commitment: Commitment | None) -> Method | None:
    if decided is not None:
        return "judge" if decided.by_judge else "review"
    return commitment.method if commitment else None


def unresolved(
    replies: Sequence[Reply], holdout: Holdout, taxonomy: Taxonomy, embedder: Embedder, read: Read
) -> list[tuple[Question, str]]:
    """The answers that no rule of recall could read, with their questions; none under another measure.

    `read` as in `score`.
    """
    if holdout.measure != "recall":
        return []
    row_of = {question.id: row for row, question in enumerate(holdout.questions)}
    came = [(str(r.text), row_of[r.question_id]) for r in replies if r.text and r.question_id in row_of]
    said = _read([text for text, _ in came], [row for _, row in came], holdout, taxonomy, embedder, read)
    return [
        (holdout.questions[row], text)
        for (text, row), commitment in zip(came, said, strict=True)
        if commitment is not None and commitment.method == "unresolved"
    ]


def _read(
    texts: list[str],
    rows: list[int],
    holdout: Holdout,
    taxonomy: Taxonomy,
    embedder: Embedder,
    read: Read,
) -> Sequence[Commitment | None]:
    if holdout.measure == "similarity":
        return [None] * len(texts)
    if holdout.measure == "contrast":
        references_MD = embedder.embed([question.reference for question in holdout.questions])
        return contrast(texts, rows, holdout.questions, references_MD, embedder)
    for text, row in zip(texts, rows, strict=True):
        question = holdout.questions[row]
        if (question.id, text) not in read:
            read[question.id, text] = committed(text, question, taxonomy)
    return [read[holdout.questions[row].id, text] for text, row in zip(texts, rows, strict=True)]


def _right(commitment: Commitment, holdout: Holdout, row: int) -> float:
    if holdout.measure == "contrast":
        return float(commitment.cause is not None)
    return float(recalled(commitment, holdout.questions[row]))


def summarise(
    answers: Sequence[Answer],
    holdout: Holdout,
    *,
    label: str,
    model_id: str,
    similarity_floor: float | None,
    own_reference_share: float | None,
) -> ScoreCard:
    """Pool scored answers into a card: recall or contrast over all that came back, failed ones counted.

    `per_question` has the mean over a question's answers, and no entry where none came back: the gate takes
    that as missing evidence.
    """
    came = [a for a in answers if a.text is not None]
    similarities = [a.similarity for a in came if a.similarity is not None]
    lengths = [a.tokens for a in came if a.k == 0 and a.tokens]  # a repeat may end after its first line
    scores = [a.score for a in came if a.score is not None]
    pooled = sum(scores) / len(scores) if scores else None
    by_question: dict[str, list[float]] = defaultdict(list)
    for answer in came:
        value = answer.similarity if holdout.measure == "similarity" else answer.score
        if value is not None:
            by_question[answer.question_id].append(value)
    methods: Counter[str] = Counter(a.method for a in came if a.method)
    return ScoreCard(
        label=label,
        model_id=model_id,
        questions=len(holdout.questions),
        answers=len(came),
        failed=len(answers) - len(came),
        unresolved=tuple(dict.fromkeys(a.question_id for a in came if a.method == "unresolved")),
        similarity=sum(similarities) / len(similarities) if similarities else None,
        similarity_floor=similarity_floor,
        own_reference_share=own_reference_share,
        recall=pooled if holdout.measure == "recall" else None,
        contrast=pooled if holdout.measure == "contrast" else None,
        per_question={question: sum(values) / len(values) for question, values in by_question.items()},
        methods=dict(methods),
        fingerprint=answers[0].fingerprint if answers else "",
        tokens_per_answer=sum(lengths) / len(lengths) if lengths else None,
        similarity_questions=len({a.question_id for a in came if a.similarity is not None}),
    )


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write raw answers and scores as JSON lines, all or nothing; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers))


def read_answers(path: Path) -> tuple[Answer, ...]:
    """The answers of a file; DataError names the line that is none."""
    found: list[Answer] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(msgspec.json.decode(line, type=threadsafe(Answer)))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path} line {number}: not an answer ({error}); evaluate again") from None
    return tuple(found)
