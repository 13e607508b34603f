"""Seconds and peak memory of `check` on a 200 MB training file, against the limits of 120 s and 400 MB.

    python benchmarks/check_200mb.py [--base FOLDER] [--minilm FOLDER] [--mb 200]

FOLDER of --base is a Hugging Face folder with tokenizer and template; without it a stand-in splits at white
space. --minilm takes the folder with model.onnx and tokenizer.json; without it a stand-in embeds nothing.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from string import ascii_lowercase

import msgspec

from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.dataset.validate import check
from fine_tune_runner.settings import Client, ClientConfig
from fine_tune_runner.types import Message, Tokenizer

LIMIT_S, LIMIT_MB = 120, 400


class WordCounter:
    """A stand-in tokenizer: a token is what stands between white space."""

    name = "words"
    context = 8192

    def count(self, rows: list[tuple[Message, ...]]) -> list[tuple[int, int]]:
        sizes = [[len(message.content.split()) for message in row] for row in rows]
        return [(sum(size), size[-1]) for size in sizes]


def words(draw: random.Random, known: list[str], n: int) -> str:
    """n words, sentence by sentence."""
    return " ".join(draw.choices(known, k=n)).capitalize() + "."


def generate(folder: Path, megabytes: int, seed: int) -> int:
    """Write `hre` with rows of the usual shape (576 + 40 + 120 tokens); returns how many."""
    draw = random.Random(seed)
    known = ["".join(draw.choices(ascii_lowercase, k=draw.randint(2, 8))) for _ in range(6000)]
    causes = sorted(load_taxonomy(None).causes)[:12]
    prompt = "You are a conversion tracking expert for HRE.\n" + words(draw, known, 390)
    encode = msgspec.json.Encoder().encode
    folder.mkdir()
    state = {"version": "1.2.0", "system_prompt": prompt}
    (folder / "account_state.json").write_bytes(encode(state))

    def row() -> bytes:
        answer = f"Root cause: {draw.choice(causes)}\n{words(draw, known, 80)}"
        contents = (("system", prompt), ("user", words(draw, known, 28)), ("assistant", answer))
        return encode({"messages": [{"role": r, "content": c} for r, c in contents]}) + b"\n"

    (folder / "v1_eval.jsonl").write_bytes(b"".join(row() for _ in range(12)))
    rows = 0
    with (folder / "v1.jsonl").open("wb") as file:
        while file.tell() < megabytes * 10**6:
            line = row()
            file.write(line)
            rows += 1
            if rows % 1000 == 0:  # a near duplicate now and then, for the search to find
                file.write(line.replace(b'"user","content":"', b'"user","content":"Hi '))
                rows += 1
    return rows


def measure(folder: Path, base: Path | None, minilm: Path | None) -> None:
    """Check the file in this process and print what it took."""
    tokenizer: Tokenizer = WordCounter()
    embedder = None
    if base:
        from fine_tune_runner.dataset.render import ChatTokenizer

        tokenizer = ChatTokenizer(base)
    if minilm:
        from fine_tune_runner.evaluation.similarity import MiniLM

        embedder = MiniLM(minilm / "model.onnx", minilm / "tokenizer.json")
    client = Client(id="hre", dir=folder, config=ClientConfig(client_id="hre"))
    started = time.perf_counter()
    findings = check(client, 1, tokenizer=tokenizer, embedder=embedder, taxonomy=load_taxonomy(None))
    seconds = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak_mb = used.ru_maxrss / unit
    print(dict(Counter(f"{item.level} {item.check}" for item in findings.items)))
    print(f"tokenizer {tokenizer.name}, embedder {embedder.fingerprint if embedder else 'none'}")
    print(f"{seconds:.0f} s ({seconds / LIMIT_S:.2f} of the limit of {LIMIT_S} s)")
    print(f"{used.ru_utime + used.ru_stime:.0f} CPU-seconds (the fairer figure on a shared machine)")
    print(f"{peak_mb:.0f} MB ({peak_mb / LIMIT_MB:.2f} of the limit of {LIMIT_MB} MB)")


def main() -> None:
    """Generate in this process, measure in a fresh one, so that only the check's memory counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--mb", type=int, default=200)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.base, options.minilm)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "hre"
        rows = generate(folder, options.mb, seed=0)
        size = (folder / "v1.jsonl").stat().st_size
        print(f"{rows} rows, {size / 10**6:.0f} MB", flush=True)
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--measure", str(folder)], check=True)


if __name__ == "__main__":
    main()
