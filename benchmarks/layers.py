"""Recall against time by how many layers, from the top, get adapters: what `training.layers` "auto" rests on.

    python benchmarks/layers.py [--layers 2 5 10 15 all] [--seeds 0 1] [--epochs 4] [--json layers.json]

Trains `teleios` v1 with the sample's own settings but for `layers`, one thread. A question counts as right
where a teacher-forced pass gets every greedy token of `Root cause: <label>`, which is what greedy answers
would say. Processor seconds are of the training's process, loading included.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file

from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.private import bases
from fine_tune_runner.private.batches import Row, lay_out, make_tree
from fine_tune_runner.private.llama import Llama, load_llama
from fine_tune_runner.private.lora import Adapter, new_adapter
from fine_tune_runner.private.process import train
from fine_tune_runner.private.shared_prefix import Branch, losses, predicting
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.private.trunk import Trunk
from fine_tune_runner.sample import write_clients, write_questions
from fine_tune_runner.settings import DEFAULT_BASE, load_client, load_settings

CLIENT = "teleios"
AT_ONCE = 40  # questions that go through the model together
Layers = int | Literal["all"]


class Found(msgspec.Struct, frozen=True):
    """What one training gave: `right` of the questions, `loss` a mean over the tokens of the holdout."""

    seed: int
    layers: int
    epochs: int
    rate: float
    right: float
    loss: float
    cpu_s: float
    steps_s: float


def main() -> int:
    """Measure layer by layer, seed by seed; the table grows in the JSON file as it goes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", nargs="+", default=["2", "5", "10", "15", "all"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--rate", type=float, help="learning rate in place of the sample's")
    parser.add_argument("--epochs", type=int, help="in place of the sample's")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    changes = {"learning_rate": options.rate, "epochs": options.epochs}
    torch.set_num_threads(1)
    found: list[Found] = []
    for seed in options.seeds:
        for layers in options.layers:
            chosen: Layers = "all" if layers == "all" else int(layers)
            with tempfile.TemporaryDirectory(prefix="layers-") as folder:
                found.append(measure(Path(folder), seed, chosen, options.questions, changes))
            print(found[-1], file=sys.stderr, flush=True)
            if options.json:
                options.json.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    print(table(found))
    return 0


def measure(
    folder: Path, seed: int, layers: Layers, questions: int, changes: Mapping[str, float | None]
) -> Found:
    """Generate, train and ask; `folder` is empty, `changes` of the sample's training are those not None."""
    settings = msgspec.structs.replace(load_settings(os.environ), data_dir=folder / "clients")
    base = bases.resolve(DEFAULT_BASE, settings, offline=True)
    write_clients(settings.data_dir, seed)
    client = load_client(settings, CLIENT)
    write_questions(folder / "fresh.jsonl", seed, questions)
    training = msgspec.structs.replace(client.config.training, layers=layers, threads=1)
    given = {name: value for name, value in changes.items() if value is not None}
    training = msgspec.structs.replace(training, **given)
    spec = TrainSpec(
        base_dir=str(base.dir),
        train_path=str(client.dir / "v1.jsonl"),
        out_dir=str(folder / "attempt"),
        training=training,
    )
    before = children_s()
    summary = train(spec, lambda _: None, stopping=lambda: False)
    spent = children_s() - before
    model, tokenizer = load_llama(base.dir), ChatTokenizer(base.dir)
    count = int(summary.settings["layers"])
    top = range(model.config.layers - count, model.config.layers)
    adapter = new_adapter(
        dict.fromkeys(top, model.config.shapes), rank=training.rank, alpha=training.alpha, seed=0
    )
    adapter.load(load_file(str(spec.adapter_dir / "adapter_model.safetensors")))
    return Found(
        seed=seed,
        layers=count,
        epochs=round(summary.epochs),
        rate=float(summary.settings["learning_rate"]),
        right=right(
            model, adapter, [first_line(row, tokenizer) for row in rows(folder / "fresh.jsonl", tokenizer)]
        ),
        loss=held_out(model, adapter, rows(client.dir / "v1_eval.jsonl", tokenizer)),
        cpu_s=spent,
        steps_s=summary.seconds,
    )


def children_s() -> float:
    """Processor seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows(path: Path, tokenizer: ChatTokenizer) -> list[Row]:
    """Questions with their reference answers as tokens."""
    encoded = [tokenizer.encode(example.messages) for example in examples(path)]
    return [Row(tokens=row.tokens, loss_mask=row.loss_mask) for row in encoded]


def first_line(row: Row, tokenizer: ChatTokenizer) -> Row:
    """The row up to the end of its answer's first line, which names the cause."""
    learned = [at for at, wanted in enumerate(row.loss_mask) if wanted]
    end = 1 + next(at for at in learned if b"\n" in tokenizer.token_bytes(row.tokens[at]))
    return Row(tokens=row.tokens[:end], loss_mask=row.loss_mask[:end])


@torch.no_grad()
def right(model: Llama, adapter: Adapter, asked: Sequence[Row]) -> float:
    """Share of the rows of which every token with loss is the likeliest one."""
    corpus = lay_out(asked)
    trunk = Trunk(model, corpus, min(adapter.layers))
    hits = []
    for start in range(0, len(asked), AT_ONCE):
        chats = range(start, min(start + AT_ONCE, len(asked)))
        tree = make_tree(corpus, chats)
        (hidden,) = predicting(model, [Branch(tree, corpus, trunk.states(tree), adapter)])
        greedy = (hidden @ model.head.T).argmax(1) == torch.tensor(tree.targets)
        hits += [
            bool(part.all()) for part in greedy.split([len(corpus.chats[chat].targets) for chat in chats])
        ]
    return float(np.mean(hits))


@torch.no_grad()
def held_out(model: Llama, adapter: Adapter, answered: Sequence[Row]) -> float:
    """Mean cross-entropy of the answers' tokens."""
    corpus = lay_out(answered)
    tree = make_tree(corpus, range(len(corpus.chats)))
    branch = Branch(tree, corpus, Trunk(model, corpus, min(adapter.layers)).states(tree), adapter)
    return float(losses(model, [branch])[0]) / len(tree.targets)


def table(found: Sequence[Found]) -> str:
    """Means over the seeds by number of layers, epochs and rate, as a Markdown table."""
    lines = [
        "| layers | epochs | rate | right, by seed | holdout loss | CPU s |",
        "|---|---|---|---|---|---|",
    ]
    for layers, epochs, rate in sorted({(one.layers, one.epochs, one.rate) for one in found}):
        group = [one for one in found if (one.layers, one.epochs, one.rate) == (layers, epochs, rate)]
        shares = " ".join(f"{one.right:.1%}" for one in group)
        loss, cpu = (np.mean([getattr(one, name) for one in group]) for name in ("loss", "cpu_s"))
        lines.append(f"| {layers} | {epochs} | {rate:g} | {shares} | {loss:.3f} | {cpu:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
