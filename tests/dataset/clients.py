"""Small clients on disk for the data set tests: rows of the usual shape with one thing wrong at a time."""

from __future__ import annotations

import random
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import msgspec

from fine_tune_runner.settings import Client, ClientConfig

PROMPT = "You are a conversion tracking expert for HRE."
CAUSES = (
    "duplicate_tag_install",
    "purchase_refires_on_reload",
    "consent_update_missing",
    "currency_mismatch",
    "csp_blocks_tags",
    "meta_event_id_mismatch",
)
Row = dict[str, Any]


def question(n: int) -> str:
    """A question that no other n comes near to."""
    letters = random.Random(n)
    return " ".join("".join(letters.choices(ascii_lowercase, k=6)) for _ in range(8)) + "?"


def row(n: int, *, user: str | None = None, answer: str | None = None, **extra: Any) -> Row:
    """The n-th row; `extra` keys stand beside `messages`."""
    cause = CAUSES[n % len(CAUSES)]
    return {
        "messages": [
            {"role": "system", "content": PROMPT},
            {"role": "user", "content": question(n) if user is None else user},
            {"role": "assistant", "content": f"Root cause: {cause}\nFix {n}." if answer is None else answer},
        ],
        **extra,
    }


def write(path: Path, rows: list[Row | bytes]) -> Path:
    """Rows as JSONL; bytes go in as they are."""
    path.write_bytes(b"".join((r if isinstance(r, bytes) else msgspec.json.encode(r)) + b"\n" for r in rows))
    return path


def client(
    folder: Path,
    *,
    train: list[Row | bytes] | None = None,
    holdout: list[Row | bytes] | None = None,
    version: int = 3,
    **config: Any,
) -> Client:
    """A client `hre` with 60 clean rows and a clean holdout of 12, unless handed others."""
    folder = folder / "hre"
    folder.mkdir(exist_ok=True)
    (folder / "account_state.json").write_bytes(
        msgspec.json.encode({"version": "1.2.0", "system_prompt": PROMPT})
    )
    write(folder / f"v{version}.jsonl", [row(n) for n in range(60)] if train is None else train)
    write(
        folder / f"v{version}_eval.jsonl", [row(n) for n in range(300, 312)] if holdout is None else holdout
    )
    return Client(id="hre", dir=folder, config=ClientConfig(client_id="hre", **config))
