"""The training loop: adapters of one client or several on one frozen base, with the model as a parameter.

`fit` is the loop and knows neither files of clients nor models; `train_adapters` hands it a Llama base and
tokenised rows, and writes a PEFT folder for each at the end.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from fine_tune_runner.errors import Interrupted, RunnerError, TrainingError
from fine_tune_runner.files import publish
from fine_tune_runner.private.batches import TREE_TOKENS, Corpus, Row, Tree, epoch_batches, lay_out
from fine_tune_runner.private.learner import Learner, Progress
from fine_tune_runner.private.llama import Llama, load_llama
from fine_tune_runner.private.lora import Adapter, new_adapter, save_peft
from fine_tune_runner.private.shared_prefix import Branch, losses
from fine_tune_runner.private.train_spec import SUMMARY, Finished, TrainSpec, fingerprint, resolve
from fine_tune_runner.private.trunk import Trunk
from fine_tune_runner.settings import TrainingConfig
from fine_tune_runner.types import TrainingSummary

# What one pass through the model is about: places in the list of learners, and the tree of each.
Pass = Sequence[tuple[int, Tree]]


def fit(
    learners: Sequence[Learner], forward: Callable[[Pass], Sequence[Tensor]], stopping: Callable[[], bool]
) -> None:
    """Train every learner to its end, all of them a step at a time; `forward` sums the loss of each tree.

    On the CPU a resumed training ends with the same bits as one without interruption. A learner whose loss is
    no longer finite gets an `error`, and the others go on.
    Raises Interrupted, checkpoints written, once `stopping()` is true.
    """
    while active := [place for place, learner in enumerate(learners) if not learner.done]:
        if all(learners[place].error for place in active):
            return
        stop = stopping()
        for place in active:
            learners[place].keep(now=stop)
        if stop:
            steps, total = (sum(getattr(learner, name) for learner in learners) for name in ("step", "total"))
            raise Interrupted(f"training stopped; {steps} of {total} steps are kept, resume the run to go on")
        _step([(place, learners[place]) for place in active], forward)


def _step(active: Sequence[tuple[int, Learner]], forward: Callable[[Pass], Sequence[Tensor]]) -> None:
    began = time.monotonic()
    values = dict.fromkeys((place for place, _ in active), 0.0)
    counts = {place: learner.batch.loss_tokens for place, learner in active}
    for trees in _passes([(place, tree) for place, learner in active for tree in learner.batch.trees]):
        shares = [loss / counts[place] for loss, (place, _) in zip(forward(trees), trees, strict=True)]
        torch.autograd.backward(shares)
        for share, (place, _) in zip(shares, trees, strict=True):
            values[place] += float(share.detach())
    seconds = time.monotonic() - began
    for place, learner in active:
        learner.take_step(values[place], seconds)


def _passes(trees: Pass) -> Iterator[Pass]:
    """As many trees at once as fit into TREE_TOKENS, in order."""
    held: list[tuple[int, Tree]] = []
    for place, tree in trees:
        if held and sum(t.size for _, t in held) + tree.size > TREE_TOKENS:
            yield held
            held = []
        held.append((place, tree))
    yield held


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
    """`training.dtype`, or bfloat16 where the hardware multiplies it natively, else float32.

    With "nf4" it is what the 4-bit weights are decoded to.
    """
    if training.dtype in ("float32", "bfloat16"):
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[training.dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    # Without these instructions torch falls back to scalar code, a hundred times slower than float32.
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32


def train_adapters(
    specs: Sequence[TrainSpec],
    rows: Sequence[Sequence[Row]],
    progress: Sequence[Progress],
    stopping: Callable[[], bool],
) -> list[TrainingSummary | RunnerError]:
    """Train on tokenised rows, one list a spec, and leave each `adapter_dir` as a finished PEFT folder.

    All specs name one base and train as many layers, on one device in one dtype: the first one's. What went
    wrong with one of them comes in its place, and the others are trained.
    Raises Interrupted from `fit` and what `load_llama` raises, for these concern all.
    """
    training = specs[0].training
    if training.threads:
        torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    device = choose_device(training)
    dtype = choose_dtype(training, device)
    model = load_llama(Path(specs[0].base_dir), device=device, dtype=dtype, four_bit=training.dtype == "nf4")
    results: dict[int, TrainingSummary | RunnerError] = {}
    sittings: dict[int, tuple[Learner, Corpus, Trunk]] = {}
    for place, spec in enumerate(specs):
        try:
            sittings[place] = _begin(spec, rows[place], progress[place], model)
        except TrainingError as error:
            results[place] = error
    places = list(sittings)

    def forward(trees: Pass) -> Sequence[Tensor]:
        branches = []
        for at, tree in trees:
            learner, corpus, trunk = sittings[places[at]]
            branches.append(Branch(tree, corpus, trunk, learner.adapter))
        return losses(model, branches)

    fit([learner for learner, _, _ in sittings.values()], forward, stopping)
    for place, (learner, corpus, _) in sittings.items():
        results[place] = _end(specs[place], learner, corpus, model)
    return [results[place] for place in range(len(specs))]


def _begin(
    spec: TrainSpec, rows: Sequence[Row], progress: Progress, model: Llama
) -> tuple[Learner, Corpus, Trunk]:
    training = resolve(spec.training, Path(spec.base_dir))
    _check_rows(rows, model)
    corpus = lay_out(rows)
    depth = model.config.layers - _trained_layers(training, model)
    adapter = new_adapter(
        dict.fromkeys(range(depth, model.config.layers), model.config.shapes),
        rank=training.rank,
        alpha=training.alpha,
        seed=training.seed,
        device=model.device,
    )
    size, seed = training.batch_size or 1, training.seed
    learner = Learner(
        adapter,
        lambda epoch: epoch_batches(corpus, batch_size=size, seed=seed, epoch=epoch),
        training,
        progress,
        checkpoints=spec.checkpoint_dir,
        spec_sha256=fingerprint(spec),
    )
    return learner, corpus, Trunk(model, corpus, depth, scratch=Path(spec.out_dir))


def _end(spec: TrainSpec, learner: Learner, corpus: Corpus, model: Llama) -> TrainingSummary | RunnerError:
    """Publish what was learned."""
    if learner.error:
        return learner.error
    training = resolve(spec.training, Path(spec.base_dir))
    settings = msgspec.to_builtins(training) | {
        "layers": _trained_layers(training, model),
        "device": model.device.type,
        "dtype": "nf4" if spec.training.dtype == "nf4" else str(model.embed.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "prefix_tokens": corpus.prefix,
        "rows": len(corpus.chats),
    }
    summary = TrainingSummary(
        steps=learner.step,
        epochs=float(training.epochs or 1),
        **learner.counters,
        peak_memory_bytes=_peak_memory(model.device),
        settings=settings,
    )
    try:
        _publish(spec, learner.adapter, Finished(spec_sha256=fingerprint(spec), summary=summary))
    except TrainingError as error:
        return error
    return summary


def _trained_layers(training: TrainingConfig, model: Llama) -> int:
    layers = model.config.layers
    return layers if training.layers == "all" else min(training.layers, layers)


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
