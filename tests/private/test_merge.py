"""Adapter and base as one GGUF: values against PEFT's and mlx-lm's own merge, the rest untouched."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from mlx_lm.tuner.lora import LoRALinear
from numpy.typing import NDArray
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.private.test_export import LINEARS, peft_adapter
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.errors import ConfigError, TrainingError
from fine_tune_runner.files import sha256_file
from fine_tune_runner.private.gguf_base import folder_to_gguf
from fine_tune_runner.private.gguf_file import read_header
from fine_tune_runner.private.merge import check_export, merge_gguf

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
STAMP = {"ftr.client_id": "hre", "ftr.run_id": "hre-v3-b-0123abcd-1"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peft_adapter(base, tmp_path_factory.mktemp("adapter"), layers_to_transform=[1])


def values(path: Path) -> dict[str, NDArray[np.float32]]:
    return {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}


def merged_by_peft(base: Path, adapter: Path, target: Path) -> dict[str, NDArray[np.float32]]:
    """PEFT's own merge, converted as any other base."""
    network = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(network, adapter).merge_and_unload().save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, target / name)
    folder_to_gguf(target, target / "reference.gguf", "F32")
    return values(target / "reference.gguf")


def mlx_adapter(base: Path, folder: Path, scale: float, **config: Any) -> Path:
    """An adapter of mlx-lm for layer 1's q_proj; its B is not zero."""
    folder.mkdir()
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(64, 4)), generator.normal(size=(4, 64))
    tensors = {f"model.layers.1.self_attn.q_proj.lora_{n}": mx.array(x) for n, x in (("a", a), ("b", b))}
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    settings = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": scale, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["alpha / r", "rsLoRA"])
@pytest.mark.parametrize("from_gguf", [False, True], ids=["folder", "gguf"])
def test_the_merged_weights_are_those_of_peft(
    options: dict[str, Any], from_gguf: bool, base: Path, tmp_path: Path
) -> None:
    adapter = peft_adapter(base, tmp_path / "adapter", **options)
    source = base
    if from_gguf:
        source = tmp_path / "base.gguf"
        folder_to_gguf(base, source, "F32")
    merge_gguf(source, adapter, tmp_path / "merged.gguf", stamp=STAMP, quantization="F32")
    reference = merged_by_peft(base, adapter, tmp_path / "reference")
    merged = values(tmp_path / "merged.gguf")
    assert merged.keys() == reference.keys()
    assert max(float(np.abs(merged[name] - reference[name]).max()) for name in merged) < 1e-5


def test_the_scale_of_mlx_is_folded_in(base: Path, tmp_path: Path) -> None:
    adapter = mlx_adapter(base, tmp_path / "mlx", scale=20.0)
    merge_gguf(base, adapter, tmp_path / "merged.gguf", stamp=STAMP, quantization="F32")
    weight = load_file(base / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"].numpy()
    layer = LoRALinear(64, 64, r=4, scale=20.0)
    layer.linear.weight = mx.array(weight)
    saved = mx.load(str(adapter / "adapters.safetensors"))
    layer.lora_a, layer.lora_b = (saved[f"model.layers.1.self_attn.q_proj.lora_{n}"] for n in "ab")
    expected = np.array(layer.fuse().weight)
    # By facts/ollama.md: rows in pairs of neighbours, 4 heads of 16.
    expected = expected.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
    merged = values(tmp_path / "merged.gguf")["blk.1.attn_q.weight"]
    assert np.abs(merged - expected).max() < 1e-3 < np.abs(expected).max() / 100


@pytest.mark.parametrize("quantization", ["F16", "Q8_0"])
def test_only_what_was_trained_is_encoded_anew(
    quantization: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder_to_gguf(base, tmp_path / "base.gguf", "F32")
    merge_gguf(tmp_path / "base.gguf", adapter, tmp_path / "m.gguf", stamp=STAMP, quantization=quantization)
    before, after = (
        {t.name: (t.tensor_type.name, t.data.tobytes()) for t in GGUFReader(tmp_path / name).tensors}
        for name in ("base.gguf", "m.gguf")
    )
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert len(changed) == len(LINEARS)
    assert all(name.startswith("blk.1.") and after[name][0] == quantization for name in changed)


def test_a_folder_is_encoded_whole_and_vectors_stay_exact(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge_gguf(base, adapter, tmp_path / "m.gguf", stamp=STAMP)
    kinds = {t.name: t.tensor_type for t in GGUFReader(tmp_path / "m.gguf").tensors}
    assert {kinds[n] for n in kinds if "norm" in n} == {GGMLQuantizationType.F32}
    assert {kinds[n] for n in kinds if "norm" not in n} == {GGMLQuantizationType.Q8_0}


def test_stamps_and_the_base_s_own_key_values_are_there(base: Path, adapter: Path, tmp_path: Path) -> None:
    folder_to_gguf(base, tmp_path / "base.gguf", "F16")
    digest = merge_gguf(tmp_path / "base.gguf", adapter, tmp_path / "m.gguf", stamp=STAMP)
    before, after = GGUFReader(tmp_path / "base.gguf"), GGUFReader(tmp_path / "m.gguf")
    own = {k: f.contents() for k, f in before.fields.items() if not k.startswith("GGUF.")}
    both = {k: f.contents() for k, f in after.fields.items() if not k.startswith("GGUF.")}
    weights = sha256_file(adapter / "adapter_model.safetensors")
    assert both == own | STAMP | {"ftr.adapter_sha256": weights}
    assert digest == hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()


def test_bfloat16_and_shards_are_read_and_a_second_copy_is_not(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(base, tmp_path / "sharded")
    weights = {name: t.bfloat16() for name, t in load_file(base / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-0000{n % 2 + 1}-of-00002.safetensors" for n, name in enumerate(names)}
    for file in sorted(set(where.values())):
        save_file({n: weights[n] for n in names if where[n] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    save_file({"layers.0.attention.wq.weight": torch.zeros(2, 2)}, folder / "consolidated.safetensors")
    merge_gguf(folder, adapter, tmp_path / "m.gguf", stamp=STAMP, quantization="F32")
    merged = values(tmp_path / "m.gguf")
    embedding = weights["model.embed_tokens.weight"].float().numpy()
    assert np.array_equal(merged["token_embd.weight"], embedding)
    assert len(merged) == len(weights)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"target_modules": [*LINEARS, "lm_head"]}, "lm_head"),
        ({"target_modules": [*LINEARS, "embed_tokens"]}, "embed_tokens"),
        ({"bias": "all"}, "bias training"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_merged_is_refused_by_name(
    options: dict[str, Any], named: str, base: Path, tmp_path: Path
) -> None:
    adapter = peft_adapter(base, tmp_path / "adapter", **options)
    with pytest.raises(TrainingError, match=named):
        merge_gguf(base, adapter, tmp_path / "m.gguf", stamp=STAMP)
    assert not (tmp_path / "m.gguf").exists()


def test_dora_of_mlx_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    adapter = mlx_adapter(base, tmp_path / "mlx", scale=1.0, fine_tune_type="dora")
    with pytest.raises(TrainingError, match="DoRA"):
        merge_gguf(base, adapter, tmp_path / "m.gguf", stamp=STAMP)


def test_an_interrupted_merge_leaves_the_old_file_and_nothing_else(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    target = tmp_path / "m.gguf"
    target.write_bytes(b"old")

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_gguf(base, adapter, target, stamp=STAMP, on_progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    assert target.read_bytes() == b"old"


def test_progress_ends_at_the_size_of_the_file(base: Path, adapter: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    merge_gguf(base, adapter, tmp_path / "m.gguf", stamp=STAMP, on_progress=lambda *now: seen.append(now))
    size = (tmp_path / "m.gguf").stat().st_size
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


def test_a_merged_file_is_no_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    merge_gguf(base, adapter, tmp_path / "m.gguf", stamp=STAMP)
    with pytest.raises(ConfigError, match=r"m\.gguf is itself a fine-tuned export \(of hre\)"):
        merge_gguf(tmp_path / "m.gguf", adapter, tmp_path / "twice.gguf", stamp=STAMP)


def test_an_adapter_of_another_base_is_named(adapter: Path, tmp_path: Path) -> None:
    other = make_tiny_llama(tmp_path / "wide", hidden=96, heads=6)
    with pytest.raises(
        TrainingError, match=r"update of blk\.1\.ffn_down\.weight is \(64, 128\), the base has \(96"
    ):
        merge_gguf(other, adapter, tmp_path / "m.gguf", stamp=STAMP)


def test_a_k_kind_without_its_program_is_refused_before_anything(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Q4_K_M needs no-such-program.*brew install llama\.cpp"):
        check_export(base, "Q4_K_M", "no-such-program")


def stand_in(folder: Path, body: str) -> str:
    """A program in the place of llama-quantize; what it was called with is in `called`."""
    path = folder / "quantize"
    path.write_text(f'#!/bin/sh\necho "$1 $4" > {folder}/called\n{body}\n')
    path.chmod(0o755)
    return str(path)


def test_a_k_kind_is_made_by_llama_quantize_from_an_f16_file(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    program = stand_in(tmp_path, 'cp "$2" "$3"')
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    digest = merge_gguf(base, adapter, target, stamp=STAMP, quantization="Q4_K_M", quantizer=program)
    assert (tmp_path / "called").read_text() == "--allow-requantize Q4_K_M\n"
    assert digest == sha256_file(target)
    assert read_header(target).values["ftr.client_id"] == "hre"
    assert [p.name for p in target.parent.iterdir()] == ["m.gguf"]


def test_a_failing_llama_quantize_is_quoted(base: Path, adapter: Path, tmp_path: Path) -> None:
    program = stand_in(tmp_path, "echo out of cheese >&2; exit 3")
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    with pytest.raises(TrainingError, match=r"out of cheese; set base_model\.quantization to Q8_0"):
        merge_gguf(base, adapter, target, stamp=STAMP, quantization="Q4_K_M", quantizer=program)
    assert list(target.parent.iterdir()) == []


def test_a_rope_that_cannot_be_exported_is_refused_before_training(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "tiny", rope_scaling={"rope_type": "yarn", "factor": 4.0})
    with pytest.raises(ConfigError, match="rope type 'yarn'"):
        check_export(base, "Q8_0")


def test_a_bias_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "biased")
    save_file({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, folder / "model-2.safetensors")
    with pytest.raises(ConfigError, match=r"self_attn\.q_proj\.bias is none of a Llama"):
        check_export(folder, "Q8_0")
