"""`fine-tune label`: labels for a holdout that came without, proposed here and confirmed by a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fine_tune_runner.cli.common import (
    client_option,
    echo,
    echo_json,
    interactive,
    json_option,
    notice,
    runner,
    version_option,
)
from fine_tune_runner.errors import MissingModel
from fine_tune_runner.policy.egress import policy_of
from fine_tune_runner.policy.guard import guarded
from fine_tune_runner.runner import FineTuneRunner, minilm
from fine_tune_runner.settings import Client, load_client

if TYPE_CHECKING:
    from fine_tune_runner.dataset.labels import Source
    from fine_tune_runner.dataset.taxonomy import Taxonomy
    from fine_tune_runner.evaluation.holdout import Holdout
    from fine_tune_runner.evaluation.proposals import Proposal

FROM = {
    "line": "its line “Root cause:” says so",
    "committed": "its reference commits to it",
    "mentioned": "a guess: the only cause that its reference mentions",
    "nearest": "a guess: the nearest cause by embedding",
}


@click.command("label")
@client_option
@version_option
@click.option("--yes", is_flag=True, help="Take what references commit to without asking; never a guess.")
@json_option
def label_command(client_id: str, version: int, yes: bool, as_json: bool) -> int:
    """Propose a root cause for each holdout row without one, and write what is confirmed beside the holdout.

    The holdout itself stays as it is; from now on it is read with v{N}_labels.jsonl. Without a terminal, or
    with --json, proposals are only listed, unless --yes takes the sure ones.

    \b
    Examples:
      fine-tune label --client hre --version 3
      fine-tune label --client hre --version 3 --yes
      fine-tune label --client hre --version 3 --json | jq -c '{id, label, source}'
    """
    from fine_tune_runner.dataset.labels import labels_path
    from fine_tune_runner.dataset.read import holdout_path
    from fine_tune_runner.dataset.taxonomy import load_taxonomy
    from fine_tune_runner.evaluation.holdout import load_holdout

    line = runner()
    client = load_client(line.settings, client_id)
    taxonomy, path = load_taxonomy(client.dir), holdout_path(client.dir, version)
    holdout = load_holdout(path, taxonomy)
    found = _proposed(line, client, holdout, taxonomy)
    target = labels_path(path)
    if as_json:
        for proposal in found:
            echo_json(proposal)
    if yes:
        taken = [(p, p.label, p.source) for p in found if p.sure and p.label and p.source]
        _write(line, target, taken)
    elif as_json or not interactive():
        taken = []
        _list(found, as_json)
    else:
        taken = _dialogue(line, target, found, taxonomy)
    if as_json:
        echo_json({"event": "labelled", "path": str(target), "labels": len(taken)})
    else:
        _say(client_id, version, holdout, found, len(taken), target)
    return 0


def _proposed(
    line: FineTuneRunner, client: Client, holdout: Holdout, taxonomy: Taxonomy
) -> Sequence[Proposal]:
    from fine_tune_runner.evaluation.proposals import proposals

    with guarded(policy_of(line.settings, client)):
        try:
            embedder = minilm(line.settings)
        except MissingModel as error:
            notice(f"nothing is guessed by nearness: {error}")
            embedder = None
        return proposals(holdout, taxonomy, embedder)


def _write(line: FineTuneRunner, target: Path, taken: Sequence[tuple[Proposal, str, Source]]) -> None:
    from fine_tune_runner.dataset.labels import Label, add_labels

    words: dict[str, Any] = {"who": line.who, "at": line.clock()}
    labels = [
        Label(row=proposal.row, root_cause=cause, source=source, id=proposal.id, **words)
        for proposal, cause, source in taken
    ]
    if labels:
        add_labels(target, labels)


def _dialogue(
    line: FineTuneRunner, target: Path, found: Sequence[Proposal], taxonomy: Taxonomy
) -> list[tuple[Proposal, str, Source]]:
    """Ask about each row; what was confirmed is on disk before the next question."""
    taken: list[tuple[Proposal, str, Source]] = []
    for number, proposal in enumerate(found, 1):
        _show(proposal, f"[{number}/{len(found)}] ")
        while True:
            take = "Enter or y takes it" if proposal.sure else "y takes the guess" if proposal.label else ""
            words = ", ".join(filter(None, (take, "or another cause", "- for none", "q to quit")))
            word = click.prompt(words, default="y" if proposal.sure else None, show_default=False).strip()
            if word in ("q", "-"):
                break
            label = proposal.label if word == "y" else taxonomy.resolve(word)
            source = proposal.source if word == "y" else "person"
            if label is not None and source is not None:
                taken.append((proposal, label, source))
                _write(line, target, taken[-1:])
                break
            echo(f"  {word!r} is no cause of the taxonomy; add it to taxonomy.jsonl, or name another one")
        if word == "q":
            break
    return taken


def _show(proposal: Proposal, head: str = "") -> None:
    echo()
    echo(f"{head}{proposal.id} · line {proposal.line}", fg="cyan")
    said = f"{proposal.label} ({FROM[proposal.source]})" if proposal.label and proposal.source else "nothing"
    for name, text in (
        ("Question", proposal.asked),
        ("Reference", proposal.reference),
        ("Proposed", said),
        ("Nearest", ", ".join(f"{label} {cosine:.2f}" for label, cosine in proposal.nearest)),
    ):
        for place, part in enumerate(text.splitlines()):
            echo(f"  {name + ':' if place == 0 else '':<14}{part}")


def _list(found: Sequence[Proposal], as_json: bool) -> None:
    if not as_json:
        for proposal in found:
            _show(proposal)
        echo()


def _say(
    client_id: str, version: int, holdout: Holdout, found: Sequence[Proposal], taken: int, target: Path
) -> None:
    had = Counter(q.labelled for q in holdout.questions if q.labelled)
    echo(
        f"{len(holdout.questions)} rows: {had['given']} with a label, {had['derived']} with one from their "
        f"line “Root cause:”, {len(found)} without"
    )
    if taken:
        echo(f"✓ {target}: {taken} labels written", fg="green")
    if taken < len(found):
        echo(f"{len(found) - taken} rows stay without a label; confirm them on a terminal")
    if taken:
        words = f"--client {client_id} --version {version}"
        echo(f"Stored answers are scored by them with: fine-tune review {words}")
