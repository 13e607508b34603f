"""`fine-tune doctor`: the set-up, how long models in service live, and what disagrees or nobody watches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import click

from fine_tune_runner.cli.common import echo, echo_json, interactive, json_option, notice, runner, table
from fine_tune_runner.cli.runs import go_on
from fine_tune_runner.doctor import Checkup, Serving, Stray, delete, examine
from fine_tune_runner.errors import RunnerError
from fine_tune_runner.health import Check, check_machine
from fine_tune_runner.reconcile import Disagreement, disagreements, mend
from fine_tune_runner.runner import FineTuneRunner, utc_now

PAINT = {"ok": None, "off": "yellow", "bad": "red"}
DONE = {"adopt": "adopted", "delete": "deleted", "clean up": "cleaned up", "move": "moved"}
SOURCES = {"provider": "the provider says", "published": "published", "unknown": "no end known"}


def _days(_ctx: click.Context, _param: click.Parameter, value: str) -> int:
    match = re.fullmatch(r"(\d{1,5})d?", value)
    if match is None:
        raise click.BadParameter("give days, such as 60d")
    return int(match[1])


@click.command("doctor")
@click.option(
    "--within", default="60d", show_default=True, metavar="DAYS", callback=_days, help="Exit 1 below."
)
@click.option("--yes", is_flag=True, help="Do not ask: adopt what can go on, delete or clean up the rest.")
@json_option
def doctor_command(within: int, yes: bool, as_json: bool) -> int:
    """Look over the set-up, and list every model in service with the days it has left.

    The set-up: keys, hosts, disk, clock, versions, weights and extras, each with what mends it. Exit 1 where
    a model has fewer days than --within.

    Where OPENAI_API_KEY is set the provider is asked; published dates count where not. It also lists jobs and
    files at the provider that no run watches, and calls that were cut off, and offers to adopt or delete
    them: exit 1 while one is left. What belongs to no client of this data folder is left alone.

    And it lists what disagrees: a registered model that is gone, a finished run that is not registered, a
    workflow of a run that is gone or finished, a queued run without a workflow, training that waits for a
    host without a worker. Each is adopted, cleaned up or moved when you say so: exit 1 while one is left.

    For a client that became sensitive nothing but ids is sent: it warns of all that is still there, offers to
    delete it, and exits 1 while a hosted version of it is in service.

    What nobody was told yet goes to the addresses in "notify" of the client's config: runs that ended badly
    while nobody looked, and models in service with fewer than 60 days left.

    \b
    Examples:
      fine-tune doctor
      fine-tune doctor --within 90d --json
      fine-tune doctor --yes
    """
    line = runner()
    checks = check_machine(line.settings, utc_now, database=line.engine.live)
    (_checks_json if as_json else _checks_text)(checks)
    found = examine(line, utc_now().date(), notice)
    show = _json if as_json else _text
    show(found, within)
    left = 0
    for one in disagreements(line, notice, found.gone):
        if as_json:
            echo_json({"event": "disagreement", "found": one})
        else:
            _told(one)
        ways: Mapping[str, Callable[[], object]] = {one.how: partial(mend, line, one)} if one.how else {}
        left += not _settled(one.subject, ways, yes, as_json)
    for stray in found.strays:
        if stray.ours:
            left += not _settled(stray.found.id, _offers(line, stray, as_json), yes, as_json)
    for effect in found.doubts:
        adopt = {"adopt": partial(go_on, effect.run_id, None, True, as_json)}
        left += not _settled(f"{effect.step} of {effect.run_id}", adopt, yes, as_json)
    # Last, for after an alert of a sensitive client this process reaches nothing outside its network.
    line.alerts.look(line.engine, found.serving)
    return int(left > 0 or any(one.within(within) or one.exposed for one in found.serving))


def _offers(line: FineTuneRunner, stray: Stray, as_json: bool) -> Mapping[str, Callable[[], object]]:
    """What can be done about it, the best first."""
    gone = partial(delete, line, stray)
    if stray.found.adopt is None or stray.found.run_id is None:
        return {"delete": gone}
    return {"adopt": partial(go_on, stray.found.run_id, None, True, as_json), "delete": gone}


def _settled(what: str, offers: Mapping[str, Callable[[], object]], yes: bool, as_json: bool) -> bool:
    """Do what was chosen; False where it was left as it is."""
    choice = next(iter(offers), "leave") if yes else "leave"
    if offers and not yes and not as_json and interactive():
        choice = click.prompt(what, type=click.Choice([*offers, "leave"]), default="leave")
    if choice == "leave":
        return False
    try:
        offers[choice]()
    except RunnerError as error:
        notice(f"{what}: {error}")
        return False
    if as_json:
        echo_json({"event": "settled", "what": what, "how": choice})
    else:
        echo(f"✓ {what}: {DONE[choice]}", fg="green")
    return True


def _checks_json(checks: Sequence[Check]) -> None:
    for check in checks:
        echo_json({"event": "set-up", "check": check})


def _checks_text(checks: Sequence[Check]) -> None:
    header = ("set-up", "state", "found", "remedy")
    rows = [(check.what, check.state, check.found, check.remedy) for check in checks]
    table(header, rows, [PAINT[check.state] for check in checks])
    echo()


def _told(one: Disagreement) -> None:
    echo(f"\n{one.subject}: {one.message}")
    echo(f"  {one.how or 'by hand'}: {one.remedy}")


def _json(found: Checkup, within: int) -> None:
    for one in found.serving:
        echo_json({"event": "in service", "model": one, "below": one.within(within)})
    for stray in found.strays:
        echo_json({"event": "unwatched", "found": stray.found, "ours": stray.ours})
    for effect in found.doubts:
        echo_json({"event": "in doubt", "effect": effect})
    for text in found.warnings:
        echo_json({"event": "warning", "message": text})


def _text(checkup: Checkup, within: int) -> None:
    serving = checkup.serving
    if not serving:
        echo("No model is in service.")
    else:
        header = ("client", "version", "track", "model id", "days left", "stops on", "by")
        paint = ["red" if one.within(within) or one.exposed else None for one in serving]
        table(header, [_cells(one) for one in serving], paint)
    for one in serving:
        if one.within(within):
            notice(f"fine-tune migrate --client {one.client_id} --to b moves it before {one.shutdown_date}")
    for text in checkup.warnings:
        notice(text)
    for stray in checkup.strays:
        found = stray.found
        echo(f"\n{found.kind} {found.id} ({found.status}) at {stray.hosted.provider.title}: {found.why}")
        whose = found.run_id or "nobody known here"
        echo(f"  of {whose}" + ("" if stray.ours else ": no client of this data folder, left alone"))
        if stray.ours:
            echo(f"  adopt it: {found.adopt}" if found.adopt else "  delete it: fine-tune doctor --yes")
    for effect in checkup.doubts:
        echo(f"\n{effect.step} of {effect.run_id} was cut off at {effect.intent_at:%Y-%m-%d %H:%M} UTC")
        echo(f"  find out what became of it: fine-tune resume {effect.run_id}")


def _cells(one: Serving) -> tuple[str, ...]:
    source = "own hardware" if one.track == "B" else SOURCES[one.source]
    return (
        one.client_id,
        f"v{one.version}",
        one.track,
        one.model_id or "–",
        "–" if one.days_left is None else str(one.days_left),
        "–" if one.shutdown_date is None else str(one.shutdown_date),
        source,
    )
