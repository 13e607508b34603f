"""Holdouts out of OpenAI Evals and promptfoo files: every shape that is documented, and what is not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fine_tune_runner.dataset.foreign import Keys
from fine_tune_runner.dataset.imported import Imported, import_file, write_holdout
from fine_tune_runner.dataset.read import scan
from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.holdout import load_holdout
from fine_tune_runner.types import Example

TAXONOMY = load_taxonomy(None)


def imported(folder: Path, text: str | bytes, keys: Keys = Keys(), **words: Any) -> Imported:  # noqa: B008
    path = folder / "export"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return import_file(path, words.get("form"), keys, TAXONOMY, words.get("system_prompt"))


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def pairs(found: Imported) -> list[tuple[str, str]]:
    """(question, reference) of each row."""
    rows = [msgspec.json.decode(row)["messages"] for row in found.rows]
    return [(row[-2]["content"], row[-1]["content"]) for row in rows]


def faults(found: Imported) -> list[tuple[str, str]]:
    return [(row.place, row.why) for row in found.unread]


# OpenAI


@pytest.mark.parametrize(
    "value",
    [
        {"item": {"input": "Why?", "ideal": "Because."}},
        {"item": {"question": "Why?", "ground_truth": "Because."}, "sample": {"output_text": "No."}},
        {"object": "eval.run.output_item", "datasource_item": {"input": "Why?", "ideal": "Because."}},
        {
            "input": [{"role": "system", "content": "S"}, {"role": "user", "content": "Why?"}],
            "ideal": "Because.",
        },
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        {
            "item": {
                "input": [
                    {"role": "developer", "content": "S"},
                    {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
                ],
                "reference": "Because.",
            }
        },
    ],
    ids=["item", "usual names", "output item", "openai/evals", "messages", "parts"],
)
def test_each_shape_of_an_openai_item_is_read(tmp_path: Path, value: dict[str, Any]) -> None:
    for text in (lines(value, {"input": "How?", "ideal": "So."}), json.dumps([value]), json.dumps(value)):
        found = imported(tmp_path, text)
        assert (found.format, pairs(found)[0], found.unread) == ("openai", ("Why?", "Because."), ())


def test_a_page_of_output_items_is_read(tmp_path: Path) -> None:
    items = [{"datasource_item": {"input": q, "ideal": "Because."}, "results": []} for q in ("Why?", "How?")]
    found = imported(tmp_path, json.dumps({"object": "list", "data": items}, indent=1))
    assert [question for question, _ in pairs(found)] == ["Why?", "How?"]


def test_several_ideal_answers_are_a_reference_and_further_wordings(tmp_path: Path) -> None:
    found = imported(tmp_path, lines({"input": "Why?", "ideal": ["csp_blocks_tags", "policy too strict"]}))
    row = msgspec.json.decode(found.rows[0])
    assert row["messages"][-1]["content"] == "csp_blocks_tags"
    assert row["eval"] == {"root_cause": "csp_blocks_tags", "accept": ["policy too strict"]}
    assert found.labelled == 1


def test_names_of_the_users_own_are_given_as_keys(tmp_path: Path) -> None:
    text = lines({"item": {"ticket_text": "Why?", "right": "Because."}})
    assert faults(imported(tmp_path, text)) == [
        ("line 1", "has no question under a usual key (keys: ticket_text, right)")
    ]
    found = imported(tmp_path, text, Keys(question="ticket_text", reference="right"))
    assert pairs(found) == [("Why?", "Because.")]


def test_every_row_that_cannot_be_read_is_named_with_line_and_remedy(tmp_path: Path) -> None:
    good = {"item": {"input": "Why?", "ideal": "Because."}}
    image = [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]
    text = (
        lines(good)
        + "{broken\n\n"
        + lines(
            {"item": {"input": "How?"}},
            {"item": {"input": image, "ideal": "x"}},
            {"item": {"input": [{"role": "tool", "content": "x"}], "ideal": "x"}},
            {"item": {"input": [{"role": "assistant", "content": "x"}], "ideal": "x"}},
            {"item": {"input": "When?", "ideal": " "}},
            {"item": {"input": "Half \ud800?", "ideal": "x"}},
            {"item": {"input": "Why?", "ideal": "Something else."}},
            good,
        )
    )
    found = imported(tmp_path, text)
    assert faults(found) == [
        ("line 2", "is no JSON object"),
        ("line 4", "has no reference answer under a usual key (keys: input)"),
        ("line 5", "it holds something that is no text"),
        ("line 6", "a message is from a tool or an unknown role"),
        ("line 7", "its turns are not user and assistant by turns"),
        ("line 8", "a text is empty"),
        ("line 9", "a text holds half a character"),
        ("line 10", "asks the same as line 1 with another reference"),
    ]
    assert all(row.remedy for row in found.unread)
    assert (len(found.rows), found.repeated) == (1, 1)


# promptfoo

CONFIG = """\
prompts: ['Diagnose: {{question}}']
providers: [openai:gpt-4o-mini]
defaultTest:
  assert:
    - type: not-contains
      value: no idea
tests:
  - description: CSP
    vars:
      question: Why are tags blocked?
      area: web
    assert:
      - type: contains
        value: csp_blocks_tags
      - {type: cost, threshold: 0.01}
  - vars: {question: 'Why twice?'}
    assert:
      - type: similar
        value: The tag is there twice in the {{question}}
      - {type: contains, value: twice}
  - vars: {question: 'Graded only?'}
    assert: [{type: llm-rubric, value: is polite}]
  - vars: {question: 'One of them?'}
    assert:
      - {type: assert-set, assert: [{type: icontains-any, value: [dns, domain]}]}
  - file://more.yaml
"""


def test_a_promptfoo_config_is_read_with_lines(tmp_path: Path) -> None:
    found = imported(tmp_path, CONFIG)
    assert (found.format, pairs(found)) == (
        "promptfoo",
        [
            ("Why are tags blocked?", "csp_blocks_tags"),
            ("Why twice?", "The tag is there twice in the Why twice?"),
            ("One of them?", "dns"),
        ],
    )
    assert faults(found) == [
        ("line 21", "asserts llm-rubric, not-contains, which gives no reference answer"),
        ("line 26", "is no test with vars and assert"),
    ]
    evals = [msgspec.json.decode(row)["eval"] for row in found.rows]
    assert evals[0] == {"root_cause": "csp_blocks_tags", "reject": ["no idea"]}
    assert evals[2] == {"accept": ["domain"], "reject": ["no idea"]}


def test_the_same_config_as_json_and_as_a_list_of_tests_gives_the_same_rows(tmp_path: Path) -> None:
    import yaml

    value = yaml.safe_load(CONFIG)
    rows = imported(tmp_path, CONFIG).rows
    assert imported(tmp_path, json.dumps(value, indent=2)).rows == rows
    del value["defaultTest"]
    bare = imported(tmp_path, yaml.safe_dump(value["tests"]))
    assert pairs(bare) == pairs(imported(tmp_path, CONFIG))
    assert imported(tmp_path, lines(*value["tests"][:4])).rows == bare.rows


def test_exported_results_give_each_test_once(tmp_path: Path) -> None:
    def result(question: str, provider: str) -> dict[str, Any]:
        test = {"vars": {"question": question}, "assert": [{"type": "equals", "value": f"{question}!"}]}
        return {
            "provider": {"id": provider},
            "vars": test["vars"],
            "testCase": test,
            "prompt": {"raw": f"Diagnose: {question}"},
            "response": {"output": "no"},
        }

    results = [result(q, p) for q in ("Why?", "How?") for p in ("a", "b")]
    found = imported(tmp_path, json.dumps({"evalId": "e", "results": {"version": 3, "results": results}}))
    assert (pairs(found), found.repeated) == ([("Why?", "Why?!"), ("How?", "How?!")], 2)


def test_csv_cells_are_assertions(tmp_path: Path) -> None:
    text = (
        "question,__expected,__expected2,__description\n"
        "Why?,contains: csp_blocks_tags,not-contains: dns,first\n"
        '"Many\nlines?","similar(0.8): Line one\nline two",,\n'
        "Plain?,Note: it is plain,,\n"
        'Any?,"contains-any: dns, domain",,\n'
        "Code?,is-json,,\n"
        "Nothing?,,,\n"
    )
    found = imported(tmp_path, text)
    assert pairs(found) == [
        ("Why?", "csp_blocks_tags"),
        ("Many\nlines?", "Line one\nline two"),
        ("Plain?", "Note: it is plain"),
        ("Any?", "dns"),
    ]
    assert faults(found) == [
        ("line 8", "asserts is-json, which gives no reference answer"),
        ("line 9", "asserts nothing, which gives no reference answer"),
    ]
    assert msgspec.json.decode(found.rows[0])["eval"]["reject"] == ["dns"]


def test_which_variable_is_the_question_is_never_guessed_among_several(tmp_path: Path) -> None:
    text = "tests:\n- vars: {symptom: 'Why?', area: web}\n  assert: [{type: equals, value: x}]\n"
    assert faults(imported(tmp_path, text)) == [
        ("line 2", "has no variable that is the question (variables: symptom, area)")
    ]
    assert pairs(imported(tmp_path, text, Keys(question="symptom"))) == [("Why?", "x")]
    assert pairs(imported(tmp_path, text, Keys(question="symptom", reference="area"))) == [("Why?", "web")]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("file://answer.txt", "what it expects is in another file"),
        ("{{ question | upper }}", "what it expects is a template with more than variables"),
        ("{{missing}}", "a text is empty"),
    ],
)
def test_what_stands_elsewhere_is_named(tmp_path: Path, value: str, why: str) -> None:
    test = {"vars": {"question": "Why?"}, "assert": [{"type": "equals", "value": value}]}
    assert faults(imported(tmp_path, json.dumps({"tests": [test]}))) == [("tests[0]", why)]


# Both


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (b"\xff\xfe{}", "not valid UTF-8 (byte 1)"),
        ("hello", "has no tests, and no column __expected"),
        ("tests: [a: b: c]\n", "line 1: not valid YAML"),
        ("tests: file://tests.csv\n", "its tests are in another file"),
        ("{\n broken", "line 2: not valid JSON"),
        ('{"prompts": ["x"], "scenarios": []}', "has no tests of its own"),
        ("[" * 100_000, "is nested too deep"),
        ('question,__expected\n"Why?,x\n', "line 2: not valid CSV"),
    ],
    ids=range(9),
)
def test_a_file_that_cannot_be_parsed_is_named_with_what_to_do(
    tmp_path: Path, text: str | bytes, says: str
) -> None:
    with pytest.raises(DataError) as error:
        imported(tmp_path, text)
    assert says in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'export'}")


def test_the_format_can_be_named(tmp_path: Path) -> None:
    text = lines({"vars": {"input": "Why?"}, "input": "How?", "ideal": "So."})
    assert imported(tmp_path, text).format == "promptfoo"
    assert pairs(imported(tmp_path, text, form="openai")) == [("How?", "So.")]


def test_yaml_that_would_make_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not valid YAML"):
        imported(tmp_path, "tests: !!python/object/apply:os.system ['true']\n")


def test_what_is_written_is_a_holdout_with_the_clients_prompt(tmp_path: Path) -> None:
    text = lines(
        {"item": {"id": "a", "input": "Why?", "ideal": "Root cause: csp_blocks_tags"}},
        {"item": {"id": "a", "input": "How?", "ideal": "csp_blocks_tags is not it, the DNS is."}},
    )
    found = imported(tmp_path, text, system_prompt="You know HRE.")
    path = tmp_path / "v3_eval.jsonl"
    write_holdout(path, found.rows)
    rows = list(scan(path))
    assert all(isinstance(row, Example) for row in rows)
    holdout = load_holdout(path, TAXONOMY)
    assert [(q.id, q.label, q.labelled) for q in holdout.questions] == [
        ("a", "csp_blocks_tags", "derived"),
        ("v3_eval:2", None, None),
    ]
    assert holdout.questions[0].messages[0].content == "You know HRE."


def test_a_holdout_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "v3_eval.jsonl"
    path.write_text("theirs\n")
    with pytest.raises(DataError, match="is there already and stays as it is"):
        write_holdout(path, [b"{}"])
    assert path.read_text() == "theirs\n"
    assert [p.name for p in tmp_path.iterdir()] == ["v3_eval.jsonl"]


TEST = {"vars": {"question": "Why?"}, "assert": [{"type": "equals", "value": "x"}]}
SOUND: list[Any] = [
    [{"item": {"input": [{"role": "user", "content": [{"text": "Why?"}]}], "ideal": ["a", "b"], "id": 1}}],
    {"data": [{"datasource_item": {"messages": [{"role": "user", "content": "Why?"}], "answer": "x"}}]},
    {"tests": [TEST, {"assert": [{"type": "assert-set", "assert": TEST["assert"]}]}], "defaultTest": TEST},
    {"results": {"results": [{"testCase": TEST, "vars": {}, "prompt": {"raw": "Why?"}}]}},
]
STRAY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)


def spoiled(value: Any, data: st.DataObject) -> Any:
    """The value with something else in one place of it."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: spoiled(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], spoiled(value[at], data), *value[at + 1 :]]
    return data.draw(STRAY)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SOUND), st.booleans(), st.sampled_from([None, "openai", "promptfoo"]), st.data())
def test_whatever_a_file_holds_is_read_or_named(
    tmp_path: Path, sound: Any, as_yaml: bool, form: str | None, data: st.DataObject
) -> None:
    """Nothing but DataError, and every row that is read passes the shape check of a holdout."""
    import yaml

    value = spoiled(sound, data)
    try:
        found = imported(tmp_path, yaml.safe_dump(value) if as_yaml else json.dumps(value), form=form)
    except DataError:
        return
    path = tmp_path / "v1_eval.jsonl"
    path.write_bytes(b"".join(row + b"\n" for row in found.rows))
    assert [item for item in scan(path) if not isinstance(item, Example)] == [] or not found.rows
