"""One pass over a JSONL file keeps what the checks need as compact columns: numbers and hashes, no texts.

A row is named by its position among the good rows; `lines` turns it into a line number. What is right or
wrong about a column is the business of checks.py.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fine_tune_runner.dataset import secrets
from fine_tune_runner.dataset.duplicates import QuestionIndex, fold, key, masked
from fine_tune_runner.dataset.fingerprint import Fingerprint
from fine_tune_runner.dataset.read import scan
from fine_tune_runner.dataset.taxonomy import Cause, Taxonomy, cause_line, normalise
from fine_tune_runner.types import Example, Finding, Level, Message, Tokenizer

ROWS_AT_ONCE = 512  # to the tokenizer: it counts a shared system prompt once for each batch
CHARS_AT_ONCE = 4 * 2**20
HITS_KEPT = 100  # a kind; beyond it only their number
NO_PROMPT = 0  # stands for the key of a system prompt that is not there


class Leak(NamedTuple):
    """A training row whose question is (`exact`), or is near to, one of the holdout."""

    row: int
    holdout_row: int
    exact: bool


class PromptUse(NamedTuple):
    """Where a system prompt stands first, and on how many rows it stands."""

    first_line: int
    rows: int


def _numbers() -> array[int]:
    return array("Q")


@dataclass
class Columns:
    """What the checks know of one file; all columns have one value for each good row, in order."""

    path: str
    holdout: bool = False
    faults: list[Finding] = field(default_factory=list)
    sha256: str = ""
    lines: array[int] = field(default_factory=_numbers)
    exact: array[int] = field(default_factory=_numbers)  # key of the folded question
    near: array[int] = field(default_factory=_numbers)  # key of the masked question
    question_chars: array[int] = field(default_factory=_numbers)
    answer_chars: array[int] = field(default_factory=_numbers)
    tokens: array[int] = field(default_factory=_numbers)  # empty without a tokenizer
    loss_tokens: array[int] = field(default_factory=_numbers)
    causes: list[str | None] = field(default_factory=list)
    stated: array[int] = field(default_factory=_numbers)  # key of the `Root cause:` text, 0 = no such line
    begins_with_cause: int = 0
    prompts: dict[int, PromptUse] = field(default_factory=dict)  # by key of the system prompt
    hits: dict[str, list[tuple[int, secrets.Hit]]] = field(default_factory=lambda: defaultdict(list))
    hit_rows: Counter[str] = field(default_factory=Counter)
    leaks: list[Leak] = field(default_factory=list)
    # Of a holdout only, which is small.
    questions: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    accepted: list[frozenset[str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def finding(
        self, check: str, level: Level, message: str, remedy: str = "", row: int | None = None
    ) -> Finding:
        """A finding about this file, or about one row of it."""
        line = None if row is None else self.lines[row]
        return Finding(check=check, level=level, message=message, path=self.path, line=line, remedy=remedy)


def question_id(example: Example, path: Path) -> str:
    """What answers and reports call a holdout row: `eval.id`, else `{stem}:{line}` such as `v3_eval:7`."""
    given = example.eval.id if example.eval else None
    return given or f"{path.stem}:{example.line}"


def with_labels(taxonomy: Taxonomy, holdout: Path) -> Taxonomy:
    """The taxonomy and the root causes that a holdout names beyond it, so that rows can name them."""
    causes = dict(taxonomy.causes)
    for item in scan(holdout):
        named = item.eval.root_cause if isinstance(item, Example) and item.eval else None
        if named and normalise(named) and taxonomy.resolve(named) is None:
            causes[named] = Cause(named)
    return Taxonomy(causes)


def read_columns(
    path: Path,
    taxonomy: Taxonomy,
    tokenizer: Tokenizer | None,
    *,
    holdout: bool = False,
    against: QuestionIndex | None = None,
) -> Columns:
    """Read a file once; `against` is the index of the holdout whose questions training rows must not hold."""
    columns = Columns(path=str(path), holdout=holdout)
    fingerprint = Fingerprint(holdout=holdout)
    for chunk in _batches(_good(path, columns)):
        for example in chunk:
            fingerprint.add(example)
            _add(columns, example, taxonomy, against)
            if holdout:
                _add_holdout(columns, example, path, taxonomy)
        for total, learned in tokenizer.count([e.messages for e in chunk]) if tokenizer else ():
            columns.tokens.append(total)
            columns.loss_tokens.append(learned)
    columns.sha256 = "" if columns.faults else fingerprint.hexdigest()
    return columns


def _good(path: Path, columns: Columns) -> Iterator[Example]:
    for item in scan(path):
        if isinstance(item, Finding):
            columns.faults.append(item)
        else:
            yield item


def _batches(rows: Iterable[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    chars = 0
    for example in rows:
        batch.append(example)
        chars += sum(len(message.content) for message in example.messages)
        if len(batch) == ROWS_AT_ONCE or chars > CHARS_AT_ONCE:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _add(columns: Columns, example: Example, taxonomy: Taxonomy, against: QuestionIndex | None) -> None:
    row = len(columns)
    folded = fold(example.question)
    near = masked(folded)
    columns.lines.append(example.line)
    columns.exact.append(key(folded))
    columns.near.append(key(near))
    columns.question_chars.append(len(folded))
    columns.answer_chars.append(len(example.answer))
    if against is not None:
        columns.leaks += (Leak(row, position, exact) for position, exact in against.match(folded, near))
    stated = cause_line(example.answer)
    named = example.eval.root_cause if columns.holdout and example.eval else None
    columns.causes.append(taxonomy.resolve(named or stated or ""))
    columns.stated.append(key(normalise(stated)) if stated else 0)
    columns.begins_with_cause += (
        stated is not None and cause_line(example.answer.lstrip().split("\n")[0]) == stated
    )
    _add_prompt(columns, example)


def _add_prompt(columns: Columns, example: Example) -> None:
    """The system prompt, and what any message holds that should not be there."""
    first = example.messages[0]
    prompt = key(first.content.strip()) if first.role == "system" else NO_PROMPT
    seen = columns.prompts.get(prompt)
    columns.prompts[prompt] = PromptUse(
        seen.first_line if seen else example.line, seen.rows + 1 if seen else 1
    )
    # The same prompt on 65,000 rows is looked through once.
    new: tuple[Message, ...] = example.messages if seen is None else example.messages[prompt != NO_PROMPT :]
    found = {hit.kind: hit for hit in secrets.find("\n".join(message.content for message in new))}
    for kind, hit in found.items():
        columns.hit_rows[kind] += 1
        if len(columns.hits[kind]) < HITS_KEPT:
            columns.hits[kind].append((len(columns) - 1, hit))


def _add_holdout(columns: Columns, example: Example, path: Path, taxonomy: Taxonomy) -> None:
    columns.questions.append(example.question)
    columns.ids.append(question_id(example, path))
    accept = example.eval.accept if example.eval else ()
    columns.accepted.append(frozenset(taxonomy.resolve(text) or text for text in accept))
