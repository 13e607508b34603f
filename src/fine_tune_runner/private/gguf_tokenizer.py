"""A folder's tokenizer as GGUF key-values, so that llama.cpp and Ollama cut a text as the training did.

Weights are not its business. Source: llama.cpp convert_hf_to_gguf.py and src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fine_tune_runner.dataset.render import ChatTokenizer, template_text

if TYPE_CHECKING:
    from gguf import GGUFWriter

UNKNOWN_PRE = "default"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What llama.cpp calls the ways to cut a text before its pairs are merged: as tokenizer.json writes them.
_PRE: dict[str, tuple[dict[str, Any], ...]] = {
    "gpt-2": ({"type": "ByteLevel", "use_regex": True},),
    "smollm": ({"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}),
    "llama-bpe": (
        {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "use_regex": False},
    ),
}


def add_tokenizer(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    """Write vocabulary, merges, special tokens and chat template; ids beyond the vocabulary are filled up.

    `tokenizer.ggml.pre` is UNKNOWN_PRE where llama.cpp has no name for how this tokenizer cuts a text: then
    only token ids may be sent.
    """
    spec = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    model = spec["model"]
    byte_level = "ByteLevel" in json.dumps([spec.get("pre_tokenizer"), spec.get("decoder")])
    texts = _add_tokens(writer, spec, config["vocab_size"], byte_level)
    if byte_level:
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        writer.add_tokenizer_pre(_pre(spec))
        writer.add_token_merges(merges)
    else:
        listed = model["vocab"]
        scores = [float(-n) for n in range(len(texts))]
        writer.add_token_scores(scores if isinstance(listed, dict) else [score for _, score in listed])
    writer.add_chat_template(template_text(folder)[1] or "")
    _add_special(writer, ChatTokenizer(folder), config)


def _add_tokens(writer: GGUFWriter, spec: dict[str, Any], vocab_size: int, byte_level: bool) -> list[str]:
    from gguf import TokenType

    added = {t["id"]: t for t in spec["added_tokens"]}
    listed = spec["model"]["vocab"]
    pairs = listed.items() if isinstance(listed, dict) else ((t, n) for n, (t, _) in enumerate(listed))
    tokens = {n: text for text, n in pairs} | {n: t["content"] for n, t in added.items()}
    texts = [tokens.get(n, f"[PAD{n}]") for n in range(max(vocab_size, max(tokens) + 1))]

    def kind(n: int) -> TokenType:
        if n in added:
            return TokenType.CONTROL if added[n]["special"] else TokenType.USER_DEFINED
        if n not in tokens:
            return TokenType.UNUSED
        is_byte = not byte_level and len(texts[n]) == 6 and texts[n].startswith("<0x")
        return TokenType.BYTE if is_byte else TokenType.NORMAL

    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_token_list(texts)
    writer.add_token_types([kind(n) for n in range(len(texts))])
    return texts


def _add_special(writer: GGUFWriter, tokenizer: ChatTokenizer, config: dict[str, Any]) -> None:
    # llama.cpp ends an answer at eos, eot and eom: the template's own end of turn must be among them.
    for add_stop, stop in zip(
        (writer.add_eot_token_id, writer.add_eom_token_id), tokenizer.stop_tokens, strict=False
    ):
        add_stop(stop)
    # The template says where a text begins: a server that put the token before it as well would double it.
    writer.add_add_bos_token(False)
    eos = config.get("eos_token_id")
    for add, token in ((writer.add_bos_token_id, config.get("bos_token_id")), (writer.add_eos_token_id, eos)):
        first = token[0] if isinstance(token, list) else token
        if first is not None:
            add(first)


def _pre(spec: dict[str, Any]) -> str:
    """llama.cpp's name for this way to cut a text, UNKNOWN_PRE where we know of none."""
    found = spec.get("pre_tokenizer") or {}
    parts = found["pretokenizers"] if found.get("type") == "Sequence" else [found]
    for name, expected in _PRE.items():
        if len(parts) == len(expected) and all(
            wanted.items() <= part.items() and not part.get("add_prefix_space")
            for part, wanted in zip(parts, expected, strict=True)
        ):
            return name
    return UNKNOWN_PRE
