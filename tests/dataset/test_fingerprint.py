"""The fingerprint follows the content and nothing else."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fine_tune_runner.dataset.fingerprint import Fingerprint
from fine_tune_runner.dataset.read import examples

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda t: bool(t.strip()))
ROWS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4)


def messages(user: str, assistant: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def digest(lines: list[str], *, holdout: bool = False) -> str:
    fingerprint = Fingerprint(holdout=holdout)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v1.jsonl"
        path.write_text("\n".join(lines), encoding="utf-8", newline="")
        for example in examples(path):
            fingerprint.add(example)
    return fingerprint.hexdigest()


@settings(deadline=None)
@given(ROWS, st.booleans(), st.integers(0, 3))
def test_writing_it_differently_changes_nothing(
    rows: list[tuple[str, str]], ascii: bool, spaces: int
) -> None:
    plain = [json.dumps({"messages": messages(*r)}) for r in rows]
    turned = [
        json.dumps(
            {"id": n, "messages": [dict(reversed(m.items())) for m in messages(*r)], "weight": None},
            ensure_ascii=ascii,
            separators=("," + " " * spaces, " " * spaces + ":"),
        )
        for n, r in enumerate(rows)
    ]
    assert digest(plain) == digest(turned)


@settings(deadline=None)
@given(ROWS, st.data())
def test_any_other_content_changes_it(rows: list[tuple[str, str]], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, len(rows) - 1))
    other = [(u + "x", a) if i == n else (u, a) for i, (u, a) in enumerate(rows)]
    before, after = ([json.dumps({"messages": messages(*r)}) for r in each] for each in (rows, other))
    assert digest(before) != digest(after)


def test_it_is_sha256_of_canonical_rows() -> None:
    line = b'[[{"role":"user","content":"q"},{"role":"assistant","content":"a"}]]\n'
    assert digest([json.dumps({"messages": messages("q", "a")})]) == hashlib.sha256(line).hexdigest()


@pytest.mark.parametrize(("holdout", "same"), [(True, False), (False, True)])
def test_labels_count_in_a_holdout_only(holdout: bool, same: bool) -> None:
    bare, labelled = (
        json.dumps({"messages": messages("q", "a")} | extra) for extra in ({}, {"eval": {"id": "1"}})
    )
    assert (digest([bare], holdout=holdout) == digest([labelled], holdout=holdout)) is same


def test_row_order_counts() -> None:
    one, two = (json.dumps({"messages": messages("q", a)}) for a in "ab")
    assert digest([one, two]) != digest([two, one])
