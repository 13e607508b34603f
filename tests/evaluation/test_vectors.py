"""Vectors on disk: what is embedded once is not embedded again, and what is not sound counts as nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.scripted_track import Letters
from tests.told_models import RIGHT, Models, always, report, write_holdout

from fine_tune_runner.evaluation.similarity import Remembered
from fine_tune_runner.evaluation.vectors import MOST, load_vectors, save_vectors, text_key, vectors_path


class Counting(Letters):
    """Remembers every text it was given."""

    def __init__(self, fingerprint: str = "letters") -> None:
        self.fingerprint = fingerprint
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += texts
        return super().embed(texts)


def rows(n: int) -> dict[bytes, NDArray[np.float32]]:
    return {text_key(f"text {i}"): np.full(26, i, np.float32) for i in range(n)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return vectors_path(tmp_path / "hre")


@pytest.fixture(autouse=True)
def client_folder(tmp_path: Path) -> None:
    (tmp_path / "hre").mkdir()


def test_what_was_saved_is_loaded_for_the_same_embedder_only(path: Path) -> None:
    save_vectors(path, "e", rows(3))
    found = load_vectors(path, "e")
    assert {key: vector.tolist() for key, vector in found.items()} == {
        key: vector.tolist() for key, vector in rows(3).items()
    }
    assert load_vectors(path, "f") == {}


def test_they_lie_in_the_client_s_own_folder_for_its_owner_alone(path: Path, tmp_path: Path) -> None:
    save_vectors(path, "e", rows(1))
    assert path.is_relative_to(tmp_path / "hre")
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_no_text_is_written(path: Path) -> None:
    Remembered(Letters(), path).embed(["a client's own words"])
    remembered = Remembered(Letters(), path)
    remembered.embed(["a client's own words"])
    remembered.keep()
    assert b"own words" not in path.read_bytes()


def test_only_so_many_are_kept_and_the_ones_in_use_first(path: Path) -> None:
    save_vectors(path, "letters", rows(MOST + 5))
    assert load_vectors(path, "letters").keys() == rows(MOST).keys()
    remembered = Remembered(Letters(), path)
    remembered.embed(["new", f"text {MOST - 1}"])
    remembered.keep()
    found = load_vectors(path, "letters")
    assert len(found) == MOST
    assert {text_key("new"), text_key(f"text {MOST - 1}")} <= found.keys()
    assert text_key(f"text {MOST - 2}") not in found


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_a_torn_file_counts_as_empty(path: Path, cut: int) -> None:
    save_vectors(path, "e", rows(5))
    path.write_bytes(path.read_bytes()[:cut])
    assert load_vectors(path, "e") == {}


def test_a_flipped_bit_counts_as_empty(path: Path) -> None:
    save_vectors(path, "e", rows(5))
    data = bytearray(path.read_bytes())
    data[data.index(np.full(26, 4, np.float32).tobytes())] ^= 1
    path.write_bytes(bytes(data))
    assert load_vectors(path, "e") == {}


def test_vectors_that_are_no_numbers_are_not_loaded(path: Path) -> None:
    save_vectors(path, "e", rows(2) | {text_key("x"): np.full(26, np.nan, np.float32)})
    assert load_vectors(path, "e") == {}


def test_a_disk_that_takes_nothing_costs_time_and_no_more(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    save_vectors(blocked / "vectors.bin", "e", rows(1))
    assert blocked.read_text() == "in the way"


def test_an_evaluation_embeds_each_text_once_and_the_next_one_only_what_is_new(tmp_path: Path) -> None:
    write_holdout(tmp_path, 2, [f"q{i}" for i in range(10)])
    first, second, other = Counting(), Counting(), Counting("another embedder")
    report(
        tmp_path, Models(new=lambda q, k: f"{RIGHT}\nnew {q}", old=always(f"{RIGHT}\nold")), embedder=first
    )
    # One reference for all ten, ten answers, and one answer ten times.
    assert sorted(first.texts) == sorted(
        {RIGHT, f"{RIGHT}\nold", *(f"{RIGHT}\nnew v2-q{i}" for i in range(10))}
    )
    found = report(tmp_path, Models(new=always("newer"), old=always(f"{RIGHT}\nold")), embedder=second)
    assert second.texts == ["newer"]
    assert found.new.similarity is not None
    report(tmp_path, Models(new=always("newer"), old=always(f"{RIGHT}\nold")), embedder=other)
    assert sorted(other.texts) == sorted([RIGHT, "newer", f"{RIGHT}\nold"])


def test_the_cause_index_is_embedded_only_where_no_rule_can_read_an_answer(tmp_path: Path) -> None:
    write_holdout(tmp_path, 2, [f"q{i}" for i in range(10)])
    read, unread = Counting(), Counting()
    report(tmp_path, Models(new=always(RIGHT), old=always(RIGHT)), embedder=read)
    assert read.texts == [RIGHT]
    vague = "This is caused by the banner that tells nobody."
    report(tmp_path, Models(new=always(vague), old=always(RIGHT)), embedder=unread)
    assert len(unread.texts) > 50
    assert len(set(unread.texts)) == len(unread.texts)
