"""What a person must hear of, each once per run and cause: a refusal, a hold, a failure, a model at its end.

Ids, scores and verdict only, never a word of a client's data. What was sent is on record in `alerts.jsonl` of
the run, so a run that goes on, and a look that is taken daily, repeat nothing. Nothing in here raises: an
alert that cannot be sent is an event and a notice, and never breaks a run.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Protocol

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import RunnerError
from fine_tune_runner.files import locked
from fine_tune_runner.policy.egress import policy_of
from fine_tune_runner.policy.guard import guarded
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.settings import Client, Secret, Settings, client_ids, load_client
from fine_tune_runner.types import Clock, Run, Verdict
from fine_tune_runner.workflow.engine import RUN_ID, Engine, Event

WITHIN_DAYS = 60  # a model in service that stops answering sooner is an alert
NEWS_DAYS = 7  # what ended longer ago is no news: who names an address today hears of nothing old
TRIES = 3  # then an address that takes nothing is left alone, for this cause
TIMEOUT_S = 30.0
ENDS = ("run finished", "run failed")
WORDS = {"refuse": "refused", "hold": "held"}


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to be heard of; it is on record beside the run `run_id`."""

    run_id: str
    cause: str
    title: str
    body: str


class Ending(Protocol):
    """A model in service, and when it stops (doctor.Serving)."""

    @property
    def client_id(self) -> str: ...
    @property
    def model_id(self) -> str | None: ...
    @property
    def shutdown_date(self) -> date | None: ...
    @property
    def days_left(self) -> int | None: ...


def of_run(run: Run, last: Event, verdict: Verdict | None) -> Alert | None:
    """What there is to hear of a run whose `last` event this is, None where it goes on or went well. Pure."""
    if last.event == "run failed":
        code = last.data.get("code", "error")
        word = f"failed ({code})"
        said = [f"The run stopped with an error ({code}); nothing was promoted."]
    elif last.event == "run finished" and verdict is not None and verdict.decision in WORDS:
        word = WORDS[verdict.decision]
        said = _scores(verdict)
    else:
        return None
    stays = verdict.compared_with if verdict else None
    lines = [
        f"{_name(run)}: {word}.",
        *said,
        *([f"v{stays.version} (track {stays.track}) stays in service."] if stays else []),
        f"Run: {run.run_id}",
        f"More: fine-tune report --client {run.client_id} --version {run.version}"
        if verdict
        else f"More: fine-tune status --client {run.client_id}",
    ]
    title = f"{run.client_id} v{run.version} {word}"
    return Alert(run_id=run.run_id, cause=word, title=title, body="\n".join(lines))


def of_end(one: Ending, run_id: str) -> Alert | None:
    """What there is to hear of a model in service, None where it lives long enough. Pure."""
    if one.shutdown_date is None or one.days_left is None or one.days_left >= WITHIN_DAYS:
        return None
    when = f"in {one.days_left} days" if one.days_left > 0 else "now"
    lines = (
        f"The model in service of {one.client_id} stops answering on {one.shutdown_date}, {when}.",
        f"Model: {one.model_id}",
        f"To own hardware: fine-tune migrate --client {one.client_id} --to b",
    )
    return Alert(
        run_id=run_id,
        cause=f"ends {one.shutdown_date}",
        title=f"{one.client_id}: its model stops answering on {one.shutdown_date}",
        body="\n".join(lines),
    )


class Alerts:
    """Sends alerts to a client's `notify`; `notice` and `listener` hear what became of them."""

    def __init__(
        self,
        settings: Settings,
        clock: Clock,
        *,
        notice: Callable[[str], None] = lambda _text: None,
        listener: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._notice = notice
        self._listener = listener

    def run_ended(self, engine: Engine, run_id: str) -> None:
        """Say how a run ended, where that is one to hear of; to be called whenever a run stopped.

        One that never got on record has not ended: who asked for it hears why, and nobody else.
        """
        name = RUN_ID.fullmatch(run_id)
        with self._unbroken():
            if name and (self._settings.data_dir / name[1] / "runs" / run_id / "run.json").is_file():
                self._of_run(engine, engine.find(run_id).run)

    def heard(self, engine: Engine, event: Event) -> None:
        """The same for who hears the events of many runs (`fine-tune worker`)."""
        if event.event in ENDS:
            self.run_ended(engine, event.run_id)

    def look(self, engine: Engine, serving: Sequence[Ending]) -> None:
        """Say what nobody has said yet: of runs whose process died first, and of models near their end.

        To be called regularly (`fine-tune doctor`, `fine-tune watch`).
        """
        for client_id in client_ids(self._settings):  # what is broken at one client silences no other
            with self._unbroken():
                for state in engine.runs(client_id):
                    with self._unbroken():
                        self._of_run(engine, state.run)
        for one in serving:
            with self._unbroken():
                client = load_client(self._settings, one.client_id)
                entry = Registry(client.dir, self._clock).active()
                if entry is not None and (alert := of_end(one, _folder_name(client, entry))):
                    self.send(client, alert)

    def _of_run(self, engine: Engine, run: Run) -> None:
        """By its last event and not by its state, for the process that did it may still hold it."""
        client = load_client(self._settings, run.client_id)
        events = engine.events(run.run_id) if client.config.notify else ()
        if not events or events[-1].event not in ENDS:
            return
        if self._clock() - events[-1].at > timedelta(days=NEWS_DAYS):
            return
        if alert := of_run(run, events[-1], engine.value(run.run_id, Verdict)):
            self.send(client, alert)

    def send(self, client: Client, alert: Alert) -> None:
        """Send to every address that has not had this alert; one process at a time."""
        if not client.config.notify:
            return
        folder = client.dir / "runs" / alert.run_id
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(BlockingIOError), locked(folder / "alerts.lock"):  # else another is at it
            path = folder / "alerts.jsonl"
            known = Counter((e.event, e.data["to"]) for e in _read(path) if e.data["cause"] == alert.cause)
            for number, written in enumerate(client.config.notify, 1):
                to = f"notify {number}"
                if known["alert sent", to] or known["alert failed", to] >= TRIES:
                    continue
                reason = self._deliver(client, written, alert, folder)
                self._put_down(path, alert, to, reason)

    def _deliver(self, client: Client, written: Secret, alert: Alert, folder: Path) -> str | None:
        """Why an address did not take it, None where it did; the reason holds nothing of the address."""
        name = written.reveal().removeprefix("$")
        address = self._settings.notify.get(name) if name != written.reveal() else written
        if address is None:
            return f"{name} is neither in the environment nor in .env"
        try:
            return self._by_apprise(client, address, alert, folder / "egress.jsonl")
        except Exception as error:  # noqa: BLE001 - a plugin raises anything; its text may hold the address
            return f"apprise broke off with {type(error).__name__}"

    def _by_apprise(self, client: Client, address: Secret, alert: Alert, record: Path) -> str | None:
        try:
            from apprise import Apprise, AppriseAsset, NotifyFormat, NotifyType
        except ImportError:
            return "apprise is not installed; pip install 'fine-tune-runner[alerts]'"
        asset = AppriseAsset(app_id="fine-tune-runner", http_redirects=False, async_mode=False)
        policy = policy_of(self._settings, client)
        with guarded(policy, record):
            service = Apprise.instantiate(address.reveal(), asset=asset)
        if service is None:
            return "apprise cannot read this address; its documentation has the form of each service"
        host = getattr(service, "smtp_host", None) or getattr(service, "host", None) or ""
        with guarded(msgspec.structs.replace(policy, names=(*policy.names, host)), record) as guard:
            senders = Apprise(asset=asset)
            senders.add(service)
            took = senders.notify(
                title=alert.title,
                body=alert.body,
                body_format=NotifyFormat.TEXT,
                notify_type=NotifyType.WARNING,
                timeout=TIMEOUT_S,
            )
            refused = guard.refused()
        if took:
            return None
        if refused:
            return f"{service.service_name}: {client.id} is sensitive, and {refused[-1].refused}"
        return f"{service.service_name} did not take it"

    def _put_down(self, path: Path, alert: Alert, to: str, reason: str | None) -> None:
        data = {"cause": alert.cause, "to": to} | ({"message": reason} if reason else {})
        name = "alert failed" if reason else "alert sent"
        event = Event(at=self._clock(), event=name, run_id=alert.run_id, data=data)
        with path.open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")
        self._listener(event)
        if reason:
            self._notice(f"alert of {alert.run_id} ({alert.cause}) to {to} was not sent: {reason}")

    @contextlib.contextmanager
    def _unbroken(self) -> Iterator[None]:
        try:
            yield
        except (RunnerError, OSError) as error:
            self._notice(f"no alert was sent: {error}")


def _scores(verdict: Verdict) -> list[str]:
    if verdict.new is None or verdict.previous is None or verdict.delta is None:
        return ["The versions could not be compared."]
    likely = "" if verdict.p_worse is None else f", probability of a loss beyond that {verdict.p_worse:.0%}"
    return [
        f"{verdict.measure} {verdict.new:.3f} against {verdict.previous:.3f} "
        f"({verdict.delta:+.3f}, allowed {-verdict.tolerance:+g}{likely})."
    ]


def _name(run: Run) -> str:
    return f"{run.client_id} v{run.version} (track {run.track})"


def _folder_name(client: Client, entry: Any) -> str:
    return entry.run_id or f"{client.id}-v{entry.version}"


def _read(path: Path) -> Iterator[Event]:
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # torn by a crash
            yield msgspec.json.decode(line, type=threadsafe(Event))
