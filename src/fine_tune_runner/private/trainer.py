"""The training loop: AdamW over an adapter's weights, with loss and batches as parameters.

Two functions: `fit` is the loop and knows neither files of clients nor models; `train_adapter` hands it a
Llama base and tokenised rows, and writes the PEFT folder at the end.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import torch
from torch import Tensor

from fine_tune_runner.errors import Interrupted, TrainingError
from fine_tune_runner.files import publish
from fine_tune_runner.private.batches import Batch, Row, epoch_batches, lay_out
from fine_tune_runner.private.checkpoint import Checkpoint, Counters, latest, save
from fine_tune_runner.private.llama import Llama, load_llama
from fine_tune_runner.private.lora import Adapter, new_adapter, save_peft
from fine_tune_runner.private.shared_prefix import Trunk, batch_loss
from fine_tune_runner.private.train_spec import SUMMARY, Finished, TrainSpec, fingerprint, resolve
from fine_tune_runner.settings import TrainingConfig
from fine_tune_runner.types import TrainingSummary

PACE_STEPS = 10  # speed and ETA are means over so many steps


class Progress(Protocol):
    """Whom the loop tells how far it is."""

    def on_step(self, step: int, total: int, loss: float, tokens_per_s: float, eta_s: float) -> None:
        """After each optimizer step, counted from 1.

        `tokens_per_s` counts data-set tokens, the shared prefix in every row and padding in none, so that it
        compares with trainers that read whole rows.
        """
        ...

    def on_checkpoint(self, step: int) -> None:
        """After the checkpoint of `step` is safe on disk."""
        ...


def learning_rate(step: int, total: int, *, peak: float, warmup: float) -> float:
    """The rate of step `step`, counted from 0: linear rise over `warmup * total` steps, cosine to 0."""
    rise = math.ceil(warmup * total)
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2


def fit(
    adapter: Adapter,
    loss: Callable[[Batch], Tensor],
    batches: Callable[[int], Sequence[Batch]],
    training: TrainingConfig,
    progress: Progress,
    *,
    stopping: Callable[[], bool],
    checkpoints: Path,
    spec_sha256: str,
) -> tuple[int, Counters]:
    """Train `adapter` in place for all epochs, going on from the newest checkpoint; (steps, counters).

    `batches(epoch)` must give the same on every call, and as many every epoch. `training` is resolved. On the
    CPU a resumed training ends with the same bits as one without interruption.
    Raises Interrupted, a checkpoint written, once `stopping()` is true; TrainingError where the loss or its
    gradient is no longer finite.
    """
    parameters = adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, weight_decay=training.weight_decay, fused=True)
    step, counters = _restore(adapter, optimizer, latest(checkpoints, spec_sha256))
    plan = batches(0)
    per_epoch = len(plan)
    total = per_epoch * (training.epochs or 1)
    saved, planned = step, 0
    pace: deque[tuple[float, int]] = deque(maxlen=PACE_STEPS)
    while step < total:
        stop = stopping()
        if step != saved and (stop or step % training.checkpoint_every == 0):
            save(checkpoints, _snapshot(spec_sha256, step, adapter, optimizer, counters))
            saved = step
            progress.on_checkpoint(step)
        if stop:
            raise Interrupted(f"training stopped; {step} of {total} steps are kept, resume the run to go on")
        began = time.monotonic()
        epoch, place = divmod(step, per_epoch)
        if epoch != planned:
            plan, planned = batches(epoch), epoch
        batch = plan[place]
        rate = learning_rate(step, total, peak=training.learning_rate or 0.0, warmup=training.warmup)
        value = _take_step(optimizer, loss(batch), parameters, rate, training.max_grad_norm, step + 1)
        pace.append((time.monotonic() - began, batch.tokens))
        step += 1
        counters = _count(counters, batch, value, pace[-1][0])
        seconds, tokens = (sum(column) for column in zip(*pace, strict=True))
        progress.on_step(step, total, value, tokens / seconds, seconds / len(pace) * (total - step))
    return step, counters


def _snapshot(
    spec_sha256: str, step: int, adapter: Adapter, optimizer: torch.optim.Optimizer, counters: Counters
) -> Checkpoint:
    return Checkpoint(
        spec_sha256=spec_sha256,
        step=step,
        adapter=adapter.tensors(),
        optimizer=optimizer.state_dict(),
        rng=torch.get_rng_state(),
        counters=counters,
    )


def _restore(
    adapter: Adapter, optimizer: torch.optim.Optimizer, found: Checkpoint | None
) -> tuple[int, Counters]:
    if found is None:
        return 0, Counters(tokens=0, loss_tokens=0, seconds=0.0, first_loss=math.nan, final_loss=math.nan)
    adapter.load(found["adapter"])
    optimizer.load_state_dict(found["optimizer"])
    torch.set_rng_state(found["rng"])
    return found["step"], found["counters"]


def _take_step(
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    parameters: list[Tensor],
    rate: float,
    max_grad_norm: float,
    step: int,
) -> float:
    """One optimizer step; the loss before it."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    value = float(loss.detach())
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise TrainingError(
            f"step {step}: loss {value}, gradient norm {norm}: not finite; lower training.learning_rate "
            f"(this step: {rate:.2g}) or set training.dtype to float32, and train anew with --again"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return value


def _count(counters: Counters, batch: Batch, value: float, seconds: float) -> Counters:
    first = counters["first_loss"]
    return Counters(
        tokens=counters["tokens"] + batch.tokens,
        loss_tokens=counters["loss_tokens"] + len(batch.targets),
        seconds=counters["seconds"] + seconds,
        first_loss=value if math.isnan(first) else first,
        final_loss=value,
    )


def choose_device(training: TrainingConfig) -> torch.device:
    """`training.device`, or the best there is; TrainingError where the one asked for is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = training.device
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise TrainingError(f"training.device is {name!r}, which torch does not find here; use auto or cpu")
    return torch.device(name)


def choose_dtype(training: TrainingConfig, device: torch.device) -> torch.dtype:
    """`training.dtype`, or bfloat16 where the hardware multiplies it natively, else float32."""
    if training.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[training.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Without these instructions torch falls back to scalar code, a hundred times slower than float32.
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def train_adapter(
    spec: TrainSpec, rows: Sequence[Row], progress: Progress, stopping: Callable[[], bool]
) -> TrainingSummary:
    """Train on tokenised rows and leave `spec.adapter_dir` as a finished PEFT folder.

    Raises what `fit`, `load_llama` and `lay_out` raise, and TrainingError where a row does not fit the base.
    """
    training, sha256 = resolve(spec.training, Path(spec.base_dir)), fingerprint(spec)
    if training.threads:
        torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    device = choose_device(training)
    dtype = choose_dtype(training, device)
    model = load_llama(Path(spec.base_dir), device=device, dtype=dtype)
    _check_rows(rows, model)
    corpus = lay_out(rows)
    count = model.config.layers if training.layers == "all" else min(training.layers, model.config.layers)
    depth = model.config.layers - count
    adapter = new_adapter(
        dict.fromkeys(range(depth, model.config.layers), model.config.shapes),
        rank=training.rank,
        alpha=training.alpha,
        seed=training.seed,
        device=device,
    )
    trunk = Trunk(model, corpus, depth)
    size, seed = training.batch_size or 1, training.seed
    steps, counters = fit(
        adapter,
        lambda batch: batch_loss(model, adapter, trunk, batch),
        lambda epoch: epoch_batches(corpus, batch_size=size, seed=seed, epoch=epoch),
        training,
        progress,
        stopping=stopping,
        checkpoints=spec.checkpoint_dir,
        spec_sha256=sha256,
    )
    settings = msgspec.to_builtins(training) | {
        "layers": count,
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "prefix_tokens": len(corpus.prefix),
        "rows": len(corpus.suffixes),
    }
    summary = TrainingSummary(
        steps=steps,
        epochs=float(training.epochs or 1),
        **counters,
        peak_memory_bytes=_peak_memory(device),
        settings=settings,
    )
    _publish(spec, adapter, Finished(spec_sha256=sha256, summary=summary))
    return summary


def _check_rows(rows: Sequence[Row], model: Llama) -> None:
    config = model.config
    longest = max((len(row.tokens), number) for number, row in enumerate(rows, 1)) if rows else (0, 0)
    if longest[0] > config.context:
        raise TrainingError(
            f"row {longest[1]}: {longest[0]} tokens, but the base model takes {config.context}; shorten it"
        )
    highest = max((max(row.tokens) for row in rows), default=0)
    if highest >= config.vocab:
        raise TrainingError(
            f"token {highest} is outside the base model's vocabulary of {config.vocab}: tokenizer and "
            "weights do not belong together; fetch the base anew"
        )


def _peak_memory(device: torch.device) -> int:
    """Of the accelerator where there is one, else of this process, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _publish(spec: TrainSpec, adapter: Adapter, finished: Finished) -> None:
    """The folder gets its name last, so its existence means that training completed."""
    folder = Path(spec.out_dir) / f".adapter.{os.getpid()}.tmp"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        save_peft(adapter, folder, Path(spec.base_dir).name)
        (folder / SUMMARY).write_bytes(msgspec.json.format(msgspec.json.encode(finished), indent=2))
        if spec.adapter_dir.exists():
            shutil.rmtree(spec.adapter_dir)
        publish(folder, spec.adapter_dir)
    except OSError as error:
        raise TrainingError(
            f"{spec.adapter_dir}: cannot be written: {error.strerror}; make room, then resume"
        ) from error
