"""The part of Go's text/template that chat templates of ours need, so that a prompt is really computed.

Text, `{{- -}}`, fields, variables, literals, `range`, `if`/`else if`/`else`, and `and or not eq ne len`.
Anything else is refused as a real server would refuse a template that does not parse. `render` lays messages
out as Ollama's template/template.go does: a template that names .Messages gets them all, an older one is run
once a turn with .System, .Prompt and .Response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|`[^`]*`|:=|[(),|]|\$?[\w.]*[\w.$]|\$)')
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": lambda first, *rest: first in rest,
    "ne": lambda first, second: first != second,
    "and": lambda *values: next((v for v in values if not v), values[-1]),
    "or": lambda *values: next((v for v in values if v), values[-1]),
    "not": lambda value: not value,
    "len": len,
}
Message = Mapping[str, str]


class TemplateError(Exception):
    """The template does not parse, or asks for something that is not there."""


@dataclass
class _Node:
    """`kind` is text, print, if, range or root; `arms` are (tokens of the condition, children)."""

    kind: str
    text: str = ""
    arms: list[tuple[list[str], list[_Node]]] = field(default_factory=list)


def parse(source: str) -> _Node:
    """The tree of a template; TemplateError where Go would not parse it or this subset ends."""
    root = _Node("root", arms=[([], [])])
    stack = [root]
    for piece in _pieces(source):
        children = stack[-1].arms[-1][1]
        if isinstance(piece, str):
            children.append(_Node("text", piece))
            continue
        words = piece
        if words[:1] in (["if"], ["range"]):
            node = _Node(words[0], arms=[(words[1:], [])])
            children.append(node)
            stack.append(node)
        elif words[:1] == ["else"] and len(stack) > 1:
            stack[-1].arms.append((words[2:] if words[1:2] == ["if"] else [], []))
        elif words == ["end"] and len(stack) > 1:
            stack.pop()
        elif not words or words[0] in ("end", "else", "define", "block", "with", "template", "break"):
            raise TemplateError(f"template: unexpected {' '.join(words) or 'missing value'} in command")
        else:
            children.append(_Node("print", arms=[(words, [])]))
    if len(stack) > 1:
        raise TemplateError("template: unexpected EOF")
    return root


def _pieces(source: str) -> Iterator[str | list[str]]:
    """Text and actions in turn, with the white space that the trim markers take already taken."""
    at, trim_next = 0, False
    for found in _ACTION.finditer(source):
        text = source[at : found.start()]
        text = text.lstrip() if trim_next else text
        yield text.rstrip() if found[1] else text
        if not found[2].startswith("/*"):
            yield _words(found[2])
        at, trim_next = found.end(), bool(found[3])
    rest = source[at:]
    if "{{" in rest:
        raise TemplateError("template: unclosed action")
    yield rest.lstrip() if trim_next else rest


def _words(text: str) -> list[str]:
    words, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise TemplateError(f"template: unexpected {text[at:]!r} in operand")
        word = found[1]
        known = word in _FUNCTIONS or word in ("if", "else", "end", "range", "true", "false")
        if re.fullmatch(r"[A-Za-z_]\w*", word) and not known:
            raise TemplateError(f'template: function "{word}" not defined')
        words.append(word)
        at = found.end()
    return words


class _Scope:
    """What `.` and the variables are; `$` is the whole of the data."""

    def __init__(self, dot: Any, variables: Mapping[str, Any]) -> None:
        self.dot = dot
        self.variables = dict(variables)

    def value(self, words: Sequence[str]) -> Any:
        values, rest = self._arguments(list(words))
        if rest:
            raise TemplateError(f"template: unexpected {rest[0]}")
        return values

    def _arguments(self, words: list[str]) -> tuple[Any, list[str]]:
        """One command: a function with its operands, or a single operand; ends at `)` or the end."""
        operands: list[Any] = []
        function: Callable[..., Any] | None = None
        if words and words[0] in _FUNCTIONS:
            function = _FUNCTIONS[words.pop(0)]
        while words and words[0] != ")":
            operand, words = self._operand(words)
            operands.append(operand)
        if function is not None:
            return function(*operands), words
        if len(operands) != 1:
            raise TemplateError("template: a command needs one operand or a function")
        return operands[0], words

    def _operand(self, words: list[str]) -> tuple[Any, list[str]]:
        word, rest = words[0], words[1:]
        if word == "(":
            value, rest = self._arguments(rest)
            if rest[:1] != [")"]:
                raise TemplateError("template: unclosed left paren")
            return value, rest[1:]
        if word[0] == '"':
            return word[1:-1].encode().decode("unicode_escape"), rest
        if word[0] == "`":
            return word[1:-1], rest
        if word in ("true", "false"):
            return word == "true", rest
        if word.isdigit():
            return int(word), rest
        return self._field(word), rest

    def _field(self, word: str) -> Any:
        name, *path = word.split(".")
        if name and name not in self.variables:
            raise TemplateError(f'template: undefined variable "{name}"')
        value = self.variables[name] if name else self.dot
        for key in path:
            if key:
                if not isinstance(value, Mapping):
                    raise TemplateError(f"template: can't evaluate field {key}")
                value = value.get(key)
        return value


def execute(root: _Node, data: Mapping[str, Any]) -> str:
    """The text that a parsed template makes of `data`."""
    return "".join(_run(root.arms[0][1], _Scope(data, {"$": data})))


def _run(nodes: Sequence[_Node], scope: _Scope) -> Iterator[str]:
    for node in nodes:
        if node.kind == "text":
            yield node.text
        elif node.kind == "print":
            value = scope.value(node.arms[0][0])
            yield "<no value>" if value is None else str(value)
        elif node.kind == "if":
            for words, children in node.arms:
                if not words or scope.value(words):
                    yield from _run(children, _Scope(scope.dot, scope.variables))
                    break
        else:
            yield from _ranged(node, scope)


def _ranged(node: _Node, scope: _Scope) -> Iterator[str]:
    words, children = node.arms[0]
    names: list[str] = []
    if ":=" in words:
        cut = words.index(":=")
        names, words = [word for word in words[:cut] if word != ","], words[cut + 1 :]
    items = scope.value(words) or []
    for index, item in enumerate(items):
        values = (item,) if len(names) == 1 else (index, item)
        yield from _run(children, _Scope(item, scope.variables | dict(zip(names, values, strict=False))))
    if not items:
        for _, otherwise in node.arms[1:]:
            yield from _run(otherwise, scope)


def render(template: str, messages: Sequence[Message]) -> str:
    """The prompt that a server makes of chat messages, up to where the answer begins."""
    root = parse(template)
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = _collated(messages)
    if re.search(r"\.Messages\b", template):
        listed = [{"Role": m["role"], "Content": m["content"]} for m in turns]
        return execute(root, {"System": system, "Messages": listed, "Response": ""})
    done, turn = "", {"System": "", "Prompt": "", "Response": ""}
    for message in turns:
        key = {"system": "System", "user": "Prompt", "assistant": "Response"}[message["role"]]
        if turn["Response"] or (key != "Response" and turn[key]):
            done += execute(root, turn)
            turn = {"System": "", "Prompt": "", "Response": ""}
        turn[key] = message["content"]
    return done + execute(root, turn)


def _collated(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Neighbours of the same role become one message."""
    turns: list[dict[str, str]] = []
    for message in messages:
        if turns and turns[-1]["role"] == message["role"]:
            turns[-1]["content"] += "\n\n" + message["content"]
        else:
            turns.append({"role": message["role"], "content": message["content"]})
    return turns
