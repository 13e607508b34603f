"""Chat templates for Ollama: what the server makes of them is what the Jinja template makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.contract.ollama_server import gotemplate
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ConfigError
from fine_tune_runner.private.templates import family_of
from fine_tune_runner.types import Message

# The published templates, without their tool calls. SmolLM2-135M-Instruct, Llama-3.1-8B-Instruct,
# Meta-Llama-3-8B-Instruct, Mistral-7B-Instruct-v0.2 (revised), and v0.3's marks in the same order.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA31 = (
    '{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    "{%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}"
    '{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}'
    '{{- "Cutting Knowledge Date: December 2023\\n" }}{{- "Today Date: " + date_string + "\\n\\n" }}'
    '{{- system_message }}{{- "<|eot_id|>" }}{%- for message in messages %}'
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim "
    "+ '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{{- bos_token }}{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.first and system_message is defined %}"
    "{{- 'OPEN' + system_message + '\\n\\n' + message['content'] + 'CLOSE' }}{%- else %}"
    "{{- 'OPEN' + message['content'] + 'CLOSE' }}{%- endif %}{%- else %}"
    "{{- ' ' + message['content'] + eos_token}}{%- endif %}{%- endfor %}"
)
CASES = {
    "ChatML": (SMOLLM2, "", "<|im_end|>", "<|im_start|>"),
    "Llama 3.1": (LLAMA31, "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"),
    "Llama 3": (LLAMA3, "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>"),
    "Mistral 0.2": (
        MISTRAL.replace("OPEN", " [INST] ").replace("CLOSE", " [/INST]"),
        "<s>",
        "</s>",
        "[INST]",
    ),
    "Mistral 0.3": (MISTRAL.replace("OPEN", "[INST] ").replace("CLOSE", "[/INST]"), "<s>", "</s>", "[INST]"),
}
TALK = (
    Message(role="system", content="  You are an expert.\nKey tags: GA4. "),
    Message(role="user", content="Purchases count twice? "),
    Message(role="assistant", content="Root cause: two triggers."),
    Message(role="user", content=" Since when?\n\nMonday"),
)


def tokenizer(folder: Path, template: str, *special: str) -> ChatTokenizer:
    """A tiny base whose chat template and special tokens are exchanged."""
    make_tiny_llama(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"chat_template": template, "bos_token": special[0] or None, "eos_token": special[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    spec = json.loads((folder / "tokenizer.json").read_text())
    known = {token["content"] for token in spec["added_tokens"]}
    for n, text in enumerate(sorted({*special, "[/INST]", "<|end_header_id|>"} - known - {""})):
        spec["added_tokens"].append({**spec["added_tokens"][0], "id": 320 + n, "content": text})
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return ChatTokenizer(folder)


@pytest.mark.parametrize("name", CASES)
def test_the_server_renders_what_was_trained(tmp_path: Path, name: str) -> None:
    template, bos, *special = CASES[name]
    tokens = tokenizer(tmp_path / "base", template, bos, *special)
    family = family_of(tokens)
    assert family.name == name
    for talk in (TALK[:2], TALK):
        sent = [{"role": m.role, "content": family.prepared(m.content)} for m in talk]
        assert gotemplate.render(family.go_template(server_adds_bos=False), sent) == tokens.text(talk)
        without = gotemplate.render(family.go_template(server_adds_bos=True), sent)
        assert bos + without == tokens.text(talk)


def test_an_unknown_template_is_refused_with_the_remedy(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] | upper }}: {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>ASSISTANT: {% endif %}"
    )
    with pytest.raises(ConfigError, match=r"known: ChatML, .* or leave OLLAMA_HOST unset"):
        family_of(tokenizer(tmp_path / "base", template, "", "<|im_end|>"))
