"""`fine-tune watch`: submits versions as they get ready and, alone on SQLite, does their runs as well."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click

from fine_tune_runner.cli.background import do_runs, log_option, observed, stop_event
from fine_tune_runner.cli.common import echo, echo_json, json_option, notice, poll_option, runner
from fine_tune_runner.errors import ConfigError, MissingModel, RunError, RunnerError
from fine_tune_runner.files import locked
from fine_tune_runner.observe.log import Log
from fine_tune_runner.policy.guard import vouched
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Settings, load_client
from fine_tune_runner.types import Embedder
from fine_tune_runner.watching import Watch
from fine_tune_runner.workflow.changes import changes, client_folders
from fine_tune_runner.workflow.engine import Event
from fine_tune_runner.workflow.watch import Say

PAINT = {"submitted": "green", "needs approval": "yellow", "queued": None, "skipped": None}
WRONG = ("faults", "unreadable", "not submitted")
AGAIN_S = 5.0  # between two tries to get the engine


def _seconds(_ctx: click.Context, _param: click.Parameter, value: str) -> float:
    match = re.fullmatch(r"(\d{1,4}(\.\d+)?)s?", value)
    if match is None:
        raise click.BadParameter("give seconds, such as 5s")
    return float(match[1])


@click.command("watch")
@click.option("--client", "client_id", metavar="ID", help="Only this client.")
@click.option(
    "--settle",
    default="5s",
    show_default=True,
    metavar="SECONDS",
    callback=_seconds,
    help="How long files that were not put there by a rename must be unchanged.",
)
@click.option("--once", is_flag=True, help="Look once, leave what is ready to a worker, and end.")
@log_option
@poll_option
@json_option
def watch_command(
    client_id: str | None, settle: float, once: bool, log: Log | None, poll_s: float | None, as_json: bool
) -> int:
    """Submit each version as soon as it is ready, once, until Ctrl-C or SIGTERM.

    Ready: v{N}.jsonl and v{N}_eval.jsonl are complete, it has 50 examples, the checks pass, and no version as
    new was submitted. Of several the highest is taken. A version whose checks fail is told once, and tried
    again when its content changes. A run that costs money starts by itself up to "max_cost_usd" of the
    client's config.json; without that it waits for: fine-tune approve RUN.

    The runs are done by this process, unless a worker has the engine of the data folder. With
    FINE_TUNE_DATABASE_URL or --once they are left to the workers. Once a day it does what `fine-tune doctor`
    does about alerts. --once exits 1 where it told of faults.

    \b
    Examples:
      fine-tune watch
      fine-tune watch --client hre --settle 30s
      fine-tune watch --once --json
    """
    environment = dict(os.environ)  # before a sensitive client's checks take it off the network
    stop = stop_event()
    wrong: list[str] = []

    def say(client: str, said: Say) -> None:
        if said.event in WRONG:
            wrong.append(client)
        if log is not None:
            ids = {"version": said.version, "run_id": said.run_id, "missing": said.missing}
            known = {name: value for name, value in ids.items() if value is not None}
            log.write({"at": line.clock(), "event": said.event, "client": client, **known})
        _print(line, client, said, as_json)

    line = runner(poll_s)
    _data_folder(line.settings.data_dir)
    if client_id is not None:
        load_client(line.settings, client_id)
    looks = FineTuneRunner(line.settings, notice=notice, embedder=_without)
    with _only_one(line.settings.data_dir), _doctor(environment) as daily:
        watch = Watch(
            line,
            check=looks.findings,
            say=say,
            notice=notice,
            daily=daily,
            settle_s=settle,
            only=client_id,
            stopped=stop.is_set,
        )
        if once:
            watch.once()
            return int(bool(wrong))
        folder = line.settings.data_dir
        echo(f"Watching {len(client_folders(folder))} clients in {folder}; stop it with Ctrl-C", err=True)
        with observed(line, log) as told:

            def hear(event: Event) -> None:
                watch.heard(event)
                told(event)

            with _working(line, stop, as_json, hear):
                watch.run(changes(folder, stop, notice))
    return 0


def _without(_settings: Settings) -> Embedder:
    """What only the embedder finds forbids nothing; the run itself says it."""
    raise MissingModel("the checks of a watch embed nothing")


def _print(line: FineTuneRunner, client: str, said: Say, as_json: bool) -> None:
    if as_json:
        data = {"message": said.message, "version": said.version, "run_id": said.run_id}
        known = {name: value for name, value in data.items() if value is not None}
        missing = {} if said.missing is None else {"missing": said.missing}
        echo_json({"at": line.clock(), "event": said.event, "client": client, **known, **missing})
        return
    which = client if said.version is None else f"{client} v{said.version}"
    wrong = said.event in WRONG
    text = f"{line.clock():%Y-%m-%d %H:%M:%S} {which} {said.event}: {said.message}"
    echo(text, err=wrong, fg="red" if wrong else PAINT.get(said.event))


def _data_folder(data_dir: Path) -> None:
    if not data_dir.is_dir():
        raise ConfigError(
            f"{data_dir} is no folder; make the first client with: fine-tune init --client ID, "
            "or set CLIENT_DATA_DIR to the folder of all clients"
        )


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data folder against a second watch."""
    shared = data_dir / ".fine-tune"
    shared.mkdir(mode=0o700, exist_ok=True)
    try:
        with locked(shared / "watch.lock"):
            yield
    except BlockingIOError as error:
        raise RunError(f"process {error} watches {data_dir} already; one is enough") from None


@contextlib.contextmanager
def _working(
    line: FineTuneRunner, stop: threading.Event, as_json: bool, hear: Callable[[Event], None]
) -> Iterator[None]:
    """Do queued runs in a thread of this process, for as long as no other one has the engine."""
    if line.settings.database_url is not None:
        echo("Runs are left to the workers of FINE_TUNE_DATABASE_URL: fine-tune worker", err=True)
        yield
        return
    bugs: list[BaseException] = []

    def work() -> None:
        told = ""
        try:
            while not stop.is_set():
                try:
                    do_runs(line, stop, as_json=as_json, hear=hear)
                except RunnerError as error:
                    if str(error) != told:
                        notice(f"{error}; runs are left to it")
                    told = str(error)
                    stop.wait(AGAIN_S)
        except BaseException as error:  # noqa: BLE001 - the edge of a thread
            bugs.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=work, name="work")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if bugs:
        raise bugs[0]


@contextlib.contextmanager
def _doctor(environment: Mapping[str, str]) -> Iterator[Callable[[], None]]:
    """What sends the daily alerts: a process of its own, for after one of a sensitive client it reaches
    nothing outside the network, and provider and mail of the other clients are out there.
    """
    running: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        if running and running[-1].poll() is None:
            return
        command = [sys.executable, "-m", "fine_tune_runner", "doctor", "--json"]
        with vouched():  # it keeps the policies of all clients itself
            running[:] = [
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
                )
            ]

    try:
        yield begin
    finally:
        for child in running:
            child.terminate()
            child.wait()
