"""Causes are named exactly, and a broken taxonomy says where."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fine_tune_runner.dataset.taxonomy import Cause, Taxonomy, cause_line, load_taxonomy, normalise
from fine_tune_runner.errors import DataError

SHIPPED = load_taxonomy(None)


def test_shipped_taxonomy_is_whole() -> None:
    assert len(SHIPPED.causes) == 40
    for cause in SHIPPED.causes.values():
        assert set(cause.confusable_with) <= set(SHIPPED.causes)
        assert all(SHIPPED.resolve(name) == cause.label for name in (cause.label, *cause.aliases))


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("consent_update_missing", "consent_update_missing"),
        ("Consent Update-Missing.", "consent_update_missing"),
        ("  **consent_update_missing**", "consent_update_missing"),
        ("\uff23onsent update missing", "consent_update_missing"),
        ("Banner does not send update", "consent_update_missing"),
        ("consent_update_missing - the banner never tells the tags", "consent_update_missing"),
        ("consent_update_missing: first page view lost, as reported", "consent_update_missing"),
        ("consent_update_missing or consent_default_missing_or_late", None),
        ("consent_update_missingness", None),
        ("probably consent_update_missing", None),
        ("something else", None),
        ("", None),
    ],
)
def test_resolve(text: str, label: str | None) -> None:
    assert SHIPPED.resolve(text) == label


def test_mentions_are_whole_words_in_order_of_appearance() -> None:
    sentence = "The wrong currency code, not a Rocket Loader or rocket loaders, and currency_mismatch again"
    assert SHIPPED.mentions(sentence) == ("currency_mismatch", "script_optimizer_delays_tags")


def test_the_longer_name_hides_the_shorter_one_inside_it() -> None:
    taxonomy = Taxonomy(
        {"a": Cause("a", aliases=("late consent",)), "b": Cause("b", aliases=("too late consent",))}
    )
    assert taxonomy.mentions("too late consent") == ("b",)


def test_an_empty_taxonomy_names_nothing() -> None:
    assert Taxonomy({}).mentions("currency_mismatch") == ()
    assert Taxonomy({}).resolve("currency_mismatch") is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Root cause: currency_mismatch\nFix: ...", "currency_mismatch"),
        ("Looks bad.\n  root CAUSE : x y.", "x y."),
        ("**Root cause:** x", "x"),
        ("**Root cause**: x", "x"),
        ("**Root cause: x**", "x"),
        ("## Root cause: x", "x"),
        ("The root cause: x", None),
        ("Root cause:\nx", None),
        ("Root cause: **", None),
        ("", None),
    ],
)
def test_cause_line(answer: str, text: str | None) -> None:
    assert cause_line(answer) == text


def test_normalise_folds_white_space_and_hyphens() -> None:
    assert normalise(" E\u2011mail \n_vs_  email_address! ") == "e mail vs email address"


def test_the_clients_entries_are_laid_over_the_shipped_ones(tmp_path: Path) -> None:
    own = [
        Cause("currency_mismatch", aliases=("euro as dollar",)),
        Cause("own_cause", aliases=("Rocket Loader",)),
    ]
    (tmp_path / "taxonomy.jsonl").write_bytes(msgspec.json.Encoder().encode_lines(own))
    taxonomy = load_taxonomy(tmp_path)
    assert len(taxonomy.causes) == 41
    assert taxonomy.resolve("euro as dollar") == "currency_mismatch"
    assert taxonomy.resolve("wrong currency code") is None
    assert taxonomy.resolve("rocket loader") == "own_cause"


def test_every_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "taxonomy.jsonl"
    path.write_text(
        '{"label":"a","aliases":["x"]}\n{"label":3}\nnope\n{"label":"b","aliases":["X"]}\n{"label":"a"}\n'
    )
    with pytest.raises(DataError) as caught:
        load_taxonomy(tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{path} line {n}" for n in (2, 3, 4, 5)]
