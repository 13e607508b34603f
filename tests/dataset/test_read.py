"""A version is read whole or every fault of it is named with file and line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fine_tune_runner.dataset.read import MAX_LINE_BYTES, count_rows, examples, load, scan, versions
from fine_tune_runner.errors import DataError, TooFewExamples, UsageError
from fine_tune_runner.types import EvalLabels, Example, Finding

from .clients import PROMPT, client, row, write


def turns(*pairs: tuple[str, Any], **extra: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **extra}


U, A, S = ("user", "q"), ("assistant", "a"), ("system", "s")


def test_a_clean_version_is_read(tmp_path: Path) -> None:
    data = load(client(tmp_path), 3)
    assert (data.examples, data.holdout_examples) == (60, 12)
    assert (data.account_state_version, data.system_prompt) == ("1.2.0", PROMPT)
    assert len(data.sha256) == len(data.holdout_sha256) == 64
    assert data.sha256 != data.holdout_sha256
    assert data.train_path.endswith("hre/v3.jsonl")


@pytest.mark.parametrize(
    "good",
    [
        turns(U, A),
        turns(S, U, A),
        turns(S, U, A, U, A, meta={"source": [1, None]}),
        {
            "messages": [
                *turns(U)["messages"],
                {"role": "assistant", "content": "a", "weight": 1, "name": "x"},
            ]
        },
        turns(U, A, eval={"id": "x", "root_cause": "y", "accept": ["z"], "unknown": 1}),
        turns(U, A, eval=None),
    ],
)
def test_good_shapes(tmp_path: Path, good: dict[str, Any]) -> None:
    (item,) = scan(write(tmp_path / "v1.jsonl", [good]))
    assert isinstance(item, Example)
    assert item.answer == "a"


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (b'{"messages":[', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"messages":[]} x', "not valid JSON"),
        (b'{"messages":7} x', "not valid JSON"),
        (b'{"a":"\xff"}', "not valid UTF-8 (byte 7)"),
        (b"", "is blank"),
        (b" \t", "is blank"),
        (b"[1]", "not an object"),
        (b'"text"', "not an object"),
        ({"prompt": "x"}, "messages: is missing"),
        ({"messages": "x"}, "messages: is missing or not a list"),
        ({"messages": []}, "messages is empty"),
        (turns(U), 'last message is from "user"'),
        (turns(A), 'messages[0] is from "assistant" where "user" is due'),
        (turns(S, A), 'messages[1] is from "assistant" where "user" is due'),
        (turns(S, S, U, A), 'messages[1] is from "system" where "user" is due'),
        (turns(U, S, A), 'messages[1] is from "system" where "assistant" is due'),
        (turns(U, U, A), 'messages[1] is from "user" where "assistant" is due'),
        (turns(S), 'last message is from "system"'),
        (turns(("tool", "x"), A), "messages[0].role: give system, user or assistant"),
        (turns(U, ("assistant", "")), "messages[1].content (assistant) is empty"),
        (turns(U, ("assistant", " \n")), "messages[1].content (assistant) is empty"),
        (turns(("user", 7), A), "messages[0].content: Expected `str`, got `int`"),
        (turns(U, ("assistant", None)), "messages[1].content: Expected `str`, got `null`"),
        (turns(("user", [{"type": "text"}]), A), "messages[0].content: Expected `str`, got `array`"),
        (
            {"messages": [{"role": "user"}, *turns(A)["messages"]]},
            "messages[0]: Object missing required field",
        ),
        ({"messages": [1, *turns(A)["messages"]]}, "messages[0]: Expected `object`, got `int`"),
        (
            {"messages": [*turns(U)["messages"], {"role": "assistant", "content": "a", "weight": 2}]},
            "messages[1].weight: give 0 or 1",
        ),
        (
            {"messages": [*turns(U)["messages"], {"role": "assistant", "content": "a", "weight": 0}]},
            "every assistant message has weight 0",
        ),
        (
            {"messages": [{"role": "user", "content": "q", "weight": 1}, *turns(A)["messages"]]},
            "messages[0].weight: only assistant messages",
        ),
        (turns(U, A, eval="x"), "eval: Expected `object | null`, got `str`"),
        (turns(U, A, eval={"accept": "x"}), "eval.accept: Expected `array`, got `str`"),
    ],
)
def test_bad_shapes(tmp_path: Path, bad: Any, said: str) -> None:
    path = write(tmp_path / "v1.jsonl", [row(1), bad, row(2)])
    items = list(scan(path))
    faults = [item for item in items if isinstance(item, Finding)]
    assert faults, "the row passed"
    assert said in " | ".join(fault.message for fault in faults)
    assert {(fault.path, fault.line, fault.check, fault.level) for fault in faults} == {
        (str(path), 2, "shape", "fail")
    }
    assert all(fault.remedy for fault in faults)
    assert [item.line for item in items if isinstance(item, Example)] == [1, 3]


def test_all_wrong_types_of_a_row_are_named(tmp_path: Path) -> None:
    bad = turns(("user", 7), ("assistant", 8), eval=3)
    faults = [item.message for item in scan(write(tmp_path / "v1.jsonl", [bad])) if isinstance(item, Finding)]
    assert [fault.split(":")[0] for fault in faults] == ["messages[0].content", "messages[1].content", "eval"]


def test_a_fault_never_repeats_the_value(tmp_path: Path) -> None:
    key = "sk-" + "a1" * 20
    (fault,) = scan(write(tmp_path / "v1.jsonl", [turns((key, "x"), A)]))
    assert isinstance(fault, Finding)
    assert key not in fault.message


def test_bom_is_one_fault_and_the_row_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "v1.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + msgspec.json.encode(row(1)))
    fault, example = scan(path)
    assert isinstance(fault, Finding)
    assert "byte order mark" in fault.message
    assert isinstance(example, Example)


def test_utf16_is_one_fault(tmp_path: Path) -> None:
    path = tmp_path / "v1.jsonl"
    path.write_text("\n".join(msgspec.json.encode(row(n)).decode() for n in range(5)), encoding="utf-16")
    assert [item.message for item in scan(path) if isinstance(item, Finding)] == ["is UTF-16"]


def test_an_overlong_line_is_one_fault_and_the_next_row_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "v1.jsonl", [b"x" * (2 * MAX_LINE_BYTES + 5), row(1)])
    fault, example = scan(path)
    assert isinstance(fault, Finding)
    assert "longer than 16 MB" in fault.message
    assert isinstance(example, Example)
    assert example.line == 2


def test_no_final_line_feed_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "v1.jsonl"
    path.write_bytes(b"\r\n".join(msgspec.json.encode(row(n)) for n in range(3)))
    assert [e.line for e in examples(path)] == [1, 2, 3]
    assert count_rows(path) == 3


def test_labels_and_weights_are_read(tmp_path: Path) -> None:
    labels = {"id": "hre-007", "root_cause": "c", "accept": ["d"], "aliases": ["e"], "reject": ["f"]}
    messages = [
        *turns(U)["messages"],
        {"role": "assistant", "content": "a", "weight": 0},
        *turns(U, A)["messages"],
    ]
    (example,) = examples(write(tmp_path / "v1.jsonl", [{"messages": messages, "eval": labels}]))
    assert example.eval == EvalLabels(
        id="hre-007", root_cause="c", accept=("d",), aliases=("e",), reject=("f",)
    )
    assert [m.weight for m in example.messages] == [None, 0, None, None]
    assert example.question == "q\nq"


def test_examples_raises_at_the_first_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "v1.jsonl", [row(1), b"nope"])
    with pytest.raises(DataError, match=r"v1\.jsonl line 2: not valid JSON .*; correct or drop the line"):
        list(examples(path))


def test_every_fault_of_all_files_comes_in_one_go(tmp_path: Path) -> None:
    train = [row(n) for n in range(5000)]
    train[4710] = b'{"messages":'
    hre = client(tmp_path, train=train, holdout=[turns(U)])
    (hre.dir / "account_state.json").write_text("{}")
    with pytest.raises(DataError) as caught:
        load(hre, 3)
    first, second, third = str(caught.value).splitlines()
    assert first.startswith(f"{hre.dir}/v3.jsonl line 4711: not valid JSON (")
    assert first.endswith("; correct or drop the line")
    assert second.startswith(f"{hre.dir}/v3_eval.jsonl line 1: last message is from")
    assert third.startswith(f"{hre.dir}/account_state.json: Object missing required field")


def test_beyond_twenty_faults_their_number_is_printed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(client(tmp_path, train=[b"nope"] * 33), 3)
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].startswith("... and 13 more")


def test_49_examples_wait(tmp_path: Path) -> None:
    with pytest.raises(TooFewExamples, match=r"^awaiting 50 examples \(has 49\)$"):
        load(client(tmp_path, train=[row(n) for n in range(49)]), 3)
    assert load(client(tmp_path, train=[row(n) for n in range(50)]), 3).examples == 50


@pytest.mark.parametrize("version", [0, -1])
def test_versions_count_from_one(tmp_path: Path, version: int) -> None:
    with pytest.raises(UsageError, match="count from 1"):
        load(client(tmp_path), version)


def test_a_missing_version_names_those_that_are_there(tmp_path: Path) -> None:
    hre = client(tmp_path)
    client(tmp_path, version=10)
    with pytest.raises(DataError) as caught:
        load(hre, 4)
    assert "v4.jsonl: is missing; publish it, or name a version that is there (v3, v10)" in str(caught.value)
    assert "v4_eval.jsonl: is missing" in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "v1.jsonl").mkdir()
    (tmp_path / "v2.jsonl").touch()
    found = [next(iter(scan(tmp_path / name))) for name in ("v1.jsonl", "v2.jsonl")]
    assert [item.message for item in found if isinstance(item, Finding)] == ["is no file", "is empty"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file that opens and then fails to read")
def test_a_file_that_fails_while_it_is_read(tmp_path: Path) -> None:
    (item,) = scan(Path("/proc/self/attr/../mem"))
    assert isinstance(item, Finding)
    assert item.message.startswith("cannot be read: ")


def test_versions_are_the_training_files(tmp_path: Path) -> None:
    for name in ("v2.jsonl", "v10.jsonl", "v1_eval.jsonl", "v03.jsonl", "vx.jsonl", "v4.json", "v0.jsonl"):
        (tmp_path / name).touch()
    assert versions(tmp_path) == (2, 10)
    assert versions(tmp_path / "none") == ()


def test_count_rows_of_no_file_is_zero(tmp_path: Path) -> None:
    assert count_rows(tmp_path / "v1.jsonl") == 0
