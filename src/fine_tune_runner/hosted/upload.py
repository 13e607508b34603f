"""The bytes that leave: `messages` with `weight`, and nothing else of a row."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.dataset.fingerprint import Fingerprint
from fine_tune_runner.errors import DataError

# Text that OpenAI's fine-tuning refuses, after the upload, wherever it stands in a message.
SPECIAL = (
    "<|endoftext|>",
    "<|endofprompt|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|im_start|>",
    "<|im_sep|>",
    "<|im_end|>",
)


def write_upload(train: Path, path: Path, sha256: str) -> str:
    """Write what is sent of the training file at `train` to `path`; the sha256 of those bytes.

    Raises DataError where the content is not the one of `sha256` any more, or holds a special token.
    """
    content, sent = Fingerprint(), hashlib.sha256()
    with path.open("wb") as file:
        for example in read.examples(train):
            content.add(example)
            line = msgspec.json.encode({"messages": example.messages}) + b"\n"
            for token in SPECIAL:
                if token.encode() in line:
                    raise DataError(
                        f"{train} line {example.line}: contains {token}, which the provider refuses; "
                        "take it out of the text and publish a new version"
                    )
            sent.update(line)
            file.write(line)
    if content.hexdigest() != sha256:
        raise DataError(f"{train}: its content changed since this run began; publish another version")
    return sent.hexdigest()
