"""The training loop: adapters of one client or several on one frozen base, whatever library computes it.

`fit` is the loop and knows neither files of clients nor models; `train_adapters` hands it a back end and
tokenised rows, and writes a PEFT folder for each at the end. No torch and no mlx here.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.errors import Interrupted, RunnerError, TrainingError
from fine_tune_runner.files import publish
from fine_tune_runner.private.backend import Backend, load_backend
from fine_tune_runner.private.batches import TREE_TOKENS, Corpus, Row, Tree, epoch_batches, lay_out
from fine_tune_runner.private.learner import Learner, Progress
from fine_tune_runner.private.llama_config import LlamaConfig
from fine_tune_runner.private.lora_layout import PeftAdapter, save_peft
from fine_tune_runner.private.train_spec import SUMMARY, Finished, TrainSpec, fingerprint, resolve
from fine_tune_runner.types import TrainingSummary

# What one pass through the model is about: places in the list of learners, and the tree of each.
Pass = Sequence[tuple[int, Tree]]


def fit(learners: Sequence[Learner], backend: Backend[Any], stopping: Callable[[], bool]) -> None:
    """Train every learner to its end, all of them a step at a time, on the back end of their trainables.

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
        _step({place: learners[place] for place in active}, backend)


def _step(active: Mapping[int, Learner], backend: Backend[Any]) -> None:
    began = time.monotonic()
    values = dict.fromkeys(active, 0.0)
    batches = {place: learner.batch for place, learner in active.items()}
    for trees in _passes([(place, tree) for place, batch in batches.items() for tree in batch.trees]):
        parts = [(active[place].trainable, tree, batches[place].loss_tokens) for place, tree in trees]
        for (place, _), share in zip(trees, backend.backward(parts), strict=True):
            values[place] += share
    seconds = time.monotonic() - began
    for place, learner in active.items():
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


def train_adapters(
    specs: Sequence[TrainSpec],
    rows: Sequence[Sequence[Row]],
    progress: Sequence[Progress],
    stopping: Callable[[], bool],
) -> list[TrainingSummary | RunnerError]:
    """Train on tokenised rows, one list a spec, and leave each `adapter_dir` as a finished PEFT folder.

    All specs name one base and train as many layers, on one device in one dtype: the first one's. What went
    wrong with one of them comes in its place, and the others are trained.
    Raises Interrupted from `fit` and what `load_backend` raises, for these concern all.
    """
    backend = load_backend(specs[0].training, Path(specs[0].base_dir))
    results: dict[int, TrainingSummary | RunnerError] = {}
    sittings: dict[int, tuple[Learner, Corpus]] = {}
    for place, spec in enumerate(specs):
        try:
            sittings[place] = begin(spec, rows[place], progress[place], backend)
        except TrainingError as error:
            results[place] = error
    fit([learner for learner, _ in sittings.values()], backend, stopping)
    for place, (learner, corpus) in sittings.items():
        results[place] = _end(specs[place], learner, corpus, backend)
    return [results[place] for place in range(len(specs))]


def begin(
    spec: TrainSpec, rows: Sequence[Row], progress: Progress, backend: Backend[Any]
) -> tuple[Learner, Corpus]:
    """One client's learner on a loaded base, for `fit`; goes on from a checkpoint of this very spec.

    Its frozen layers are computed here. Raises TrainingError where a row does not fit the base.
    """
    training = resolve(spec.training, Path(spec.base_dir))
    _sweep(spec)
    _check_rows(rows, backend.config)
    corpus = lay_out(rows)
    size, seed = training.batch_size or 1, training.seed
    learner = Learner(
        backend.begin(corpus, training, int(training.layers), Path(spec.out_dir)),
        lambda epoch: epoch_batches(corpus, batch_size=size, seed=seed, epoch=epoch),
        training,
        progress,
        checkpoints=spec.checkpoint_dir,
        spec_sha256=fingerprint(spec),
    )
    return learner, corpus


def _sweep(spec: TrainSpec) -> None:
    """Remove what a kill left half-written; who trains holds the folder's lock, so nobody is writing it."""
    for checkpoint in spec.checkpoint_dir.glob(".step-*.tmp"):
        checkpoint.unlink()
    for folder in Path(spec.out_dir).glob(".adapter.*.tmp"):
        shutil.rmtree(folder)


def _end(
    spec: TrainSpec, learner: Learner, corpus: Corpus, backend: Backend[Any]
) -> TrainingSummary | RunnerError:
    """Publish what was learned."""
    if learner.error:
        return learner.error
    training = resolve(spec.training, Path(spec.base_dir))
    settings = {
        **msgspec.to_builtins(training),
        **backend.settings(),
        "prefix_tokens": corpus.prefix,
        "rows": len(corpus.chats),
    }
    summary = TrainingSummary(
        steps=learner.step,
        epochs=float(training.epochs or 1),
        **learner.counters,
        peak_memory_bytes=backend.peak_memory(),
        settings=settings,
    )
    try:
        _publish(spec, learner.trainable.adapter, Finished(spec_sha256=fingerprint(spec), summary=summary))
    except TrainingError as error:
        return error
    return summary


def _check_rows(rows: Sequence[Row], config: LlamaConfig) -> None:
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


def _publish(spec: TrainSpec, adapter: PeftAdapter, finished: Finished) -> None:
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
