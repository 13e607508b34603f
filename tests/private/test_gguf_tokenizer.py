"""A text is cut into the same tokens by llama.cpp, from the GGUF, as by the folder's own tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
import xllamacpp
from tests.private.test_export import peft_adapter
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ConfigError
from fine_tune_runner.private.gguf_base import folder_to_gguf
from fine_tune_runner.private.gguf_file import read_header
from fine_tune_runner.private.gguf_tokenizer import _LLAMA3
from fine_tune_runner.private.merge import check_export, merge_gguf

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
SPLIT = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
DIGITS = {"type": "Digits", "individual_digits": True}
CUTS: dict[str, dict[str, Any]] = {
    "gpt-2": {**BYTES, "use_regex": True},
    "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, {**BYTES, "use_regex": True}]},
    "llama-bpe": {"type": "Sequence", "pretokenizers": [SPLIT, {**BYTES, "use_regex": False}]},
}
TEXT = (
    "<|im_start|>user\nWe've 12345 purchases,  don't we?\n\n\tGA4's  ga_tag 42: äöü 日本 \U0001f600 ...!"
    "<|im_end|>\n"
)


def base_that_cuts(folder: Path, how: dict[str, Any]) -> Path:
    """A tiny base with merges that tell the ways to cut apart, such as 123 and "_t"."""
    make_tiny_llama(folder)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["pre_tokenizer"] = how
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"]
    free = [text for text in vocab if len(text) > 2][-6:]
    made = [("1", "2"), ("12", "3"), ("4", "5"), ("_", "t"), ("\u0120", "1"), ("?", "\u010a")]
    kept = [m for m in merges if not {"".join(m), *m} & set(free)]
    for old, (left, right) in zip(free, made, strict=True):
        vocab[left + right] = vocab.pop(old)
    spec["model"]["merges"] = [*map(list, made), *kept]
    path.write_text(json.dumps(spec))
    return folder


def tokens_of_llama_cpp(gguf: Path, folder: Path) -> list[int]:
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx, params.n_parallel, params.verbosity = 256, 1, -1
    params.fit_params = params.endpoint_slots = params.ui = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames = [str(folder / "llama.sock")]
    server = xllamacpp.Server(params)
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(folder / "llama.sock"))) as client:
        body = {"content": TEXT, "add_special": True, "parse_special": True}
        tokens: list[int] = client.post("http://llama/tokenize", json=body).json()["tokens"]
    del server
    return tokens


@pytest.mark.parametrize("name", CUTS)
def test_llama_cpp_cuts_a_text_as_the_folder_s_tokenizer_does(name: str, tmp_path: Path) -> None:
    folder = base_that_cuts(tmp_path / "tiny", CUTS[name])
    folder_to_gguf(folder, tmp_path / "tiny.gguf")
    assert read_header(tmp_path / "tiny.gguf").values["tokenizer.ggml.pre"] == name
    assert tokens_of_llama_cpp(tmp_path / "tiny.gguf", tmp_path) == ChatTokenizer(folder).text_ids(TEXT)


def test_the_ways_to_cut_differ_on_that_text(tmp_path: Path) -> None:
    cut = [tuple(ChatTokenizer(base_that_cuts(tmp_path / n, how)).text_ids(TEXT)) for n, how in CUTS.items()]
    assert len(set(cut)) == len(CUTS)


def test_an_unknown_way_to_cut_is_served_by_ids_only(tmp_path: Path) -> None:
    folder = base_that_cuts(tmp_path / "tiny", {"type": "Sequence", "pretokenizers": [DIGITS, DIGITS, BYTES]})
    folder_to_gguf(folder, tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match=r"llama\.cpp has no name for how its tokenizer\.json cuts"):
        check_export(folder, "Q8_0")
    adapter = peft_adapter(folder, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="name the model's GGUF file"):
        merge_gguf(folder, adapter, tmp_path / "m.gguf", stamp={})
