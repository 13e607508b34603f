"""Alerts on a real webhook and a real mail server: what they say, to whom, and how often."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fine_tune_runner.alerts import TRIES, Alerts, of_end, of_run
from fine_tune_runner.cli import fine_tune
from fine_tune_runner.errors import ConfigError, PolicyError
from fine_tune_runner.settings import load_client, load_settings
from fine_tune_runner.types import Run, Verdict
from fine_tune_runner.workflow.engine import Event
from tests.contract.receivers import Mailbox, Webhook, listening
from tests.test_runner import Desk, right

# What pgpy, which apprise's mail imports, imports on Python below 3.13.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
RUN = Run(
    run_id="hre-v3-a-12345678-1",
    client_id="hre",
    version=3,
    track="A",
    track_reason="named",
    attempt=1,
    dataset_sha256="d",
    created_at=NOW,
    who="anna",
)


class Serving(msgspec.Struct, frozen=True, kw_only=True):
    """As doctor.Serving."""

    client_id: str = "small"
    model_id: str | None = "m1"
    shutdown_date: date | None = date(2027, 1, 10)
    days_left: int | None = 49


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    with listening(server):
        yield server


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    server = Mailbox()
    with listening(server):
        yield server


def desk_with(folder: Path, *notify: str, **config: Any) -> Desk:
    """v1 in service; the next one will be refused."""
    desk = Desk(folder, track_preference="b", **config)
    desk.runner().submit("small", 1)
    desk.write_config(track_preference="b", notify=notify, **config)
    return desk


def on_record(desk: Desk) -> list[Event]:
    lines = [
        line for path in desk.client.glob("runs/*/alerts.jsonl") for line in path.read_bytes().splitlines()
    ]
    return [msgspec.json.decode(line, type=Event) for line in lines]


def test_a_refusal_reaches_webhook_and_mail_with_scores_and_ids_only(
    tmp_path: Path, webhook: Webhook, mailbox: Mailbox
) -> None:
    desk = desk_with(tmp_path, webhook.address, mailbox.address)
    job = desk.runner().submit("small", 2)
    (post,), (mail,) = webhook.posts, mailbox.mails
    assert post["title"] == mail["subject"] == "small v2 refused"
    assert "recall 0.000 against 1.000 (-1.000, allowed -0.05" in post["message"]
    assert job.run_id in post["message"]
    assert post["type"] == "warning"
    assert mail["to"] == "anna@agency.test"
    body = mail.get_body()
    assert body is not None
    assert "v1 (track B) stays in service.\r\nRun: " in body.get_content()
    for word in ("look odd", "evidence", "expert"):  # of questions, answers and the system prompt
        assert word not in json.dumps(post) + mail.as_string()


def test_a_promotion_is_no_alert(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    desk.track.script = {0: right, 1: right, 2: right}
    desk.runner().submit("small", 2)
    assert (webhook.posts, on_record(desk)) == ([], [])


def test_a_hold_is_an_alert(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    desk.track.script = {2: lambda _question: None}
    desk.runner().submit("small", 2)
    assert [post["title"] for post in webhook.posts] == ["small v2 held"]
    assert "could not be compared" in webhook.posts[0]["message"]


def test_a_failure_is_an_alert_and_still_the_same_error(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    desk.track.cost_usd = 20.0
    with pytest.raises(PolicyError, match="above --max-cost"):
        desk.runner().submit("small", 2, max_cost_usd=1.0)
    assert [post["title"] for post in webhook.posts] == ["small v2 failed (policy)"]


def test_of_a_run_that_never_got_on_record_nothing_is_said(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    heard: list[str] = []
    alerts = Alerts(desk.settings, lambda: datetime.now(UTC), notice=heard.append)
    alerts.run_ended(desk.runner().engine, "small-v2-b-12345678-1")
    assert (heard, webhook.posts) == ([], [])


def test_a_broken_record_of_another_run_silences_no_alert(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    job = desk.runner().submit("small", 2)
    for path in desk.client.glob("runs/*/alerts.jsonl"):
        path.unlink()
    (other,) = (path for path in desk.client.glob("runs/*/run.json") if path.parent.name != job.run_id)
    other.write_text("{")
    heard: list[str] = []
    alerts = Alerts(desk.settings, lambda: datetime.now(UTC), notice=heard.append)
    alerts.run_ended(desk.runner().engine, job.run_id)
    assert ([post["title"] for post in webhook.posts], heard) == (["small v2 refused"] * 2, [])


def test_each_alert_goes_out_once_per_run_and_cause(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    desk.track.cost_usd = 20.0
    for _ in range(2):
        with pytest.raises(PolicyError):
            desk.runner().submit("small", 2, max_cost_usd=1.0)
    desk.track.cost_usd = 0.0
    for _ in range(2):
        desk.runner().submit("small", 2)
    runner = desk.runner()
    runner.alerts.look(runner.engine, [])
    assert [post["title"] for post in webhook.posts] == ["small v2 failed (policy)", "small v2 refused"]


def test_a_run_whose_process_died_first_is_heard_of_at_the_next_look(
    tmp_path: Path, webhook: Webhook
) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)  # nobody to tell, as if it had died before it could
    desk.write_config(track_preference="b", notify=[webhook.address])
    runner = desk.runner()
    runner.alerts.look(runner.engine, [])
    assert [post["title"] for post in webhook.posts] == ["small v2 refused"]


def test_a_run_that_cannot_be_read_silences_no_other_client(tmp_path: Path, webhook: Webhook) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    desk.write_config(track_preference="b", notify=[webhook.address])
    broken = desk.settings.data_dir / "another" / "runs" / "another-v1-b-12345678-1"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{")
    runner = desk.runner()
    runner.alerts.look(runner.engine, [])
    assert [post["title"] for post in webhook.posts] == ["small v2 refused"]


def test_doctor_takes_that_look(tmp_path: Path, webhook: Webhook) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    desk.write_config(track_preference="b", notify=[webhook.address])
    env = {"CLIENT_DATA_DIR": str(desk.settings.data_dir), "OPENAI_API_KEY": ""}
    result = CliRunner().invoke(fine_tune, ["doctor"], env=env)
    assert result.exception is None
    assert [post["title"] for post in webhook.posts] == ["small v2 refused"]


def test_what_ended_long_ago_is_no_news(tmp_path: Path, webhook: Webhook) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    desk.write_config(track_preference="b", notify=[webhook.address])
    later = Alerts(desk.settings, lambda: datetime.now(UTC) + timedelta(days=8))
    later.look(desk.runner().engine, [])
    assert webhook.posts == []


def test_a_broken_address_breaks_nothing_and_is_left_alone_in_the_end(
    tmp_path: Path, webhook: Webhook
) -> None:
    desk = desk_with(tmp_path, webhook.address, "$FINE_TUNE_NOTIFY_NOBODY", "nothing://x")
    webhook.status = 500
    assert desk.runner().submit("small", 2).state == "finished"
    heard: list[str] = []
    alerts = Alerts(desk.settings, lambda: datetime.now(UTC), notice=heard.append)
    for _ in range(TRIES + 1):
        alerts.look(desk.runner().engine, [])
    assert len(webhook.posts) == TRIES
    assert {e.event for e in on_record(desk)} == {"alert failed"}
    assert len(on_record(desk)) == 3 * TRIES
    assert len(heard) == 3 * (TRIES - 1)
    said = "\n".join(heard) + json.dumps([e.data for e in on_record(desk)])
    assert "JSON did not take it" in said
    assert "FINE_TUNE_NOTIFY_NOBODY is neither in the environment nor in .env" in said
    assert "secret-hook-path" not in said


def test_what_a_plugin_of_apprise_raises_is_on_record_and_breaks_nothing(
    tmp_path: Path, webhook: Webhook
) -> None:
    from apprise import NotifyBase
    from apprise.manager_plugins import NotificationManager

    class Broken(NotifyBase):  # type: ignore[misc]
        """A plugin with a bug, where apprise does not catch it."""

        @staticmethod
        def parse_url(url: str, **_: object) -> None:
            raise TypeError(f"cannot read {url}")

    NotificationManager().add(Broken, schemas="brokenplugin")
    desk = desk_with(tmp_path, "brokenplugin://secret-hook-path", webhook.address)
    assert desk.runner().submit("small", 2).state == "finished"
    assert {(e.event, e.data.get("message")) for e in on_record(desk)} == {
        ("alert failed", "apprise broke off with TypeError"),
        ("alert sent", None),
    }
    assert len(webhook.posts) == 1


def test_the_run_hears_of_its_alerts_as_events(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    desk.runner().submit("small", 2)
    assert [e.data for e in desk.events if e.event == "alert sent"] == [
        {"cause": "refused", "to": "notify 1"}
    ]


def test_an_address_may_stand_in_a_variable(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, "$FINE_TUNE_NOTIFY_TEAM")
    env = {"CLIENT_DATA_DIR": str(desk.settings.data_dir), "FINE_TUNE_NOTIFY_TEAM": webhook.address}
    desk.settings = load_settings(env, tmp_path)
    desk.runner().submit("small", 2)
    assert len(webhook.posts) == 1
    assert webhook.address not in repr(desk.settings) + repr(load_client(desk.settings, "small"))


@pytest.mark.parametrize("notify", [["no address"], "json://127.0.0.1", [3]])
def test_a_wrong_address_is_named_by_its_place_and_not_repeated(tmp_path: Path, notify: object) -> None:
    desk = Desk(tmp_path, notify=notify)
    with pytest.raises(ConfigError, match=r"config\.json: .*`\$\.notify") as caught:
        load_client(desk.settings, "small")
    assert "no address" not in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "json://203.0.113.7/hook",
        "mailto://203.0.113.7?from=runner@agency.test&to=anna@agency.test",
        "slack://" + "T1JJ3T3L2/" + "A1BRTD4JD/" + "TIiajkdnlazkcOXrIdevi7FQ",
    ],
)
def test_for_a_sensitive_client_nothing_goes_to_a_public_address(tmp_path: Path, address: str) -> None:
    desk = desk_with(tmp_path, address, sensitive=True)
    heard: list[str] = []
    Alerts(desk.settings, lambda: datetime.now(UTC), notice=heard.append).send(
        load_client(desk.settings, "small"), some_alert(desk)
    )
    (event,) = on_record(desk)
    assert event.event == "alert failed"
    assert "is sensitive" in event.data["message"]
    (egress,) = [p for p in desk.client.glob("runs/*/egress.jsonl") if "refused" in p.read_text()]
    assert '"address"' not in egress.read_text(), "something was connected to"


def test_a_sensitive_client_is_not_redirected_out_of_the_network(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address, sensitive=True)
    webhook.status, webhook.moved_to = 307, "http://203.0.113.7/hook"
    desk.runner().submit("small", 2)
    assert len(webhook.posts) == 1
    (event,) = on_record(desk)
    assert event.event == "alert failed"


def test_a_sensitive_client_is_heard_of_on_a_private_address(
    tmp_path: Path, webhook: Webhook, mailbox: Mailbox
) -> None:
    desk = desk_with(tmp_path, webhook.address, mailbox.address, sensitive=True)
    desk.runner().submit("small", 2)
    assert (len(webhook.posts), len(mailbox.mails)) == (1, 1)


def test_a_model_near_its_end_is_an_alert_once(tmp_path: Path, webhook: Webhook) -> None:
    desk = desk_with(tmp_path, webhook.address)
    runner = desk.runner()
    for _ in range(2):
        runner.alerts.look(runner.engine, [Serving()])
    assert [post["title"] for post in webhook.posts] == ["small: its model stops answering on 2027-01-10"]
    runner.alerts.look(runner.engine, [Serving(shutdown_date=date(2026, 12, 24), days_left=32)])
    assert len(webhook.posts) == 2, "another date is another cause"


@pytest.mark.parametrize(("days", "heard"), [(60, False), (59, True), (0, True), (None, False)])
def test_the_end_is_news_below_sixty_days(days: int | None, heard: bool) -> None:
    assert (of_end(Serving(days_left=days), "r") is not None) == heard


def test_a_run_that_goes_on_or_went_well_is_no_news() -> None:
    good = Verdict(decision="promote", reason="", measure="recall", tolerance=0.05)
    bad = msgspec.structs.replace(good, decision="refuse")
    assert of_run(RUN, last("run finished"), good) is None
    assert of_run(RUN, last("run interrupted"), bad) is None
    assert of_run(RUN, last("run cancelled"), None) is None
    refused = of_run(RUN, last("run finished"), bad)
    assert refused is not None
    assert (refused.run_id, refused.cause) == (RUN.run_id, "refused")


def test_a_worker_tells_of_the_runs_whose_events_it_hears(tmp_path: Path, webhook: Webhook) -> None:
    desk = Desk(tmp_path, track_preference="b")
    desk.runner().submit("small", 1)
    job = desk.runner().submit("small", 2)
    desk.write_config(track_preference="b", notify=[webhook.address])
    runner = desk.runner()
    for event in runner.engine.events(job.run_id):
        runner.alerts.heard(runner.engine, event)
    assert [post["title"] for post in webhook.posts] == ["small v2 refused"]


def last(event: str) -> Event:
    return Event(at=NOW, event=event, run_id=RUN.run_id)


def some_alert(desk: Desk) -> Any:
    alert = of_end(Serving(), next(desk.client.glob("runs/*")).name)
    assert alert is not None
    return alert
