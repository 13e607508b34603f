"""Does it learn? Problem recall on fresh questions beside chance and nearest neighbours, by generator seed.

    make learn          (python benchmarks/learn.py [--seeds 0 1 2] [--questions 120] [--json learn.json])

Each seed makes other data; `teleios` v1 is trained on them as in the demo, exported, served by llama.cpp and
scored by the product's own evaluation. Answers are cut after `Root cause: <label>`, which alone decides.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.evaluation.answers import collect, score
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.files import sha256_file
from fine_tune_runner.private import bases
from fine_tune_runner.private.export import export_adapter
from fine_tune_runner.private.process import train
from fine_tune_runner.private.track import Embedded
from fine_tune_runner.private.train_spec import TrainSpec, resolve
from fine_tune_runner.runner import minilm
from fine_tune_runner.sample import write_clients, write_questions
from fine_tune_runner.settings import (
    DEFAULT_BASE,
    Client,
    Settings,
    load_account_state,
    load_client,
    load_settings,
)
from fine_tune_runner.types import Decoding, Embedder, Example, Model

CLIENT = "teleios"
LINE_TOKENS = 32  # the longest label's line has about 20


class Row(msgspec.Struct, frozen=True):
    """What one seed gave; scores are fractions of the questions."""

    seed: int
    recall: float
    chance: float
    majority: float
    tfidf: float
    minilm: float
    shared_5_grams: float
    unresolved: int
    train_s: float
    eval_s: float


def main() -> int:
    """Measure every seed, print the table, and write the JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    settings = load_settings(os.environ)
    rows = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory(prefix="learn-") as folder:
            data = msgspec.structs.replace(settings, data_dir=Path(folder) / "clients")
            rows.append(measure(data, seed, options.questions))
            base = bases.resolve(DEFAULT_BASE, settings, offline=True)
            training = msgspec.to_builtins(resolve(load_client(data, CLIENT).config.training, base.dir))
    report = summary(rows, options.questions, training)
    print(table(rows), f"\n{msgspec.json.encode(report['training']).decode()}")
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    return 0


def measure(settings: Settings, seed: int, questions: int) -> Row:
    """Generate, train, serve and score one seed; `settings.data_dir` is an empty place of its own."""
    write_clients(settings.data_dir, seed)
    client = load_client(settings, CLIENT)
    fresh = client.dir / "fresh_eval.jsonl"
    write_questions(fresh, seed, questions)
    started = time.monotonic()
    model = trained(settings, client, seed)
    between = time.monotonic()
    recall, unresolved = recall_of(settings, client, model, fresh, seed)
    done = time.monotonic()
    trained_rows, asked = list(examples(client.dir / "v1.jsonl")), list(examples(fresh))
    causes = Counter(map(cause, trained_rows))
    return Row(
        seed=seed,
        recall=recall,
        chance=1 / len(causes),
        majority=share(asked, [causes.most_common(1)[0][0]] * len(asked)),
        tfidf=share(asked, tfidf_neighbours(trained_rows, asked)),
        minilm=share(asked, minilm_neighbours(trained_rows, asked, minilm(settings))),
        shared_5_grams=shared_5_grams(trained_rows, asked),
        unresolved=unresolved,
        train_s=between - started,
        eval_s=done - between,
    )


def trained(settings: Settings, client: Client, seed: int) -> Model:
    """Train on v1 with the client's own settings, as `submit` does, and export."""
    base = bases.resolve(DEFAULT_BASE, settings, offline=True)
    attempt = client.dir / "runs" / "learn"
    spec = TrainSpec(
        base_dir=str(base.dir),
        train_path=str(client.dir / "v1.jsonl"),
        out_dir=str(attempt),
        training=client.config.training,
    )

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            say(
                f"seed {seed}: step {event['step']}/{event['total']}, loss {event['loss']:.2f}, "
                f"{event['tokens_per_s']:.0f} tokens/s, ETA {event['eta_s']:.0f} s"
            )

    summary = train(spec, on_event, stopping=lambda: False)
    artifact = export_adapter(spec.adapter_dir, base.dir, attempt / "adapter.gguf", {})
    return Model(
        model_id=f"{CLIENT}-client:v1",
        track="B",
        provider="embedded",
        base_model=base.name,
        dataset_sha256="",
        artifact=str(artifact.relative_to(client.dir)),
        artifact_sha256=sha256_file(artifact),
        training=summary,
    )


def recall_of(settings: Settings, client: Client, model: Model, fresh: Path, seed: int) -> tuple[float, int]:
    """(problem recall, answers that named no cause) at the temperature of service."""
    taxonomy = load_taxonomy(client.dir)
    holdout = load_holdout(fresh, taxonomy, load_account_state(client).system_prompt)
    decoding = Decoding(temperature=client.config.eval.temperature, max_tokens=LINE_TOKENS)
    with Embedded(settings, client).serve([model]) as answerer:
        replies = collect(
            answerer,
            model,
            holdout,
            decoding,
            on_reply=lambda done, total: say(f"seed {seed}: answer {done}/{total}"),
        )
    say("")
    card, _ = score(
        replies, holdout, taxonomy, minilm(settings), decoding, label="learn", model_id=model.model_id
    )
    if card.failed or card.recall is None:
        raise SystemExit(f"seed {seed}: {card.failed} questions got no answer; nothing was measured")
    return card.recall, len(card.unresolved)


def tfidf_neighbours(rows: Sequence[Example], asked: Sequence[Example]) -> list[str]:
    """The cause of the training question with the highest TF-IDF cosine (scikit-learn's defaults)."""
    vectorizer = TfidfVectorizer()
    known = vectorizer.fit_transform([row.question for row in rows])
    cosines = (vectorizer.transform([row.question for row in asked]) @ known.T).toarray()
    return [cause(rows[at]) for at in cosines.argmax(axis=1)]


def minilm_neighbours(rows: Sequence[Example], asked: Sequence[Example], embedder: Embedder) -> list[str]:
    """The cause of the training question with the highest MiniLM cosine."""
    known = embedder.embed([row.question for row in rows])
    cosines = embedder.embed([row.question for row in asked]) @ known.T
    return [cause(rows[at]) for at in cosines.argmax(axis=1)]


def shared_5_grams(rows: Sequence[Example], asked: Sequence[Example]) -> float:
    """Share of the word 5-grams of the questions, lower case, that occur in a training question."""

    def grams(example: Example) -> list[tuple[str, ...]]:
        words = re.findall(r"\w+", example.question.lower())
        return [tuple(words[at : at + 5]) for at in range(len(words) - 4)]

    known = {gram for row in rows for gram in grams(row)}
    found = [gram in known for row in asked for gram in grams(row)]
    return sum(found) / len(found)


def share(asked: Sequence[Example], guesses: Sequence[str]) -> float:
    """Share of the questions whose cause was guessed."""
    return sum(cause(row) == guess for row, guess in zip(asked, guesses, strict=True)) / len(asked)


def cause(example: Example) -> str:
    """The label of a sample answer's first line."""
    return example.answer.partition("\n")[0].removeprefix("Root cause: ")


def summary(rows: Sequence[Row], questions: int, training: dict[str, Any]) -> dict[str, Any]:
    """Everything measured, with the means over seeds and the training settings."""
    names = [name for name in Row.__struct_fields__ if name not in ("seed", "unresolved")]
    return {
        "client": CLIENT,
        "questions": questions,
        "training": training,
        "seeds": msgspec.to_builtins(rows),
        "mean": {name: float(np.mean([getattr(row, name) for row in rows])) for name in names},
    }


def table(rows: Sequence[Row]) -> str:
    """The figures as a Markdown table, seeds first and their mean last."""
    head = (
        "seed",
        "recall",
        "chance",
        "majority",
        "TF-IDF NN",
        "MiniLM NN",
        "shared 5-grams",
        "train s",
        "eval s",
    )
    names = ("recall", "chance", "majority", "tfidf", "minilm", "shared_5_grams")

    def line(name: str, of: Sequence[Row]) -> str:
        means = [f"{np.mean([getattr(row, column) for row in of]):.1%}" for column in names]
        seconds = [f"{np.mean([getattr(row, column) for row in of]):.0f}" for column in ("train_s", "eval_s")]
        return "| " + " | ".join((name, *means, *seconds)) + " |"

    body = [line(str(row.seed), [row]) for row in rows]
    rule = "|" + "---|" * len(head)
    return "\n".join(["| " + " | ".join(head) + " |", rule, *body, line("mean", rows)])


def say(text: str) -> None:
    """Progress on stderr: one line that is rewritten on a terminal, plain lines through a pipe."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
    elif text:
        sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    raise SystemExit(main())
