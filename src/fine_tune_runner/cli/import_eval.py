"""`fine-tune import-eval`: a holdout out of an OpenAI Evals export or a promptfoo file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fine_tune_runner.cli.common import client_option, echo, echo_json, json_option, runner, version_option
from fine_tune_runner.errors import DataError
from fine_tune_runner.settings import load_account_state, load_client

if TYPE_CHECKING:
    from fine_tune_runner.dataset.imported import Format, Imported


@click.command("import-eval")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@client_option
@version_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["openai", "promptfoo"]),
    help="What the file is; else its content shows it.",
)
@click.option("--question", metavar="KEY", help="Where the question stands in an item or among the vars.")
@click.option("--reference", metavar="KEY", help="Where the reference answer stands.")
@click.option("--dry-run", is_flag=True, help="Only say what would be written.")
@json_option
def import_eval_command(
    file: Path,
    client_id: str,
    version: int,
    form: Format | None,
    question: str | None,
    reference: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Make a version's holdout from an export of OpenAI Evals or from promptfoo; it is never overwritten.

    OpenAI: JSON lines (or a JSON list) of {"item": ...}, run output items, or {"input", "ideal"} samples.
    promptfoo: a config or a list of tests (YAML, JSON), CSV with __expected, or exported results (JSON); the
    reference comes from assertions such as equals, similar, contains. Rows that could not be read are named;
    exit code 1 where there are any.

    \b
    Examples:
      fine-tune import-eval evals.jsonl --client hre --version 3 --dry-run
      fine-tune import-eval promptfooconfig.yaml --client hre --version 3
      fine-tune import-eval items.jsonl --client hre --version 3 --question ticket --reference cause
    """
    from fine_tune_runner.dataset.foreign import Keys
    from fine_tune_runner.dataset.imported import import_file, write_holdout
    from fine_tune_runner.dataset.read import holdout_path
    from fine_tune_runner.dataset.taxonomy import load_taxonomy

    client = load_client(runner().settings, client_id)
    target = holdout_path(client.dir, version)
    if target.exists():
        raise DataError(f"{target} is there already and stays as it is; name another version")
    known = (client.dir / "account_state.json").is_file()
    prompt = load_account_state(client).system_prompt if known else None
    keys = Keys(question=question, reference=reference)
    found = import_file(file, form, keys, load_taxonomy(client.dir), prompt)
    written = bool(found.rows) and not dry_run
    if written:
        write_holdout(target, found.rows)
    if as_json:
        _say_json(file, target, found, written)
    else:
        _say(file, target, found, written)
        if written:
            words = f"--client {client_id} --version {version}"
            echo(f"Next: fine-tune check {words}, and where labels are missing: fine-tune label {words}")
    return int(bool(found.unread) or not found.rows)


def _say(file: Path, target: Path, found: Imported, written: bool) -> None:
    for row in found.unread:
        echo(f"{file} {row.place}: {row.why}; {row.remedy}", err=True, fg="yellow")
    if found.rows:
        what = "written" if written else "would be written"
        echo(f"✓ {target}: {len(found.rows)} rows {what} ({found.format}), {found.labelled} with a label")
    else:
        echo(f"✗ {file}: no row could be read, so nothing is written ({found.format})", err=True, fg="red")
    if found.repeated:
        echo(f"  {found.repeated} rows came again and were left out")
    if found.unread:
        echo(f"  {len(found.unread)} rows were not read; they are named above", err=True)


def _say_json(file: Path, target: Path, found: Imported, written: bool) -> None:
    for row in found.unread:
        echo_json(
            {
                "event": "not read",
                "file": str(file),
                "place": row.place,
                "why": row.why,
                "remedy": row.remedy,
            }
        )
    counts = {"rows": len(found.rows), "labelled": found.labelled, "repeated": found.repeated}
    echo_json(
        {"event": "imported", "format": found.format, "path": str(target), "written": written, **counts}
        | {"not_read": len(found.unread)}
    )
