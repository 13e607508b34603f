"""A base model by any of its names; the two forms of it hold the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors import safe_open
from safetensors.torch import load_file
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama import LlamaConfig

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ConfigError, MissingModel
from fine_tune_runner.private.bases import Base, gguf_of, resolve
from fine_tune_runner.private.gguf_base import folder_to_gguf
from fine_tune_runner.private.llama_layout import permute, rope_factors, unpermute
from fine_tune_runner.settings import Settings, load_settings
from fine_tune_runner.types import Message

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CHAT = (
    Message(role="system", content="You are an expert."),
    Message(role="user", content="Purchases count twice since 2024?"),
    Message(role="assistant", content="Root cause: two triggers."),
)


def settings_for(folder: Path) -> Settings:
    return load_settings({"FINE_TUNE_MODELS_DIR": str(folder)}, cwd=folder)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path / "models")


@pytest.fixture(scope="module")
def smollm2(models_dir: Path) -> Iterator[Base]:
    yield resolve("smollm2", settings_for(models_dir), offline=True)


def first_layers(source: Path, target: Path, layers: int) -> None:
    """A GGUF with the first layers of another, its quantised blocks unchanged, and no tokenizer."""
    reader, writer = GGUFReader(source), GGUFWriter(target, "llama")
    writer.add_block_count(layers)
    for name in ("context_length", "embedding_length", "feed_forward_length", "vocab_size"):
        writer.add_uint32(f"llama.{name}", reader.fields[f"llama.{name}"].contents())
    writer.add_head_count(reader.fields["llama.attention.head_count"].contents())
    writer.add_head_count_kv(reader.fields["llama.attention.head_count_kv"].contents())
    writer.add_layer_norm_rms_eps(reader.fields["llama.attention.layer_norm_rms_epsilon"].contents())
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or int(tensor.name.split(".")[1]) < layers:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_small_base_has_the_weights_that_transformers_loads(smollm2: Base, tmp_path: Path) -> None:
    assert smollm2.gguf is not None
    first_layers(smollm2.gguf, tmp_path / "base.gguf", 2)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="base.gguf", dtype=torch.float32)
    reference = loaded.state_dict()
    with safe_open(smollm2.dir / "model.safetensors", framework="pt") as ours:
        names = [name for name in ours.keys() if name in reference]  # noqa: SIM118
        differences = [float((ours.get_tensor(n) - reference[n]).abs().max()) for n in names]
    assert len(names) == 2 * 9 + 2
    assert max(differences) == 0.0


def test_the_small_base_speaks_its_own_template(smollm2: Base) -> None:
    tokenizer = ChatTokenizer(smollm2.dir, name="smollm2")
    tokens = tokenizer.prompt(CHAT)
    text = tokenizer._whole.decode(tokens, skip_special_tokens=False)
    assert text == (
        "<|im_start|>system\nYou are an expert.<|im_end|>\n"
        "<|im_start|>user\nPurchases count twice since 2024?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (tokenizer.context, tokenizer.stop_tokens) == (8192, (2,))


@pytest.mark.parametrize("options", [{}, {"tied": False, "head_dim": 24}, {"rope_scaling": LLAMA3}])
def test_folder_to_gguf_and_back_keeps_every_weight(
    options: dict[str, object], settings: Settings, tmp_path: Path
) -> None:
    folder = make_tiny_llama(tmp_path / "tiny", **options)  # type: ignore[arg-type]
    folder_to_gguf(folder, tmp_path / "tiny.gguf", "F32")
    base = resolve(str(tmp_path / "tiny.gguf"), settings, offline=True)
    before, after = load_file(folder / "model.safetensors"), load_file(base.dir / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    was, now = (json.loads((f / "config.json").read_text()) for f in (folder, base.dir))
    kept = ("num_key_value_heads", "rope_theta", "rope_scaling", "tie_word_embeddings", "vocab_size")
    assert {k: was.get(k) for k in kept} == {k: now.get(k) for k in kept}
    assert now["rms_norm_eps"] == pytest.approx(was["rms_norm_eps"])


def test_the_tokenizer_survives_the_way_through_gguf(settings: Settings, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "tiny")
    folder_to_gguf(folder, tmp_path / "tiny.gguf")
    base = resolve(str(tmp_path / "tiny.gguf"), settings, offline=True)
    assert ChatTokenizer(base.dir).encode(CHAT) == ChatTokenizer(folder).encode(CHAT)


def test_unpermute_is_the_inverse_of_permute() -> None:
    rows = np.arange(48.0).reshape(24, 2)
    assert permute(rows, 3)[:4, 0].tolist() == [0.0, 8.0, 2.0, 10.0]
    assert np.array_equal(unpermute(permute(rows, 3), 3), rows)


def test_rope_factors_are_those_of_transformers() -> None:
    config = {"hidden_size": 256, "num_attention_heads": 4, "rope_theta": 500000.0, "rope_scaling": LLAMA3}
    hf = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](hf, torch.device("cpu"))
    plain = 1 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    assert rope_factors(config) == pytest.approx(plain / scaled.numpy(), rel=1e-5)


def test_a_folder_is_taken_as_it_is(settings: Settings, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "tiny", layers=3)
    base = resolve(str(folder), settings, offline=True)
    assert (base.dir, base.architecture, base.layers, base.gguf) == (folder, "llama", 3, None)


def test_other_weights_have_another_hash(settings: Settings, tmp_path: Path) -> None:
    one, other = (
        resolve(str(make_tiny_llama(tmp_path / n, seed=len(n))), settings, offline=True) for n in ["a", "bb"]
    )
    again = resolve(str(shutil.copytree(tmp_path / "a", tmp_path / "copy")), settings, offline=True)
    assert one.sha256 == again.sha256 != other.sha256


def test_a_gguf_is_made_once_and_kept(settings: Settings, tmp_path: Path) -> None:
    base = resolve(str(make_tiny_llama(tmp_path / "tiny")), settings, offline=True)
    path = gguf_of(base, settings)
    made = path.stat().st_mtime_ns
    assert gguf_of(base, settings) == path
    assert path.stat().st_mtime_ns == made


def test_two_at_once_convert_once(settings: Settings, tmp_path: Path) -> None:
    base = resolve(str(make_tiny_llama(tmp_path / "tiny")), settings, offline=True)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: gguf_of(base, settings), range(2))
    assert first == second
    assert [p.name for p in first.parent.iterdir() if not p.name.startswith(".")] == [first.name]


@pytest.mark.parametrize("options", [{"model_type": "gpt2"}, {"model_type": "qwen3"}])
def test_another_architecture_is_refused_by_name(
    options: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    folder = make_tiny_llama(tmp_path / "tiny", **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=f"architecture '{options['model_type']}' is not supported"):
        resolve(str(folder), settings, offline=True)


def test_a_gguf_of_another_architecture_is_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "other.gguf", "qwen3")
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConfigError, match="architecture 'qwen3' is not supported"):
        resolve(str(tmp_path / "other.gguf"), settings, offline=True)


def test_a_rope_that_cannot_be_served_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="rope type 'yarn' is not supported"):
        rope_factors({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})


def test_a_file_that_is_no_gguf_is_named(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingModel, match=r"cut\.gguf cannot be read as GGUF"):
        resolve(str(tmp_path / "cut.gguf"), settings, offline=True)


def test_a_folder_without_weights_says_what_is_missing(settings: Settings, tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path / "tiny")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingModel, match=r"lacks \*\.safetensors"):
        resolve(str(folder), settings, offline=True)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("smollm2", MissingModel, "run: fine-tune fetch smollm2"),
        ("/nowhere/base.gguf", MissingModel, "is not there"),
        ("no-such-org/no-such-model", MissingModel, "run: fine-tune fetch no-such-org/no-such-model"),
        ("mistralai/Mistral-7B-Instruct-v0.3", MissingModel, r"run: fine-tune fetch mistral \(.*HF_TOKEN"),
        ("smollm3", ConfigError, "give an alias"),
    ],
)
def test_a_base_that_is_not_here_says_what_to_do(
    name: str, kind: type[Exception], message: str, settings: Settings
) -> None:
    with pytest.raises(kind, match=message):
        resolve(name, settings, offline=True)
