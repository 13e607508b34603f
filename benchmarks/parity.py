"""How far a served model may be from the trained one: the tolerances of private/parity.py, measured.

    python benchmarks/parity.py --steps 30

Trains an adapter on a sample client with SmolLM2, merges it at each encoding, and compares the
log-probabilities of the merged file with base plus adapter. The faults that the tolerance must catch stand
below: the adapter lost, and merged at other scales.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ParityError
from fine_tune_runner.private import bases, parity
from fine_tune_runner.private.export import export_adapter
from fine_tune_runner.private.merge import merge_gguf
from fine_tune_runner.private.process import train
from fine_tune_runner.private.serve import EmbeddedAnswerer, serve_embedded
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.sample.generate import write_clients
from fine_tune_runner.settings import DEFAULT_BASE, TrainingConfig, load_settings
from fine_tune_runner.types import Message, Model

CLIENT, PROMPTS, TOKENS = "hre", 3, 6


@dataclass(frozen=True)
class Said:
    """A token with its likeliest rivals, as a server reports them."""

    token: str
    logprob: float
    bytes: Sequence[int]
    top_logprobs: Sequence[Said] = ()


def main() -> int:
    """Print a line for each encoding and each fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--client", default=CLIENT)
    options = parser.parse_args()
    settings = load_settings(os.environ)
    base = bases.with_gguf(bases.resolve(DEFAULT_BASE, settings, offline=True), settings)
    with tempfile.TemporaryDirectory(prefix="parity-") as name:
        folder = Path(name)
        write_clients(folder / "clients", 0)
        data = folder / "clients" / options.client / "v3.jsonl"
        rows = list(examples(data))
        few = folder / "few.jsonl"
        few.write_text("".join(data.read_text().splitlines(keepends=True)[: 4 * options.steps]))
        spec = TrainSpec(
            base_dir=str(base.dir),
            train_path=str(few),
            out_dir=str(folder / "run"),
            training=TrainingConfig(epochs=1, batch_size=4, threads=1, layers=10),
        )
        summary = train(spec, lambda _event: None, lambda: False)
        print(f"{summary.steps} steps, loss {summary.first_loss:.2f} -> {summary.final_loss:.2f}")
        prompts = [row.messages[:-1] for row in rows[-PROMPTS:]]
        measure(base, spec.adapter_dir, folder, prompts)
    return 0


def measure(base: bases.Base, adapter: Path, folder: Path, prompts: list[tuple[Message, ...]]) -> None:
    """Compare every encoding and every fault with base plus adapter, in llama.cpp."""
    export_adapter(adapter, base.dir, folder / "adapter.gguf", {})
    files = {f"merged {kind}": (kind, 1.0) for kind in ("F32", "F16", "Q8_0")}
    files |= {f"scale x {times}": ("Q8_0", times) for times in (0.0, 0.5, 0.9, 1.1, 2.0)}
    with serving(base, folder, ["adapter.gguf", None]) as here:
        local, bare = (partial(here.next_tokens, name) for name in ("adapter.gguf", "bare"))
        for label, (kind, times) in files.items():
            merge_gguf(
                base.gguf or base.dir, scaled(adapter, folder / label, times), folder / "merged.gguf",
                stamp={}, quantization=kind,
            )  # fmt: skip
            served_base = msgspec.structs.replace(base, gguf=folder / "merged.gguf")
            tokenizer = ChatTokenizer(base.dir)
            with serving(served_base, folder, [None]) as there:
                try:
                    report = parity.check_parity(
                        tokenizer=tokenizer,
                        prompts=prompts,
                        rendered=partial(text_of, tokenizer),
                        served=partial(greedy, there, tokenizer),
                        local=local,
                        bare=bare,
                        quantization=kind,
                        adds_bos=False,
                    )
                    print(f"{label:14}", json.dumps(msgspec.to_builtins(report)))
                except ParityError as error:
                    print(f"{label:14}", error)


def scaled(adapter: Path, folder: Path, times: float) -> Path:
    """A copy of an adapter with another scale."""
    shutil.copytree(adapter, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * times}))
    return folder


@contextmanager
def serving(base: bases.Base, folder: Path, artifacts: list[str | None]) -> Iterator[EmbeddedAnswerer]:
    """llama.cpp with a base and adapters, each called as its file, the bare base "bare"."""
    models = [
        Model(
            model_id=artifact or "bare", track="B", provider="embedded", base_model="b", dataset_sha256="",
            artifact=artifact,
        )
        for artifact in artifacts
    ]  # fmt: skip
    with serve_embedded(base, models, folder, threads=1) as answerer:
        yield answerer


def text_of(tokenizer: ChatTokenizer, messages: Sequence[Message]) -> str:
    """The prompt as text."""
    return tokenizer.text(messages)


def greedy(answerer: EmbeddedAnswerer, tokenizer: ChatTokenizer, messages: Sequence[Message]) -> list[Said]:
    """A short greedy answer with the 20 likeliest tokens at each place."""
    tokens, said = tokenizer.prompt(messages), []
    for _ in range(TOKENS):
        likely = answerer.next_tokens("bare", tokens, 20)
        entries = [Said("", logprob, list(tokenizer.token_bytes(token))) for token, logprob in likely.items()]
        best = max(likely, key=lambda token: likely[token])
        said.append(Said("", likely[best], list(tokenizer.token_bytes(best)), entries))
        tokens.append(best)
        if best in tokenizer.stop_tokens:
            break
    return said


if __name__ == "__main__":
    raise SystemExit(main())
