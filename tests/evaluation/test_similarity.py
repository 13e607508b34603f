from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fine_tune_runner.errors import MissingModel
from fine_tune_runner.evaluation.similarity import MAX_TOKENS, MiniLM, Remembered, floor, own_reference


@pytest.fixture(scope="module")
def minilm(models_dir: Path) -> MiniLM:
    return MiniLM(models_dir / "minilm" / "model.onnx", models_dir / "minilm" / "tokenizer.json", threads=1)


def test_vectors_have_length_one_and_keep_the_order_of_the_texts(minilm: MiniLM) -> None:
    texts = ["consent banner " * n for n in (40, 1, 7)] + [""]
    together = minilm.embed(texts)
    assert together.shape == (4, 384)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    assert (together * alone).sum(axis=1) == pytest.approx(np.ones(4), abs=1e-4)


def test_meaning_is_near(minilm: MiniLM) -> None:
    a, b, c = minilm.embed(
        ["The purchase is counted twice.", "Orders are counted two times.", "The DNS record is missing."]
    )
    assert a @ b > a @ c + 0.2


def test_words_between_token_128_and_256_count_and_later_ones_do_not(minilm: MiniLM) -> None:
    filler = "tag " * 150
    plain, within, beyond = minilm.embed([filler, filler + "the DNS record is missing", "tag " * 300 + "DNS"])
    assert plain @ within < 0.999
    assert beyond @ minilm.embed(["tag " * 300])[0] == pytest.approx(1.0, abs=1e-5)


def test_pooling_is_the_mean_over_tokens_of_the_model_itself(minilm: MiniLM, models_dir: Path) -> None:
    import onnxruntime

    tokenizer = Tokenizer.from_file(str(models_dir / "minilm" / "tokenizer.json"))
    tokenizer.no_padding()
    ids = np.array([tokenizer.encode("no consent update").ids])
    session = onnxruntime.InferenceSession(
        str(models_dir / "minilm" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    mean = session.run(None, feed)[0][0].mean(axis=0)
    assert minilm.embed(["no consent update"])[0] == pytest.approx(mean / np.linalg.norm(mean), abs=1e-4)


def test_no_texts_give_no_vectors(minilm: MiniLM) -> None:
    assert minilm.embed([]).shape == (0, 384)


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    model, tokenizer = tmp_path / "model.onnx", tmp_path / "tokenizer.json"
    model.write_bytes(b"one")
    tokenizer.write_bytes(b"{}")
    first = MiniLM(model, tokenizer).fingerprint
    assert first == MiniLM(model, tokenizer).fingerprint
    model.write_bytes(b"two")
    assert MiniLM(model, tokenizer).fingerprint != first
    assert MAX_TOKENS == 256


def test_missing_files_name_the_command_that_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match="fine-tune fetch minilm"):
        MiniLM(tmp_path / "model.onnx", tmp_path / "tokenizer.json")


def unit(*rows: Sequence[float]) -> NDArray[np.float32]:
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_floor_is_the_mean_over_pairs_of_different_rows() -> None:
    # cosines: (1,2) 0, (1,3) 0.6, (2,3) 0.8
    assert floor(unit((1, 0), (0, 1), (3, 4))) == pytest.approx(1.4 / 3, abs=1e-6)


def test_one_reference_has_no_floor() -> None:
    assert floor(unit((1, 0))) is None


def test_own_reference_is_the_nearest_or_one_as_near() -> None:
    references = unit((1, 0), (0, 1), (1, 0))
    answers = unit((1, 0.1), (1, 0.1), (0.1, 1))
    assert own_reference(answers, [0, 1, 1], references).tolist() == [True, False, True]
    assert own_reference(answers[:1], [2], references).tolist() == [True]


class Counting:
    """An embedder that says how many texts it was given."""

    fingerprint = "counting"

    def __init__(self) -> None:
        self.texts = 0

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        return unit(*[(1 + len(t), 1) for t in texts])


def test_a_text_is_embedded_once() -> None:
    counting = Counting()
    remembered = Remembered(counting)
    first = remembered.embed(["a", "bb", "a"])
    again = remembered.embed(["bb", "ccc"])
    assert counting.texts == 3
    assert (first[1] == again[0]).all()
    assert remembered.fingerprint == "counting"
