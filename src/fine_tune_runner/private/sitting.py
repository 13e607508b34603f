"""Trainings that sit down together: runs that wait for the same base with the same settings, in one process.

How many is decided by memory. It knows runs by their contexts, and no torch.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import Interrupted, RunnerError
from fine_tune_runner.private import train_spec
from fine_tune_runner.private.batches import CPU_TOKENS, HEAD_ROWS, TREE_TOKENS, TRUNK_BYTES
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.types import Estimate, RunContext, TokenStats, TrainingSummary

Trainer = Callable[
    [Sequence[TrainSpec], Callable[[int, dict[str, Any]], None], Callable[[], bool]],
    Sequence[TrainingSummary | RunnerError],
]
HEAP = 1.25  # what malloc holds besides, as measured
USED = 0.8  # share of the memory that is free now
CGROUP = Path("/sys/fs/cgroup")


class Seat(NamedTuple):
    """One run's training; `base` is what people call the base.

    `tokens` are those of its training file, and `shared` about how many of each row all rows begin with.
    """

    context: RunContext
    spec: TrainSpec
    base: str
    tokens: TokenStats
    shared: float


def train_together(
    own: Seat, seat_of: Callable[[RunContext], Seat], trainer: Trainer
) -> tuple[TrainingSummary, int]:
    """Train `own`, and with it other runs that wait for the same; its summary, and how many sat there.

    The others find their adapters when their own step comes, which also meets what went wrong with one of
    them. Where one is cancelled the rest go on from their checkpoints; where the process fails, `own` goes on
    alone. Raises what stopped `own`.
    """
    alone = False
    while True:
        with contextlib.nullcontext(()) if alone else own.context.others() as others:
            seats = _seats(own, others, seat_of)
            try:
                result = _sit(seats, trainer)
                break
            except Interrupted:
                if own.context.cancelled() or not any(seat.context.cancelled() for seat in seats):
                    raise
            except RunnerError as error:
                if len(seats) == 1:
                    raise
                own.context.emit("warning", message=f"training with others failed, now alone: {error}")
                alone = True
    if isinstance(result, RunnerError):
        raise result
    return result, len(seats)


def _sit(seats: Sequence[Seat], trainer: Trainer) -> TrainingSummary | RunnerError:
    for seat in seats:
        # How many, but not who: a client's record names no other client.
        company = {"together": len(seats)} if len(seats) > 1 else {}
        seat.context.emit(
            "train started",
            base=seat.base,
            rank=seat.spec.training.rank,
            layers=_trained_layers(seat.spec),
            steps=seat.context.value(Estimate).steps,
            **company,
        )

    def on_event(place: int, event: dict[str, Any]) -> None:
        seats[place].context.emit(f"train {event.pop('event')}", **event)

    def stopping() -> bool:
        return any(seat.context.cancelled() for seat in seats)

    return trainer([seat.spec for seat in seats], on_event, stopping)[0]


def _seats(own: Seat, others: Iterable[RunContext], seat_of: Callable[[RunContext], Seat]) -> list[Seat]:
    """`own` first, then whoever shares its base and settings, as many as the memory takes."""
    alike = [own]
    for context in others:
        with contextlib.suppress(RunnerError):  # its own step says what is wrong with it
            seat = seat_of(context)
            if _shared(seat.spec) == _shared(own.spec):
                alike.append(seat)
    return alike[: fitting(alike, free_bytes(own.spec))] if len(alike) > 1 else alike


def _shared(spec: TrainSpec) -> tuple[object, ...]:
    training = spec.training
    return spec.base_dir, _trained_layers(spec), training.device, training.dtype, training.threads


class _Shape(msgspec.Struct, frozen=True):
    """What config.json says of a base's size."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    num_key_value_heads: int | None = None  # as many as of queries


def fitting(seats: Sequence[Seat], free: int) -> int:
    """How many of the seats, from the first on, can train at once in so many free bytes; at least one.

    On a CPU they go through the base one after another, so that what is in flight counts once.
    """
    config = Path(seats[0].spec.base_dir) / "config.json"
    shape = msgspec.json.decode(config.read_bytes(), type=threadsafe(_Shape))
    on_cpu = _on_cpu(seats[0].spec)
    count, room = 0, float(CPU_TOKENS if on_cpu else TREE_TOKENS)
    left, flying = USED * free - _base_bytes(seats[0].spec, shape), 0
    for seat in seats:
        rows = _rows(seat, room)
        one = _flying_bytes(seat, shape, rows)
        flying = max(flying, one) if on_cpu else flying + one
        left -= _kept_bytes(seat, shape)
        if left < flying:
            break
        count += 1
        room = room if on_cpu else max(0.0, room - _tokens(seat, rows))
    return max(1, count)


def _on_cpu(spec: TrainSpec) -> bool:
    elsewhere = platform.system() == "Darwin" or shutil.which("nvidia-smi")
    return spec.training.device == "cpu" or (spec.training.device == "auto" and not elsewhere)


def _rows(seat: Seat, room: float) -> float:
    """How many rows of a step go through at once where what they do not share has so much room."""
    training = train_spec.resolve(seat.spec.training, Path(seat.spec.base_dir))
    return min(training.batch_size or 1, max(1.0, room / max(1.0, seat.tokens.mean - seat.shared)))


def _trained_layers(spec: TrainSpec) -> int:
    return int(train_spec.resolve(spec.training, Path(spec.base_dir)).layers)


def _size(spec: TrainSpec) -> int:
    """Bytes of a number in the forward; `auto` may turn out to be the smaller kind."""
    return 2 if spec.training.dtype in ("bfloat16", "nf4") else 4


def _base_bytes(spec: TrainSpec, shape: _Shape) -> int:
    layer = shape.hidden_size * (4 * shape.hidden_size + 3 * shape.intermediate_size)
    numbers = shape.num_hidden_layers * layer + 2 * shape.vocab_size * shape.hidden_size
    logits = HEAD_ROWS * shape.vocab_size * (4 if _size(spec) == 4 else 4 + _size(spec))  # in float32 besides
    return numbers * _size(spec) // (4 if spec.training.dtype == "nf4" else 1) + logits


def _tokens(seat: Seat, rows: float) -> float:
    """Of so many rows, what they share counted once."""
    return seat.shared + rows * (seat.tokens.mean - seat.shared)


def _flying_bytes(seat: Seat, shape: _Shape, rows: float) -> int:
    """What so many rows keep for the backward pass, and the way back through one layer on top.

    A layer keeps two inputs, heads, attention's output twice, gate and up, low-rank results, for every token.
    With logits and what is kept between steps, MiB, against peak less loaded base: SmolLM2-135M in float32,
    112 rows of 707 tokens with 576 in common, 560 for 563 (last 10 layers) and 1,245 for 1,211 (all).
    bfloat16: not measured.
    """
    wide = shape.hidden_size
    keys = wide * (shape.num_key_value_heads or shape.num_attention_heads) // shape.num_attention_heads
    tokens = _tokens(seat, rows)
    layer = tokens * (5 * wide + 2 * keys + 2 * shape.intermediate_size + 7 * seat.spec.training.rank)
    way_back = tokens * 8 * (wide + shape.intermediate_size)
    return round(HEAP * (_trained_layers(seat.spec) * layer + way_back) * _size(seat.spec))


def _kept_bytes(seat: Seat, shape: _Shape) -> int:
    """What a client keeps between steps: adapter, gradients, two moments, and hidden states of its trunk."""
    layers = _trained_layers(seat.spec)
    widths = 14 * shape.hidden_size + 4 * shape.intermediate_size  # in and out of the seven linears
    adapter = layers * seat.spec.training.rank * widths * 16
    rows = seat.tokens.total / max(1.0, seat.tokens.mean)
    tokens = 0 if layers == shape.num_hidden_layers else _tokens(seat, rows)
    return adapter + min(round(tokens * shape.hidden_size) * _size(seat.spec), TRUNK_BYTES)


def free_bytes(spec: TrainSpec) -> int:
    """Memory that a training may take now, of the machine or its container, and of the GPU it goes to."""
    found = [_machine()]
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        limit = int((CGROUP / "memory.max").read_text())
        found.append(limit - int((CGROUP / "memory.current").read_text()))
    if spec.training.device in ("auto", "cuda") and shutil.which("nvidia-smi"):
        query = ("nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits")
        found += [int(line) << 20 for line in _said(query).split() if line.isdigit()][:1]
    return max(0, min(found))


def _machine() -> int:
    """Linux says what is available; elsewhere (macOS) half of what there is."""
    with contextlib.suppress(OSError):
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    said = _said(("sysctl", "-n", "hw.memsize")).strip()
    return int(said) // 2 if said.isdigit() else 0


def _said(command: Sequence[str]) -> str:
    """What a small program prints; nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
