"""Each misbehaviour of a provider, and what becomes of it: one job, one file or none, one line why."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fine_tune_runner.errors import PolicyError, ProviderError, RunError, RunnerError, ServingError
from fine_tune_runner.hosted.flow import Pace
from fine_tune_runner.hosted.wire import Rejected
from fine_tune_runner.types import Decoding, Message, Model, Prompt
from tests.contract.openai_server.misbehave import (
    Bend,
    Fault,
    Kind,
    endless,
    error_object,
    shuffled,
    with_status,
    without,
)
from tests.contract.openai_server.server import KEY, ContractServer
from tests.hosted.world import HostedRun, make_settings, write_client

JOBS = "/fine_tuning/jobs"
JOB = "/fine_tuning/jobs/[^/]+"
MODERATION = {
    "code": "invalid_training_file",
    "message": "The job failed due to an unsafe training file. This training file was blocked because too "
    "many examples violated our usage policies.",
    "param": "training_file",
}


def one_line(error: RunnerError) -> str:
    text = str(error)
    assert "\n" not in text
    assert KEY not in text
    return text


@pytest.mark.parametrize("kind", ["error before", "error after", "cut before", "cut after"])
@pytest.mark.parametrize("path", ["/files", JOBS])
def test_a_create_whose_answer_is_lost_is_made_once(
    hosted: HostedRun, server: ContractServer, path: str, kind: Kind
) -> None:
    server.faults.append(Fault("POST", path, kind))
    hosted.start()
    assert len(server.account.jobs) == 1
    assert server.account.files == {}
    assert server.asked("POST /files") == (2 if path == "/files" and kind.endswith("before") else 1)


@pytest.mark.parametrize("path", ["/files", JOBS])
def test_a_create_that_is_never_answered_is_found(
    hosted: HostedRun, server: ContractServer, path: str
) -> None:
    server.faults.append(Fault("POST", path, "silence after"))
    pace = Pace(request_s=0.5)
    HostedRun(hosted.settings, pace=pace).start()
    assert len(server.account.jobs) == 1
    assert server.asked(f"POST {path}") == 1


def test_an_answer_to_a_create_that_cannot_be_read_is_a_doubt(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.faults.append(Fault("POST", JOBS, "error after", status=200, text="<html>gateway</html>"))
    hosted.start()
    assert len(server.account.jobs) == 1


def test_a_create_that_fails_four_times_leaves_the_file_and_can_be_resumed(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.faults.append(Fault("POST", JOBS, "error before", times=4))
    with pytest.raises(ProviderError, match=r"create job: 500.*fine-tune resume hre-v3-a-"):
        hosted.start()
    assert (len(server.account.jobs), len(server.training_files)) == (0, 1)
    HostedRun(hosted.settings).start()
    assert (len(server.account.jobs), len(server.training_files)) == (1, 0)


def test_busy_is_waited_out_as_long_as_it_says(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("POST", JOBS, "error before", status=429, headers={"retry-after": "17"}))
    hosted.start()
    assert 17.0 in hosted.time.slept
    assert len(server.account.jobs) == 1


def test_busy_without_a_delay_is_waited_out_too(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("POST", JOBS, "error before", status=429, times=2))
    hosted.start()
    assert hosted.time.slept[:2] == [1.0, 2.0]
    assert len(server.account.jobs) == 1


def test_busy_for_ever_is_an_error_and_no_job(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("POST", JOBS, "error before", status=429, times=9))
    with pytest.raises(ProviderError) as caught:
        hosted.start()
    assert one_line(caught.value).startswith("OpenAI: create job: 429")
    assert "fine-tune resume" in str(caught.value)
    assert (len(server.account.jobs), len(server.training_files)) == (0, 1)


def test_no_credit_is_said_and_can_be_resumed(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("POST", JOBS, "error before", status=429, code="insufficient_quota"))
    with pytest.raises(Rejected, match="credit"):
        hosted.start()
    assert server.asked(f"POST {JOBS}") == 1
    hosted.start()
    assert len(server.account.jobs) == 1


def test_a_file_that_is_not_ready_yet_is_waited_for(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("POST", JOBS, "error before", status=400, message="File file-1 not ready"))
    hosted.start()
    assert len(server.account.jobs) == 1


def test_a_provider_closed_to_us_is_policy_and_the_file_goes(
    hosted: HostedRun, server: ContractServer
) -> None:
    refusal = Fault("POST", JOBS, "error before", status=403, code="training_not_available", times=9)
    server.faults.append(refusal)
    with pytest.raises(PolicyError) as caught:
        hosted.start()
    assert caught.value.exit_code == 5
    for remedy in ("training_not_available", "--track b", "azure", "nebius", "crusoe"):
        assert remedy in one_line(caught.value)
    assert server.account.files == {}
    assert server.asked(f"POST {JOBS}") == 1


def test_after_a_final_refusal_the_run_sends_nothing_more(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("POST", JOBS, "error before", status=403, code="training_not_available"))
    with pytest.raises(PolicyError):
        hosted.start()
    with pytest.raises(RunError, match=r"at its end.*--again"):
        HostedRun(hosted.settings).start()
    assert server.account.jobs == {}


def test_an_unknown_model_is_final(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(
        Fault("POST", JOBS, "error before", status=404, code="model_not_found", message="no such model")
    )
    with pytest.raises(ProviderError, match=r"no such model.*deleted.*--again"):
        hosted.start()
    assert server.account.files == {}


def test_a_wrong_key_is_named_by_its_variable_and_nothing_more(
    tmp_path: Path, server: ContractServer
) -> None:
    write_client(tmp_path)
    with pytest.raises(ProviderError) as caught:
        HostedRun(make_settings(tmp_path, server.url, "-".join(("sk", "wrong")))).start()
    assert "OPENAI_API_KEY" in one_line(caught.value)
    assert "sk-wrong" not in str(caught.value)


def test_a_file_blocked_by_moderation_fails_the_job(hosted: HostedRun, server: ContractServer) -> None:
    server.account.script, server.account.error = ("failed",), MODERATION
    with pytest.raises(ProviderError) as caught:
        hosted.start()
    text = one_line(caught.value)
    assert "invalid_training_file: The job failed due to an unsafe training file" in text
    assert text.endswith("mend the rows it names and publish another version")
    assert (len(server.account.jobs), server.account.files) == (1, {})


def test_a_job_that_fails_without_a_reason_says_so(hosted: HostedRun, server: ContractServer) -> None:
    server.account.script = ("running", "failed")
    server.bends.append(Bend("GET", JOB, error_object))
    with pytest.raises(
        ProviderError, match=r"failed: it gave no reason; see attempt-1/provider-events\.jsonl"
    ):
        hosted.start()
    assert server.account.files == {}


def test_resuming_a_failed_run_says_the_same_and_pays_nothing(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.account.script, server.account.error = ("failed",), MODERATION
    for _ in range(2):
        with pytest.raises(ProviderError, match="unsafe training file"):
            HostedRun(hosted.settings).start()
    assert len(server.account.jobs) == 1


def test_a_job_stuck_in_validation_is_cancelled(hosted: HostedRun, server: ContractServer) -> None:
    server.account.script = ("validating_files",)
    with pytest.raises(ProviderError) as caught:
        HostedRun(hosted.settings, pace=Pace(poll_s=1800)).start()
    assert '"validating_files" for over 2 h and was cancelled' in one_line(caught.value)
    (job,) = server.account.jobs.values()
    assert job.public["status"] == "cancelled"
    assert server.account.files == {}


def test_a_job_that_runs_too_long_is_left_alone(hosted: HostedRun, server: ContractServer) -> None:
    server.account.script = ("running",)
    with pytest.raises(ProviderError, match="fine-tune resume hre-v3"):
        HostedRun(hosted.settings, pace=Pace(poll_s=36_000)).start()
    (job,) = server.account.jobs.values()
    assert job.public["status"] == "running"
    assert len(server.training_files) == 1


def test_a_job_cancelled_elsewhere_ends_the_run(hosted: HostedRun, server: ContractServer) -> None:
    server.account.script = ("running", "cancelled")
    with pytest.raises(RunError, match=r"was cancelled at OpenAI; try again with --again"):
        hosted.start()
    assert server.account.files == {}


def _as(new: str, old: str = "running") -> Bend:
    return Bend("GET", JOB, with_status(old=old, new=new))


@pytest.mark.parametrize("word", ["warming_up", "paused", "pending"])
def test_unknown_words_and_paused_are_shown_and_waited_through(
    hosted: HostedRun, server: ContractServer, word: str
) -> None:
    server.bends.append(_as(word))
    hosted.start()
    assert word in [data["status"] for data in hosted.heard("job status")]


@pytest.mark.parametrize(
    "bend",
    [
        Bend("GET", JOB, error_object),
        Bend("POST", JOBS, without("metadata")),
        Bend("POST", "/files", without("status")),
        Bend("GET", f"{JOB}/events", endless),
        Bend("GET", JOBS, endless),
        Bend("GET", "/files", endless),
        Bend("GET", "/files/[^/]+/content", base64.b64decode, raw=True),
    ],
    ids=[
        "error {}",
        "no metadata",
        "no file status",
        "endless events",
        "endless jobs",
        "endless files",
        "csv",
    ],
)
def test_differences_of_form_change_nothing(hosted: HostedRun, server: ContractServer, bend: Bend) -> None:
    server.bends.append(bend)
    model = hosted.start()
    assert (len(server.account.jobs), server.account.files) == (1, {})
    assert model.training is not None
    assert model.training.steps == 180


def test_events_in_any_order_and_twice_give_the_same_progress(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.bends.append(Bend("GET", f"{JOB}/events", shuffled))
    hosted.start()
    assert [data.get("step") for data in hosted.heard("job status")] == [None, 60, 120, None]
    kept = hosted.client.dir / "runs" / hosted.run().run_id / "attempt-1" / "provider-events.jsonl"
    ids = [json.loads(line)["id"] for line in kept.read_text().splitlines()]
    assert len(ids) == len(set(ids))
    assert ids == sorted(ids)  # the server counts them up


def test_without_metadata_a_lost_job_is_found_by_its_file(hosted: HostedRun, server: ContractServer) -> None:
    server.bends.append(Bend("GET", JOBS, without("metadata")))
    server.faults.append(Fault("POST", JOBS, "cut after"))
    hosted.start()
    assert len(server.account.jobs) == 1


def test_a_provider_that_refuses_the_filter_is_asked_for_all_jobs(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.faults.append(Fault("GET", JOBS, "error before", status=400))
    server.faults.append(Fault("POST", JOBS, "cut after"))
    hosted.start()
    assert len(server.account.jobs) == 1


def test_where_the_list_cannot_be_trusted_a_doubt_stops(hosted: HostedRun, server: ContractServer) -> None:
    server.bends.append(Bend("GET", JOBS, lambda answer: answer | {"data": [], "has_more": True}))
    server.faults.append(Fault("POST", JOBS, "cut after"))
    with pytest.raises(ProviderError, match=r"nobody can tell.*fine-tune doctor"):
        hosted.start()
    assert len(server.account.jobs) == 1
    with pytest.raises(ProviderError, match="nobody can tell"):
        HostedRun(hosted.settings).start()
    assert len(server.account.jobs) == 1


def test_a_model_that_answers_late_is_waited_for(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("POST", "/chat/completions", "error before", status=404, times=5))
    hosted.start()
    assert server.asked("POST /chat/completions") == 6
    assert len(hosted.registry.entries()) == 1


def test_a_model_that_never_answers_is_not_lost(hosted: HostedRun, server: ContractServer) -> None:
    never = Fault("POST", "/chat/completions", "error before", status=404, times=10_000)
    server.faults.append(never)
    with pytest.raises(ServingError) as caught:
        hosted.start()
    assert "does not answer after 30 min" in one_line(caught.value)
    assert hosted.registry.entries() == ()
    never.times = 0
    HostedRun(hosted.settings).start()
    assert (len(server.account.jobs), len(hosted.registry.entries())) == (1, 1)


def test_an_outage_while_polling_is_waited_out(hosted: HostedRun, server: ContractServer) -> None:
    server.faults.append(Fault("GET", JOB, "error before", times=20))
    hosted.start()
    assert "asking again" in hosted.heard("warning")[0]["message"]


def test_an_outage_of_hours_ends_the_watch_and_keeps_the_job(
    hosted: HostedRun, server: ContractServer
) -> None:
    gone = Fault("GET", JOB, "cut before", times=10_000)
    server.faults.append(gone)
    with pytest.raises(ProviderError, match=r"no connection.*fine-tune resume"):
        HostedRun(hosted.settings, pace=Pace(poll_s=1800)).start()
    gone.times = 0
    hosted.start()
    assert len(server.account.jobs) == 1


@pytest.mark.parametrize("missing", [f"{JOB}/events", f"{JOB}/checkpoints", "/files/[^/]+/content"])
def test_paths_that_a_provider_lacks_cost_only_what_they_tell(
    hosted: HostedRun, server: ContractServer, missing: str
) -> None:
    server.faults.append(Fault("GET", missing, "error before", status=404, times=1000))
    model = hosted.start()
    assert len(hosted.registry.entries()) == 1
    assert (model.training is None) == missing.endswith("content")


def test_metrics_that_cannot_be_fetched_now_are_not_deleted(
    hosted: HostedRun, server: ContractServer
) -> None:
    server.faults.append(Fault("GET", "/files/[^/]+/content", "cut before", times=6))
    with pytest.raises(ProviderError, match="fine-tune resume"):
        hosted.start()
    assert len(server.account.files) == 2
    model = HostedRun(hosted.settings).start()
    assert model.training is not None
    assert server.account.files == {}


def answers(hosted: HostedRun, model: Model, n: int) -> list[str | None]:
    asked = Message(role="user", content="Since release 17 page 119 shows wrong purchases")
    prompts = [Prompt(question_id=f"q{i}", k=0, messages=(asked,)) for i in range(n)]
    with hosted.track.serve([model]) as answerer:
        return [reply.error for reply in answerer.replies(model.model_id, prompts, Decoding())]


def test_answers_wait_as_long_as_they_are_told(hosted: HostedRun, server: ContractServer) -> None:
    model = hosted.start()
    busy = Fault("POST", "/chat/completions", "error before", status=429, headers={"retry-after": "3"})
    server.faults.append(busy)
    hosted.time.slept.clear()
    assert answers(hosted, model, 8) == [None] * 8
    assert hosted.time.slept == [3.0]


def test_an_answer_that_fails_is_an_error_and_not_a_wrong_answer(
    hosted: HostedRun, server: ContractServer
) -> None:
    model = hosted.start()

    def flagged(answer: dict[str, object]) -> dict[str, object]:
        return answer | {"choices": []}

    server.bends.append(Bend("POST", "/chat/completions", flagged))
    assert answers(hosted, model, 3) == ["the model said nothing"] * 3


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_client(tmp_path)
    with pytest.raises(ProviderError, match=r"no connection to http://127\.0\.0\.1:9/v1"):
        HostedRun(make_settings(tmp_path, "http://127.0.0.1:9/v1", KEY)).start()


def test_a_page_that_is_no_api_is_named(hosted: HostedRun, server: ContractServer) -> None:
    html: Callable[[bytes], bytes] = lambda _body: b"<html>hello</html>"  # noqa: E731
    server.bends.append(Bend("GET", "/files", html, raw=True))
    with pytest.raises(ProviderError, match="is the right address"):
        hosted.start()
    assert server.account.jobs == {}
