"""Vectors of texts kept on disk: references never change, so a second evaluation embeds only what is new.

A cache and nothing else: bounded, and whatever is missing, broken or of another embedder counts as empty. It
lies in the client's own folder, so that forgetting the client takes it along. Knows no holdout and no score.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fine_tune_runner.files import write_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 10_000  # vectors; 15 MB with 384 numbers each
_KEY_BYTES = 16


def vectors_path(client_dir: Path) -> Path:
    """Where the vectors of a client's texts are kept."""
    return client_dir / ".fine-tune" / "vectors.npz"


def text_key(text: str) -> bytes:
    """16 bytes of BLAKE2b: a text's name in the cache, so that no text is written there."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_KEY_BYTES).digest()


def load_vectors(path: Path, embedder: str) -> dict[bytes, NDArray[np.float32]]:
    """Text key → vector by the embedder of that fingerprint; empty where there is nothing sound."""
    try:
        with np.load(path, allow_pickle=False) as file:
            of, keys, vectors = str(file["embedder"]), file["keys"], file["vectors"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return {}
    sound = (
        of == embedder
        and keys.dtype == np.uint8
        and vectors.dtype == np.float32
        and keys.shape == (len(vectors), _KEY_BYTES)
        and vectors.ndim == 2
        and np.isfinite(vectors).all()
    )
    return {row.tobytes(): vector for row, vector in zip(keys, vectors, strict=True)} if sound else {}


def save_vectors(path: Path, embedder: str, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
    """Keep the first MOST vectors, all or nothing; a disk that takes nothing costs time later and no more."""
    kept = dict(islice(vectors.items(), MOST))
    if not kept:
        return
    data = io.BytesIO()
    np.savez(data, embedder=np.array(embedder), keys=_rows(kept), vectors=np.stack(list(kept.values())))
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, data.getvalue())


def _rows(keys: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY_BYTES)
