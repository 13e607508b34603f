"""Several clients in one command: trained in one process, told apart, one's fault no other's."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.crash.test_kill import finish, wait_for
from tests.small_client import PROMPT, Result, Workplace, train_rows, write_version

CLIENTS = ("ash", "birch", "cedar")


def add_client(place: Workplace, client_id: str, rows: int, **changes: Any) -> Path:
    """Another client of the workplace, with so many rows."""
    folder = place.data / client_id
    folder.mkdir()
    named = {"client_id": client_id, "client_name": client_id.upper()}
    config = place.config | named | {"eval": {"max_tokens": 8, "answers": 1}} | changes
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "account_state.json").write_text(json.dumps({"version": "1.0.0", "system_prompt": PROMPT}))
    write_version(folder, 1, train_rows(rows))
    return folder


def add_all(place: Workplace, **changes: Any) -> None:
    """Three clients on the same base, with 52, 58 and 64 rows."""
    for number, client_id in enumerate(CLIENTS):
        add_client(place, client_id, 52 + 6 * number, **changes)


def words(*clients: str) -> list[str]:
    """The command for these clients."""
    return [
        "submit",
        *(word for client_id in clients for word in ("--client", client_id)),
        "--version",
        "latest",
    ]


def events(place: Workplace, client_id: str) -> list[dict[str, Any]]:
    """What is on record of a client's only run."""
    path = next(place.data.glob(f"{client_id}/runs/*/events.jsonl"), None)
    data = path.read_bytes() if path else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def of(place: Workplace, client_id: str, event: str) -> list[dict[str, Any]]:
    """The data of a client's events of that name."""
    return [e["data"] for e in events(place, client_id) if e["event"] == event]


def losses(place: Workplace, client_id: str) -> list[float]:
    """The loss of each step, in order."""
    return [data["loss"] for data in of(place, client_id, "train step")]


def logs(place: Workplace) -> list[str]:
    """The clients in whose folder a training process left its log: one a process."""
    return sorted(path.relative_to(place.data).parts[0] for path in place.data.glob("*/runs/*/*/trainer.log"))


def live(result: Result) -> list[str]:
    """The clients whose version is said to be in service."""
    return [line.split()[1].lower() for line in result.out.splitlines() if line.startswith("  ✓ ")]


def test_clients_train_in_one_process_with_the_losses_of_their_solo_runs(place: Workplace) -> None:
    add_all(place)
    result = place.run(*words(*CLIENTS))
    assert result.code == 0, result.err + result.out
    assert live(result) == list(CLIENTS)
    assert len(logs(place)) == 1
    together = {client_id: losses(place, client_id) for client_id in CLIENTS}
    assert [len(values) for values in together.values()] == [7, 8, 8]
    for client_id in CLIENTS:
        assert [data["together"] for data in of(place, client_id, "train started")] == [3]
        (done,) = of(place, client_id, "train finished")
        assert done["final_loss"] == together[client_id][-1]
        lines = [line for line in result.out.splitlines() if line.startswith(f"{client_id:<5} │ ")]
        assert any("Training LoRA..." in line and "together with 2 others" in line for line in lines)
        assert any("done — loss" in line for line in lines)

    # The same rows by themselves, as another client's.
    add_client(place, "solo", 58)
    alone = place.run(*words("solo"))
    assert alone.code == 0, alone.err
    assert "together" not in alone.out
    assert " │ " not in alone.out
    assert losses(place, "solo") == pytest.approx(together["birch"], rel=1e-5)


def test_a_fault_of_one_client_is_named_and_stops_no_other(place: Workplace) -> None:
    add_client(place, "ash", 52)
    bad = add_client(place, "birch", 58)
    lines = (bad / "v1.jsonl").read_text().splitlines()
    (bad / "v1.jsonl").write_text("\n".join([lines[0], "{broken", *lines[2:]]) + "\n")
    add_client(place, "cedar", 64)
    result = place.run(*words("ash", "birch", "nobody", "cedar", "ash"))
    assert result.code == 1
    assert live(result) == ["ash", "cedar"]
    assert "Error: birch: " in result.err
    assert "v1.jsonl line 2" in result.err
    assert "Error: nobody: client 'nobody' is unknown" in result.err
    assert [of(place, client_id, "train started")[0]["together"] for client_id in ("ash", "cedar")] == [2, 2]
    assert "Traceback" not in result.err


def test_json_names_the_client_of_an_error_and_the_highest_code_counts(place: Workplace) -> None:
    add_client(place, "ash", 52)
    add_client(place, "birch", 58)
    result = place.run(*words("birch", "ash", "cedar"), "--track", "a", "--json")
    assert result.code == 5  # cedar is unknown (1); the others are sensitive
    errors = [event for event in result.events if event["event"] == "error"]
    assert [(error["client_id"], error["code"]) for error in errors] == [
        ("birch", "policy"),
        ("ash", "policy"),
        ("cedar", "config"),
    ]


def test_latest_is_the_highest_version_with_both_files(place: Workplace) -> None:
    add_client(place, "ash", 52)
    write_version(place.data / "ash", 3)
    (place.data / "ash" / "v10.jsonl").write_text("unfinished")
    result = place.run(*words("ash"), "--dry-run")
    assert (result.code, "clients/ash/v3.jsonl" in result.out) == (0, True)
    (place.data / "ash" / "v1_eval.jsonl").unlink()
    (place.data / "ash" / "v3_eval.jsonl").unlink()
    none = place.run(*words("ash"), "--dry-run")
    assert (none.code, "no version has both" in none.err) == (1, True)
    assert place.run("submit", "--client", "ash", "--version", "newest").code == 2


def test_a_kill_in_mid_training_is_gone_on_with_by_every_client(place: Workplace) -> None:
    add_all(place, training=place.config["training"] | {"epochs": 2})
    child = place.start(*words(*CLIENTS))
    wait_for(child, lambda: all(len(of(place, c, "train checkpoint")) >= 4 for c in CLIENTS))
    os.killpg(child.pid, signal.SIGKILL)
    finish(child)
    before = {client_id: len(losses(place, client_id)) for client_id in CLIENTS}
    result = place.run(*words(*CLIENTS))
    assert result.code == 0, result.err + result.out
    assert live(result) == list(CLIENTS)
    for client_id in CLIENTS:
        steps = [data["step"] for data in of(place, client_id, "train step")][before[client_id] :]
        assert steps[0] >= 4, "training began from the start again"
        assert steps == list(range(steps[0], steps[0] + len(steps)))
        assert len(of(place, client_id, "train finished")) == 1


def test_a_client_that_is_cancelled_and_forgotten_leaves_and_the_others_go_on(place: Workplace) -> None:
    training = place.config["training"] | {"epochs": 12}
    add_client(place, "ash", 52, training=training)
    gone = add_client(place, "birch", 52, training=training)
    child = place.start(*words("ash", "birch"))
    wait_for(child, lambda: len(of(place, "birch", "train step")) >= 3)
    assert place.run("cancel", next(gone.glob("runs/*")).name).code == 0
    # Refused for as long as the shared process still trains it; a moment later nothing of it comes back.
    wait_for(child, lambda: place.run("forget", "--client", "birch", "--yes").code == 0)
    result = finish(child)
    assert result.code == 130
    assert live(result) == ["ash"]
    assert [data.get("together") for data in of(place, "ash", "train started")] == [2, None]
    assert [data["step"] for data in of(place, "ash", "train step")] == list(range(1, 85))
    assert not gone.exists()
