"""Requests and answers held against the wire description in `../shared/openai-api/`.

The description is translated on reading: 3.0-style `nullable` and `exclusiveMinimum` become what a 2020-12
validator understands. Errors are not described there but for their shape, `ErrorResponse`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

PATH = Path(__file__).parents[3] / ".." / "shared" / "openai-api" / "fine-tuning.openapi.json"
ERROR = {"$ref": "#/components/schemas/ErrorResponse"}
_DEEP = re.compile(r"(\w+)\[(\w+)\]")


class Description:
    """Which operations there are, and what is wrong with a request or an answer."""

    def __init__(self, path: Path = PATH) -> None:
        document = _translated(json.loads(path.read_text()))
        self._components = document["components"]
        self._operations = [
            (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", template)), operation)
            for template, methods in document["paths"].items()
            for method, operation in methods.items()
        ]

    def covers(self, method: str, path: str) -> bool:
        """Whether the description knows this operation at all."""
        return self._operation(method, path) is not None

    def request_faults(
        self, method: str, path: str, query: Iterable[tuple[str, str]], body: Any = None
    ) -> list[str]:
        """What is wrong with a request; `body` is decoded JSON, or the fields of a form."""
        operation = self._operation(method, path)
        if operation is None:
            return [f"{method} {path} is not described"]
        faults = self._query_faults(operation, query)
        content = operation.get("requestBody", {}).get("content")
        if content:
            schema = next(iter(content.values()))["schema"]
            faults += self._faults(schema, body)
        return faults

    def answer_faults(self, method: str, path: str, status: int, body: Any) -> list[str]:
        """What is wrong with an answer; every status but 200 must carry an ErrorResponse."""
        operation = self._operation(method, path)
        if operation is None:
            return [f"{method} {path} is not described"]
        if status != 200:
            return self._faults(ERROR, body)
        return self._faults(operation["responses"]["200"]["content"]["application/json"]["schema"], body)

    def _query_faults(self, operation: Mapping[str, Any], query: Iterable[tuple[str, str]]) -> list[str]:
        known = {p["name"]: p["schema"] for p in operation.get("parameters", ()) if p["in"] == "query"}
        values: dict[str, Any] = {}
        faults = []
        for name, text in query:
            deep = _DEEP.fullmatch(name)
            if deep:
                values.setdefault(deep[1], {})[deep[2]] = text
            elif name in known:
                whole = known[name].get("type") == "integer" and text.isdigit()
                values[name] = int(text) if whole else text
            else:
                faults.append(f"query parameter {name} is not described")
        for name, value in values.items():
            faults += self._faults(known[name], value) if name in known else [f"{name} is not described"]
        return faults

    def _operation(self, method: str, path: str) -> Mapping[str, Any] | None:
        found = [op for verb, form, op in self._operations if verb == method and form.fullmatch(path)]
        return found[0] if found else None

    def _faults(self, schema: Mapping[str, Any], value: Any) -> list[str]:
        validator = Draft202012Validator({**schema, "components": self._components})
        return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


@cache
def description() -> Description:
    """The description, read once."""
    return Description()


def _translated(node: Any) -> Any:
    """3.0 idioms to 2020-12: nullable → a union with null, boolean exclusiveMinimum → the number."""
    if isinstance(node, list):
        return [_translated(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _translated(value) for key, value in node.items()}
    if node.get("exclusiveMinimum") is True:
        node["exclusiveMinimum"] = node.pop("minimum")
    if node.pop("nullable", False) is True:
        return {"anyOf": [{"type": "null"}, node]}
    return node
