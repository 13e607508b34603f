"""How long training takes beside TRL's SFTTrainer and a plain PEFT loop: the same data, start and steps.

    make bench          (python benchmarks/train.py [--rows 112] [--epochs 2] [--repeats 5] [--layers 10])

Each run is a process of its own, in alternation. All train the same rows in the same batches in the same
order, from the same first adapter, with the same optimizer and schedule, so after as many steps they stand at
the same held-out loss: it is printed, and the time to it is what is compared. Our first epoch, which computes
the frozen layers, counts. TRL's best setting is looked for first, one setting at a time (`--search`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.private import bases
from fine_tune_runner.private.batches import Row, epoch_batches, lay_out
from fine_tune_runner.private.learner import learning_rate
from fine_tune_runner.private.llama_config import read_config
from fine_tune_runner.private.lora_layout import start
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.sample import write_clients
from fine_tune_runner.settings import DEFAULT_BASE, TrainingConfig, load_settings

CLIENT = "teleios"
SEED, RANK, ALPHA = 0, 16, 32.0
# TRL's settings that are tried, each against the best so far; the first value of each is where it starts.
TRL: dict[str, tuple[Any, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "micro": (4, 1, 2, 8, 16),
    "checkpointing": (False, True),
    "attention": ("sdpa", "eager"),
    "packing": (False, True),
    "threads": (os.cpu_count() or 1, 1),
}
SEARCH_ROWS = 16


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a child does; `rows` are tokens and loss mask, in a file of their own."""

    who: str
    base_dir: str
    folder: str
    rows: int
    epochs: int
    batch: int
    layers: int
    rate: float
    setting: dict[str, Any] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds on the clock and of processor; `start_s` is imports and loading, not in `train_s`."""

    who: str
    start_s: float
    train_s: float
    cpu_s: float
    peak_mb: float
    tokens: int
    loss_tokens: int
    held_out: float


def main() -> int:
    """Parent: find TRL's best setting, run all in alternation, print. Child: one run, one line of JSON."""
    if sys.argv[1:2] == ["--child"]:
        print(msgspec.json.encode(child(msgspec.json.decode(sys.argv[2], type=Job))).decode())
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--layers", type=int, default=10, help="how many from the top get adapters")
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--who", nargs="+", default=["ours", "trl", "peft"])
    parser.add_argument("--search", action="store_true", help="look for TRL's best setting first")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        base_dir = prepare(Path(folder))
        job = Job(
            who="",
            base_dir=base_dir,
            folder=folder,
            rows=options.rows,
            epochs=options.epochs,
            batch=options.batch,
            layers=options.layers,
            rate=options.rate,
        )
        setting = {name: values[0] for name, values in TRL.items()}
        if options.search:
            setting = search(job, setting)
        results = []
        for _ in range(options.repeats):
            for who in options.who:
                results.append(run(job, who, setting if who == "trl" else {}))
                print(f"  {results[-1]}", file=sys.stderr)
    table(results, setting)
    if options.json:
        options.json.write_bytes(msgspec.json.encode({"job": job, "trl": setting, "results": results}))
    return 0


def prepare(folder: Path) -> str:
    """Tokenise the sample client's rows once, and its holdout; the base's folder."""
    settings = load_settings(os.environ)
    base = bases.resolve(DEFAULT_BASE, settings, offline=True)
    write_clients(folder / "clients", seed=SEED)
    tokenizer = ChatTokenizer(base.dir)
    (path,) = (folder / "clients").rglob(f"{CLIENT}/v1.jsonl")
    encoded = [tokenizer.encode(example.messages) for example in examples(path)]
    rows = [{"tokens": list(row.tokens), "mask": list(row.loss_mask)} for row in encoded]
    (folder / "rows.json").write_text(json.dumps(rows))
    return str(base.dir)


def run(job: Job, who: str, setting: dict[str, Any]) -> Result:
    """One run in a process of its own; what it says on stderr is shown where it fails."""
    word = msgspec.json.encode(msgspec.structs.replace(job, who=who, setting=setting)).decode()
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", word], capture_output=True, text=True, env=env, check=False
    )
    if done.returncode:
        raise SystemExit(f"{who} {setting}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=Result)


def search(job: Job, setting: dict[str, Any]) -> dict[str, Any]:
    """TRL's fastest setting on a few rows, one setting after the other against the best so far."""
    few = msgspec.structs.replace(job, rows=SEARCH_ROWS, epochs=1)
    best = run(few, "trl", setting).train_s
    for name, values in TRL.items():
        for value in values[1:]:
            tried = setting | {name: value}
            try:
                seconds = run(few, "trl", tried).train_s
            except SystemExit as error:
                print(f"  TRL {name}={value}: {error}", file=sys.stderr)
                continue
            print(f"  TRL {name}={value}: {seconds:.1f} s against {best:.1f} s", file=sys.stderr)
            if seconds < best:
                best, setting = seconds, tried
    return setting


def child(job: Job) -> Result:
    """Train as `job.who` does."""
    rows = [Row(tokens=row["tokens"], loss_mask=row["mask"]) for row in _rows(job)]
    # The last rows of the file are held out from the loss that is compared; nobody trains on them.
    kept, train = rows[-8:], rows[: min(job.rows, len(rows) - 8)]
    began, cpu = time.monotonic(), time.process_time()
    how = {"ours": _ours, "peft": _peft, "trl": _trl}[job.who]
    loaded, ended, tensors = how(job, train)
    import resource

    return Result(
        who=job.who,
        start_s=loaded - began,
        train_s=ended - loaded,
        cpu_s=time.process_time() - cpu,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        tokens=job.epochs * sum(len(row.tokens) for row in train),
        loss_tokens=job.epochs * sum(sum(row.loss_mask[1:]) for row in train),
        held_out=_held_out(job, kept, tensors),
    )


def _rows(job: Job) -> list[dict[str, Any]]:
    return json.loads((Path(job.folder) / "rows.json").read_text())  # type: ignore[no-any-return]


def _training(job: Job) -> TrainingConfig:
    return TrainingConfig(
        rank=RANK,
        alpha=ALPHA,
        layers=job.layers,
        epochs=job.epochs,
        learning_rate=job.rate,
        batch_size=job.batch,
        seed=SEED,
        checkpoint_every=10**6,
        device="cpu",
    )


def _plan(job: Job, train: list[Row]) -> list[list[int]]:
    """The rows of each step; every trainer gets this order."""
    corpus = lay_out(train)
    return [
        list(batch.chats)
        for epoch in range(job.epochs)
        for batch in epoch_batches(corpus, batch_size=job.batch, seed=SEED, epoch=epoch)
    ]


def _ours(job: Job, train: list[Row]) -> tuple[float, float, dict[str, Any]]:
    from fine_tune_runner.private.backend import load_backend
    from fine_tune_runner.private.trainer import _begin, fit

    spec = TrainSpec(
        base_dir=job.base_dir,
        train_path=str(Path(job.folder) / "rows.json"),
        out_dir=tempfile.mkdtemp(dir=job.folder),
        training=_training(job),
    )
    backend = load_backend(spec.training, Path(job.base_dir))
    loaded = time.monotonic()
    learner, _ = _begin(spec, train, _Silent(), backend)
    fit([learner], backend, lambda: False)
    ended = time.monotonic()
    return loaded, ended, {k: np.asarray(v) for k, v in learner.trainable.adapter.tensors().items()}


class _Silent:
    def on_step(self, *_: float) -> None: ...
    def on_checkpoint(self, *_: int) -> None: ...


def _tuned(job: Job, dtype: str, attention: str) -> Any:
    """The base with PEFT adapters on the same layers, with the same first numbers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        job.base_dir, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    config = read_config(Path(job.base_dir))
    top = range(config.layers - job.layers, config.layers)
    tuned = get_peft_model(
        base,
        LoraConfig(
            r=RANK,
            lora_alpha=ALPHA,
            task_type="CAUSAL_LM",
            layers_to_transform=list(top),
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        ),
    )
    first = start(dict.fromkeys(top, config.shapes), rank=RANK, seed=SEED)
    named = {key.replace(".weight", ".default.weight"): torch.from_numpy(v) for key, v in first.items()}
    _, unexpected = tuned.load_state_dict(named, strict=False)
    assert not unexpected
    return tuned


def _numbers(tuned: Any) -> dict[str, Any]:
    return {
        name.replace(".default", ""): parameter.detach().float().cpu().numpy()
        for name, parameter in tuned.named_parameters()
        if parameter.requires_grad
    }


def _peft(job: Job, train: list[Row]) -> tuple[float, float, dict[str, Any]]:
    """PEFT on transformers, full rows, padded batches, logits where there is loss only through labels."""
    import torch

    tuned = _tuned(job, "float32", "sdpa")
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job.rate, weight_decay=0.0)
    plan = _plan(job, train)
    loaded = time.monotonic()
    for step, chats in enumerate(plan):
        tokens, mask, labels = _padded([train[i] for i in chats])
        loss = tuned(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(plan), peak=job.rate, warmup=0.1)
        optimizer.step()
        optimizer.zero_grad()
    return loaded, time.monotonic(), _numbers(tuned)


def _padded(rows: list[Row]) -> tuple[Any, Any, Any]:
    import torch

    length = max(len(row.tokens) for row in rows)
    tokens, mask = torch.zeros(len(rows), length, dtype=torch.long), torch.zeros(len(rows), length)
    labels = torch.full((len(rows), length), -100)
    for place, row in enumerate(rows):
        size = len(row.tokens)
        tokens[place, :size], mask[place, :size] = torch.tensor(row.tokens), 1
        labels[place, :size] = torch.tensor(list(_labels(row)))
    return tokens, mask, labels


def _labels(row: Row) -> Iterator[int]:
    return (t if target else -100 for t, target in zip(row.tokens, row.loss_mask, strict=True))


def _trl(job: Job, train: list[Row]) -> tuple[float, float, dict[str, Any]]:
    """TRL's SFTTrainer with the loss of the assistant's tokens, our order of rows, our schedule."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    class InOrder(SFTTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(train_dataset or self.train_dataset)

    setting = job.setting
    torch.set_num_threads(setting["threads"])
    tuned = _tuned(job, setting["dtype"], setting["attention"])
    plan = _plan(job, train)
    order = [train[i] for chats in plan for i in chats]
    data = Dataset.from_list([{"input_ids": list(row.tokens), "labels": list(_labels(row))} for row in order])
    micro = min(setting["micro"], job.batch)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(dir=job.folder),
        num_train_epochs=1,  # the epochs stand one after the other in the data
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=job.batch // micro,
        learning_rate=job.rate,
        max_grad_norm=1.0,
        max_length=None,
        packing=setting["packing"],
        gradient_checkpointing=setting["checkpointing"],
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataset_kwargs={"skip_prepare_dataset": not setting["packing"]},
    )
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job.rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(min(step, len(plan) - 1), len(plan), peak=1.0, warmup=0.1)
    )
    trainer = InOrder(
        model=tuned,
        args=config,
        train_dataset=data,
        processing_class=PreTrainedTokenizerFast.from_pretrained(job.base_dir),
        optimizers=(optimizer, schedule),
    )
    loaded = time.monotonic()
    trainer.train()
    return loaded, time.monotonic(), _numbers(tuned)


def _held_out(job: Job, rows: list[Row], tensors: dict[str, Any]) -> float:
    """Mean loss of rows that nobody trained on, by the same code for all."""
    import torch

    from fine_tune_runner.private.batches import make_batch
    from fine_tune_runner.private.llama import load_llama
    from fine_tune_runner.private.lora import new_adapter
    from fine_tune_runner.private.shared_prefix import Branch, losses
    from fine_tune_runner.private.trunk import Trunk

    model = load_llama(Path(job.base_dir))
    depth = model.config.layers - job.layers
    shapes = dict.fromkeys(range(depth, model.config.layers), model.config.shapes)
    adapter = new_adapter(shapes, rank=RANK, alpha=ALPHA, seed=SEED)
    adapter.load({key: torch.from_numpy(np.asarray(value)) for key, value in tensors.items()})
    corpus = lay_out(rows)
    batch = make_batch(corpus, range(len(corpus.chats)))
    with torch.no_grad():
        trunk = Trunk(model, corpus, depth)
        total = sum(float(losses(model, [Branch(t, corpus, trunk, adapter)])[0]) for t in batch.trees)
    return total / batch.loss_tokens


def table(results: list[Result], setting: dict[str, Any]) -> None:
    """Medians, and ratios to the fastest of the others."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; TRL: {setting}")
    print("who   train s   with start   CPU s   peak MB   tokens/s   held-out loss   times ours   runs")
    grouped = {who: [r for r in results if r.who == who] for who in dict.fromkeys(r.who for r in results)}
    middle = {who: statistics.median(r.train_s for r in runs) for who, runs in grouped.items()}
    for who, runs in grouped.items():
        whole = statistics.median(r.train_s + r.start_s for r in runs)
        cpu, peak = (statistics.median(getattr(r, name) for r in runs) for name in ("cpu_s", "peak_mb"))
        ratio = middle[who] / middle["ours"] if "ours" in middle else float("nan")
        print(
            f"{who:5} {middle[who]:7.1f} {whole:12.1f} {cpu:8.1f} {peak:9.0f} "
            f"{runs[0].tokens / middle[who]:10.0f} {runs[0].held_out:15.4f} {ratio:12.1f} {len(runs):6}"
        )


if __name__ == "__main__":
    sys.exit(main())
