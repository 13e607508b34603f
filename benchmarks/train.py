"""How long training takes beside TRL's SFTTrainer and a plain PEFT loop: the same data, start and steps.

    make bench          (python benchmarks/train.py [--layers 10 30] [--epochs 1] [--repeats 5])
    python benchmarks/train.py --who --vary prompt rows clients       the second tables alone
    python benchmarks/train.py --who ours-mlx mlx-lm --rows 4 --layers 1     where mlx-lm is installed

Each run is a process of its own (trainers.py), in alternation. All take as many steps over the same rows in
the same batches, from the same first adapter, so they end at the same held-out loss (checked), and the time
to it is what is compared; our first epoch, which computes the frozen layers, counts. `--search` looks for
TRL's best setting first. A run beside which anything else took more than `--others` of the processors is
done again, three times at most. `--json` gets a line a run, as it ends.
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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.private import bases
from fine_tune_runner.private.batches import Row, lay_out
from fine_tune_runner.sample import write_clients
from fine_tune_runner.settings import DEFAULT_BASE, load_settings
from trainers import HELD_OUT, Job, Result

CLIENT = "teleios"
# TRL's settings that are tried, each against the best so far; the first value of each is where it starts.
TRL: dict[str, tuple[Any, ...]] = {
    "dtype": ("float32", "bfloat16"),
    "micro": (4, 1, 2, 8, 16),
    "checkpointing": (False, True),
    "attention": ("sdpa", "eager"),
    "packing": (False, True),
    "threads": (os.cpu_count() or 1, 1),
}
FEW = 16  # rows on which TRL's settings are tried; its time a row does not depend on how many there are
PROMPTS, ROWS, CLIENTS = (0, 200, 576, 2000), (50, 112, 500, 2000), (1, 2, 4, 8, 16)
TRIES = 3
SLOWER, HELD_OUT_S = (
    1.3,
    20.0,
)  # a try is given up behind so many times the best, and what comes after training
SAME_LOSS = 1e-3  # relative; float32 sums in another order, over all steps


class Bench(NamedTuple):
    """What all runs of a call share."""

    job: Job
    setting: Mapping[str, Any]
    repeats: int
    others: float
    rate: float
    lines: Path | None


def main() -> int:
    """Find TRL's best setting, run all in alternation, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8, help="rows an optimizer step, for all")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[10], help="how many from the top get adapters"
    )
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--who", nargs="*", default=["ours", "trl", "peft"], help="none: no main table")
    parser.add_argument("--others", type=float, default=0.03, help="share of the processors, at most")
    parser.add_argument("--vary", nargs="+", choices=tuple(TABLES), default=[])
    parser.add_argument("--values", type=int, nargs="+", help="in place of the table's own")
    parser.add_argument("--search", action="store_true", help="look for TRL's best setting first")
    parser.add_argument("--trl", type=json.loads, default={}, help='its setting, as {"micro": 2}')
    parser.add_argument("--json", type=Path, help="append each run, a line of JSON: its job, its result")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        job = Job(
            who="",
            base_dir=str(bases.resolve(DEFAULT_BASE, load_settings(os.environ), offline=True).dir),
            folder=folder,
            rows=words.rows,
            epochs=words.epochs,
            batch=words.batch,
            layers=words.layers[0],
            rate=words.learning_rate,
        )
        prepare(job)
        setting = {name: values[0] for name, values in TRL.items()} | words.trl
        bench = Bench(job, setting, words.repeats, words.others, matmul_rate(), words.json)
        bench = bench._replace(setting=search(bench)) if words.search else bench
        print(machine(bench), flush=True)
        for layers in words.layers if words.who else ():
            beside(bench._replace(job=msgspec.structs.replace(job, layers=layers)), words.who)
        for name in words.vary:
            TABLES[name](bench, words.values)
    return 0


def machine(bench: Bench) -> str:
    """One line on what the figures were taken on."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        name = next(
            (line.split(": ")[1] for line in info.read_text().split("\n") if "model name" in line), name
        )
    return (
        f"{name}, {os.cpu_count()} cores, {bench.rate / 1e9:.0f} GFLOP/s in a float32 matmul; "
        f"TRL: {json.dumps(bench.setting)}"
    )


def matmul_rate() -> float:
    """Floating-point operations a second of a large float32 matrix product on all cores, the best of ten."""
    code = (
        "import time, torch\na = torch.randn(2048, 2048)\nbest = 9.9\n"
        "for _ in range(10):\n  at = time.perf_counter(); a @ a; best = min(best, time.perf_counter() - at)\n"
        "print(2 * 2048 ** 3 / best)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)


def prepare(job: Job, *, prompt: int | None = None, clients: int = 1) -> None:
    """Write rows.json: the sample client's rows, then HELD_OUT questions of its holdout, for each client.

    With `prompt` all rows begin with so many tokens in place of theirs. Rows beyond the sample's are its own
    with another token behind the prompt, and so share no more than that; further clients have other prompts.
    """
    folder = Path(job.folder)
    tokenizer = ChatTokenizer(Path(job.base_dir))
    sample = Path(tempfile.mkdtemp(dir=folder)) / "clients"
    write_clients(sample, seed=0)
    (train,) = sample.rglob(f"{CLIENT}/v1.jsonl")
    own, held = (
        [tokenizer.encode(example.messages) for example in examples(path)]
        for path in (train, train.with_name("v1_eval.jsonl"))
    )
    encoded = [Row(tokens=row.tokens, loss_mask=row.loss_mask) for row in (*own, *held[:HELD_OUT])]
    shared = lay_out(encoded).prefix
    size = shared if prompt is None else prompt
    first = list(encoded[0].tokens[:shared]) * (size // shared + 1)

    def row(place: int, client: int) -> dict[str, Any]:
        source = encoded[place % len(own)] if place < job.rows else encoded[place - job.rows + len(own)]
        more = [1000 + place] if len(own) <= place < job.rows else []
        turned = (first[client:] + first[:client])[:size]
        return {
            "tokens": [*turned, *more, *source.tokens[shared:]],
            "mask": [*[False] * (size + len(more)), *source.loss_mask[shared:]],
        }

    rows = [[row(place, client) for place in range(job.rows + HELD_OUT)] for client in range(clients)]
    (folder / "rows.json").write_text(json.dumps(rows))


def run(bench: Bench, who: str, limit_s: float | None = None, **changes: Any) -> Result:
    """One run in a process of its own; what it says on stderr is shown where it fails.

    Raises subprocess.TimeoutExpired beyond `limit_s`.
    """
    setting = dict(bench.setting) if who == "trl" else {}
    job = msgspec.structs.replace(bench.job, who=who, **{"setting": setting, **changes})
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    for left in reversed(range(TRIES)):
        word = msgspec.json.encode(job).decode()
        command = [sys.executable, str(Path(__file__).with_name("trainers.py")), word]
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=limit_s)
        if done.returncode:
            raise SystemExit(f"{who} {job.setting}: exit {done.returncode}\n{done.stderr[-2000:]}")
        result = msgspec.json.decode(done.stdout.splitlines()[-1], type=Result)
        said = f"{who} {result.train_s:.1f} s, {result.cpu_s:.1f} s of processor, others {result.others:.1%}"
        print(f"  {time.strftime('%H:%M:%S')} {said}", file=sys.stderr, flush=True)
        if bench.lines:
            with bench.lines.open("ab") as file:
                file.write(msgspec.json.encode({"job": job, "result": result}) + b"\n")
        if result.others <= bench.others or not left:
            break
    return result


def search(bench: Bench) -> Mapping[str, Any]:
    """TRL's fastest setting on a few rows, one setting after the other against the best so far."""
    few = bench._replace(job=msgspec.structs.replace(bench.job, rows=FEW, epochs=1))
    first = run(few, "trl")
    setting, best = {**bench.setting}, first.train_s
    for name, values in TRL.items():
        for value in values[1:]:
            if name == "micro" and value > bench.job.batch:
                continue
            tried = setting | {name: value}
            try:
                limit_s = SLOWER * best + 2 * first.start_s + HELD_OUT_S
                seconds = run(few, "trl", limit_s, setting=tried).train_s
            except SystemExit as error:
                print(f"  TRL {name}={value}: {error}", file=sys.stderr)
                continue
            except subprocess.TimeoutExpired:
                print(f"TRL {name}={value}: slower than {SLOWER * best:.0f} s, given up", flush=True)
                continue
            print(f"TRL {name}={value}: {seconds:.1f} s against {best:.1f} s", flush=True)
            if seconds < best:
                best, setting = seconds, tried
    return setting


def beside(bench: Bench, names: Sequence[str]) -> None:
    """The main table: everyone in alternation; raises AssertionError where they did not do the same."""
    results = [run(bench, who) for _ in range(bench.repeats) for who in names]
    assert len({(r.tokens, r.loss_tokens) for r in results}) == 1, "not the same tokens"
    losses = [r.held_out for r in results]
    assert max(losses) - min(losses) <= SAME_LOSS * min(losses), f"not the same held-out loss: {losses}"
    job, first = bench.job, results[0]
    print(
        f"\n{job.rows} rows, {job.epochs} epochs, {first.tokens:,} tokens, {first.loss_tokens:,} with loss; "
        f"LoRA on {job.layers} layers, batch {job.batch}; medians of {bench.repeats}"
    )
    print(
        "who        train s  with start   CPU s  peak MB  tokens/s  held-out loss  matmul share  times ours"
    )
    means = {who: _medians(r for r in results if r.who == who) for who in names}
    for who, mean in means.items():
        print(
            f"{who:9} {mean.train_s:8.1f} {mean.train_s + mean.start_s:11.1f} {mean.cpu_s:7.1f} "
            f"{mean.peak_mb:8.0f} {mean.tokens / mean.train_s:9.0f} {mean.held_out:14.5f} "
            f"{mean.work / mean.train_s / bench.rate:9.0%} {mean.train_s / means[names[0]].train_s:11.1f}",
            flush=True,
        )


def _medians(results: Iterable[Result]) -> Result:
    runs = list(results)
    names = ("start_s", "train_s", "cpu_s", "peak_mb", "others")
    return msgspec.structs.replace(
        runs[0], **{name: statistics.median(getattr(r, name) for r in runs) for name in names}
    )


def prompts(bench: Bench, values: Sequence[int] | None) -> None:
    """Tokens a second by length of the shared prompt; TRL on FEW of the rows."""
    print("\nprompt tokens   ours tokens/s   TRL tokens/s   times", flush=True)
    for prompt in values or PROMPTS:
        prepare(bench.job, prompt=prompt)
        runs = [(run(bench, "ours"), run(bench, "trl", rows=FEW)) for _ in range(bench.repeats)]
        own, other = (_medians(side) for side in zip(*runs, strict=True))
        paces = [r.tokens / r.train_s for r in (own, other)]
        print(f"{prompt:13} {paces[0]:15.0f} {paces[1]:14.0f} {paces[0] / paces[1]:7.1f}", flush=True)


def sizes(bench: Bench, values: Sequence[int] | None) -> None:
    """Tokens a second by number of rows; TRL once, on FEW of them."""
    prepare(bench.job)
    other = _medians(run(bench, "trl", rows=FEW) for _ in range(bench.repeats))
    pace = other.tokens / other.train_s
    print(f"\nTRL on {FEW} rows: {pace:.0f} tokens/s\nrows   ours s   ours tokens/s   times TRL", flush=True)
    for rows in values or ROWS:
        own = bench._replace(job=msgspec.structs.replace(bench.job, rows=rows))
        prepare(own.job)
        mean = _medians(run(own, "ours") for _ in range(bench.repeats))
        own_pace = mean.tokens / mean.train_s
        print(f"{rows:4} {mean.train_s:8.1f} {own_pace:15.0f} {own_pace / pace:11.1f}", flush=True)


def together(bench: Bench, values: Sequence[int] | None) -> None:
    """Clients on one base at once against one after the other: as many times the median of one alone."""
    counts = values or CLIENTS
    prepare(bench.job, clients=max(counts))
    alone = _medians(run(bench, "ours") for _ in range(bench.repeats))
    print(f"\none alone: {alone.train_s:.1f} s, {alone.start_s:.1f} s to load, {alone.peak_mb:.0f} MB")
    print("clients   together s   of solo runs   with loading   peak MB", flush=True)
    for count in counts:
        mean = _medians(run(bench, "ours", clients=count) for _ in range(bench.repeats))
        whole = (mean.train_s + mean.start_s) / (count * (alone.train_s + alone.start_s))
        share = mean.train_s / (count * alone.train_s)
        print(f"{count:7} {mean.train_s:12.1f} {share:14.0%} {whole:14.0%} {mean.peak_mb:9.0f}", flush=True)


TABLES = {"prompt": prompts, "rows": sizes, "clients": together}


if __name__ == "__main__":
    sys.exit(main())
