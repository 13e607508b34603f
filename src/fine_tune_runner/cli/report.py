"""`fine-tune report`: the report of a version, made again from what its run left behind."""

from __future__ import annotations

import webbrowser

import click

from fine_tune_runner.cli.common import client_option, echo, echo_json, notice, runner, track_option
from fine_tune_runner.errors import DataError
from fine_tune_runner.line import run_dir_of
from fine_tune_runner.settings import load_client
from fine_tune_runner.types import Track


@click.command("report")
@client_option
@click.option(
    "--version", type=click.IntRange(min=1), metavar="N", help="The version; the newest evaluated without."
)
@track_option
@click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")
@click.option("--json", "form", flag_value="json", help="Print it as one JSON object instead of its path.")
@click.option("--markdown", "form", flag_value="markdown", help="Print it as Markdown instead of its path.")
def report_command(
    client_id: str, version: int | None, track: Track | None, open_it: bool, form: str | None
) -> int:
    """Write the report of a version and print where it is: one HTML file that can be mailed and printed.

    Verdict, scores, every question with both answers, data findings, training curve, cost, provenance.
    Secrets and personal data are masked. JSON and Markdown with the same content lie beside it.

    \b
    Examples:
      fine-tune report --client hre
      fine-tune report --client hre --version 3 --open
      fine-tune report --client hre --markdown | less
      fine-tune report --client hre --json | jq .headline
    """
    from fine_tune_runner.evaluation.markdown import markdown
    from fine_tune_runner.evaluation.report import paths, rewrite_report

    line = runner()
    if version is None:
        entries = line.registry(client_id).entries()
        evaluated = [e for e in entries if e.evaluation and track in (None, e.track)]
        if not evaluated:
            raise DataError(
                f"no version of {client_id} was evaluated yet; fine-tune status says what there is, "
                f"fine-tune eval --client {client_id} --version N scores one"
            )
        entry = max(evaluated, key=lambda e: (e.version, e.created_at))
    else:
        entry = line.entry(client_id, version, track)
    folder = run_dir_of(load_client(line.settings, client_id), entry)
    whole = rewrite_report(folder)
    page = paths(folder).html
    if form == "json":
        echo_json(whole)
    elif form == "markdown":
        click.echo(markdown(whole), nl=False)
    else:
        echo(str(page))
    if open_it and not webbrowser.open(page.resolve().as_uri()):
        notice(f"no browser could be opened here; open {page.resolve()}")
    return 0
