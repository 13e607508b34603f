"""`fine-tune label`: what is listed, what --yes takes, and the dialogue on a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.evaluation.holdout import load_holdout
from tests.small_client import plain_row, write_rows

REFERENCES = (
    "Root cause: csp_blocks_tags\nAllow the tag.",
    "This happens because of currency mismatch. Send the code.",
    "It is certainly not a case of csp_blocks_tags.",
    "Nobody knows.",
)


@pytest.fixture
def client(tmp_path: Path) -> Path:
    folder = tmp_path / "clients" / "small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"client_id": "small"}')
    rows = [plain_row(f"Why {n}?", reference) for n, reference in enumerate(REFERENCES)]
    write_rows(folder / "v1_eval.jsonl", rows)
    return folder


def environment(client: Path) -> dict[str, str]:
    # No embedder: what is guessed by nearness does not depend on what was fetched here.
    return {"CLIENT_DATA_DIR": str(client.parent), "FINE_TUNE_MODELS_DIR": str(client.parent.parent / "none")}


def label(client: Path, *more: str) -> Result:
    words = ["label", "--client", "small", "--version", "1", *more]
    return CliRunner().invoke(fine_tune, words, env=environment(client))


def labels(client: Path) -> list[str | None]:
    return [q.label for q in load_holdout(client / "v1_eval.jsonl", load_taxonomy(client)).questions]


def test_through_a_pipe_proposals_are_listed_and_nothing_is_written(client: Path) -> None:
    result = label(client)
    assert "currency_mismatch (its reference commits to it)" in result.stdout
    assert "csp_blocks_tags (a guess: the only cause that its reference mentions)" in result.stdout
    assert "4 rows: 0 with a label, 1 with one from their line “Root cause:”, 3 without" in result.stdout
    assert "nothing is guessed by nearness" in result.stderr
    assert not (client / "v1_labels.jsonl").exists()


def test_json_lists_them_as_objects(client: Path) -> None:
    *found, end = [json.loads(line) for line in label(client, "--json").stdout.splitlines()]
    assert [(p["id"], p["label"], p["source"]) for p in found] == [
        ("v1_eval:2", "currency_mismatch", "committed"),
        ("v1_eval:3", "csp_blocks_tags", "mentioned"),
        ("v1_eval:4", None, None),
    ]
    assert (end["event"], end["labels"]) == ("labelled", 0)


def test_yes_takes_what_references_commit_to_and_never_a_guess(client: Path) -> None:
    result = label(client, "--yes")
    assert "1 labels written" in result.stdout
    assert "2 rows stay without a label" in result.stdout
    assert labels(client) == ["csp_blocks_tags", "currency_mismatch", None, None]
    assert "currency_mismatch" not in label(client).stdout


def test_a_person_on_a_terminal_confirms_corrects_and_leaves_out(client: Path) -> None:
    """Enter takes the sure one; a guess is not taken by Enter, but another name is; - leaves the last out."""
    terminal, there = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "fine_tune_runner", "label", "--client", "small", "--version", "1"],
        env=os.environ | environment(client) | {"NO_COLOR": "1", "TERM": "xterm"},
        stdin=there,
        stdout=there,
        stderr=subprocess.DEVNULL,
    )
    os.close(there)
    os.write(terminal, b"\n\nno such cause\nsgtm_domain_dns\n-\n")
    seen = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(terminal)
    assert child.wait() == 0
    assert "'no such cause' is no cause of the taxonomy" in seen.decode()
    assert labels(client) == ["csp_blocks_tags", "currency_mismatch", "sgtm_domain_dns", None]
    kept = [json.loads(line) for line in (client / "v1_labels.jsonl").read_text().splitlines()]
    assert [(k["root_cause"], k["source"], k["id"]) for k in kept] == [
        ("currency_mismatch", "committed", "v1_eval:2"),
        ("sgtm_domain_dns", "person", "v1_eval:3"),
    ]
