"""From a base's own chat template (Jinja) to the one that Ollama understands (Go), for the families we know.

A family is data. It is recognised by what the Jinja template makes of probe conversations, not by its source
text, so that two spellings of one template are one family. Knows no server.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ConfigError
from fine_tune_runner.types import Message

Turn = tuple[str, str]  # what stands before and after the content


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """How a family lays out a conversation that begins with a system message.

    `bos` is what the Jinja template begins with, `head` what stands before an answer that is to come, and
    `first` a user turn right after the system message where it looks different. `trims`: contents are
    stripped of white space, which Go templates cannot do.
    """

    name: str
    bos: str = ""
    system: Turn
    user: Turn
    first: Turn | None = None
    assistant: Turn
    head: str
    trims: bool = False

    def text(self, messages: Sequence[Message]) -> str:
        """The prompt of a conversation, up to where the answer begins."""
        parts = [self.bos]
        for before, message in zip([None, *messages], messages, strict=False):
            first = self.first is not None and before is not None and before.role == "system"
            left, right = self._turn(message.role, first)
            content = message.content.strip() if self.trims else message.content
            parts += [left, content, right]
        return "".join([*parts, self.head])

    def go_template(self, *, server_adds_bos: bool) -> str:
        """The same in Ollama's template language; a beginning that the server adds itself is left out."""

        def turn(role: str, first: bool = False) -> str:
            left, right = self._turn(role, first)
            return f"{left}{{{{ $m.Content }}}}{right}"

        user = turn("user")
        if self.first is not None:
            user = "{{ if and $.System (eq $i 1) }}" + turn("user", True) + "{{ else }}" + user + "{{ end }}"
        return (
            f"{'' if server_adds_bos else self.bos}"
            "{{ range $i, $m := .Messages }}"
            '{{ if eq $m.Role "system" }}' + turn("system") + '{{ else if eq $m.Role "user" }}' + user +
            '{{ else if eq $m.Role "assistant" }}' + turn("assistant") + "{{ end }}{{ end }}" + self.head
        )  # fmt: skip

    def prepared(self, content: str) -> str:
        """A message's text as it has to be sent, so that the server's prompt is the one that was trained."""
        return content.strip() if self.trims else content

    def sent(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Messages as they have to be sent."""
        return tuple(Message(role=m.role, content=self.prepared(m.content)) for m in messages)

    def _turn(self, role: str, first: bool) -> Turn:
        if role == "user" and first and self.first is not None:
            return self.first
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


def _chatml(role: str) -> Turn:
    return f"<|im_start|>{role}\n", "<|im_end|>\n"


def _llama(role: str, more: str = "") -> Turn:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{more}", "<|eot_id|>"


_LLAMA_HEAD = "<|start_header_id|>assistant<|end_header_id|>\n\n"
# The day is render.TEMPLATE_DAY, which Llama 3.1's own template falls back to.
_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

FAMILIES: tuple[Family, ...] = (
    Family(
        name="ChatML",
        system=_chatml("system"),
        user=_chatml("user"),
        assistant=_chatml("assistant"),
        head="<|im_start|>assistant\n",
    ),
    Family(
        name="Llama 3.1",
        bos="<|begin_of_text|>",
        system=_llama("system", _DATES),
        user=_llama("user"),
        assistant=_llama("assistant"),
        head=_LLAMA_HEAD,
    ),
    Family(
        name="Llama 3",
        bos="<|begin_of_text|>",
        system=_llama("system"),
        user=_llama("user"),
        assistant=_llama("assistant"),
        head=_LLAMA_HEAD,
    ),
    Family(
        name="Mistral 0.2",
        bos="<s>",
        system=(" [INST] ", "\n\n"),
        user=(" [INST] ", " [/INST]"),
        first=("", " [/INST]"),
        assistant=(" ", "</s>"),
        head="",
    ),
    Family(
        name="Mistral 0.3",
        bos="<s>",
        system=("[INST] ", "\n\n"),
        user=("[INST] ", "[/INST]"),
        first=("", "[/INST]"),
        assistant=(" ", "</s>"),
        head="",
    ),
)

_ASKED = (Message(role="system", content=" s "), Message(role="user", content=" u\nv "))
_PROBES = (_ASKED, (*_ASKED, Message(role="assistant", content="a b"), Message(role="user", content="w")))


def family_of(tokenizer: ChatTokenizer) -> Family:
    """The family whose prompts are those of a base's own template; ConfigError where none is."""
    rendered = [tokenizer.text(probe) for probe in _PROBES]
    for family in FAMILIES:
        for trims in (False, True):
            candidate = msgspec.structs.replace(family, trims=trims)
            if [candidate.text(probe) for probe in _PROBES] == rendered:
                return candidate
    raise ConfigError(
        f"base model {tokenizer.name}: its chat template is none that can be put into Ollama "
        f"(known: {', '.join(family.name for family in FAMILIES)}); take another base model, put one of "
        "those templates into chat_template.jinja beside it, or leave OLLAMA_HOST unset to serve it here"
    )
