"""Three seeded sample clients as files, `hre`, `teleios` and `rtt`, and a version that is worse on purpose.

The same seed writes the same bytes on every machine. Causes, definitions and fixes come from the shipped
taxonomy; everything written is labelled as sample data.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import ConfigError, UsageError
from fine_tune_runner.sample.wordings import (
    ClientText,
    Part,
    Wordings,
    causes,
    clients,
    neighbour,
    notes,
    part_of,
)
from fine_tune_runner.types import EvalLabels, Example, Message

# (client, version, training rows, holdout rows). hre v2 is the beginning of v3, as an upstream that only adds
# would have it; the holdouts likewise.
VERSIONS: tuple[tuple[str, int, int, int], ...] = (
    ("hre", 2, 84, 10),
    ("hre", 3, 112, 12),
    ("teleios", 1, 112, 12),
    ("rtt", 1, 31, 12),
)
TRAIN_ROWS = 112
WORSE_ROWS = 52  # enough for the gate; being wrong takes no more
HOLDOUT_ROWS = 12


def write_clients(root: Path, seed: int) -> None:
    """Write the three clients below `root`, each a folder in the formats of the spec.

    Raises ConfigError where one of the folders exists: nobody's files are overwritten.
    """
    taken = [root / client_id for client_id in clients() if (root / client_id).exists()]
    if taken:
        raise ConfigError(f"{taken[0]} exists already; sample clients are written into an empty folder only")
    for client in clients().values():
        folder = root / client.client_id
        folder.mkdir(parents=True)
        config = {"client_id": client.client_id, "client_name": client.client_name, **client.config}
        _write_json(folder / "config.json", config | {"sample_data": True})
        state = {"version": client.account_state_version, "system_prompt": "\n".join(client.prompt)}
        _write_json(folder / "account_state.json", state | {"sample_data": True})
    for client_id, version, train, holdout in VERSIONS:
        _write_version(root, client_id, version, seed, train=train, holdout=holdout)


def write_worse_version(root: Path, client_id: str, version: int, seed: int) -> None:
    """Write a version whose training answers all name the neighbour's cause, beside the unchanged holdout.

    Every check passes, because the error is consistent: only the regression guard can find it.
    """
    _write_version(root, client_id, version, seed, train=WORSE_ROWS, holdout=HOLDOUT_ROWS, worse=True)


def questions(seed: int, n: int, client_id: str = "teleios") -> tuple[Example, ...]:
    """`n` fresh holdout rows of a client, causes in equal shares, in wordings that no file of `seed` has."""
    return _examples(clients()[client_id], seed, "fresh", n)


def write_questions(path: Path, seed: int, n: int, client_id: str = "teleios") -> None:
    """Write `questions` as a holdout file; its folder exists."""
    _write_rows(path, questions(seed, n, client_id), seed)


def _write_version(
    root: Path, client_id: str, version: int, seed: int, *, train: int, holdout: int, worse: bool = False
) -> None:
    client = clients()[client_id]
    stem = root / client_id / f"v{version}"
    _write_rows(
        stem.with_name(f"{stem.name}.jsonl"),
        _examples(client, seed, "train", TRAIN_ROWS, worse=worse)[:train],
        seed,
    )
    _write_rows(
        stem.with_name(f"{stem.name}_eval.jsonl"),
        _examples(client, seed, "holdout", HOLDOUT_ROWS)[:holdout],
        seed,
    )


def _examples(
    client: ClientText, seed: int, part: Part, n: int, *, worse: bool = False
) -> tuple[Example, ...]:
    wordings = part_of(seed, part)
    labels = [cause for cause, text in causes().items() if text.pair in client.pairs]
    combinations = len(wordings.evidence[labels[0]]) * len(wordings.symptoms[client.pairs[0]])
    if n > combinations * len(labels):
        raise UsageError(f"{n} {part} rows: the wordings give at most {combinations * len(labels)}")
    rng = random.Random(f"{seed} {client.client_id} {part}")
    # Round by round, so that a shorter version has all causes too. The k-th rows of both causes of a pair
    # have the same symptom, so the symptom cannot tell them apart.
    rounds = range(1 + n // len(labels))
    turns = [(cause, k) for k in rounds for cause in rng.sample(labels, len(labels))][:n]
    rows = []
    for line, (cause, k) in enumerate(turns, 1):
        question = _question(client, wordings, cause, k, rng)
        answer = _answer(client, neighbour(cause) if worse else cause, rng)
        name = f"{client.client_id}-{part}-{line:03}"
        rows.append(
            Example(
                line=line,
                messages=(
                    Message(role="system", content="\n".join(client.prompt)),
                    Message(role="user", content=question),
                    Message(role="assistant", content=answer),
                ),
                eval=None if part == "train" else EvalLabels(id=name, root_cause=cause),
            )
        )
    return tuple(rows)


def _question(client: ClientText, wordings: Wordings, cause: str, k: int, rng: random.Random) -> str:
    evidence = wordings.evidence[cause]
    symptoms = wordings.symptoms[causes()[cause].pair]
    sentences = [symptoms[k % len(symptoms)], evidence[k % len(evidence)]]
    if rng.random() < 0.25:
        sentences.reverse()
    if rng.random() < 0.25:
        sentences.insert(0, rng.choice(wordings.openers))
    if rng.random() < 0.4:
        sentences.append(rng.choice(wordings.closers))
    return _fill(" ".join(sentences), client, rng)


def _answer(client: ClientText, cause: str, rng: random.Random) -> str:
    known, text = load_taxonomy(None).causes[cause], causes()[cause]
    because = _fill(rng.choice(text.because), client, rng)
    verify = _fill(rng.choice(text.verify), client, rng)
    why, fix = f"{known.definition} {because}", f"Fix: {known.typical_fix} {verify} {rng.choice(notes())}"
    return f"Root cause: {cause}\n{why}\n{fix}"


def _fill(template: str, client: ClientText, rng: random.Random) -> str:
    words = {slot: rng.choice(choices) for slot, choices in client.words.items()}
    plural = words["conv"] + "s"
    numbers = {"n": rng.randint(12, 88), "pct": rng.randint(12, 88)}
    return template.format(**words, **numbers, convs=plural, Convs=plural.capitalize())


def _write_rows(path: Path, examples: Sequence[Example], seed: int) -> None:
    label = {"sample_data": True, "generator": "fine-tune-runner", "seed": seed}
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            row = {"messages": msgspec.to_builtins(example.messages)}
            if example.eval:
                row["eval"] = msgspec.to_builtins(example.eval)
            file.write(json.dumps(row | {"metadata": label}, ensure_ascii=False) + "\n")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
