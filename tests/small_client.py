"""A small client that passes every check, with a tiny random Llama as its base: the whole line in seconds."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPT = "You are a conversion tracking expert for Small.\nGTM: GTM-TEST | 3 tags\nKnown: nothing yet"
CAUSES = ("duplicate_tag_install", "currency_mismatch", "csp_blocks_tags", "fbp_fbc_cookie_missing")
WORDS = (
    "amber basil cedar delta ember fjord grove heron indigo juniper krill lotus maple nectar ochre "
    "pearl quartz raven sable topaz umber violet willow xenon yarrow zephyr anchor breeze canyon "
    "dune"
).split()
HOLDOUT_WORDS = (
    "abbey brook cliff dolphin engine ferry glacier harbour island jetty kiosk lantern meadow north orchard"
).split()

# One thread: two of them collapse where the machine is shared (facts/ollama.md).
TRAINING = {
    "epochs": 1,
    "layers": "all",
    "rank": 4,
    "batch_size": 8,
    "checkpoint_every": 1,
    "threads": 1,
}


def row(question: str, cause: str, **extra: Any) -> dict[str, Any]:
    """One chat example in the format of spec.md."""
    answer = f"Root cause: {cause}\nThe evidence points there. Fix it and verify with one test order."
    return {
        "messages": [
            {"role": "system", "content": PROMPT},
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ],
        **extra,
    }


def plain_row(question: str, answer: str, **labels: Any) -> dict[str, Any]:
    """One chat example without a system prompt; `labels` are its `eval`."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **({"eval": labels} if labels else {})}


def train_rows(n: int = 60) -> list[dict[str, Any]]:
    """`n` rows whose questions are far from each other."""
    rows = []
    for i in range(n):
        words = random.Random(i).sample(WORDS, 8)
        rows.append(row(f"Trouble: {' '.join(words)}", CAUSES[i % len(CAUSES)]))
    return rows


def holdout_rows(n: int = 12) -> list[dict[str, Any]]:
    """`n` rows in words that no training row has."""
    rows = []
    for i in range(n):
        words = random.Random(i).sample(HOLDOUT_WORDS, 6)
        cause = CAUSES[i % len(CAUSES)]
        labels = {"id": f"small-{i:03}", "root_cause": cause}
        rows.append(row(f"Why does {' '.join(words)} look odd?", cause, eval=labels))
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines, ending in a line feed."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def write_version(folder: Path, version: int, rows: list[dict[str, Any]] | None = None) -> None:
    """`v{N}.jsonl` and `v{N}_eval.jsonl`."""
    write_rows(folder / f"v{version}.jsonl", rows if rows is not None else train_rows())
    write_rows(folder / f"v{version}_eval.jsonl", holdout_rows())


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The JSON objects of a `--json` run."""
        return [json.loads(line) for line in self.out.splitlines()]


class Workplace:
    """A data folder with the client `small`, and the command `fine-tune` in processes of its own."""

    def __init__(self, folder: Path, base: Path, models_dir: Path) -> None:
        self.folder = folder
        self.data = folder / "clients"
        self.client = self.data / "small"
        self.client.mkdir(parents=True)
        models = folder / "models"
        models.mkdir()
        (models / "minilm").symlink_to(models_dir / "minilm")
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "CLIENT_DATA_DIR": str(self.data),
            "FINE_TUNE_MODELS_DIR": str(models),
            "OMP_NUM_THREADS": "2",
        }
        self.config: dict[str, Any] = {
            "client_id": "small",
            "client_name": "SMALL",
            "track_preference": "b",
            "base_model": str(base),
            "training": TRAINING,
            "eval": {"max_tokens": 24},
        }
        self.write_config()
        (self.client / "account_state.json").write_text(
            json.dumps({"version": "1.0.0", "system_prompt": PROMPT})
        )
        write_version(self.client, 1)

    def write_config(self, **changes: Any) -> None:
        """Write config.json with changes laid over it."""
        self.config |= changes
        (self.client / "config.json").write_text(json.dumps(self.config))

    def command(self, *arguments: str) -> list[str]:
        """The command line of a `fine-tune` process."""
        return [sys.executable, "-m", "fine_tune_runner", *arguments]

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> Result:
        """Run a command to its end."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env | (env or {}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command and leave it running, its output in a pipe."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def submit(self, version: int = 1, *more: str) -> Result:
        """`fine-tune submit` of the client."""
        return self.run("submit", "--client", "small", "--version", str(version), *more)

    def registry(self) -> list[dict[str, Any]]:
        """The registry as a router reads it."""
        rows: list[dict[str, Any]] = json.loads((self.client / "model_registry.json").read_text())
        return rows
