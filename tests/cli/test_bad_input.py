"""Bad input: one clear line, the right exit code, no traceback, nothing changed."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.small_client import Workplace, holdout_rows, row, train_rows, write_rows

SUBMIT = ("submit", "--client", "small", "--version", "1")


def broken_line(place: Workplace) -> None:
    lines = [json.dumps(r) for r in train_rows(60)]
    padding = [
        json.dumps(row(f"question number {i} of many {i * i}", "currency_mismatch")) for i in range(4700)
    ]
    (place.client / "v1.jsonl").write_text("\n".join([*lines[:10], *padding, "{broken", *lines[10:]]) + "\n")


def bom(place: Workplace) -> None:
    path = place.client / "v1.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def wrong_roles(place: Workplace) -> None:
    rows = train_rows()
    rows[16]["messages"] = rows[16]["messages"][:2]
    write_rows(place.client / "v1.jsonl", rows)


def empty_answer(place: Workplace) -> None:
    rows = train_rows()
    rows[3]["messages"][2]["content"] = " "
    write_rows(place.client / "v1.jsonl", rows)


def few(place: Workplace) -> None:
    write_rows(place.client / "v1.jsonl", train_rows(49))


def no_holdout(place: Workplace) -> None:
    (place.client / "v1_eval.jsonl").unlink()


def leak(place: Workplace) -> None:
    rows = holdout_rows()
    rows[2]["messages"][1] = train_rows()[7]["messages"][1]
    write_rows(place.client / "v1_eval.jsonl", rows)


def secret(place: Workplace) -> None:
    rows = train_rows()
    rows[5]["messages"][1]["content"] += " our key is " + "AIza" + "Sy" + "B1c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R"
    write_rows(place.client / "v1.jsonl", rows)


def wrong_type(place: Workplace) -> None:
    place.write_config(training={"epochs": "three"})


def no_base(place: Workplace) -> None:
    place.write_config(base_model="/nowhere/base")


def long_prompt(place: Workplace) -> None:
    rows = train_rows()
    rows[8]["messages"][1]["content"] += " and so on" * 900
    write_rows(place.client / "v1.jsonl", rows)


@pytest.mark.parametrize(
    ("make_bad", "code", "says"),
    [
        (broken_line, 1, "v1.jsonl line 4711: not valid JSON"),
        (bom, 1, "byte order mark"),
        (wrong_roles, 1, 'v1.jsonl line 17: last message is from "user"'),
        (empty_answer, 1, "v1.jsonl line 4"),
        (few, 1, "awaiting 50 examples (has 49)"),
        (no_holdout, 1, "v1_eval.jsonl"),
        (leak, 1, "v1.jsonl line 8"),
        (secret, 1, "v1.jsonl line 6"),
        (wrong_type, 1, "`$.training.epochs`"),
        (no_base, 1, "/nowhere/base"),
        (long_prompt, 1, "v1.jsonl line 9"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_submit_of_bad_data_trains_nothing(
    place: Workplace, make_bad: Callable[[Workplace], None], code: int, says: str
) -> None:
    make_bad(place)
    result = place.run(*SUBMIT)
    assert result.code == code
    assert says in result.err
    assert result.err.startswith("Error: ") or "\nError: " in result.err
    assert "Traceback" not in result.out + result.err
    assert not (place.client / "model_registry.json").exists()
    assert list(place.client.glob("runs/*/attempt-*")) == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("submit", "--client", "../x", "--version", "1"), 2, "client id '../x'"),
        (("submit", "--client", "small", "--version", "0"), 2, "'0' is no version"),
        (("submit", "--client", "nobody", "--version", "1"), 1, "client 'nobody' is unknown"),
        (("submit", "--client", "small", "--version", "7"), 1, "v7.jsonl"),
        (("submit", "--client", "small", "--version", "1", "--track", "a"), 5, "nothing was sent"),
        (("submit", "--client", "small"), 2, "Missing option '--version'"),
        (("eval", "--client", "small", "--version", "1"), 1, "not in the registry"),
        (("promote", "--client", "small", "--version", "1"), 1, "not in the registry"),
        (("rollback", "--client", "small", "--version", "1"), 1, "not in the registry"),
        (("ask", "--client", "small", "Why?"), 1, "no version in service"),
        (("resume", "small-v1-b-00000000-1"), 1, "is unknown"),
        (("cancel", "small-v1-b-00000000-1"), 1, "is unknown"),
        (("history", "--client", "small", "--at", "yesterday"), 2, "ISO 8601"),
        (("forget", "--client", "small"), 2, "say --yes"),
        (("fetch", "gpt-5"), 2, "gpt-5"),
        (("nonsense",), 2, "No such command"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, tuple) else None,
)
def test_wrong_words_are_named(place: Workplace, arguments: tuple[str, ...], code: int, says: str) -> None:
    result = place.run(*arguments)
    assert (result.code, says in result.err, "Traceback" in result.err) == (code, True, False), result.err


def test_a_wrong_setting_is_named_before_any_work(place: Workplace) -> None:
    result = place.run(*SUBMIT, env={"EVAL_REGRESSION_TOLERANCE": "lots"})
    assert result.code == 1
    assert "EVAL_REGRESSION_TOLERANCE='lots'" in result.err


def test_an_error_is_json_where_json_was_asked_for(place: Workplace) -> None:
    few(place)
    result = place.run(*SUBMIT, "--json")
    assert result.events[-1] == {
        "event": "error",
        "code": "too_few_examples",
        "message": "awaiting 50 examples (has 49)",
    }


def test_check_lists_all_faults_in_one_go(place: Workplace) -> None:
    rows = train_rows()
    rows[3]["messages"][2]["content"] = ""
    rows[9]["messages"] = rows[9]["messages"][:1]
    write_rows(place.client / "v1.jsonl", rows)
    result = place.run("check", "--client", "small", "--version", "1", "--json")
    assert result.code == 1
    fails = [item["line"] for item in result.events[0]["items"] if item["level"] == "fail"]
    assert {4, 10} <= set(fails)
