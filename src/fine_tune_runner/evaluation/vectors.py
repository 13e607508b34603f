"""Vectors of texts kept on disk: references never change, so a second evaluation embeds only what is new.

A cache and nothing else: bounded, and whatever is missing, broken or of another embedder counts as empty. It
lies in the client's own folder, so that forgetting the client takes it along. Knows no holdout and no score.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from fine_tune_runner.files import write_atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 10_000  # vectors; 15 MB with 384 numbers each
_KEY_BYTES, _DIGEST_BYTES = 16, 32


def vectors_path(client_dir: Path) -> Path:
    """Where the vectors of a client's texts are kept."""
    return client_dir / ".fine-tune" / "vectors.bin"


def text_key(text: str) -> bytes:
    """16 bytes of BLAKE2b: a text's name in the cache, so that no text is written there."""
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_KEY_BYTES).digest()


class _Kept(msgspec.Struct, frozen=True):
    """The file behind its digest; float32 and keys as bytes, one row after the other."""

    embedder: str
    size: int
    keys: bytes
    vectors: bytes


def load_vectors(path: Path, embedder: str) -> dict[bytes, NDArray[np.float32]]:
    """Text key → vector by the embedder of that fingerprint; empty where there is nothing sound."""
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
        return {}
    try:
        kept = msgspec.msgpack.decode(data[_DIGEST_BYTES:], type=_Kept)
    except msgspec.DecodeError:  # of another release
        return {}
    vectors = np.frombuffer(kept.vectors, np.float32).reshape(-1, kept.size)
    if kept.embedder != embedder or not np.isfinite(vectors).all():
        return {}
    keys = (kept.keys[at : at + _KEY_BYTES] for at in range(0, len(kept.keys), _KEY_BYTES))
    return dict(zip(keys, vectors, strict=True))


def save_vectors(path: Path, embedder: str, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
    """Keep the first MOST vectors, all or nothing; a disk that takes nothing costs time later and no more."""
    first = dict(islice(vectors.items(), MOST))
    if not first:
        return
    rows = np.stack(list(first.values())).astype(np.float32)
    kept = _Kept(embedder, rows.shape[1], b"".join(first), rows.tobytes())
    data = msgspec.msgpack.encode(kept)
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, hashlib.sha256(data).digest() + data)
