"""One training of `benchmarks/train.py` in a process of its own: ours, TRL's, a plain PEFT loop's, mlx-lm's.

All get the same rows in the same batches in the same order, the same first adapter, optimizer and schedule.
`python benchmarks/trainers.py '{"who": ...}'` prints a `Result` as one line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fine_tune_runner.private.batches import Batch, Corpus, Row, epoch_batches, lay_out
from fine_tune_runner.private.learner import learning_rate
from fine_tune_runner.private.llama_config import LlamaConfig, read_config
from fine_tune_runner.private.lora_layout import start
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.settings import TrainingConfig

SEED, RANK, ALPHA, WARMUP = 0, 16, 32.0, 0.1
HELD_OUT = 8  # the last rows of the file: nobody trains on them
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a child does; `folder`/rows.json holds tokens and loss masks, a list of rows for each client."""

    who: str
    base_dir: str
    folder: str
    rows: int
    epochs: int
    batch: int
    layers: int
    rate: float
    clients: int = 1
    setting: dict[str, Any] = {}


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds on the clock and of processor; `start_s` is imports and loading, not in `train_s`.

    `work` are the floating-point operations that the job needs at the least (see `least_work`), `others` the
    share of the machine's processors that anything else took meanwhile.
    """

    who: str
    start_s: float
    train_s: float
    cpu_s: float
    peak_mb: float
    tokens: int
    loss_tokens: int
    held_out: float
    work: float
    others: float


class Trained(msgspec.Struct, frozen=True):
    """When the base was loaded and the training ended, and the first client's adapter under PEFT's names."""

    loaded: float
    ended: float
    tensors: dict[str, Any]


def main() -> None:
    """Train as the job says."""
    job = msgspec.json.decode(sys.argv[1], type=Job)
    data = json.loads((Path(job.folder) / "rows.json").read_text())[: job.clients]
    clients = [[Row(tokens=row["tokens"], loss_mask=row["mask"]) for row in rows] for rows in data]
    train = [rows[: min(job.rows, len(rows) - HELD_OUT)] for rows in clients]
    how = {"ours": ours, "ours-mlx": ours, "peft": peft, "trl": trl, "mlx-lm": mlx_lm}[job.who]
    began, busy, cpu = time.monotonic(), _busy_s(), time.process_time()
    done = how(job, train)
    spent, all_spent = time.process_time() - cpu, _busy_s() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cores = os.cpu_count() or 1
    result = Result(
        who=job.who,
        start_s=done.loaded - began,
        train_s=done.ended - done.loaded,
        cpu_s=spent,
        peak_mb=peak,
        tokens=job.epochs * sum(len(row.tokens) for rows in train for row in rows),
        loss_tokens=job.epochs * sum(sum(row.loss_mask[1:]) for rows in train for row in rows),
        held_out=_held_out(job, clients[0][-HELD_OUT:], done.tensors),
        work=sum(least_work(job, rows) for rows in train),
        others=max(0.0, all_spent - spent) / (cores * (time.monotonic() - began)),
    )
    print(msgspec.json.encode(result).decode())


def _busy_s() -> float:
    """Processor seconds that all of the machine has spent; 0 where the system does not say (macOS)."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    except OSError:
        return 0.0
    idle = int(words[3]) + int(words[4])
    return (sum(map(int, words[:8])) - idle) / os.sysconf("SC_CLK_TCK")


def plan(job: Job, corpus: Corpus, epoch: int) -> Sequence[Batch]:
    """The batches of an epoch; every trainer gets these rows in this order."""
    return epoch_batches(corpus, batch_size=job.batch, seed=SEED, epoch=epoch)


def _chats(job: Job, train: Sequence[Row]) -> list[list[int]]:
    """The rows of each step."""
    corpus = lay_out(train)
    return [list(batch.chats) for epoch in range(job.epochs) for batch in plan(job, corpus, epoch)]


def least_work(job: Job, train: Sequence[Row]) -> float:
    """Floating-point operations that training on these rows takes at the least, each shared token once.

    Frozen layers forward once in all; layers with adapters forward and backward to their inputs (no gradient
    of a frozen weight); the head where there is loss, forward and backward. Adapters and attention counted,
    norms and activations not. A multiplication and an addition count as two.
    """
    config, corpus = read_config(Path(job.base_dir)), lay_out(train)
    linears = [(wide, sum(outs)) for wide, outs in config.shapes.values()]
    dense = sum(wide * out for wide, out in linears)
    low = sum(RANK * (wide * len(outs) + sum(outs)) for wide, outs in config.shapes.values())
    frozen, own = config.layers - job.layers, job.layers
    edges = [(len(edge.tokens), edge.start) for edge in corpus.segments]
    work = frozen * (2 * dense * sum(size for size, _ in edges) + _attention(config, edges))
    for epoch in range(job.epochs):
        for batch in plan(job, corpus, epoch):
            for tree in batch.trees:
                spans = [edges[span.segment] for span in tree.spans]
                work += own * (tree.size * (4 * dense + 6 * low) + 3 * _attention(config, spans))
                work += 4 * config.vocab * config.hidden * len(tree.targets)
    return float(work)


def _attention(config: LlamaConfig, spans: Sequence[tuple[int, int]]) -> int:
    """Operations of a layer's forward: scores and weighted values over what each token sees."""
    seen = sum(size * start + size * (size + 1) // 2 for size, start in spans)
    return 4 * config.heads * config.head_dim * seen


def ours(job: Job, train: Sequence[Sequence[Row]]) -> Trained:
    """The product's own back end and loop; several clients on one base."""
    from fine_tune_runner.private.backend import load_backend
    from fine_tune_runner.private.trainer import begin, fit

    training = TrainingConfig(
        rank=RANK,
        alpha=ALPHA,
        layers=job.layers,
        epochs=job.epochs,
        learning_rate=job.rate,
        batch_size=job.batch,
        seed=SEED,
        checkpoint_every=10**6,
        device="mlx" if job.who == "ours-mlx" else "cpu",
        dtype="float32",
    )
    backend = load_backend(training, Path(job.base_dir))
    loaded = time.monotonic()
    learners = []
    for rows in train:
        spec = TrainSpec(
            base_dir=job.base_dir,
            train_path=str(Path(job.folder) / "rows.json"),
            out_dir=tempfile.mkdtemp(dir=job.folder),
            training=training,
        )
        learners.append(begin(spec, rows, _Silent(), backend)[0])
    fit(learners, backend, lambda: False)
    ended = time.monotonic()
    tensors = learners[0].trainable.adapter.tensors()
    return Trained(loaded, ended, {key: np.asarray(value) for key, value in tensors.items()})


class _Silent:
    def on_step(self, *_: float) -> None: ...
    def on_checkpoint(self, *_: int) -> None: ...


def _top(job: Job) -> range:
    layers = read_config(Path(job.base_dir)).layers
    return range(layers - job.layers, layers)


def _first(job: Job) -> dict[str, Any]:
    """The adapter that all start from, under PEFT's names."""
    return start(dict.fromkeys(_top(job), read_config(Path(job.base_dir)).shapes), rank=RANK, seed=SEED)


def _tuned(job: Job, dtype: str, attention: str) -> Any:
    """The base with PEFT adapters on the same layers, with the same first numbers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        job.base_dir, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        task_type="CAUSAL_LM",
        layers_to_transform=list(_top(job)),
        target_modules=list(LINEARS),
    )
    tuned = get_peft_model(base, lora)
    named = {k.replace(".weight", ".default.weight"): torch.from_numpy(v) for k, v in _first(job).items()}
    _, unexpected = tuned.load_state_dict(named, strict=False)
    assert not unexpected
    return tuned


def _numbers(tuned: Any) -> dict[str, Any]:
    return {
        name.replace(".default", ""): parameter.detach().float().cpu().numpy()
        for name, parameter in tuned.named_parameters()
        if parameter.requires_grad
    }


def peft(job: Job, train: Sequence[Sequence[Row]]) -> Trained:
    """PEFT on transformers, full rows, padded batches, loss through labels."""
    import torch

    rows = train[0]
    tuned = _tuned(job, "float32", "sdpa")
    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=job.rate, weight_decay=0.0)
    steps = _chats(job, rows)
    loaded = time.monotonic()
    for step, chats in enumerate(steps):
        tokens, mask, labels = _padded([rows[i] for i in chats])
        loss = tuned(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), peak=job.rate, warmup=WARMUP)
        optimizer.step()
        optimizer.zero_grad()
    return Trained(loaded, time.monotonic(), _numbers(tuned))


def _padded(rows: Sequence[Row]) -> tuple[Any, Any, Any]:
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


def trl(job: Job, train: Sequence[Sequence[Row]]) -> Trained:
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
    steps = _chats(job, train[0])
    order = [train[0][i] for chats in steps for i in chats]
    data = Dataset.from_list([{"input_ids": list(row.tokens), "labels": list(_labels(row))} for row in order])
    micro = min(setting["micro"], job.batch)
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(dir=job.folder),
        num_train_epochs=1,  # the epochs stand one after the other in the data
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=job.batch // micro,
        learning_rate=job.rate,
        max_grad_norm=1.0,
        # A packed row is as long as this; the step then has other rows, so only its speed counts.
        max_length=2048 if setting["packing"] else None,
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
    last = len(steps) - 1
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(min(step, last), len(steps), peak=1.0, warmup=WARMUP)
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
    return Trained(loaded, time.monotonic(), _numbers(tuned))


def mlx_lm(job: Job, train: Sequence[Sequence[Row]]) -> Trained:
    """mlx-lm's own trainer and LoRA layers; our batches, and our mask of the loss in place of its one cut."""
    import mlx.core as mx
    import mlx.optimizers
    from mlx import nn
    from mlx_lm.tuner.trainer import TrainingArgs
    from mlx_lm.tuner.trainer import train as train_mlx
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    class Clipped(mlx.optimizers.AdamW):  # type: ignore[misc]
        def update(self, model: Any, gradients: Any) -> None:
            super().update(model, mlx.optimizers.clip_grad_norm(gradients, 1.0)[0])

    rows, steps = train[0], _chats(job, train[0])
    model, _ = load_model(Path(job.base_dir))
    model.set_dtype(mx.float32)
    model.freeze()
    scale = {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0}
    keys = [f"{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}" for name in LINEARS]
    linear_to_lora_layers(model, job.layers, {**scale, "keys": keys})
    model.load_weights(
        [(_mlx_name(key), mx.array(value).T) for key, value in _first(job).items()], strict=False
    )
    rates = mx.array([learning_rate(i, len(steps), peak=job.rate, warmup=WARMUP) for i in range(len(steps))])
    optimizer = Clipped(learning_rate=lambda step: rates[step], weight_decay=0.0, bias_correction=True)

    def batches(*_: Any, **__: Any) -> Iterator[tuple[Any, Any]]:
        for chats in steps:
            tokens, _, labels = (part.numpy() for part in _padded([rows[i] for i in chats]))
            yield mx.array(tokens), mx.array(labels)

    def loss(model: Any, tokens: Any, labels: Any) -> tuple[Any, Any]:
        targets = labels[:, 1:]
        mask = targets != -100
        each = nn.losses.cross_entropy(model(tokens[:, :-1]), mx.where(mask, targets, 0)) * mask
        count = mask.sum()
        return each.astype(mx.float32).sum() / count, count

    mx.eval(model.parameters())
    loaded = time.monotonic()
    words = TrainingArgs(
        batch_size=job.batch,
        iters=len(steps),
        steps_per_report=10**6,
        steps_per_save=10**6,
        adapter_file=str(Path(tempfile.mkdtemp(dir=job.folder)) / "adapters.safetensors"),
    )
    sys.stdout, said = sys.stderr, sys.stdout  # it draws its progress there
    train_mlx(model, optimizer, list(rows), args=words, loss=loss, iterate_batches=batches)
    sys.stdout = said
    ended = time.monotonic()
    weights = dict(mlx.utils.tree_flatten(model.trainable_parameters()))
    return Trained(loaded, ended, {key: np.array(weights[_mlx_name(key)].T) for key in _first(job)})


def _mlx_name(peft_name: str) -> str:
    bare = peft_name.removeprefix("base_model.model.").removesuffix(".weight")
    return bare.replace("lora_A", "lora_a").replace("lora_B", "lora_b")


def _held_out(job: Job, rows: Sequence[Row], tensors: dict[str, Any]) -> float:
    """Mean loss of rows that nobody trained on, by the same code for all."""
    import torch

    from fine_tune_runner.private.batches import make_batch
    from fine_tune_runner.private.llama import load_llama
    from fine_tune_runner.private.lora import new_adapter
    from fine_tune_runner.private.shared_prefix import Branch, losses
    from fine_tune_runner.private.trunk import Trunk

    model = load_llama(Path(job.base_dir))
    top = _top(job)
    adapter = new_adapter(dict.fromkeys(top, model.config.shapes), rank=RANK, alpha=ALPHA, seed=SEED)
    adapter.load({key: torch.from_numpy(np.asarray(value)) for key, value in tensors.items()})
    corpus = lay_out(rows)
    batch = make_batch(corpus, range(len(corpus.chats)))
    with torch.no_grad():
        trunk = Trunk(model, corpus, top.start)
        total = sum(
            float(losses(model, [Branch(t, corpus, trunk.states(t), adapter)])[0]) for t in batch.trees
        )
    return total / batch.loss_tokens


if __name__ == "__main__":
    main()
