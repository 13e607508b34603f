"""A hosted run from files to a registry entry against the contract server, when all goes well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from fine_tune_runner.errors import DataError, Interrupted, PolicyError, RunError, ServingError
from fine_tune_runner.types import Decoding, Message, Model, Prompt
from fine_tune_runner.workflow.engine import Event
from tests.contract.openai_server.server import KEY, ContractServer
from tests.hosted.world import BASE, HostedRun, make_settings, write_client


class Watched(httpx2.HTTPTransport):
    """The real transport, told of every request first."""

    def __init__(self, look: Callable[[httpx2.Request], None]) -> None:
        super().__init__()
        self._look = look

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self._look(request)
        return super().handle_request(request)


def test_a_run_ends_with_a_registered_model(hosted: HostedRun, server: ContractServer) -> None:
    model = hosted.start()
    (entry,) = hosted.registry.entries()
    assert entry.model_id == model.model_id
    assert model.model_id.startswith(f"ft:{BASE}:contract:hre-v3:")
    assert (entry.track, entry.provider, entry.endpoint) == ("A", "openai", server.url)
    assert (entry.status, entry.active) == ("eval", False)


def test_it_says_what_the_transcript_shows(hosted: HostedRun) -> None:
    hosted.start()
    assert hosted.heard("uploaded")[0]["file_id"].startswith("file-")
    assert hosted.heard("job created")[0]["suffix"] == f"{BASE}:hre-v3"
    shown = [(e["status"], e.get("step"), e.get("total"), e["elapsed_s"]) for e in hosted.heard("job status")]
    # 60 rows, 3 epochs, batch 1: 180 steps; the clock moves by the poll interval only.
    assert shown == [
        ("queued", None, None, 0.0),
        ("running", 60, 180, 60.0),
        ("running", 120, 180, 120.0),
        ("succeeded", None, None, 180.0),
    ]
    # 60 steps took the provider a minute, and 60 are left.
    assert hosted.heard("job status")[2]["eta_s"] == 60.0
    assert hosted.heard("job finished")[0]["model_id"].startswith("ft:")


def test_the_job_carries_suffix_seed_and_run_id(hosted: HostedRun, server: ContractServer) -> None:
    hosted.start()
    (job,) = server.account.jobs.values()
    assert job.suffix == "hre-v3"
    assert job.public["metadata"] == {"run_id": hosted.run().run_id}
    assert job.public["seed"] == 0


def test_only_messages_leave(hosted: HostedRun, server: ContractServer) -> None:
    sent: list[bytes] = []

    def look(_event: Event) -> None:
        sent.extend(f.content for f in server.account.files.values() if f.purpose == "fine-tune")

    HostedRun(hosted.settings, listener=look).start()
    lines = [json.loads(line) for line in sent[0].splitlines()]
    assert len(lines) == 60
    assert all(list(line) == ["messages"] for line in lines)
    assert lines[0]["messages"][-1]["weight"] == 1
    assert b"not-to-be-sent" not in sent[0]


def test_nothing_of_the_run_is_left_at_the_provider(hosted: HostedRun, server: ContractServer) -> None:
    hosted.start()
    assert server.account.files == {}


def test_the_job_and_its_metrics_are_kept_with_the_run(hosted: HostedRun) -> None:
    model = hosted.start()
    folder = hosted.client.dir / "runs" / hosted.run().run_id / "attempt-1"
    kept = json.loads((folder / "job.json").read_text())
    assert kept["hyperparameters"] == {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8}
    assert len((folder / "metrics.csv").read_text().splitlines()) == 181
    assert [c["step_number"] for c in json.loads((folder / "checkpoints.json").read_text())] == [60, 120, 180]
    assert not list(folder.glob("*.jsonl.tmp"))
    assert model.training is not None
    assert (model.training.steps, model.training.epochs) == (180, 3.0)
    assert model.training.final_loss == 0.5  # the server's 2.0 - 1.5 * step / total
    assert model.training.settings["checkpoints"] == [
        c["id"] for c in json.loads((folder / "checkpoints.json").read_text())
    ]


def test_what_it_cost_is_reckoned_from_trained_tokens(hosted: HostedRun, server: ContractServer) -> None:
    model = hosted.start()
    (job,) = server.account.jobs.values()
    assert model.cost_usd == pytest.approx(3.0 * job.public["trained_tokens"] / 1_000_000)


def test_the_model_answers_what_it_was_trained_on(hosted: HostedRun) -> None:
    model = hosted.start()
    asked = Message(role="user", content="Since release 17 page 119 shows wrong purchases")
    prompts = [Prompt(question_id="q", k=k, messages=(asked,)) for k in range(6)]
    with hosted.track.serve([model]) as answerer:
        replies = list(answerer.replies(model.model_id, prompts, Decoding()))
    assert {reply.text for reply in replies} == {"Root cause: consent_update_missing\nFix number 17."}
    assert sorted(reply.k for reply in replies) == list(range(6))
    assert all(reply.tokens == 6 for reply in replies)


def test_repeats_of_a_question_are_drawn_anew(hosted: HostedRun, server: ContractServer) -> None:
    seeds: list[int] = []

    def seen(request: httpx2.Request) -> None:
        if request.url.path.endswith("/chat/completions"):
            seeds.append(json.loads(request.content)["seed"])

    model = hosted.start()
    watched = HostedRun(hosted.settings, transport=Watched(seen))
    asked = (Message(role="user", content="q"),)
    prompts = [Prompt(question_id="q", k=k, messages=asked) for k in range(3)]
    with watched.track.serve([model]) as answerer:
        seeds.clear()
        list(answerer.replies(model.model_id, prompts, Decoding(seed=7)))
    assert sorted(seeds) == [7, 8, 9]


def test_a_transport_that_refuses_speaks_for_itself(hosted: HostedRun, server: ContractServer) -> None:
    def refuse(_request: httpx2.Request) -> None:
        raise PolicyError("egress to 127.0.0.1 is not allowed")

    with pytest.raises(PolicyError, match="egress to"):
        HostedRun(hosted.settings, transport=Watched(refuse)).start()
    assert server.seen == []


def test_a_model_that_is_gone_cannot_be_served(hosted: HostedRun, server: ContractServer) -> None:
    model = hosted.start()
    server.account.delete_model(model.model_id)
    with pytest.raises(ServingError, match="cannot be asked any more"), hosted.track.serve([model]):
        pass


def test_the_key_is_not_sent_to_another_address(hosted: HostedRun, server: ContractServer) -> None:
    other = Model(
        model_id="ft:x", track="A", provider="openai", base_model="x", dataset_sha256="", endpoint="http://o"
    )
    with pytest.raises(ServingError, match="http://o"), hosted.track.serve([other]):
        pass
    assert server.seen == []


def test_a_sensitive_client_sends_not_one_byte(hosted: HostedRun, server: ContractServer) -> None:
    config = hosted.client.dir / "config.json"
    config.write_text('{"client_id": "hre", "sensitive": true}')
    refused = HostedRun(hosted.settings)
    assert "sensitive" in (refused.track.unavailable() or "")
    with pytest.raises(PolicyError, match="sensitive"):
        refused.start()
    assert server.seen == []


def test_files_that_change_after_the_check_are_not_sent(hosted: HostedRun, server: ContractServer) -> None:
    def edit(event: Event) -> None:
        if event.event == "estimated":
            train = hosted.client.dir / "v3.jsonl"
            train.write_bytes(train.read_bytes().replace(b"Fix number 1.", b"Fix number one."))

    with pytest.raises(DataError, match="changed"):
        HostedRun(hosted.settings, listener=edit).start()
    assert server.asked("POST /files") == 0


def test_special_tokens_are_named_before_anything_is_sent(tmp_path: Path, server: ContractServer) -> None:
    write_client(tmp_path)
    train = tmp_path / "hre" / "v3.jsonl"
    train.write_bytes(train.read_bytes().replace(b"Fix number 4.", b"Fix <|fim_suffix|>"))
    with pytest.raises(DataError, match=r"v3\.jsonl line 5: contains <\|fim_suffix\|>"):
        HostedRun(make_settings(tmp_path, server.url, KEY)).start()
    assert server.asked("POST /files") == 0


def test_ctrl_c_while_polling_keeps_the_job_and_goes_on(hosted: HostedRun, server: ContractServer) -> None:
    def press(event: Event) -> None:
        if event.event == "job status" and event.data["status"] == "running":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=press).start()
    assert len(server.training_files) == 1
    hosted.start()
    assert len(server.account.jobs) == 1
    assert server.account.files == {}


def test_cancel_stops_the_job_and_deletes_the_file(hosted: HostedRun, server: ContractServer) -> None:
    def cancel(event: Event) -> None:
        if event.event == "job status" and event.data["status"] == "running":
            hosted.journal.cancel(hosted.run().run_id)
            said = hosted.track.cancel(hosted.run()) or ""
            (job_id,) = server.account.jobs
            assert f"job {job_id} no longer runs at OpenAI" in said
            assert "submit --client hre --version 3 --track a --again" in said

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=cancel).start()
    (job,) = server.account.jobs.values()
    assert job.public["status"] == "cancelled"
    assert server.training_files == []


def test_a_cancelled_run_says_how_to_begin_anew(hosted: HostedRun, server: ContractServer) -> None:
    hosted.track.cancel(hosted.run())
    with pytest.raises(RunError, match=r"cancelled.*--again"):
        hosted.start()
    assert server.account.jobs == {}
    hosted.start(attempt=2)
    assert len(server.account.jobs) == 1


def test_another_attempt_is_another_job(hosted: HostedRun, server: ContractServer) -> None:
    hosted.start()
    HostedRun(hosted.settings).start(attempt=2)
    assert len(server.account.jobs) == 2


def test_with_the_data_folder_lost_the_paid_job_is_adopted(
    hosted: HostedRun, server: ContractServer, tmp_path: Path
) -> None:
    first = hosted.start()
    write_client(tmp_path / "other-disk")
    again = HostedRun(make_settings(tmp_path / "other-disk", server.url, KEY)).start()
    assert again.model_id == first.model_id
    assert len(server.account.jobs) == 1


def test_a_dead_base_model_is_refused_before_the_upload(hosted: HostedRun, server: ContractServer) -> None:
    server.account.shutdown_dates[BASE] = "2026-11-22"
    with pytest.raises(PolicyError, match="2026-11-22"):
        hosted.start()
    assert server.asked("POST /files") == 0


def test_a_base_model_near_its_end_warns_and_the_entry_knows(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.account.shutdown_dates[BASE] = "2027-01-14"
    model = hosted.start()
    assert "53 days left" in hosted.heard("warning")[0]["message"]
    assert str(model.shutdown_date) == "2027-01-14"


def test_polls_are_a_poll_interval_apart(hosted: HostedRun) -> None:
    hosted.start()
    assert sum(hosted.time.slept) == 180.0
    assert max(hosted.time.slept) == 1.0  # by the second, so that a cancel is heard


def test_forgetting_deletes_models_files_and_stops_jobs(hosted: HostedRun, server: ContractServer) -> None:
    model = hosted.start()
    server.account.script = ("running",)

    def stop(event: Event) -> None:
        if event.event == "job status":
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        HostedRun(hosted.settings, listener=stop).start(attempt=2)
    runs = [hosted.run(attempt).run_id for attempt in (1, 2)]
    assert hosted.track.forget(runs, [model.model_id, "ft:gone"]) == (model.model_id,)
    assert server.account.files == {}
    assert [job.public["status"] for job in server.account.jobs.values()] == ["succeeded", "cancelled"]
    assert model.model_id not in [listed["id"] for listed in server.account.models()]
