"""The checks of a version, one function each: a corpus in, findings out (facts/evaluation.md, "Checks before
money is spent").

A check raises for nothing that is in the data, and quotes no text of a row: lines, ids, labels and figures.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from fine_tune_runner.dataset.columns import NO_PROMPT, Columns
from fine_tune_runner.dataset.duplicates import chunks, fold, key, masked, near_pairs
from fine_tune_runner.dataset.read import GATE_ROWS, scan
from fine_tune_runner.dataset.secrets import Hit, mask
from fine_tune_runner.settings import AccountState
from fine_tune_runner.types import Embedder, Example, Finding, Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HOSTED_ROWS = 10  # OpenAI's minimum for a job
HOLDOUT_ROWS = 10
ROWS_PER_CAUSE = 3
LARGEST_SHARE = 0.30
CAUSE_LINE_SHARE = 0.90
LENGTH_FACTOR = 5  # times the median, or that part of it
SEMANTIC = 0.90  # cosine of two questions that mean the same
SAMPLED, SAMPLED_HOLDOUT = 400, 200  # questions embedded, at 15 ms each


@dataclass(frozen=True)
class Corpus:
    """All that the checks look at; `others`: another version's training file → the holdout rows in it."""

    train: Columns
    holdout: Columns
    state: AccountState | None
    allow_secrets: Mapping[str, str]
    tokenizer: Tokenizer | None
    embedder: Embedder | None
    others: Mapping[str, tuple[str, ...]]

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Training rows (earlier, later) that ask the same or nearly the same."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        pairs: set[tuple[int, int]] = set()
        for row, near in enumerate(self.train.near):
            if near in first:
                # The first for people to look up, the last so that every change of cause is seen.
                pairs |= {(first[near], row), (last[near], row)}
            first.setdefault(near, row)
            last[near] = row
        distinct = set(first.values())
        return sorted(pairs.union(near_pairs(lambda: _masked(self.train, distinct), len(distinct))))


def _questions(columns: Columns, rows: Iterable[int]) -> Iterator[tuple[int, str]]:
    """(row, question) of some rows, read again from the file."""
    wanted = set(rows)
    good = (item for item in scan(Path(columns.path)) if isinstance(item, Example))
    return ((row, example.question) for row, example in enumerate(good) if row in wanted)


def _masked(columns: Columns, rows: Iterable[int]) -> Iterator[tuple[int, str]]:
    return ((row, masked(fold(question))) for row, question in _questions(columns, rows))


def shape(corpus: Corpus) -> Iterator[Finding]:
    """Rows that are no chat example, and files that are not there."""
    yield from corpus.train.faults
    yield from corpus.holdout.faults


def rows(corpus: Corpus) -> Iterator[Finding]:
    """Too few rows to train on, or to judge by."""
    n, tested = len(corpus.train), len(corpus.holdout)
    if n < GATE_ROWS:
        hosted = f"; hosted tracks ask for {HOSTED_ROWS} at least" if n < HOSTED_ROWS else ""
        message = f"awaiting {GATE_ROWS} examples (has {n}){hosted}"
        yield corpus.train.finding("rows", "fail", message, "add examples and publish the version again")
    if tested < HOLDOUT_ROWS:
        message = f"only {tested} questions; the fewer, the more a verdict is luck"
        yield corpus.holdout.finding(
            "holdout_rows", "warn", message, f"add questions up to {HOLDOUT_ROWS} or more"
        )


def holdout_ids(corpus: Corpus) -> Iterator[Finding]:
    """Two questions under one id: their answers could not be told apart."""
    seen: dict[str, int] = {}
    for row, name in enumerate(corpus.holdout.ids):
        if name in seen:
            message = f"id {mask(name)!r} stands on line {corpus.holdout.lines[seen[name]]} already"
            yield corpus.holdout.finding(
                "holdout_ids", "fail", message, "give each question its own eval.id", row
            )
        seen.setdefault(name, row)


def duplicates(corpus: Corpus) -> Iterator[Finding]:
    """Questions asked twice: exactly, in either file, or nearly, in the training set."""
    for columns in (corpus.train, corpus.holdout):
        first: dict[int, int] = {}
        for row, question in enumerate(columns.exact):
            if question in first:
                message = f"asks the same as line {columns.lines[first[question]]}"
                yield columns.finding("exact_duplicate", "warn", message, "drop one of the two", row)
            first.setdefault(question, row)
    train, told = corpus.train, set[int]()
    for earlier, later in corpus.pairs:
        if train.exact[earlier] != train.exact[later] and later not in told:
            told.add(later)
            message = f"asks nearly the same as line {train.lines[earlier]}"
            yield train.finding("near_duplicate", "warn", message, "drop one, or word it differently", later)


def leaks(corpus: Corpus) -> Iterator[Finding]:
    """Holdout questions in the own training set: the score would measure memory."""
    for row, holdout_row, exact in corpus.train.leaks:
        check, asks = (
            ("exact_leak", "asks the same as") if exact else ("near_leak", "asks nearly the same as")
        )
        message = f"{asks} line {corpus.holdout.lines[holdout_row]} of {corpus.holdout.path}"
        yield corpus.train.finding(check, "fail", message, "drop the row here or the question there", row)


def other_versions(corpus: Corpus) -> Iterator[Finding]:
    """Holdout questions that another version was trained on."""
    for path, names in corpus.others.items():
        shown = mask(", ".join(names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        message = (
            f"{len(names)} of {len(corpus.holdout)} questions are in {path} or near to a row of it: {shown}"
        )
        remedy = "the gate leaves them out against that version; replace them where few are left"
        yield corpus.holdout.finding("other_version", "warn", message, remedy)


def semantic_leaks(corpus: Corpus) -> Iterator[Finding]:
    """Training questions that mean the same as one of the holdout, in other words."""
    train, holdout = corpus.train, corpus.holdout
    if corpus.embedder is None:
        yield train.finding("semantic_leak", "info", "not checked: no embedder at hand", "fine-tune fetch")
        return
    draw = random.Random(0)  # the same sample each time
    asked = sorted(draw.sample(range(len(holdout)), min(len(holdout), SAMPLED_HOLDOUT)))
    trained = sorted(draw.sample(range(len(train)), min(len(train), SAMPLED)))
    if not asked or not trained:
        return
    cosines = _embed(corpus.embedder, train, trained) @ _embed(corpus.embedder, holdout, asked).T
    told = {(leak.row, leak.holdout_row) for leak in train.leaks}
    for i, j in zip(*(cosines >= SEMANTIC).nonzero(), strict=True):
        row, other = trained[i], asked[j]
        if (row, other) not in told:
            where = f"line {holdout.lines[other]} of {holdout.path}"
            message = f"means the same as {where} (cosine {cosines[i, j]:.2f})"
            yield train.finding("semantic_leak", "warn", message, "drop one, or ask for something else", row)
    of_train, of_holdout = f"{len(trained)} of {len(train)}", f"{len(asked)} of {len(holdout)}"
    message = f"looked at {of_train} training and {of_holdout} holdout questions"
    yield train.finding("semantic_leak", "info", message)


def _embed(embedder: Embedder, columns: Columns, rows: list[int]) -> NDArray[np.float32]:
    """[n rows, d]; 4 texts at a time, because activations of 32 took 70 MB more, and no less time a text."""
    import numpy as np

    texts = (text for _, text in _questions(columns, rows))
    return np.concatenate([embedder.embed(chunk) for chunk in chunks(texts, 4)])


def contradictions(corpus: Corpus) -> Iterator[Finding]:
    """Nearly the same question with another cause."""
    train, holdout, told = corpus.train, corpus.holdout, set[int]()
    for earlier, later in corpus.pairs:
        if later not in told and _differ(train, earlier, train, later):
            told.add(later)
            yield _contradiction(train, later, train, earlier, f"line {train.lines[earlier]}")
    for row, other, _ in train.leaks:
        if train.causes[row] not in holdout.accepted[other] and _differ(holdout, other, train, row):
            yield _contradiction(train, row, holdout, other, f"line {holdout.lines[other]} of {holdout.path}")


def _differ(a: Columns, i: int, b: Columns, j: int) -> bool:
    if a.causes[i] and b.causes[j]:
        return a.causes[i] != b.causes[j]
    return bool(a.stated[i] and b.stated[j]) and a.stated[i] != b.stated[j]


def _contradiction(train: Columns, row: int, other: Columns, other_row: int, where: str) -> Finding:
    here, there = train.causes[row], other.causes[other_row]
    if here and there:
        message = f"names {here} where {where}, nearly the same question, names {there}"
        return train.finding("contradiction", "fail", message, "correct one of the two answers", row)
    message = f"gives another root cause than {where}, nearly the same question"
    return train.finding("contradiction", "warn", message, "correct one of the two answers", row)


def coverage(corpus: Corpus) -> Iterator[Finding]:
    """Causes asked for and never trained, hardly trained, or trained far more than the rest."""
    train, holdout = corpus.train, corpus.holdout
    trained = Counter(cause for cause in train.causes if cause)
    if not trained:
        yield train.finding(
            "coverage", "info", "not checked: no training answer names a cause of the taxonomy"
        )
        return
    for row, cause in enumerate(holdout.causes):
        if cause and cause not in trained and holdout.causes.index(cause) == row:
            message = f"asks for {cause}, which no training answer names"
            yield holdout.finding("coverage", "warn", message, "add training rows of that cause", row)
    few = ", ".join(f"{cause} ({n})" for cause, n in sorted(trained.items()) if n < ROWS_PER_CAUSE)
    if few:
        message = f"causes with fewer than {ROWS_PER_CAUSE} rows: {few}"
        yield train.finding("coverage", "warn", message, "add rows of these causes")
    for cause, n in sorted(trained.items()):
        share = n / trained.total()
        if share > LARGEST_SHARE:
            message = f"{cause} is the cause of {share:.0%} of the rows"
            yield train.finding(
                "coverage", "warn", message, f"keep each cause at {LARGEST_SHARE:.0%} or less"
            )


def prompts(corpus: Corpus) -> Iterator[Finding]:
    """A system prompt that changes from row to row, is missing, or is not the AccountState's."""
    due = key(corpus.state.system_prompt.strip()) if corpus.state else None
    remedy = "put the AccountState's prompt on every line"
    for columns in (corpus.train, corpus.holdout):
        missing = columns.prompts.get(NO_PROMPT)
        if missing:
            message = f"{missing.rows} rows have no system prompt, the first on line {missing.first_line}"
            yield columns.finding("prompt_drift", "warn", message, remedy)
        given = [prompt for prompt in columns.prompts if prompt != NO_PROMPT]
        if len(given) > 1:
            line = columns.prompts[given[1]].first_line
            message = f"{len(given)} different system prompts; line {line} is the first with another"
            yield columns.finding("prompt_drift", "warn", message, remedy)
        if corpus.state and given and due not in given:
            message = f"the system prompt is not that of account_state.json {corpus.state.version}"
            yield columns.finding("prompt_drift", "warn", message, remedy)


def cause_lines(corpus: Corpus) -> Iterator[Finding]:
    """How many training answers begin with `Root cause:`, the line that lets recall be read off."""
    train = corpus.train
    if not len(train):
        return
    share = train.begins_with_cause / len(train)
    low = share < CAUSE_LINE_SHARE
    message = f"{train.begins_with_cause} of {len(train)} answers ({share:.0%}) begin with `Root cause:`"
    remedy = "begin answers with `Root cause: <label>`" if low else ""
    yield train.finding("cause_line", "warn" if low else "info", message, remedy)
    unknown = [row for row, stated in enumerate(train.stated) if stated and train.causes[row] is None]
    if unknown:
        message = f"{len(unknown)} answers name a root cause that the taxonomy lacks, the first on this line"
        yield train.finding(
            "cause_line", "warn", message, "add it to the client's taxonomy.jsonl", unknown[0]
        )


def lengths(corpus: Corpus) -> Iterator[Finding]:
    """Questions and answers far longer or shorter than the rest of the training set."""
    train = corpus.train
    for what, sizes in (("question", train.question_chars), ("answer", train.answer_chars)):
        middle = median(sizes) if sizes else 0
        for row, size in enumerate(sizes):
            if not middle <= size * LENGTH_FACTOR or not size <= middle * LENGTH_FACTOR:
                message = f"{what} of {size} characters, where half are under {middle:.0f}"
                yield train.finding("length", "warn", message, "look at the row", row)


def tokens(corpus: Corpus) -> Iterator[Finding]:
    """Rows longer than the model's context."""
    if corpus.tokenizer is None:
        yield corpus.train.finding("tokens", "info", "not counted: no tokenizer at hand", "fine-tune fetch")
        return
    limit = corpus.tokenizer.context
    for columns in (corpus.train, corpus.holdout):
        for row, count in enumerate(columns.tokens):
            if count > limit:
                message = f"{count} tokens, where {corpus.tokenizer.name} takes {limit}"
                yield columns.finding("tokens", "fail", message, "shorten the prompt or the row", row)


def private_data(corpus: Corpus) -> Iterator[Finding]:
    """Secrets, which fail unless allowed with a reason, and personal data, which warn; all of it masked."""
    for columns in (corpus.train, corpus.holdout):
        for kind, hits in columns.hits.items():
            for row, hit in hits:
                yield _private(columns, row, hit, corpus.allow_secrets)
            if len(hits) < columns.hit_rows[kind]:
                message = f"{columns.hit_rows[kind] - len(hits)} more rows hold the same kind"
                yield columns.finding(kind, "info", message)


def _private(columns: Columns, row: int, hit: Hit, allowed: Mapping[str, str]) -> Finding:
    if hit.sort == "personal":
        return columns.finding(hit.kind, "warn", f"holds personal data, {hit.masked}", "replace it", row)
    if reason := allowed.get(hit.kind):
        return columns.finding(hit.kind, "info", f"{hit.masked} is allowed: {mask(reason)}", row=row)
    remedy = f'remove and revoke it, or allow it in config.json: "allow_secrets": {{"{hit.kind}": "why"}}'
    return columns.finding(hit.kind, "fail", f"holds a secret, {hit.masked}", remedy, row)


CHECKS: tuple[Callable[[Corpus], Iterator[Finding]], ...] = (
    shape,
    rows,
    holdout_ids,
    duplicates,
    leaks,
    other_versions,
    semantic_leaks,
    contradictions,
    coverage,
    prompts,
    cause_lines,
    lengths,
    tokens,
    private_data,
)
