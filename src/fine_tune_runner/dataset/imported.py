"""A holdout out of another tool's file: what kind of file it is, its rows in our format, written once.

Nothing is sent and no code of the file is run. Knows no client's files beside the holdout it writes.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from fine_tune_runner.dataset.fingerprint import row_sha256
from fine_tune_runner.dataset.foreign import CannotRead, Keys, Record, Row, Unread
from fine_tune_runner.dataset.openai_evals import openai_items, openai_row
from fine_tune_runner.dataset.promptfoo import from_cells, promptfoo_row
from fine_tune_runner.dataset.taxonomy import Taxonomy, normalise
from fine_tune_runner.errors import DataError
from fine_tune_runner.files import fsync_dir, write_beside
from fine_tune_runner.types import EvalLabels, Message, T

Format = Literal["openai", "promptfoo"]
MOST_BYTES = 64 * 2**20
_PROMPTFOO_KEYS = {"tests", "prompts", "providers", "vars", "assert", "testCase", "defaultTest", "scenarios"}


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What a file held: rows in our format, those that could not be read, and how many came again."""

    format: Format
    rows: tuple[bytes, ...]
    labelled: int
    unread: tuple[Unread, ...]
    repeated: int


def import_file(
    path: Path,
    form: Format | None,
    keys: Keys,
    taxonomy: Taxonomy,
    system_prompt: str | None,
) -> Imported:
    """Read a file of that format, or of the one its content shows; rows get `system_prompt` before them.

    A reference that is the name of a cause and nothing else becomes the row's label. Raises DataError for a
    file that is neither format or cannot be parsed at all; a row that cannot be read is named in `unread`.
    """
    records = _records(path)
    chosen: Format = form or _detected(records)
    rows: list[bytes] = []
    unread: list[Unread] = []
    seen: dict[str, Row] = {}
    ids: set[str] = set()
    repeated = labelled = 0
    for item in _read(records, chosen, keys):
        if isinstance(item, Unread):
            unread.append(item)
            continue
        first = seen.setdefault(row_sha256(item.turns), item)
        if first is not item:
            repeated += first.reference == item.reference
            if first.reference != item.reference:
                why = f"asks the same as {first.place} with another reference"
                unread.append(Unread(place=item.place, why=why, remedy="keep one of the two"))
            continue
        labels = _labels(item, taxonomy, ids)
        labelled += labels.root_cause is not None
        rows.append(_encoded(item, labels, system_prompt))
    return Imported(
        format=chosen, rows=tuple(rows), labelled=labelled, unread=tuple(unread), repeated=repeated
    )


def _read(records: Sequence[Record], form: Format, keys: Keys) -> Iterator[Row | Unread]:
    """Each item of the records as a row, or why not."""
    items = (i for r in records for i in openai_items(r)) if form == "openai" else iter(records)
    row = openai_row if form == "openai" else promptfoo_row
    for item in items:
        try:
            yield row(item.place, item.value, keys)
        except CannotRead as fault:
            yield fault.at(item.place)


def write_holdout(path: Path, rows: Sequence[bytes]) -> None:
    """Write rows as JSON lines, all or nothing; DataError where there is such a file already."""
    part = write_beside(path, b"".join(row + b"\n" for row in rows))
    try:
        os.link(part, path)  # unlike a rename it never takes the place of another file
    except FileExistsError:
        raise DataError(f"{path} is there already and stays as it is; name another version") from None
    finally:
        part.unlink()
    fsync_dir(path.parent)


def _labels(row: Row, taxonomy: Taxonomy, ids: set[str]) -> EvalLabels:
    """`eval` of a row; an id that another row has is left out, so that its place names it."""
    own = row.id if row.id not in ids else None
    ids.update({own} if own else ())
    return EvalLabels(
        id=own, root_cause=taxonomy.names.get(normalise(row.reference)), accept=row.accept, reject=row.reject
    )


def _encoded(row: Row, labels: EvalLabels, system_prompt: str | None) -> bytes:
    before = (Message(role="system", content=system_prompt),) if system_prompt else ()
    messages = (*before, *row.turns, Message(role="assistant", content=row.reference))
    whole: dict[str, Any] = {"messages": messages}
    if labels != EvalLabels():
        whole["eval"] = labels
    return msgspec.json.encode(whole)


def _detected(records: Sequence[Record]) -> Format:
    first = next((r.value for r in records if isinstance(r.value, dict)), {})
    return "promptfoo" if _PROMPTFOO_KEYS & set(first) else "openai"


def _records(path: Path) -> Sequence[Record]:
    """The values of a file by what it is: JSON, JSON lines, CSV with `__expected`, else YAML."""
    data = path.read_bytes()
    if len(data) > MOST_BYTES:
        raise DataError(f"{path} is larger than {MOST_BYTES >> 20} MB; split it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not valid UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path} is empty; export it again")
    try:
        if "__expected" in text.lstrip().splitlines()[0] and text.lstrip()[0] not in "{[":
            return list(_csv(text))
        if text.lstrip()[0] in "{[":
            return list(_json(text))
        return list(_yaml(text))
    except _Broken as error:
        raise DataError(f"{path}: {error}") from None


class _Broken(Exception):
    """A file that cannot be parsed; the message has place and remedy."""


def _json(text: str) -> Iterator[Record]:
    try:
        value = json.loads(text)
    except RecursionError:
        raise _Broken("is nested too deep; export it again") from None
    except json.JSONDecodeError as error:
        lines = text.splitlines()
        if not _is_json(next(filter(str.strip, lines))):
            raise _Broken(f"line {error.lineno}: not valid JSON ({error.msg}); export it again") from None
        yield from _json_lines(lines)
    else:
        yield from _unpacked(value, "line 1" if "\n" not in text.strip() else "the file")


def _json_lines(lines: Sequence[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            # What is broken is no object, so that the reader names its line.
            yield Record(place=f"line {number}", value=json.loads(line) if _is_json(line) else None)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return False
    return True


def _unpacked(value: Any, place: str) -> Iterator[Record]:
    """A list row by row; a promptfoo config or its exported results test by test."""
    if isinstance(value, list):
        yield from (Record(place=f"row {n}", value=item) for n, item in enumerate(value, 1))
    elif not isinstance(value, dict) or {"data", "datasource_item"} & set(value):
        yield Record(place=place, value=value)
    elif "results" in value:
        yield from _results(value["results"])
    elif "tests" in value:
        yield from _tests(value, {})
    elif {"prompts", "providers", "scenarios"} & set(value):
        raise _Broken("has no tests of its own (scenarios are not read); export the file that has them")
    else:
        yield Record(place=place, value=value)


def _results(exported: Any) -> Iterator[Record]:
    """`results.results` of `promptfoo eval -o`: one a test and model, each with its test case."""
    found = exported.get("results") if isinstance(exported, dict) else exported
    if not isinstance(found, list):
        raise _Broken("its results are no list; export it again with promptfoo eval -o results.json")
    for number, result in enumerate(found):
        test = result.get("testCase") if isinstance(result, dict) else None
        if isinstance(test, dict):
            asked = result.get("vars") or test.get("vars")
            result = {"vars": asked, "assert": test.get("assert"), "prompt": result.get("prompt")}
        yield Record(place=f"results[{number}]", value=result)


def _tests(config: dict[str, Any], lines: dict[int, int]) -> Iterator[Record]:
    """Tests of a config, each with what `defaultTest` gives to all; `lines`: position → line."""
    tests = config["tests"]
    if not isinstance(tests, list):
        raise _Broken("its tests are in another file; import that file instead")
    default = _or_empty(config.get("defaultTest"), dict)
    for number, test in enumerate(tests):
        place = f"line {lines[number]}" if number in lines else f"tests[{number}]"
        if isinstance(test, dict) and isinstance(test.get("vars") or {}, dict):
            test = {
                **test,
                "vars": {**_or_empty(default.get("vars"), dict), **(test.get("vars") or {})},
                "assert": [*_or_empty(test.get("assert"), list), *_or_empty(default.get("assert"), list)],
            }
        yield Record(place=place, value=test)


def _or_empty(value: Any, kind: type[T]) -> T:
    """The value where it is of that kind, else an empty one."""
    return value if isinstance(value, kind) else kind()


def _csv(text: str) -> Iterator[Record]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    line = 2
    try:
        for cells in reader:
            yield Record(place=f"line {line}", value=from_cells({k: v or "" for k, v in cells.items() if k}))
            line = reader.line_num + 1
    except csv.Error as error:
        raise _Broken(f"line {line}: not valid CSV ({error}); correct the line") from None


def _yaml(text: str) -> Iterator[Record]:
    import yaml  # type: ignore[import-untyped]

    try:
        value, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise _Broken(f"{line}not valid YAML ({error.problem}); correct the line") from None
    except (yaml.YAMLError, RecursionError):
        raise _Broken("is neither JSON lines, JSON, YAML nor CSV with __expected; export it again") from None
    tests = node
    if isinstance(node, yaml.MappingNode):
        tests = next((v for k, v in node.value if k.value == "tests"), None)
    starts = tests.value if isinstance(tests, yaml.SequenceNode) else ()
    lines = {number: test.start_mark.line + 1 for number, test in enumerate(starts)}
    if isinstance(value, dict) and "tests" in value:
        yield from _tests(value, lines)
    elif isinstance(value, list):
        yield from _tests({"tests": value}, lines)
    else:
        raise _Broken("has no tests, and no column __expected; export the file that has them")
