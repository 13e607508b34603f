"""The contract server itself: the official SDK can talk to it, and it keeps to the wire description."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen

import httpx2
import openai
import pytest

from tests.contract.openai_server.description import description
from tests.contract.openai_server.misbehave import Fault
from tests.contract.openai_server.server import KEY, ContractServer, serving


@pytest.fixture
def server() -> Iterator[ContractServer]:
    with serving() as running:
        yield running
        assert running.wrong == []


@pytest.fixture
def sdk(server: ContractServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(api_key=KEY, base_url=server.url, max_retries=0) as client:
        yield client


def rows(n: int = 12) -> bytes:
    turns = [
        [
            {"role": "user", "content": f"question about topic {i} word{i}"},
            {"role": "assistant", "content": f"answer {i}"},
        ]
        for i in range(n)
    ]
    return b"".join(json.dumps({"messages": row}).encode() + b"\n" for row in turns)


def train(sdk: openai.OpenAI, n: int = 12) -> str:
    file = sdk.files.create(file=("run.jsonl", rows(n)), purpose="fine-tune")
    job = sdk.fine_tuning.jobs.create(
        model="gpt-4o-mini", training_file=file.id, suffix="hre-v3", metadata={"run_id": "r1"}
    )
    return job.id


def test_a_job_goes_through_its_statuses_one_a_look(sdk: openai.OpenAI) -> None:
    job = train(sdk)
    statuses = [sdk.fine_tuning.jobs.retrieve(job).status for _ in range(5)]
    assert statuses == ["queued", "running", "running", "succeeded", "succeeded"]


def test_a_finished_model_answers_with_the_trained_answer_to_the_nearest_question(sdk: openai.OpenAI) -> None:
    job = train(sdk)
    for _ in range(4):
        done = sdk.fine_tuning.jobs.retrieve(job)
    said = sdk.chat.completions.create(
        model=done.fine_tuned_model or "", messages=[{"role": "user", "content": "about word7, please"}]
    )
    assert said.choices[0].message.content == "answer 7"


def test_auto_epochs_are_resolved_once_the_job_runs(sdk: openai.OpenAI) -> None:
    job = train(sdk, 12)
    before = sdk.fine_tuning.jobs.retrieve(job).hyperparameters.n_epochs
    after = sdk.fine_tuning.jobs.retrieve(job).hyperparameters.n_epochs
    assert (before, after) == ("auto", 8)  # 12 * 3 < 100, so 100 // 12


def test_the_result_file_is_a_base64_csv_with_a_row_a_step(sdk: openai.OpenAI) -> None:
    job = train(sdk, 12)
    for _ in range(4):
        done = sdk.fine_tuning.jobs.retrieve(job)
    table = base64.b64decode(sdk.files.content(done.result_files[0]).content).decode().splitlines()
    assert table[0].startswith("step,train_loss")
    assert len(table) == 1 + 12 * 8


def test_jobs_are_found_by_metadata(sdk: openai.OpenAI) -> None:
    job = train(sdk)
    assert [j.id for j in sdk.fine_tuning.jobs.list(metadata={"run_id": "r1"}).data] == [job]
    assert sdk.fine_tuning.jobs.list(metadata={"run_id": "other"}).data == []


def test_pages_turn_by_after(sdk: openai.OpenAI) -> None:
    jobs = [train(sdk) for _ in range(3)]
    first = sdk.fine_tuning.jobs.list(limit=2)
    second = sdk.fine_tuning.jobs.list(limit=2, after=first.data[-1].id)
    assert [j.id for j in first.data + second.data] == jobs[::-1]
    assert (first.has_more, second.has_more) == (True, False)


def test_too_few_rows_fail_in_validation(sdk: openai.OpenAI) -> None:
    job = sdk.fine_tuning.jobs.retrieve(train(sdk, 9))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error.code == "invalid_n_examples"


def test_another_key_is_refused(server: ContractServer) -> None:
    with (
        openai.OpenAI(api_key="other", base_url=server.url) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_every_other_path_answers_by_the_description(sdk: openai.OpenAI) -> None:
    job = train(sdk)
    assert [f.filename for f in sdk.files.list(purpose="fine-tune").data] == ["run.jsonl"]
    assert sdk.fine_tuning.jobs.pause(job).id == job
    assert sdk.fine_tuning.jobs.resume(job).status == "running"
    for _ in range(4):
        done = sdk.fine_tuning.jobs.retrieve(job)
    assert len(sdk.fine_tuning.jobs.checkpoints.list(job).data) == 3
    model = done.fine_tuned_model or ""
    assert sdk.models.retrieve(model).id in [m.id for m in sdk.models.list().data]
    assert sdk.models.delete(model).deleted
    assert sdk.files.retrieve(done.training_file).filename == "run.jsonl"
    assert sdk.files.delete(done.training_file).deleted
    cancelled = sdk.fine_tuning.jobs.cancel(train(sdk))
    assert cancelled.status == "cancelled"


def test_a_request_against_the_description_is_refused_and_on_record() -> None:
    with serving() as server, httpx2.Client(headers={"Authorization": f"Bearer {KEY}"}) as client:
        answer = client.post(f"{server.url}/fine_tuning/jobs", json={"model": "gpt-4o-mini", "seed": -1})
    assert answer.status_code == 400
    assert any("training_file" in fault for fault in server.wrong)
    assert any("-1" in fault for fault in server.wrong)


def test_nullable_and_boolean_bounds_are_understood() -> None:
    body = {"model": "m", "training_file": "f", "suffix": None, "hyperparameters": {"n_epochs": 3}}
    assert description().request_faults("POST", "/fine_tuning/jobs", [], body) == []
    body["hyperparameters"] = {"learning_rate_multiplier": 0}
    assert description().request_faults("POST", "/fine_tuning/jobs", [], body) != []


def test_the_sdk_left_to_itself_pays_twice(server: ContractServer) -> None:
    """Why every create here is made with max_retries=0."""
    with openai.OpenAI(api_key=KEY, base_url=server.url) as client:
        file = client.files.create(file=("run.jsonl", rows()), purpose="fine-tune")
        server.faults.append(
            Fault("POST", "/fine_tuning/jobs", "error after", headers={"retry-after-ms": "1"})
        )
        client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)
    assert len(server.account.jobs) == 2


def test_it_serves_as_a_process_of_its_own() -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.contract.openai_server.server"]
    with Popen(command, cwd=root, stdout=PIPE, text=True) as process:
        assert process.stdout is not None
        url, key = process.stdout.readline().split()
        with openai.OpenAI(api_key=key, base_url=url) as client:
            names = [model.id for model in client.models.list().data]
        process.kill()
    assert "gpt-4o-mini-2024-07-18" in names
