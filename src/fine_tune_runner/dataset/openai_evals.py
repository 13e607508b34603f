"""OpenAI Evals: items of a data source, output items of a run, and samples of the openai/evals repository.

Shapes read, each as JSON lines or in a JSON list (or a page, `{"data": [...]}`):
`{"item": {...}}` (data source of the Evals API), `{"datasource_item": {...}}` (eval.run.output_item),
`{"input": ..., "ideal": ...}` (github.com/openai/evals), and an item by itself. The names inside an item are
the user's own; usual ones are known (foreign.py), others are given as keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fine_tune_runner.dataset.foreign import (
    QUESTION_KEYS,
    REFERENCE_KEYS,
    CannotRead,
    Keys,
    Record,
    Row,
    checked_turns,
    chosen,
    text_of,
    turns_of,
)


def openai_items(record: Record) -> Iterator[Record]:
    """The items of a record: those of a page, or the record itself, each out of its wrapper."""
    value = record.value
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        for number, item in enumerate(value["data"]):
            yield Record(place=f"{record.place}, data[{number}]", value=_unwrapped(item))
    else:
        yield Record(place=record.place, value=_unwrapped(value))


def _unwrapped(value: Any) -> Any:
    for wrapper in ("item", "datasource_item"):
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            return value[wrapper]
    return value


def openai_row(place: str, item: Any, keys: Keys) -> Row:
    """An item as a row; raises CannotRead."""
    if not isinstance(item, dict):
        raise CannotRead("is no JSON object", "correct or drop the line")
    asked = chosen(item, keys.question, QUESTION_KEYS)
    if asked is None:
        raise CannotRead(_lacks("question", keys.question, item), f"name its key: --question {_some(item)}")
    turns = turns_of(item[asked])
    expected = chosen(item, keys.reference, REFERENCE_KEYS)
    if expected is not None:
        texts = _references(item[expected])
    elif turns and turns[-1].role == "assistant" and keys.reference is None:
        turns, texts = turns[:-1], [turns[-1].content]
    else:
        raise CannotRead(
            _lacks("reference answer", keys.reference, item), f"name its key: --reference {_some(item)}"
        )
    name = item.get("id")
    return Row(
        place=place,
        turns=checked_turns(turns),
        reference=texts[0],
        id=text_of(name) if isinstance(name, str | int) and str(name).strip() else None,
        accept=tuple(texts[1:]),
    )


def _references(value: Any) -> list[str]:
    """One text, or several of which each is right: the first is the reference."""
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return [text_of(text) for text in value]
    return [text_of(value)]


def _lacks(what: str, key: str | None, item: dict[str, Any]) -> str:
    there = ", ".join(map(str, item)) or "none"
    return f"has no {what} under {key!r}" if key else f"has no {what} under a usual key (keys: {there})"


def _some(item: dict[str, Any]) -> str:
    return str(next(iter(item), "KEY"))
