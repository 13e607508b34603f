"""`fine-tune demo`: the main job on sample data, by the very commands a user would type."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from fine_tune_runner import cli
from fine_tune_runner.cli.common import echo, table
from fine_tune_runner.errors import RunnerError, UsageError

MARKER = ".fine-tune-demo"
# The worse version needs no long training to be worse.
WORSE_EPOCHS = 1


class Stages:
    """Runs commands in-process, shows each as it would be typed, and remembers its seconds."""

    def __init__(self) -> None:
        self.seconds: list[tuple[str, float]] = []

    def command(self, name: str, *arguments: str, expect: int = 0) -> None:
        """Run one command; RunnerError where its exit code is not the expected one."""
        echo(f"\n$ fine-tune {shlex.join(arguments)}", fg="cyan")
        started = time.monotonic()
        code = cli.main(arguments)
        self.seconds.append((name, time.monotonic() - started))
        if code != expect:
            raise RunnerError(f"the demo stopped: exit code {code} where {expect} was expected")
        if code:
            echo(f"(exit code {code}, as it should be)")

    def step(self, name: str, do: Callable[[], None]) -> None:
        """Do something that is no command."""
        started = time.monotonic()
        do()
        self.seconds.append((name, time.monotonic() - started))


@click.command("demo")
@click.option("--seed", default=0, show_default=True, help="Other sample data.")
@click.option("--dir", "folder", default="demo", show_default=True, type=click.Path(path_type=Path))
def demo_command(seed: int, folder: Path) -> int:
    """Train, promote, refuse and roll back on sample data, in a folder that stays to look at.

    \b
    Examples:
      fine-tune demo
      fine-tune demo --seed 7 --dir demo-7
    """
    from fine_tune_runner.sample.generate import questions, write_clients, write_worse_version

    data = fresh(folder) / "clients"
    os.environ["CLIENT_DATA_DIR"] = str(data)
    stages = Stages()
    echo(f"Sample data (seed {seed}) in {data}: made up, no client's. All training and serving is real.")
    stages.step("generate three clients", lambda: write_clients(data, seed))
    stages.command("status", "status")
    # One answer a question keeps the demo within five minutes; without it the guard begins with three.
    submit = ("submit", "--client", "teleios", "--answers", "1", "--version")
    stages.command("v1: train, evaluate, promote", *submit, "1")
    stages.command("ask", "ask", "--client", "teleios", questions(seed, 1)[0].question)
    echo("\nNow a v2 that is worse on purpose: each cause answers with its neighbour's, consistently,")
    echo("so that no check of the data can see it. Only the guard can.")

    def worse() -> None:
        write_worse_version(data, "teleios", 2, seed)
        set_epochs(data / "teleios" / "config.json", WORSE_EPOCHS)

    stages.step("generate a worse v2", worse)
    stages.command("v2: train, evaluate, refuse", *submit, "2", expect=3)
    stages.command("status", "status")
    reason = "demo: to show that a person may, and that it stays on record"
    stages.command("override", "promote", "--client", "teleios", "--version", "2", "--override", reason)
    stages.command(
        "rollback", "rollback", "--client", "teleios", "--version", "1", "--why", "demo: v2 is worse"
    )
    stages.command("status", "status")
    stages.command("history", "history", "--client", "teleios")
    stages.command("verify", "verify")
    echo()
    total = sum(seconds for _, seconds in stages.seconds)
    rows = [(name, f"{seconds:.1f}") for name, seconds in [*stages.seconds, ("in all", total)]]
    table(("stage", "seconds"), rows)
    echo(f"\nLook around: {data}/teleios/runs/*/report.md, {data}/teleios/model_registry.json")
    echo(f"Go on: CLIENT_DATA_DIR={data} .venv/bin/fine-tune status")
    return 0


def fresh(folder: Path) -> Path:
    """An empty demo folder; one of an earlier demo is cleared, any other is left alone."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER).exists():
        raise UsageError(f"{folder} holds something that no demo made; give another one with --dir")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARKER).write_text("made by fine-tune demo; cleared by the next one\n")
    return folder


def set_epochs(path: Path, epochs: int) -> None:
    """Change one setting in a config.json, as an agency would."""
    config = msgspec.json.decode(path.read_bytes())
    config.setdefault("training", {})["epochs"] = epochs
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
