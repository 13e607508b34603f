"""The record of a run: several writers, torn lines, and how attempts add up."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fine_tune_runner.policy.record import Attempt, EgressRecord, summary

AT = datetime(2026, 11, 22, tzinfo=UTC)


def attempt(**fields: Any) -> Attempt:
    return Attempt(**({"at": AT, "pid": 1, "what": "connect", "host": "mill", "port": 11434} | fields))


def test_attempts_at_one_host_and_port_are_added_up_and_refused_ones_come_last() -> None:
    rows = summary(
        [
            attempt(host="192.0.2.1", refused="outside", by="chatty (c.py:1)"),
            attempt(address="10.0.0.7"),
            attempt(what="traffic", sent=100, received=7),
            attempt(address="10.0.0.8"),
            attempt(what="traffic", sent=1, received=2),
            attempt(port=80),
        ]
    )
    assert [(row.host, row.port, row.attempts, row.sent, row.received) for row in rows] == [
        ("mill", 11434, 2, 101, 9),
        ("mill", 80, 1, None, None),
        ("192.0.2.1", 11434, 1, None, None),
    ]
    assert rows[0].addresses == ("10.0.0.7", "10.0.0.8")
    assert rows[2].by == ("chatty (c.py:1)",)


def test_several_threads_write_whole_lines(tmp_path: Path) -> None:
    record = EgressRecord(tmp_path / "egress.jsonl")
    threads = [
        threading.Thread(target=lambda n=n: [record.write(attempt(port=n)) for _ in range(50)])  # type: ignore[misc]
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(line.port or 0 for line in record.read()) == sorted([0, 1, 2, 3] * 50)


def test_a_line_that_a_crash_tore_is_left_out(tmp_path: Path) -> None:
    record = EgressRecord(tmp_path / "egress.jsonl")
    record.write(attempt())
    with record.path.open("ab") as file:
        file.write(b'{"at": "2026-1')
    assert record.read() == [attempt()]


def test_only_lines_from_an_offset_on_are_read(tmp_path: Path) -> None:
    record = EgressRecord(tmp_path / "egress.jsonl")
    record.write(attempt(port=1))
    start = record.size()
    record.write(attempt(port=2))
    assert [line.port for line in record.read(start)] == [2]


def test_a_record_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert EgressRecord(tmp_path / "egress.jsonl").read() == []


def test_a_refusal_is_told_with_caller_place_and_reason() -> None:
    line = attempt(host="192.0.2.1", port=443, refused="it is outside", by="chatty (c.py:1)")
    assert (
        line.told
        == "chatty (c.py:1) tried to connect to 192.0.2.1:443; refused: it is outside. Nothing was sent"
    )
