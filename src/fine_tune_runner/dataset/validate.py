"""Everything there is to say about a version before money is spent, in one go and without raising.

Puts the corpus together, runs the table of checks.py over it, and sorts what they found. Sends nothing and
trains nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from fine_tune_runner.dataset.checks import CHECKS, Corpus
from fine_tune_runner.dataset.columns import Columns, question_id, read_columns, with_labels
from fine_tune_runner.dataset.duplicates import QuestionIndex, fold, masked
from fine_tune_runner.dataset.read import holdout_path, scan, train_path, versions
from fine_tune_runner.dataset.secrets import KINDS, mask
from fine_tune_runner.dataset.taxonomy import Taxonomy
from fine_tune_runner.errors import ConfigError
from fine_tune_runner.settings import AccountState, Client, load_account_state
from fine_tune_runner.types import Embedder, Example, Finding, Findings, Level, Tokenizer, TokenStats

__all__ = ["check", "leaked", "question_id"]

LISTED = 1000  # findings of one check, level and file; beyond it their number
_WORST_FIRST = ("fail", "warn", "info")


def check(
    client: Client,
    version: int,
    *,
    tokenizer: Tokenizer | None,
    embedder: Embedder | None,
    taxonomy: Taxonomy,
) -> Findings:
    """Run every check of facts/evaluation.md over a version, its holdout and the account state.

    Faults of the data are findings, never exceptions; UsageError below version 1. Without a tokenizer or an
    embedder an info finding says what was not checked. Memory stays bounded: rows are streamed.
    """
    train_file, holdout_file = train_path(client.dir, version), holdout_path(client.dir, version)
    known = with_labels(taxonomy, holdout_file)
    holdout = read_columns(holdout_file, known, tokenizer, holdout=True)
    index = QuestionIndex(holdout.questions)
    train = read_columns(train_file, known, tokenizer, against=index)
    items = list(_allowances(client))
    state = _account_state(client, items)
    others = {
        str(train_path(client.dir, other)): names
        for other in versions(client.dir)
        if other != version and (names := _names(index, holdout, train_path(client.dir, other)))
    }
    corpus = Corpus(train, holdout, state, client.config.allow_secrets, tokenizer, embedder, others)
    for run in CHECKS:
        items.extend(_listed(run(corpus)))
    return Findings(
        dataset_sha256=train.sha256,
        items=tuple(sorted(items, key=lambda item: _WORST_FIRST.index(item.level))),
        tokens=_stats(train, tokenizer),
    )


def _allowances(client: Client) -> Iterator[Finding]:
    """Keys of `allow_secrets` that allow nothing, such as one with a typing error."""
    kinds = sorted({kind.name for kind in KINDS if kind.sort == "secret"})
    for name in client.config.allow_secrets:
        if name not in kinds:
            yield Finding(
                check="allow_secrets",
                level="warn",
                message=f'allow_secrets: "{mask(name)}" is no kind of secret, so it allows nothing',
                path=str(client.dir / "config.json"),
                remedy=f"name one of {', '.join(kinds)}",
            )


def _account_state(client: Client, items: list[Finding]) -> AccountState | None:
    path = str(client.dir / "account_state.json")
    try:
        return load_account_state(client)
    except ConfigError as error:
        message = str(error).removeprefix(path).lstrip(": ")
        items.append(Finding(check="account_state", level="fail", message=message, path=path))
        return None


def _listed(found: Iterable[Finding]) -> Iterator[Finding]:
    """The findings of a check, of each kind at most LISTED and then how many more there are."""
    seen: Counter[tuple[str, Level, str]] = Counter()
    for item in found:
        kind = (item.check, item.level, item.path)
        seen[kind] += 1
        if seen[kind] <= LISTED:
            yield item
    for (name, level, path), count in seen.items():
        if count > LISTED:
            message = f"{count - LISTED} more findings of this kind"
            yield Finding(
                check=name, level=level, message=message, path=path, remedy="correct the first ones"
            )


def _stats(train: Columns, tokenizer: Tokenizer | None) -> TokenStats | None:
    if tokenizer is None or not train.tokens:
        return None
    longest = max(range(len(train)), key=train.tokens.__getitem__)
    return TokenStats(
        tokenizer=tokenizer.name,
        total=sum(train.tokens),
        loss=sum(train.loss_tokens),
        longest=train.tokens[longest],
        longest_line=train.lines[longest],
        mean=sum(train.tokens) / len(train),
    )


def _rows(path: Path) -> Iterator[Example]:
    return (item for item in scan(path) if isinstance(item, Example))


def _names(index: QuestionIndex, holdout: Columns, path: Path) -> tuple[str, ...]:
    """Ids of the holdout rows that a training file holds or comes near to, in the order of the holdout."""
    found: set[int] = set()
    for example in _rows(path):
        folded = fold(example.question)
        found.update(position for position, _ in index.match(folded, masked(folded)))
    return tuple(holdout.ids[position] for position in sorted(found))


def leaked(holdout: Path, train: Path) -> tuple[str, ...]:
    """Ids of the holdout rows that are in, or near duplicates of rows in, a training file.

    Rows of either file whose shape is wrong are passed over; a file that is not there has none.
    """
    columns = Columns(path=str(holdout), holdout=True)
    for example in _rows(holdout):
        columns.questions.append(example.question)
        columns.ids.append(question_id(example, holdout))
    return _names(QuestionIndex(columns.questions), columns, train)
