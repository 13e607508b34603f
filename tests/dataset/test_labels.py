"""Confirmed labels: each stays with the words of its row, and everybody who reads the holdout sees it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.small_client import plain_row, write_rows

from fine_tune_runner.dataset.fingerprint import row_sha256
from fine_tune_runner.dataset.labels import Label, add_labels, labels_path, read_labels
from fine_tune_runner.dataset.read import published_sha256, scan
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.types import Example, Finding

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
CAUSE = "csp_blocks_tags"


def row(question: str, answer: str = "Look into it.", **labels: Any) -> dict[str, Any]:
    return plain_row(question, answer, **labels)


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "v3_eval.jsonl"
    write_rows(path, list(rows))
    return path


def confirm(path: Path, *lines: int, cause: str = CAUSE) -> None:
    rows = [item for item in scan(path) if isinstance(item, Example)]
    chosen = [row_sha256(rows[line - 1].messages) for line in lines]
    add_labels(
        labels_path(path),
        [Label(row=r, root_cause=cause, source="person", who="anna", at=NOON) for r in chosen],
    )


def causes(path: Path) -> list[str | None]:
    return [item.eval and item.eval.root_cause for item in scan(path) if isinstance(item, Example)]


def test_a_confirmed_label_is_read_with_its_row(tmp_path: Path) -> None:
    path = write(tmp_path, row("Why?"), row("How?", id="h-2", accept=["sgtm_domain_dns"]), row("When?"))
    confirm(path, 1, 2)
    assert causes(path) == [CAUSE, CAUSE, None]
    second = load_holdout(path, load_taxonomy(None)).questions[1]
    assert (second.id, second.labelled, second.accept) == ("h-2", "given", ("sgtm_domain_dns",))


def test_what_upstream_says_stands_over_it_and_its_file_stays_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, row("Why?"))
    before = path.read_bytes()
    confirm(path, 1)
    assert path.read_bytes() == before
    write(tmp_path, row("Why?", root_cause="sgtm_domain_dns"))
    assert causes(path) == ["sgtm_domain_dns"]


def test_a_label_never_goes_to_another_row(tmp_path: Path) -> None:
    path = write(tmp_path, row("Why?"))
    confirm(path, 1)
    write(tmp_path, row("Why not?"), row("Why?", "Another answer."), row("why? "))
    assert causes(path) == [None, None, CAUSE]


def test_a_label_changes_the_holdouts_hash_but_not_the_published_one(tmp_path: Path) -> None:
    path = write(tmp_path, row("Why?"), row("How?"))
    plain = load_holdout(path, load_taxonomy(None)).sha256
    confirm(path, 1)
    one = load_holdout(path, load_taxonomy(None)).sha256
    confirm(path, 1, cause="sgtm_domain_dns")
    other = load_holdout(path, load_taxonomy(None)).sha256
    assert len({plain, one, other}) == 3
    assert published_sha256(path) == plain


def test_a_broken_label_is_a_fault_that_names_file_line_and_remedy(tmp_path: Path) -> None:
    path = write(tmp_path, row("Why?"))
    confirm(path, 1)
    labels_path(path).write_bytes(labels_path(path).read_bytes() + b'{"row":"a"}\n')
    with pytest.raises(DataError, match=r"v3_labels\.jsonl line 2: not a label .* fine-tune label"):
        read_labels(labels_path(path))
    (fault,) = [item for item in scan(path) if isinstance(item, Finding)]
    assert (fault.path, fault.level) == (str(tmp_path / "v3_labels.jsonl"), "fail")
    assert fault.message.startswith("line 2: not a label")


def test_a_training_file_has_no_labels(tmp_path: Path) -> None:
    holdout = write(tmp_path, row("Why?"))
    confirm(holdout, 1)
    train = tmp_path / "v3.jsonl"
    train.write_bytes(holdout.read_bytes())
    assert causes(train) == [None]
