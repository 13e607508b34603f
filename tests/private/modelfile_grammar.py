"""Ollama's Modelfile parser, told again for tests: what is accepted, what comes out, and the refusals.

Grammar as in facts/ollama.md and ollama's parser/parser.go (states, quoting, messages of refusals).
"""

from __future__ import annotations

COMMANDS = (
    "from",
    "license",
    "template",
    "system",
    "adapter",
    "draft",
    "renderer",
    "parser",
    "parameter",
    "message",
    "requires",
)
PARAMETERS = (
    "num_ctx num_batch num_gpu main_gpu use_mmap num_thread num_keep seed num_predict top_k top_p min_p "
    "typical_p repeat_last_n temperature repeat_penalty presence_penalty frequency_penalty stop"
).split()
ROLES = ("system", "user", "assistant")


class ModelfileError(Exception):
    """What `ollama create -f` says."""


def parse(text: str) -> list[tuple[str, str]]:
    """(command, argument) pairs; a parameter's command is its name, a message's argument `role: text`."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _end_of_line(text, at)
        else:
            command, value, at = _instruction(text, at)
            found.append((command, value))
    if not any(command == "from" for command, _ in found):
        raise ModelfileError("no FROM line")
    return found


def _instruction(text: str, at: int) -> tuple[str, str, int]:
    name, at = _word(text, at)
    if name.lower() not in COMMANDS:
        listed = ", ".join(f'"{command}"' for command in COMMANDS)
        raise ModelfileError(f"(line {_line(text, at)}): command must be one of {listed}")
    command, prefix = name.lower(), ""
    if command == "parameter":
        command, at = _word(text, at)
        if command not in PARAMETERS:
            raise ModelfileError(f"unknown parameter '{command}'")
    elif command == "message":
        role, at = _word(text, at)
        if role not in ROLES:
            raise ModelfileError(f"(line {_line(text, at)}): message role must be one of {ROLES}")
        prefix = f"{role}: "
    value, at = _value(text, at)
    return command, prefix + value, at


def _word(text: str, at: int) -> tuple[str, int]:
    """Letters, digits and underscores up to the one space that ends them."""
    start = at
    while at < len(text) and (text[at].isalnum() or text[at] == "_"):
        at += 1
    if at == len(text):
        raise ModelfileError("unexpected EOF")
    return text[start:at] if text[at] in " \t" else "", at + 1


def _value(text: str, at: int) -> tuple[str, int]:
    """To the first line's end at which the text so far is not an open quote."""
    start = at
    while True:
        at = _end_of_line(text, at)
        so_far = "".join(c for c in text[start:at] if c.isprintable() or c in " \t\r\n").strip(" \t\r\n")
        for quote in ('"""', '"'):
            if so_far.startswith(quote):
                closed = len(so_far) >= 2 * len(quote) and so_far.endswith(quote)
                value = so_far[len(quote) : -len(quote)]
                break
        else:
            closed, value = True, so_far
        if closed:
            return value, at
        if at >= len(text):
            raise ModelfileError("unexpected EOF")
        at += 1


def _end_of_line(text: str, at: int) -> int:
    while at < len(text) and text[at] not in "\r\n":
        at += 1
    return at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, min(at, len(text))) + 1
