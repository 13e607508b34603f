"""Track A as a user runs it: the real command in processes of its own, against the contract server."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fine_tune_runner.cli.transcript import RULE
from fine_tune_runner.sample.generate import write_clients
from tests.contract.openai_server.server import KEY, ContractServer, serving
from tests.hosted.world import BASE
from tests.small_client import Result, Workplace

MODEL = r"ft:gpt-4o-mini-2024-07-18:contract:hre-v3:\d+"
# Labels, rules and ticks as spec.md has them; ids, times, steps and scores vary.
LINES = [
    RULE,
    r"  Fine-Tune Runner — HRE v3 · Track A \(OpenAI\)",
    RULE,
    r"  Loading JSONL\.\.\.           ✓ data/clients/hre/v3\.jsonl \(112 records\)",
    r"  Uploading to OpenAI\.\.\.     ✓ file_id: file-\d+",
    r"  Creating fine-tune job\.\.\.  ✓ job_id: ftjob-\d+",
    r"  Model suffix:              gpt-4o-mini-2024-07-18:hre-v3",
    r"",
    r"  Polling status\.\.\.",
    r"    \[\d\d:\d\d\] queued",
    r"    \[\d\d:\d\d\] running — step 112/336",
    r"    \[\d\d:\d\d\] running — step 224/336, ETA 01:00",
    r"    \[\d\d:\d\d\] succeeded",
    r"",
    rf"  Fine-tuned model:          {MODEL}",
    r"",
    RULE,
    r"  Running eval harness \(holdout: v3_eval\.jsonl\)\.\.\.",
    r"    Problem recall:          ✓ \d+%",
    r"    Solution accuracy:       ✓ \d\.\d\d cosine sim",
    r"    Regression vs v2:        ✓ [+-]\d\.\d\d (improvement|no change|lower)",
    r"",
    RULE,
    r"  Registering model\.\.\.       ✓ model_registry\.json updated",
    rf"  Promoting to active\.\.\.     ✓ hre → {MODEL}",
    r"  Archiving v2\.\.\.            ✓ archived",
    RULE,
    r"  ✓ HRE v3 live — ready for routing",
    rf"  Next: openclaw register --client hre --model {MODEL}",
]

POLL = ("--poll-interval", "0.02")


@dataclass
class House:
    """The sample clients in `data/clients` of a folder, and the contract server."""

    folder: Path
    env: dict[str, str]
    server: ContractServer

    def run(self, *arguments: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "fine_tune_runner", *arguments],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        for text in (done.stdout, done.stderr):
            assert KEY not in text
        return Result(done.returncode, done.stdout, done.stderr)

    def submit(self, version: int, *more: str) -> Result:
        named = ("--client", "hre", "--version", str(version), "--track", "a")
        return self.run("submit", *named, *POLL, *more)


def environment(server: ContractServer, models_dir: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "OPENAI_BASE_URL": server.url,
        "OPENAI_API_KEY": KEY,
        "FINE_TUNE_MODELS_DIR": str(models_dir),
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def server() -> Iterator[ContractServer]:
    with serving() as running:
        yield running
        assert running.wrong == []


@pytest.fixture
def another() -> Iterator[ContractServer]:
    """The client `small` has run ids that can be derived again, so each of its tests has its own account."""
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def unpaid(server: ContractServer, tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> House:
    """Nothing was submitted yet."""
    folder = tmp_path_factory.mktemp("house")
    data = folder / "data" / "clients"
    write_clients(data, 0)
    config = {"client_id": "hre", "client_name": "HRE", "track_preference": "a"}
    (data / "hre" / "config.json").write_text(json.dumps(config))
    return House(folder, environment(server, models_dir), server)


@pytest.fixture(scope="module")
def house(unpaid: House) -> House:
    """Version 2 is in service, after nobody could be asked for the money."""
    refused = unpaid.submit(2)
    assert (refused.code, unpaid.server.account.jobs) == (2, {})
    assert "this run costs about $0.49 (OpenAI's price of 2026-11-22); say --yes" in refused.err
    result = unpaid.submit(2, "--yes")
    assert result.code == 0, result.err
    return unpaid


@pytest.fixture(scope="module")
def submitted(house: House) -> Result:
    """What `submit` of version 3 printed."""
    return house.submit(3, "--max-cost", "15", "--yes")


def test_the_transcript_of_the_spec_comes_out_of_the_command(house: House, submitted: Result) -> None:
    assert submitted.code == 0, submitted.err
    said = [line for line in submitted.out.splitlines() if not line.endswith("answers")]
    pairs = zip(said, LINES, strict=True)
    assert [(line, want) for line, want in pairs if not re.fullmatch(want, line)] == []
    assert house.server.training_files == []
    assert len(house.server.account.jobs) == 2


def test_submitting_it_again_pays_nothing(house: House, submitted: Result) -> None:
    again = house.submit(3)
    assert (again.code, "HRE v3 live" in again.out) == (0, True)
    assert len(house.server.account.jobs) == 2


def test_no_key_is_left_on_the_disk(house: House, submitted: Result) -> None:
    left = [path.read_bytes() for path in house.folder.rglob("*") if path.is_file()]
    assert len(left) > 30
    assert [data for data in left if KEY.encode() in data] == []


def on_a_terminal(house: House, answer: str, *arguments: str) -> tuple[int, str]:
    """Run a command with a person at both ends, who answers the first question."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "fine_tune_runner", *arguments],
        cwd=house.folder,
        env=house.env | {"TERM": "dumb"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    os.write(master, f"{answer}\n".encode())
    said = b""
    try:
        while chunk := os.read(master, 65536):
            said += chunk
    except OSError:  # the other end is closed
        pass
    os.close(master)
    return child.wait(), said.decode(errors="replace")


def test_a_no_on_the_terminal_sends_nothing(house: House, submitted: Result) -> None:
    uploads = house.server.asked("POST /files")
    client = house.folder / "data" / "clients" / "hre"
    for end in (".jsonl", "_eval.jsonl"):
        (client / f"v4{end}").write_bytes((client / f"v2{end}").read_bytes())
    code, said = on_a_terminal(house, "n", "submit", "--client", "hre", "--version", "4", "--track", "a")
    assert (code, "This run costs about $0.49" in said, "nothing was sent" in said) == (130, True, True), said
    assert house.server.asked("POST /files") == uploads


def test_doctor_asks_on_a_terminal_before_it_deletes(house: House, submitted: Result) -> None:
    file = house.server.account.add_file("hre-v3-a-1a2b3c4d-8.jsonl", "fine-tune", b"{}")
    code, said = on_a_terminal(house, "leave", "doctor")
    assert (code, file.id in house.server.account.files) == (1, True), said
    code, said = on_a_terminal(house, "delete", "doctor")
    assert (code, file.id in house.server.account.files) == (0, False), said


def test_doctor_exits_by_the_days_that_are_left(house: House, submitted: Result) -> None:
    end = datetime.now(UTC).date() + timedelta(days=40)
    house.server.account.shutdown_dates[BASE] = str(end)
    result = house.run("doctor")
    assert result.code == 1
    assert re.search(rf"hre +v3 +A +{MODEL} +40 +{end} +the provider says", result.out), result.out
    assert "fine-tune migrate --client hre --to b" in result.err
    assert house.run("doctor", "--within", "40").code == 0
    assert house.run("doctor", "--within", "soon").code == 2
    (line,) = [e for e in house.run("doctor", "--json").events if e["event"] == "in service"]
    assert (line["below"], line["model"]["days_left"]) == (True, 40)
    house.server.account.shutdown_dates.clear()


def test_doctor_deletes_what_nobody_watches_when_told_to(house: House, submitted: Result) -> None:
    house.server.account.add_file("hre-v3-a-1a2b3c4d-9.jsonl", "fine-tune", b"{}")
    house.server.account.add_file("somebody-elses.jsonl", "fine-tune", b"{}")
    listed = house.run("doctor")
    assert listed.code == 1
    assert "no client of this data folder, left alone" in listed.out
    assert len(house.server.training_files) == 2
    assert house.run("doctor", "--yes").code == 0
    assert house.server.training_files == ["somebody-elses.jsonl"]


def test_doctor_adopts_a_paid_job_whose_run_was_lost(house: House, submitted: Result) -> None:
    """As after a lost disk: the run's folder, its registry entry and the ledger are gone."""
    hre = house.folder / "data" / "clients" / "hre"
    (run,) = hre.glob("runs/hre-v3-*")
    run_id = run.name
    for path in (
        run,
        hre / "model_registry.json",
        hre / "model_registry.json.audit",
        hre.parent / ".fine-tune",
    ):
        path.rename(house.folder / f"lost-{path.name}")
    assert f"fine-tune resume {run_id}" in house.run("doctor").out
    adopted = house.run("doctor", "--yes")
    assert "✓ HRE v3 live" in adopted.out, adopted.err
    assert len(house.server.account.jobs) == 2
    (entry,) = [row for row in json.loads((hre / "model_registry.json").read_text()) if row["version"] == 3]
    assert (entry["active"], entry["run_id"]) == (True, run_id)


def test_a_run_that_was_killed_goes_on_watching_the_job_it_paid_for(
    another: ContractServer, place: Workplace
) -> None:
    place.env |= environment(another, place.folder / "models")
    place.write_config(track_preference="a", base_model=None)
    running = place.start("submit", "--client", "small", "--version", "1", "--yes", "--poll-interval", "60")
    while not any(job.step for job in list(another.account.jobs.values())) and running.poll() is None:
        for job_id in list(another.account.jobs):
            another.account.look(job_id)
        time.sleep(0.05)
    running.kill()
    running.communicate()
    result = place.submit(1, *POLL)
    assert result.code == 0, result.err
    polling = result.out.partition("  Polling status...\n")[2]
    assert re.match(r"    \[\d\d:\d\d\] (running|succeeded)", polling), result.out
    assert "Uploading" not in result.out
    assert (another.asked("POST /fine_tuning/jobs"), another.training_files) == (1, [])


def test_cancel_stops_the_job_and_submit_points_to_another_attempt(
    another: ContractServer, place: Workplace
) -> None:
    place.env |= environment(another, place.folder / "models")
    place.write_config(track_preference="a", base_model=None)
    another.account.script = ("running",)  # and nothing after that
    running = place.start("submit", "--client", "small", "--version", "1", "--yes", *POLL)
    while not another.account.jobs and running.poll() is None:
        time.sleep(0.05)
    (run,) = place.client.glob("runs/*")
    cancelled = place.run("cancel", run.name)
    output = running.communicate(timeout=60)[0]
    assert cancelled.code == 0, cancelled.err + output
    assert "no longer runs at OpenAI, its training file is deleted there" in cancelled.out
    assert [job.public["status"] for job in another.account.jobs.values()] == ["cancelled"]
    assert another.training_files == []
    again = place.submit(1, "--yes", *POLL)
    assert (again.code, "at its end (cancelled)" in again.err, "--again" in again.err) == (1, True, True)
    assert len(another.account.jobs) == 1


def test_migrate_compares_both_models_and_leaves_the_guard_to_decide(
    another: ContractServer, place: Workplace, tiny_base: Path
) -> None:
    place.env |= environment(another, place.folder / "models")
    place.write_config(track_preference="a", base_model=None)
    assert place.submit(1, "--yes", *POLL).code == 0
    place.write_config(base_model=str(tiny_base))
    log = place.folder / "log.jsonl"
    month = ("--answers-per-month", "20000", "--log-json", str(log))
    result = place.run("migrate", "--client", "small", "--to", "b", *month)
    assert result.code == 3, result.err  # one epoch teaches a tiny random base nothing
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["client"] for line in lines} == {"small"}
    assert [line["step"] for line in lines if line["event"] == "step done"][-1] == "promote"
    for line in (
        r"Parity on the same 12 questions:",
        r" +v1 \(track A\) +v1 \(track B\)",
        r"model +ft:gpt-4o-mini-2024-07-18:contract:small-v1:\d+ +small-client:v1",
        r"problem recall +\d+% +0%",
        r"tokens an answer +\d+ +\d+",
        r"price of 20000 answers +\$\d+\.\d\d a month +own hardware",
        r"lost: \d+: small-0.*",
    ):
        assert re.search(f"^{line}$", result.out, re.M), f"{line}\n{result.out}"
    active = [row["track"] for row in place.registry() if row["active"]]
    assert active == ["A"]


def test_forget_reaches_the_provider(house: House, submitted: Result) -> None:
    hre = house.folder / "data" / "clients" / "hre"
    away = House(house.folder, house.env | {"OPENAI_API_KEY": ""}, house.server)
    kept = away.run("forget", "--client", "hre", "--yes")
    assert (kept.code, "--here-only" in kept.err, hre.is_dir()) == (1, True, True)
    result = house.run("forget", "--client", "hre", "--yes")
    assert (result.code, hre.exists()) == (0, False), result.err
    assert re.search(rf"deleted at the provider: {MODEL}", result.out)
    assert [m["id"] for m in house.server.account.models() if ":hre-v3:" in m["id"]] == []
