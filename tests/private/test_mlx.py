"""MLX against PyTorch: logits, gradients, losses of a training, what is saved; tiny bases, float32, CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from tests.private.test_llama import BASES
from tests.private.test_process import spec_in as spec_with_texts
from tests.private.test_shared_prefix import CASES, gradients
from tests.private.test_trainer import Record, rows, shuffled, spec_in, weights
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.errors import Interrupted, TrainingError
from fine_tune_runner.private import llama
from fine_tune_runner.private.adapter import read_adapter
from fine_tune_runner.private.backend import State, takes_mlx
from fine_tune_runner.private.batches import TREE_TOKENS, Row, lay_out, make_batch, make_tree
from fine_tune_runner.private.export import export_adapter
from fine_tune_runner.private.llama_config import read_config
from fine_tune_runner.private.lora import new_adapter
from fine_tune_runner.private.torch_backend import TorchBackend
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.private.trainer import train_adapters
from fine_tune_runner.settings import TrainingConfig
from fine_tune_runner.types import TrainingSummary

mx = pytest.importorskip("mlx.core", reason="mlx is an extra, and not installed here")
pytest.importorskip("mlx_lm", reason="mlx-lm is an extra, and not installed here")
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402
from mlx_lm.utils import load_model  # noqa: E402

from fine_tune_runner.private import mlx_llama  # noqa: E402
from fine_tune_runner.private.mlx_backend import MlxAdapter, MlxBackend, Trunk  # noqa: E402

# PEFT reads a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
PLAIN = TrainingConfig(
    rank=4,
    layers=1,
    epochs=5,
    batch_size=4,
    learning_rate=0.01,
    weight_decay=0.05,
    checkpoint_every=100,
    dtype="float32",
    device="cpu",
    threads=1,
)
MLX = msgspec.structs.replace(PLAIN, device="mlx")
TOKENS = list(range(3, 90))


def load(folder: Path) -> mlx_llama.MlxLlama:
    return mlx_llama.load_llama(folder, read_config(folder), mx.float32)


def train(spec: TrainSpec, record: Record | None = None, data: list[Row] | None = None) -> TrainingSummary:
    record = record or Record()
    (result,) = train_adapters([spec], [data or rows()], [record], record.stopping)
    assert isinstance(result, TrainingSummary), result
    return result


@pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
def test_logits_are_those_of_pytorch(tmp_path: Path, base: dict[str, Any]) -> None:
    folder = make_tiny_llama(tmp_path, **base)
    with torch.no_grad():
        expected = llama.logits(llama.load_llama(folder), torch.tensor(TOKENS)).numpy()
    np.testing.assert_allclose(np.array(mlx_llama.logits(load(folder), TOKENS)), expected, atol=1e-4)


def lively(layers: int, folder: Path) -> State:
    """Weights away from zero, so that every matrix has a gradient; moments of no step."""
    config = read_config(folder)
    top = range(config.layers - layers, config.layers)
    own = new_adapter(dict.fromkeys(top, config.shapes), rank=4, alpha=8.0, seed=0).tensors()
    draw = np.random.default_rng(4)
    drawn = {name: draw.standard_normal(x.shape).astype(np.float32) / 8 for name, x in own.items()}
    zeros = {name: np.zeros_like(x) for name, x in drawn.items()}
    return {"weight": drawn, "mean": zeros, "square": zeros}


@pytest.mark.parametrize("tree_tokens", [TREE_TOKENS, 60], ids=["one tree", "several trees"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("data", CASES.values(), ids=list(CASES))
def test_loss_and_gradients_are_those_of_pytorch(
    tmp_path: Path, data: list[Row], layers: int, tree_tokens: int
) -> None:
    folder = make_tiny_llama(tmp_path, layers=3)
    corpus = lay_out(data)
    batch = make_batch(corpus, range(len(corpus.chats)), tree_tokens)
    theirs, ours = (backend(PLAIN, folder) for backend in (TorchBackend, MlxBackend))
    reference, own = (backend.begin(corpus, PLAIN, layers, tmp_path) for backend in (theirs, ours))
    losses = []
    for backend, trainable in ((theirs, reference), (ours, own)):
        trainable.restore(lively(layers, folder), 0)
        losses.append(sum(backend.backward([(trainable, tree, batch.loss_tokens) for tree in batch.trees])))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    expected = {name: gradient.numpy() for name, gradient in gradients(reference.adapter).items()}
    assert expected.keys() == own.gradients.keys()
    far = {name: np.linalg.norm(np.array(own.gradients[name]) - x) for name, x in expected.items()}
    assert max(far[name] / np.linalg.norm(x) for name, x in expected.items()) < 1e-3


def test_a_training_has_the_losses_of_pytorch(tmp_path: Path) -> None:
    records = {"cpu": Record(), "mlx": Record()}
    summaries = {}
    for device, record in records.items():
        training = msgspec.structs.replace(PLAIN, device=device)
        summaries[device] = train(spec_in(tmp_path / device, training), record)
    theirs, ours = ([loss for _, _, loss in record.steps] for record in records.values())
    assert len(ours) == 20
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours[-1] < 0.8 * ours[0]
    assert (summaries["mlx"].tokens, summaries["mlx"].loss_tokens) == (
        summaries["cpu"].tokens,
        summaries["cpu"].loss_tokens,
    )
    assert [summaries["mlx"].settings[key] for key in ("device", "dtype")] == ["mlx", "float32"]


def test_one_goes_on_where_the_other_stopped(tmp_path: Path) -> None:
    """Weights, moments and the count of steps mean the same to both: so do AdamW and clipping."""
    folder = make_tiny_llama(tmp_path, layers=3)
    corpus = lay_out(CASES["several lengths"])
    batch = make_batch(corpus, range(len(corpus.chats)))
    theirs, ours = TorchBackend(PLAIN, folder), MlxBackend(PLAIN, folder)

    def step(backend: Any, trainable: Any) -> float:
        backend.backward([(trainable, tree, batch.loss_tokens) for tree in batch.trees])
        norm = trainable.clip(0.1)
        trainable.step(0.01)
        trainable.forget()
        return float(norm)

    first = theirs.begin(corpus, PLAIN, 2, tmp_path)
    first.restore(lively(2, folder), 0)
    for _ in range(3):
        step(theirs, first)
    second = ours.begin(corpus, PLAIN, 2, tmp_path)
    second.restore(first.state(), 3)
    assert step(ours, second) == pytest.approx(step(theirs, first), rel=1e-4)
    expected, got = first.state(), second.state()
    for kind, arrays in expected.items():
        for name, array in arrays.items():
            assert np.linalg.norm(got[kind][name] - array) < 1e-3 * np.linalg.norm(array)
    first.restore(got, 4)
    assert step(theirs, first) == pytest.approx(step(ours, second), rel=1e-4)


def test_weights_of_other_settings_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path, layers=3)
    trainable = MlxBackend(PLAIN, folder).begin(lay_out(rows()), PLAIN, 2, tmp_path)
    with pytest.raises(TrainingError, match="other names or shapes"):
        trainable.restore(lively(1, folder), 1)


def test_resume_ends_with_the_same_numbers(tmp_path: Path) -> None:
    whole, parts = spec_in(tmp_path / "whole", MLX), spec_in(tmp_path / "parts", MLX)
    straight = train(whole)
    for stop_after in (5, 2):  # in the middle of an epoch, and again
        with pytest.raises(Interrupted, match="steps are kept"):
            train(parts, Record(stop_after))
    record = Record()
    resumed = train(parts, record)
    assert record.steps[0][0] == 8
    expected, got = weights(whole), weights(parts)
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert (resumed.tokens, resumed.final_loss) == (straight.tokens, straight.final_loss)


def test_peft_and_gguf_have_what_was_trained(tmp_path: Path) -> None:
    spec = spec_in(tmp_path / "out", msgspec.structs.replace(MLX, epochs=2, alpha=12.0))
    train(spec)
    tensors = {name: x.numpy() for name, x in weights(spec).items()}
    lora = MlxAdapter(4, 12.0, [1], tensors)
    base = Path(spec.base_dir)
    own = np.array(mlx_llama.logits(load(base), TOKENS, mlx_llama.Lora(lora.scale, lora.matrices), first=1))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        before = plain(torch.tensor([TOKENS])).logits[0].numpy()
        twin = PeftModel.from_pretrained(plain, str(spec.adapter_dir))
        np.testing.assert_allclose(own, twin(torch.tensor([TOKENS])).logits[0].numpy(), atol=1e-4)
    assert np.abs(own - before).max() > 0.05

    reader = GGUFReader(export_adapter(spec.adapter_dir, base, tmp_path / "adapter.gguf", {}))
    assert reader.fields["adapter.lora.alpha"].contents() == 12.0
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    down = tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    assert len(found) == 14
    assert np.array_equal(found["blk.1.ffn_down.weight.lora_b"], down)


def test_the_scale_of_an_adapter_of_mlx_lm_is_folded_in(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    model, _ = load_model(base)
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 5.0, "dropout": 0.0})
    draw = np.random.default_rng(1)
    parts = {
        name: mx.array(draw.standard_normal(x.shape).astype(np.float32) / 8)
        for name, x in tree_flatten(model.parameters())
        if "lora_" in name and "embed" not in name
    }
    model.load_weights(list(parts.items()), strict=False)
    folder = tmp_path / "adapter"
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), parts)
    config = {"fine_tune_type": "lora", "lora_parameters": {"rank": 4, "scale": 5.0, "dropout": 0.0}}
    (folder / "adapter_config.json").write_text(json.dumps(config))

    reader = GGUFReader(export_adapter(folder, base, tmp_path / "adapter.gguf", {}))
    alpha = reader.fields["adapter.lora.alpha"].contents()
    assert alpha == 20.0
    ours = llama.load_llama(base)
    adapter = new_adapter(dict.fromkeys(range(2), ours.config.shapes), rank=4, alpha=alpha, seed=0)
    pairs = read_adapter(folder).pairs
    key = "base_model.model.model.layers.{}.{}.lora_{}.weight"
    adapter.load(
        {
            key.format(*where, half): torch.from_numpy(np.ascontiguousarray(values))
            for where, pair in pairs.items()
            for half, values in (("A", pair.a()), ("B", pair.b()))
        }
    )
    with torch.no_grad():
        got = llama.logits(ours, torch.tensor(TOKENS), adapter).numpy()
    np.testing.assert_allclose(got, np.array(model(mx.array([TOKENS]))[0]), atol=1e-3)


def test_a_client_that_diverges_fails_alone(tmp_path: Path) -> None:
    short = msgspec.structs.replace(MLX, epochs=2)
    hot = msgspec.structs.replace(short, learning_rate=1e30)
    alone = spec_in(tmp_path / "alone", short)
    train(alone, data=shuffled(1))
    specs = [spec_in(tmp_path / "hot", hot), spec_in(tmp_path / "beside", short)]
    results = train_adapters(specs, [rows(), shuffled(1)], [Record(), Record()], lambda: False)
    assert isinstance(results[0], TrainingError)
    assert "lower training.learning_rate" in str(results[0])
    assert all(torch.equal(weights(specs[1])[key], value) for key, value in weights(alone).items())


def test_a_four_bit_base_learns_from_about_the_same_loss(tmp_path: Path) -> None:
    full = train(spec_in(tmp_path / "full", MLX))
    packed = train(spec_in(tmp_path / "packed", msgspec.structs.replace(MLX, dtype="nf4")))
    assert packed.settings["dtype"] == "mlx 4-bit"
    assert packed.first_loss != full.first_loss
    assert packed.first_loss == pytest.approx(full.first_loss, rel=0.1)
    assert packed.final_loss < 0.8 * packed.first_loss


@pytest.mark.parametrize("name", ["several lengths", "a shared turn below the prompt", "two prompts"])
def test_kept_states_are_those_computed_when_asked_for(tmp_path: Path, name: str) -> None:
    base, corpus = load(make_tiny_llama(tmp_path, layers=3)), lay_out(CASES[name])
    kept, fresh = Trunk(base, corpus, 2), Trunk(base, corpus, 2, memory_bytes=0)
    assert (kept.kept, fresh.kept) == (True, False)
    part = make_tree(corpus, [len(corpus.chats) - 1])
    np.testing.assert_allclose(np.array(kept.states(part)), np.array(fresh.states(part)), atol=1e-5)


def test_an_incomplete_base_is_named(tmp_path: Path) -> None:
    folder = make_tiny_llama(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match="the base is incomplete"):
        load(folder)


@pytest.mark.parametrize(
    ("device", "apple", "installed", "taken"),
    [
        ("auto", True, True, True),
        ("auto", True, False, False),
        ("auto", False, True, False),
        ("mlx", False, True, True),
        ("mps", True, True, False),
        ("cpu", True, True, False),
    ],
)
def test_mlx_is_chosen(device: str, apple: bool, installed: bool, taken: bool) -> None:
    assert takes_mlx(device, apple=apple, installed=installed) is taken


def test_mlx_that_is_asked_for_and_missing_is_named_with_the_command() -> None:
    with pytest.raises(TrainingError, match=r"pip install 'fine-tune-runner\[mlx\]'"):
        takes_mlx("mlx", apple=True, installed=False)


# To find_spec, None in sys.modules is a package that is not installed.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; " + (
    "from fine_tune_runner.private.trainer_main import main; sys.exit(main())"
)


def test_the_training_process_needs_no_torch(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    spec = spec_with_texts(tmp_path, base, msgspec.structs.replace(MLX, epochs=1))
    Path(spec.out_dir).mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT_TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(msgspec.json.encode([spec]) + b"\n")
        child.stdin.flush()
        events = [json.loads(line) for line in child.stdout]
    assert [event["event"] for event in events] == ["step", "step", "step", "done"]
    assert (spec.adapter_dir / "adapter_model.safetensors").is_file()
