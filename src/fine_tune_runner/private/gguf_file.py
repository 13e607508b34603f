"""The GGUF container as bytes: a header read in constant memory, and a file written tensor by tensor.

`gguf`'s own reader keeps one array for each token and merge: 649 MB and 10 s for the vocabulary of Llama 3
(128,256 tokens, 280,147 merges), against 40 MB here. Format:
github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fine_tune_runner.errors import MissingModel, TrainingError
from fine_tune_runner.files import publish

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_COPY_BYTES = 8 << 20
OnProgress = Callable[[int, int], None]  # (bytes written, bytes in all)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: `shape` in numpy's order, `kind` a GGMLQuantizationType, `offset` from byte 0."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class Header:
    """All of a GGUF file but its data; `values` has the scalars and strings, None for an array."""

    path: Path
    values: Mapping[str, Any]
    kv: bytes
    kv_count: int
    alignment: int
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Piece:
    """One tensor to be written; `chunks` gives its bytes, and is called once."""

    name: str
    shape: tuple[int, ...]
    kind: int
    chunks: Callable[[], Iterable[bytes | memoryview]]


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def tensor_bytes(shape: Sequence[int], kind: int) -> int:
    """How many bytes a tensor takes; ValueError for a kind that `gguf` does not know."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return int(math.prod(shape) // block * size)


def read_header(path: Path) -> Header:
    """Key-values and tensor list; MissingModel where the file cannot be read as GGUF, or is cut off."""
    try:
        with path.open("rb") as file:
            header = _read(path, file)
        ends = [tensor.offset + tensor_bytes(tensor.shape, tensor.kind) for tensor in header.tensors]
    except (OSError, ValueError, struct.error, UnicodeDecodeError) as error:
        raise MissingModel(f"{path} cannot be read as GGUF ({error}); fetch it again") from None
    if max(ends, default=0) > path.stat().st_size:
        raise MissingModel(f"{path} is cut off at {path.stat().st_size} bytes; fetch it again")
    return header


def _read(path: Path, file: IO[bytes]) -> Header:
    magic, version = file.read(4), _number(file, "<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("no little-endian GGUF of version 2 or 3")
    tensor_count, kv_count = _number(file, "<Q"), _number(file, "<Q")
    start = file.tell()
    values = {_string(file): _value(file) for _ in range(kv_count)}
    end = file.tell()
    infos = []
    for _ in range(tensor_count):
        name, dimensions = _string(file), _number(file, "<I")
        shape = tuple(_number(file, "<Q") for _ in range(dimensions))[::-1]
        infos.append((name, shape, _number(file, "<I"), _number(file, "<Q")))
    alignment = int(values.get("general.alignment") or 32)
    data = _aligned(file.tell(), alignment)
    file.seek(start)
    return Header(
        path=path,
        values=values,
        kv=file.read(end - start),
        kv_count=kv_count,
        alignment=alignment,
        tensors=tuple(TensorInfo(name, shape, kind, data + offset) for name, shape, kind, offset in infos),
    )


def _number(file: IO[bytes], form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: IO[bytes]) -> str:
    length = _number(file, "<Q")
    return file.read(length).decode()


def _value(file: IO[bytes]) -> Any:
    kind = _number(file, "<I")
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _form(kind))
    kind, count = _number(file, "<I"), _number(file, "<Q")
    if kind == _STRING:
        for _ in range(count):
            file.seek(_number(file, "<Q"), os.SEEK_CUR)
    else:
        file.seek(count * struct.calcsize(_form(kind)), os.SEEK_CUR)
    return None


def _form(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"value type {kind} is unknown")
    return _SCALARS[kind]


def _aligned(position: int, alignment: int) -> int:
    return position + -position % alignment


def copied(path: Path, offset: int, size: int) -> Iterator[bytes]:
    """The bytes of a file's part; read, not mapped, because mapped pages count as memory used."""
    with path.open("rb") as file:
        file.seek(offset)
        while size and (data := file.read(min(size, _COPY_BYTES))):
            size -= len(data)
            yield data


def write_gguf(
    target: Path,
    header: Header,
    added: Mapping[str, str],
    pieces: Sequence[Piece],
    on_progress: OnProgress = silent,
) -> str:
    """Write `pieces` under the key-values of `header` and the strings `added`; the file's sha256.

    The file appears whole or not at all, also where this is interrupted. Raises TrainingError where the disk
    is too small or cannot be written.
    """
    head, starts = _head(header, added, pieces)
    total = starts[-1]
    part = target.with_name(f".{target.name}.part")
    digest = hashlib.sha256()
    done = 0
    try:
        _check_room(target, total)
        with part.open("wb") as file:

            def put(data: bytes | memoryview) -> None:
                nonlocal done
                file.write(data)
                digest.update(data)
                done += len(data)
                on_progress(done, total)

            put(head)
            for piece, end in zip(pieces, starts[1:], strict=True):
                for chunk in piece.chunks():
                    put(chunk)
                put(bytes(end - done))
        publish(part, target)
    except OSError as error:
        raise TrainingError(
            f"{target} cannot be written: {error.strerror or error}; make room there"
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return digest.hexdigest()


def _head(header: Header, added: Mapping[str, str], pieces: Sequence[Piece]) -> tuple[bytes, list[int]]:
    """The bytes before the data, and where each piece begins, the file's end last."""
    lines = [_packed(piece.name) + _shape(piece.shape) + struct.pack("<I", piece.kind) for piece in pieces]
    kv = header.kv + b"".join(
        _packed(key) + struct.pack("<I", _STRING) + _packed(v) for key, v in added.items()
    )
    counts = struct.pack("<IQQ", 3, len(pieces), header.kv_count + len(added))
    size = 4 + len(counts) + len(kv) + sum(len(line) + 8 for line in lines)
    starts = [_aligned(size, header.alignment)]
    for piece in pieces:
        starts.append(_aligned(starts[-1] + tensor_bytes(piece.shape, piece.kind), header.alignment))
    offsets = [struct.pack("<Q", start - starts[0]) for start in starts]
    infos = b"".join(line + offset for line, offset in zip(lines, offsets, strict=False))
    return b"GGUF" + counts + kv + infos + bytes(starts[0] - size), starts


def _packed(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _shape(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])


def _check_room(target: Path, size: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise TrainingError(
            f"{target} will take {size / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free; make room"
        )
