"""The only place where chat becomes text or tokens: training, counting, serving and parity all ask here.

A rendered row is cut into pieces that are tokenised one by one: before each special token that follows a
message, and where an answer begins. So the tokens of a prompt are the beginning of its row by construction,
answers are whole pieces, and repeated pieces are tokenised once. Knows no model, no file of a client, no
torch and no transformers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import msgspec

from fine_tune_runner.errors import ConfigError, MissingModel
from fine_tune_runner.types import Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# `strftime_now` of a template answers this day for ever (it is the date that Llama 3.1's own template falls
# back to): a prompt in service must not differ from the one that was trained.
TEMPLATE_DAY = date(2024, 7, 26)
ROWS_PER_BATCH = 1024
_MARK = re.compile("\ue000(\\d+)\ue001")
_PAD = "\n \t"


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """One row: token ids, and for each whether it is learned (answer text and its end-of-turn token)."""

    tokens: list[int]
    loss_mask: list[bool]


class _Piece(NamedTuple):
    """Text that is tokenised by itself; `inside` means that it begins in the middle of running text.

    The first token after a learned piece is the end-of-turn token, which is learned too.
    """

    text: str
    inside: bool
    learned: bool


class _Slot(NamedTuple):
    """A piece of the template: literal text and, as numbers, messages; `answer` is the one it ends in."""

    items: tuple[str | int, ...]
    inside: bool
    answer: int | None


class _Plan(NamedTuple):
    """How the template lays out one sequence of roles; `strips` says on which sides it trims a message."""

    slots: tuple[_Slot, ...]
    strips: tuple[tuple[bool, bool], ...]


class ChatTokenizer:
    """Tokenizer and chat template of a Hugging Face folder; implements `types.Tokenizer`.

    Text inside a message that looks like a special token (`<|im_end|>`) is tokenised as plain characters: it
    can end no turn. Raises MissingModel where a file is missing, ConfigError naming the template where it
    cannot be trained on.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        from tokenizers import Tokenizer

        config = _read(folder, "config.json")
        settings = _read(folder, "tokenizer_config.json")
        spec = _read(folder, "tokenizer.json")
        self.name = name or folder.name
        self.context: int = config["max_position_embeddings"]
        self._source, self._template = _template(folder)
        self._variables = {
            key: value["content"] if isinstance(value, dict) else value
            for key, value in settings.items()
            if key.endswith("_token") and value is not None
        }
        self._whole = _plain(Tokenizer.from_str(json.dumps(spec)))
        self._inside = _plain(Tokenizer.from_str(json.dumps(_without_prefix_space(spec))))
        special = [t["content"] for t in spec["added_tokens"] if t["special"] and t["content"]]
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or "(?!)")
        self._byte_level = "ByteLevel" in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self.stop_tokens: tuple[int, ...] = tuple(sorted(self._stops(config)))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """What the model ends its turn with, as a server is told."""
        return tuple(self._whole.id_to_token(token) or "" for token in self.stop_tokens)

    def count(self, rows: Sequence[tuple[Message, ...]]) -> list[tuple[int, int]]:
        """(tokens, tokens with loss) of each row, in order."""
        counts: list[tuple[int, int]] = []
        for start in range(0, len(rows), ROWS_PER_BATCH):
            batch = [list(self._pieces(row)) for row in rows[start : start + ROWS_PER_BATCH]]
            lengths = self._lengths({(p.text, p.inside) for pieces in batch for p in pieces})
            for pieces in batch:
                learned = sum(lengths[p.text, p.inside] for p in pieces if p.learned)
                ends = sum(a.learned and not b.learned for a, b in pairwise(pieces))
                counts.append((sum(lengths[p.text, p.inside] for p in pieces), learned + ends))
        return counts

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Tokens and loss mask of a whole row, its last message the assistant's."""
        tokens: list[int] = []
        mask: list[bool] = []
        follows_learned = False
        for piece in self._pieces(messages):
            ids = self._ids(piece)
            tokens += ids
            mask += [piece.learned] * len(ids)
            if follows_learned and ids:
                mask[len(tokens) - len(ids)] = True
            follows_learned = piece.learned
        return Encoded(tokens=tokens, loss_mask=mask)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Tokens up to where the assistant's (last) answer begins; an answer at the end is left out."""
        return [token for piece in self._asked(messages) for token in self._ids(piece)]

    def text(self, messages: Sequence[Message]) -> str:
        """The same prompt as text."""
        return "".join(piece.text for piece in self._asked(messages))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of an answer; special tokens are left out."""
        text: str = self._whole.decode(list(tokens), skip_special_tokens=True)
        return text

    def text_ids(self, text: str) -> list[int]:
        """Tokens of a text as a server takes a rendered prompt: what looks like a special token is one."""
        ids: list[int] = self._whole.encode(text, add_special_tokens=False).ids
        return ids

    def token_text(self, token: int) -> str:
        """A token as the vocabulary spells it, for messages to people."""
        return self._whole.id_to_token(token) or f"token {token}"

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for in running text; empty for a special token and an unknown one."""
        text = self._whole.id_to_token(token)
        if text is None or self._special.fullmatch(text):
            return b""
        return _token_bytes(text, self._byte_level)

    def _lengths(self, pieces: set[tuple[str, bool]]) -> dict[tuple[str, bool], int]:
        lengths: dict[tuple[str, bool], int] = {}
        for inside, tokenizer in ((False, self._whole), (True, self._inside)):
            texts = [text for text, is_inside in pieces if is_inside == inside]
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            lengths |= {(text, inside): len(e) for text, e in zip(texts, encodings, strict=True)}
        return lengths

    def _ids(self, piece: _Piece) -> list[int]:
        tokenizer = self._inside if piece.inside else self._whole
        ids: list[int] = tokenizer.encode(piece.text, add_special_tokens=False).ids
        return ids

    def _asked(self, messages: Sequence[Message]) -> Iterator[_Piece]:
        asked = list(messages[:-1] if messages[-1].role == "assistant" else messages)
        return self._pieces([*asked, Message(role="assistant", content="-")], until=len(asked))

    def _pieces(self, row: Sequence[Message], until: int | None = None) -> Iterator[_Piece]:
        """The pieces of a row, or of its beginning up to where the answer of message `until` starts."""
        plan = self._plan(tuple(m.role for m in row))
        contents = self._contents(row, plan)
        laid_out = "".join(
            item if isinstance(item, str) else contents[item] for slot in plan.slots for item in slot.items
        )
        if laid_out != self._render([m.content for m in row], [m.role for m in row]):
            self._refuse("rewrites the text of messages, so it cannot be cut into turns")
        before = takewhile(lambda slot: until is None or slot.answer != until, plan.slots)
        return self._fill(before, contents, row)

    def _contents(self, row: Sequence[Message], plan: _Plan) -> list[str]:
        contents = []
        for message, (left, right) in zip(row, plan.strips, strict=True):
            text = message.content.lstrip() if left else message.content
            contents.append(text.rstrip() if right else text)
        return contents

    def _fill(self, slots: Iterable[_Slot], contents: list[str], row: Sequence[Message]) -> Iterator[_Piece]:
        for slot in slots:
            learned = slot.answer is not None and row[slot.answer].weight != 0
            text, inside = "", slot.inside
            for item in slot.items:
                first, *rest = (item,) if isinstance(item, str) else self._shatter(contents[item])
                text += first
                for fragment in rest:
                    yield _Piece(text, inside, learned)
                    text, inside = fragment, True
            if text:
                yield _Piece(text, inside, learned)

    def _shatter(self, content: str) -> list[str]:
        """Cut a message inside everything that looks like a special token, so that it becomes none."""
        cuts = [0]
        while found := self._special.search(content, cuts[-1]):
            cuts.append(found.start() + 1)
        return [content[a:b] for a, b in zip(cuts, [*cuts[1:], len(content)], strict=True)]

    def _render(self, contents: Sequence[str], roles: Sequence[str], answer_next: bool = False) -> str:
        from jinja2 import TemplateError

        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
        try:
            return self._template(messages=messages, add_generation_prompt=answer_next, **self._variables)
        except TemplateError as error:
            self._refuse(f"refuses {', '.join(roles)}: {error}")

    def _plan(self, roles: tuple[str, ...]) -> _Plan:
        if roles not in self._plans:
            self._plans[roles] = self._lay_out(roles)
        return self._plans[roles]

    def _lay_out(self, roles: tuple[str, ...]) -> _Plan:
        marks = [f"\ue000{n}\ue001" for n in range(len(roles))]
        text = self._render(marks, roles)
        parts = _MARK.split(text)
        literals, order = parts[::2], [int(n) for n in parts[1::2]]
        if sorted(order) != list(range(len(roles))):
            self._refuse("drops, repeats or splits messages")
        slots: list[_Slot] = []
        items: list[str | int] = []
        inside, answer = False, None
        done = 0  # characters of `text` before the present literal
        for literal, number in zip(literals, [*order, None], strict=True):
            start = 0
            special = self._special.search(literal)
            head = self._answer_start(text, marks, roles, number, done, literal)
            if answer is not None and (special is None or special.start() > head):
                self._refuse("has no end-of-turn token after an answer")
            if (slots or items) and special and special.start() <= head:
                start = special.start()
                slots.append(_Slot((*items, literal[:start]), inside, answer))
                items, inside, answer = [], False, None
            if number is not None and roles[number] == "assistant":
                slots.append(_Slot((*items, literal[start:head]), inside, answer))
                items, inside, answer, start = [], True, number, head
            items.append(literal[start:])
            if number is not None:
                items.append(number)
                done += len(literal) + len(marks[number])
        slots.append(_Slot(tuple(items), inside, answer))
        return _Plan(tuple(slots), self._strips(marks, roles, literals, order))

    def _answer_start(
        self, text: str, marks: list[str], roles: tuple[str, ...], number: int | None, done: int, literal: str
    ) -> int:
        """Where in the literal before an answer the prompt ends; its length for any other message."""
        if number is None or roles[number] != "assistant":
            return len(literal)
        prompt = self._render(marks[:number], roles[:number], answer_next=True)
        head = len(prompt) - done
        if not text.startswith(prompt) or not 0 <= head <= len(literal):
            self._refuse("is not prefix-stable: a prompt is not the beginning of its row")
        return head

    def _strips(
        self, marks: list[str], roles: tuple[str, ...], literals: list[str], order: list[int]
    ) -> tuple[tuple[bool, bool], ...]:
        padded = _MARK.split(self._render([_PAD + mark + _PAD for mark in marks], roles))[::2]
        strips = [(False, False)] * len(marks)
        for n, number in enumerate(order):
            left = not padded[n].endswith(literals[n] + _PAD)
            strips[number] = (left, not padded[n + 1].startswith(_PAD + literals[n + 1]))
        return tuple(strips)

    def _stops(self, config: dict[str, Any]) -> set[int]:
        """End-of-turn token of the template, and what the config calls the end of a sequence."""
        ends = config.get("eos_token_id")
        stops = set(ends if isinstance(ends, list) else [ends] if isinstance(ends, int) else [])
        row = (Message(role="user", content="-"), Message(role="assistant", content="-"))
        encoded = self.encode(row)
        return stops | {encoded.tokens[max(n for n, learned in enumerate(encoded.loss_mask) if learned)]}

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self._source}: the chat template {what}; take another base model, or put a template "
            "that keeps messages as they are into chat_template.jinja beside it"
        )


def template_text(folder: Path) -> tuple[str, str | None]:
    """The file that holds the chat template, and its source; None where there is none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return str(path), path.read_text("utf-8")
    text = _read(folder, "tokenizer_config.json").get("chat_template")
    if isinstance(text, list):
        text = next((entry["template"] for entry in text if entry["name"] == "default"), None)
    return str(folder / "tokenizer_config.json"), text


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _token_bytes(text: str, byte_level: bool) -> bytes:
    """Byte-level BPE writes bytes as letters (GPT-2's table); SentencePiece as `<0x0A>`, spaces as U+2581."""
    if byte_level and all(letter in _LETTER_BYTES for letter in text):
        return bytes(_LETTER_BYTES[letter] for letter in text)
    if re.fullmatch(r"<0x[0-9A-F]{2}>", text):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()


def _letter_bytes() -> dict[str, int]:
    """GPT-2's table (openai/gpt-2, encoder.py, bytes_to_unicode): printable bytes stand for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


_LETTER_BYTES = _letter_bytes()


def _without_prefix_space(spec: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, but text does not get a space put before it: for pieces that go on inside text."""

    def change(node: Any) -> Any:
        if isinstance(node, list):
            return [change(child) for child in node if not _is_prepend(child)]
        if not isinstance(node, dict):
            return node
        node = {key: change(child) for key, child in node.items()}
        if node.get("type") == "Metaspace":
            node["prepend_scheme"] = "never"
        if node.get("type") == "ByteLevel":
            node["add_prefix_space"] = False
        return node

    changed = {key: change(spec.get(key)) for key in ("normalizer", "pre_tokenizer")}
    return spec | {key: None if _is_prepend(node) else node for key, node in changed.items()}


def _is_prepend(node: Any) -> bool:
    return isinstance(node, dict) and node.get("type") == "Prepend"


def _read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingModel(f"{path} is missing; the base model's folder needs it") from None
    except ValueError as error:
        raise MissingModel(f"{path} is no JSON ({error}); fetch the base model again") from None
    return content


def _template(folder: Path) -> tuple[str, Callable[..., str]]:
    """Where the chat template stands, and its compiled form in the sandbox that transformers uses.

    Source: transformers 5.23, utils/chat_template_utils.py, `_compile_jinja_template`; `strftime_now` departs
    from it (TEMPLATE_DAY).
    """
    from jinja2 import TemplateError, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    source, text = template_text(folder)
    if not text:
        raise ConfigError(f"{source}: no chat template; take an instruct model, or add chat_template.jinja")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": TEMPLATE_DAY.strftime}
    try:
        return source, environment.from_string(text).render
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"{source}: chat template line {error.lineno}: {error.message}; correct it"
        ) from None
