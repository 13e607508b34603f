"""Seconds to score two versions on a holdout of 1,000 questions and to decide, apart from generation.

    python benchmarks/score_1000.py [--minilm FOLDER] [--questions 1000] [--rounds 3] [--json score.json]

The models answer at once with texts of the usual shape (120 tokens); everything else is what `fine-tune eval`
does, with the real embedder. Cold: a client's first evaluation. Warm: the next one, on the same holdout,
whose references are known by then; both models word their answers anew. Prints medians of wall and processor
seconds: on a busy machine only the latter say something.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
from numpy.typing import NDArray

from fine_tune_runner.dataset.taxonomy import Cause, load_taxonomy
from fine_tune_runner.evaluation.gate import decide
from fine_tune_runner.evaluation.harness import measure
from fine_tune_runner.evaluation.similarity import MiniLM
from fine_tune_runner.settings import Client, ClientConfig, load_settings
from fine_tune_runner.types import (
    Answerer,
    Dataset,
    Decoding,
    Embedder,
    Model,
    Prompt,
    Reply,
    VersionKey,
)

WORDS = (
    "banner consent purchase event tag trigger container server value currency duplicate transaction pixel",
    "conversion match rate cookie update default ordering push checkout page preview debug audience lead",
    "window listener template variable parameter redirect domain iframe payload hash order refund campaign",
)
KINDS = ("recall", "contrast")  # with labels, and without
RIGHT, LINE, NAMED = (
    0.75,
    0.85,
    0.10,
)  # shares: right; begins with a `Root cause:` line; names it in a sentence


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of holdout; seconds are medians."""

    kind: str
    questions: int
    cold_s: float
    warm_s: float
    cold_cpu_s: float
    warm_cpu_s: float
    cold_texts: int
    warm_texts: int


class Counting:
    """The embedder, and how many texts it was given."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.texts = 0

    @property
    def fingerprint(self) -> str:
        return self._embedder.fingerprint

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += len(texts)
        return self._embedder.embed(texts)


class Instant:
    """Models that answer at once: about the cause of the question, or about another one."""

    def __init__(self, causes: Mapping[str, Cause], seed: int) -> None:
        self._causes = causes
        self._seed = seed

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Mapping[str, Answerer]]:
        yield {model.model_id: self for model in models}

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        labels = sorted(self._causes)
        for prompt in prompts:
            draw = random.Random(f"{self._seed} {model_id} {prompt.question_id} {prompt.k}")
            own = labels[int(prompt.question_id[1:]) % len(labels)]
            label = own if draw.random() < RIGHT else draw.choice(labels)
            text = answer(draw, self._causes[label], draw.random())
            yield Reply(question_id=prompt.question_id, k=prompt.k, text=text, tokens=120)


def answer(draw: random.Random, cause: Cause, kind: float) -> str:
    """About 120 tokens; `kind` below LINE begins with the line, below LINE + NAMED with a sentence."""
    name = cause.label.replace("_", " ")
    said = f"Root cause: {cause.label}" if kind < LINE else f"The root cause is {name}."
    if kind >= LINE + NAMED:
        said = f"This happens because {cause.definition.lower()}"
    return f"{said}\n{words(draw, 70)}. Fix: {cause.typical_fix}"


def words(draw: random.Random, n: int) -> str:
    """n words of the trade."""
    return " ".join(draw.choices(" ".join(WORDS).split(), k=n)).capitalize()


def write_holdout(path: Path, causes: Mapping[str, Cause], questions: int, *, labelled: bool) -> None:
    """Rows q0, q1, ...; without labels no reference names its cause in a line."""
    labels = sorted(causes)
    with path.open("wb") as file:
        for i in range(questions):
            draw = random.Random(f"row {i}")
            cause = causes[labels[i % len(labels)]]
            turns = [
                {"role": "user", "content": f"{words(draw, 30)}?"},
                {"role": "assistant", "content": answer(draw, cause, 0.0 if labelled else LINE)},
            ]
            row = {
                "messages": turns,
                "eval": {"id": f"q{i}"} | ({"root_cause": cause.label} if labelled else {}),
            }
            file.write(msgspec.json.encode(row) + b"\n")


def evaluate(folder: Path, causes: Mapping[str, Cause], embedder: Embedder, seed: int) -> tuple[float, float]:
    """One evaluation of version 2 beside version 1; wall and processor seconds."""
    dataset = Dataset(
        client_id="bench",
        version=2,
        train_path="",
        holdout_path="",
        sha256="",
        holdout_sha256="",
        examples=0,
        holdout_examples=0,
        account_state_version="",
        system_prompt="You are a conversion tracking expert.",
    )
    new, old = (
        Model(model_id=name, track="B", provider="none", base_model="none", dataset_sha256="")
        for name in ("new", "old")
    )
    start = time.perf_counter(), time.process_time()
    report = measure(
        Client(id="bench", dir=folder, config=ClientConfig(client_id="bench")),
        dataset,
        new=new,
        key=VersionKey(version=2, track="B"),
        previous=(VersionKey(version=1, track="B"), old),
        base=None,
        serve=Instant(causes, seed).serve,
        embedder=embedder,
        decoding=Decoding(),
        answers_dir=folder / "answers",
        on_reply=lambda _label, _done, _total: None,
    )
    verdict = decide(report, 0.05)
    assert verdict.delta is not None, verdict.reason
    return time.perf_counter() - start[0], time.process_time() - start[1]


def row(kind: str, questions: int, rounds: int, minilm: Path, threads: int) -> Row:
    """Cold and warm evaluations in fresh folders."""
    causes = load_taxonomy(None).causes
    cold, warm, texts = [], [], (0, 0)
    for seed in range(rounds):
        # A new session each time; its weights are read before the clock starts.
        counting = Counting(MiniLM(minilm / "model.onnx", minilm / "tokenizer.json", threads=threads))
        counting.embed(["warm"])
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_holdout(folder / "v2_eval.jsonl", causes, questions, labelled=kind == "recall")
            counting.texts = 0
            cold.append(evaluate(folder, causes, counting, 2 * seed))
            first = counting.texts
            warm.append(evaluate(folder, causes, counting, 2 * seed + 1))
            texts = first, counting.texts - first
        said = [f"{wall:.1f} s ({cpu:.1f} s of processor)" for wall, cpu in (cold[-1], warm[-1])]
        print(f"  {kind} round {seed + 1}: cold {said[0]}, warm {said[1]}", flush=True)
    return Row(
        kind=kind,
        questions=questions,
        cold_s=median(wall for wall, _ in cold),
        warm_s=median(wall for wall, _ in warm),
        cold_cpu_s=median(cpu for _, cpu in cold),
        warm_cpu_s=median(cpu for _, cpu in warm),
        cold_texts=texts[0],
        warm_texts=texts[1],
    )


def main() -> None:
    """Measure, print, and write JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minilm", type=Path, default=load_settings(os.environ).models_dir / "minilm")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    table = [row(kind, given.questions, given.rounds, given.minilm, given.threads) for kind in KINDS]
    print(f"{given.questions} questions, two versions, {given.threads} thread(s), medians of {given.rounds}")
    for found in table:
        print(
            f"{found.kind:<10} cold {found.cold_s:5.1f} s ({found.cold_cpu_s:.1f} s of processor, "
            f"{found.cold_texts} texts embedded)   warm {found.warm_s:5.1f} s ({found.warm_cpu_s:.1f} s, "
            f"{found.warm_texts} texts)"
        )
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(table), indent=2))


if __name__ == "__main__":
    main()
