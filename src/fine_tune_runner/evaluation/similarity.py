"""Solution accuracy: all-MiniLM-L6-v2 on ONNX, and cosines between answers and references.

The embedder is part of every scorer fingerprint: cosines of two embedders are not comparable. Opens two
files and no socket.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fine_tune_runner.errors import MissingModel, ServingError
from fine_tune_runner.evaluation.vectors import load_vectors, save_vectors, text_key
from fine_tune_runner.files import sha256_file
from fine_tune_runner.types import Embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

# tokenizer.json truncates at 128, which cuts long right answers (.47 instead of .60, facts/evaluation.md).
MAX_TOKENS = 256
BATCH = 8  # wider batches are slower on a CPU: their activations leave its cache
_BLOCK = 512  # references compared at once, so that 10,000 of them need megabytes


class MiniLM:
    """types.Embedder: mean pooling over at most 256 tokens, rows of length 1 (sbert.net, all-MiniLM-L6-v2).

    Files are opened at the first `embed`; MissingModel where one is not there.
    """

    def __init__(self, model_path: Path, tokenizer_path: Path, *, threads: int | None = None) -> None:
        self._model_path, self._tokenizer_path, self._threads = model_path, tokenizer_path, threads
        for path in (model_path, tokenizer_path):
            if not path.is_file():
                raise MissingModel(f"{path} is missing; fetch the embedder with: fine-tune fetch minilm")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, tokenizer and length limit; the first 16 digits."""
        parts = f"{sha256_file(self._model_path)} {sha256_file(self._tokenizer_path)} {MAX_TOKENS}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n texts, 384], rows of length 1; an empty text gets the vector of its two marker tokens."""
        vectors = np.zeros((len(texts), 384), np.float32)
        encodings = self._tokenizer.encode_batch(list(texts))
        # Equal lengths side by side, so that little is computed for padding.
        order = sorted(range(len(texts)), key=lambda i: len(encodings[i].ids))
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            vectors[rows] = self._forward([encodings[i].ids for i in rows])
        return vectors

    def _forward(self, rows: list[list[int]]) -> NDArray[np.float32]:
        ids_BT = np.zeros((len(rows), max(map(len, rows))), np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for at, row in enumerate(rows):
            ids_BT[at, : len(row)] = row
            mask_BT[at, : len(row)] = 1
        feed = {"input_ids": ids_BT, "attention_mask": mask_BT, "token_type_ids": np.zeros_like(ids_BT)}
        hidden_BTD = self._session.run(None, feed)[0]
        mean_BD = (hidden_BTD * mask_BT[..., None]).sum(axis=1) / mask_BT.sum(axis=1, keepdims=True)
        unit: NDArray[np.float32] = (mean_BD / np.linalg.norm(mean_BD, axis=1, keepdims=True)).astype(
            np.float32
        )
        return unit

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._tokenizer_path))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _session(self) -> Any:
        # It reports to its maker from native code, which no guard sees, unless told so before it starts
        # (Privacy.md of its wheel); the namespace test found it.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if self._threads:
            options.intra_op_num_threads = self._threads
        return onnxruntime.InferenceSession(
            str(self._model_path), options, providers=["CPUExecutionProvider"]
        )


class Remembered:
    """types.Embedder that computes each text once: for one evaluation, whose references and causes recur, and
    with `path` for the next ones too (vectors.py).
    """

    def __init__(self, embedder: Embedder, path: Path | None = None) -> None:
        self._embedder = embedder
        self._path = path
        self._used: dict[bytes, NDArray[np.float32]] = {}

    @property
    def fingerprint(self) -> str:
        """That of the embedder behind it."""
        return self._embedder.fingerprint

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n texts, d], rows of length 1; ServingError where the embedder gives what is no number."""
        by_key = {text_key(text): text for text in texts}
        self._used.update(
            (key, self._kept[key]) for key in by_key if key not in self._used and key in self._kept
        )
        fresh = [key for key in by_key if key not in self._used]
        if fresh:
            found = self._embedder.embed([by_key[key] for key in fresh])
            # Every comparison with NaN is false: an answer would count as wrong that was not read at all.
            if not np.isfinite(found).all():
                raise ServingError("the embedder gave vectors that are no numbers; fine-tune fetch minilm")
            self._used.update(zip(fresh, found, strict=True))
        if not texts:
            return self._embedder.embed(texts)
        return np.stack([self._used[text_key(text)] for text in texts])

    def keep(self) -> None:
        """Write what is known to `path`: what this evaluation used before what it did not."""
        if self._path is not None and self._used.keys() - self._kept:
            save_vectors(self._path, self.fingerprint, self._used | self._kept)

    @cached_property
    def _kept(self) -> dict[bytes, NDArray[np.float32]]:
        return load_vectors(self._path, self.fingerprint) if self._path else {}


def floor(references_ND: NDArray[np.float32]) -> float | None:
    """Mean cosine between references of different rows, what a model that always gives some other row's
    answer would get; None below two rows.

    Over unit vectors: (|sum of all|^2 - n) / (n (n - 1)), so no n x n matrix is made.
    """
    n = len(references_ND)
    if n < 2:
        return None
    total = references_ND.astype(np.float64).sum(axis=0)
    own = float((references_ND.astype(np.float64) ** 2).sum())
    return (float(total @ total) - own) / (n * (n - 1))


def own_reference(
    answers_ND: NDArray[np.float32], own_N: Sequence[int], references_MD: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """[n]: whether no other row's reference is nearer to the answer than its own (`own_N` are row indices).

    Rows with the very same reference do not stand against each other.
    """
    nearest = np.zeros(len(answers_ND), np.bool_)
    for start in range(0, len(answers_ND), _BLOCK):
        cosines = answers_ND[start : start + _BLOCK] @ references_MD.T
        own = cosines[np.arange(len(cosines)), list(own_N[start : start + _BLOCK])]
        nearest[start : start + _BLOCK] = own >= cosines.max(axis=1) - 1e-6
    return nearest
