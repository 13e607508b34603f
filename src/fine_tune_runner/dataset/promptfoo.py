"""promptfoo: tests of a config (YAML or JSON), a list of tests, CSV with `__expected`, and exported results.

The reference comes from assertions that say what the answer is or contains; those that only grade it (a
rubric, code, a format) give none. The question is the test's variable, not promptfoo's prompt around it: a
client's model is asked under its own system prompt. (promptfoo.dev/docs/configuration)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fine_tune_runner.dataset.foreign import (
    QUESTION_KEYS,
    CannotRead,
    Keys,
    Row,
    checked_turns,
    chosen,
    text_of,
    turns_of,
)

# Assertions that say the answer, the most telling first; those with "any" take a list of which one suffices.
SAY = (
    "equals",
    "similar",
    "factuality",
    "model-graded-factuality",
    "levenshtein",
    "rouge-n",
    "bleu",
    "starts-with",
    "contains",
    "icontains",
    "contains-all",
    "icontains-all",
    "contains-any",
    "icontains-any",
)
_VARIABLE = re.compile(r"\{\{\s*([\w-]+)\s*\}\}")
_CELL = re.compile(r"(not-)?([a-z][a-z-]*)(?:\(\d+(?:\.\d+)?\))?(?::(.*))?", re.S)
# Heads of a CSV cell that grade an answer without saying it.
_GRADE = re.compile(
    r"javascript|python|fn|eval|grade|ruby|webhook|regex|llm-rubric|g-eval|(?:is|contains)-(?:json|xml|html|sql)"
    r"|cost|latency|perplexity(?:-score)?|classifier|moderation|guardrails|is-refusal|answer-relevance"
    r"|context-(?:faithfulness|recall|relevance)|model-graded-closedqa|select-best|pi|is-valid-[a-z-]+"
)


def from_cells(cells: Mapping[str, str]) -> dict[str, Any]:
    """A row of a CSV as a test: columns are variables, `__expected`, `__expected2` ... are assertions."""
    expected = [
        cells[name] for name in cells if name.startswith("__expected") and (cells[name] or "").strip()
    ]
    variables = {name: cell for name, cell in cells.items() if name and not name.startswith("__")}
    return {"vars": variables, "assert": [_assertion(cell) for cell in expected]}


def _assertion(cell: str) -> dict[str, Any]:
    """`contains: x`, `similar(0.8): x`, `javascript: ...`; without such a head the cell is what it equals."""
    match = _CELL.fullmatch(cell.strip())
    if match is None or not (_GRADE.fullmatch(match[2]) or (match[2] in SAY and match[3] is not None)):
        return {"type": "equals", "value": cell}
    value: Any = (match[3] or "").strip()
    if match[2].endswith(("-any", "-all")):
        value = [part.strip() for part in value.split(",")]
    return {"type": f"{match[1] or ''}{match[2]}", "value": value}


def promptfoo_row(place: str, test: Any, keys: Keys) -> Row:
    """A test as a row; raises CannotRead. Results of several models for one test give that test again."""
    if not isinstance(test, dict):
        raise CannotRead("is no test with vars and assert", "correct or drop it")
    variables = test.get("vars") or {}
    if not isinstance(variables, dict):
        raise CannotRead("its vars are in another file", "write them into the test")
    assertions = list(_flat(test.get("assert") or []))
    if keys.reference is None:
        said = _said(assertions, variables)
    elif keys.reference in variables:
        said = [[text_of(variables[keys.reference])]]
    else:
        raise CannotRead(f"has no variable {keys.reference!r}", "name another one with --reference")
    if not said:
        kinds = ", ".join(sorted({str(a.get("type")) for a in assertions})) or "nothing"
        raise CannotRead(
            f"asserts {kinds}, which gives no reference answer",
            "add an equals or similar assertion, or name a variable: --reference NAME",
        )
    # All of the strongest kind must hold, so together they are the answer; of "any" the first is.
    reference = "; ".join(texts[0] for texts in said)
    accept = said[0][1:] if len(said) == 1 else []
    return Row(
        place=place,
        turns=checked_turns(_question(test, variables, keys)),
        reference=reference,
        accept=tuple(accept),
        reject=tuple(_denied(assertions, variables)),
    )


def _question(test: dict[str, Any], variables: dict[str, Any], keys: Keys) -> Sequence[Any]:
    """The variable that was named, the only one, the one with a usual name, or the prompt as it was sent."""
    only = next(iter(variables), None) if len(variables) == 1 and not keys.question else None
    name = only or chosen(variables, keys.question, QUESTION_KEYS)
    if name is not None:
        value = variables[name]
        if isinstance(value, list) and not all(isinstance(part, dict) for part in value):
            raise CannotRead(
                f"its variable {name!r} is a list of values", "give each value a test of its own"
            )
        if isinstance(value, str) and value.startswith("file://"):
            raise CannotRead(f"its variable {name!r} is in another file", "write the text into the test")
        return turns_of(value)
    sent = test.get("prompt")
    raw = sent.get("raw") if isinstance(sent, dict) else None
    if isinstance(raw, str) and keys.question is None:
        return turns_of(raw)
    there = ", ".join(map(str, variables)) or "none"
    raise CannotRead(f"has no variable that is the question (variables: {there})", "name it: --question NAME")


def _flat(assertions: Any) -> Iterator[dict[str, Any]]:
    """Assertions with those of an assert-set in its place."""
    for assertion in assertions if isinstance(assertions, list) else []:
        if not isinstance(assertion, dict):
            continue
        if assertion.get("type") == "assert-set":
            yield from _flat(assertion.get("assert"))
        else:
            yield assertion


def _said(assertions: Sequence[dict[str, Any]], variables: Mapping[str, Any]) -> list[list[str]]:
    """The texts of each assertion of the most telling kind that is there; several in one: any of them."""
    for kind in SAY:
        found = [a.get("value") for a in assertions if a.get("type") == kind]
        if found:
            return [texts for value in found for texts in _texts(kind, value, variables)]
    return []


def _denied(assertions: Sequence[dict[str, Any]], variables: Mapping[str, Any]) -> Iterator[str]:
    for assertion in assertions:
        kind = str(assertion.get("type"))
        if kind.startswith("not-") and kind.removeprefix("not-") in SAY:
            for texts in _texts(kind, assertion.get("value"), variables):
                yield from texts


def _texts(kind: str, value: Any, variables: Mapping[str, Any]) -> list[list[str]]:
    if isinstance(value, str) and kind.endswith(("-any", "-all")):
        value = [part.strip() for part in value.split(",")]
    texts = [_rendered(text_of(part), variables) for part in (value if isinstance(value, list) else [value])]
    return [texts] if kind.endswith("-any") or len(texts) == 1 else [[text] for text in texts]


def _rendered(text: str, variables: Mapping[str, Any]) -> str:
    if text.startswith("file://"):
        raise CannotRead("what it expects is in another file", "write the text into the assertion")
    text = _VARIABLE.sub(lambda m: text_of(variables.get(m[1])), text)
    if "{{" in text or "{%" in text:
        raise CannotRead("what it expects is a template with more than variables", "write the text out")
    return text
