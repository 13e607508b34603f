"""The loop: it learns, resumes with the same bits, stops when told, and says what is wrong."""

from __future__ import annotations

import math
import random
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_llama import make_tiny_llama

from fine_tune_runner.errors import Interrupted, RunnerError, TrainingError
from fine_tune_runner.private.batches import Row
from fine_tune_runner.private.learner import learning_rate
from fine_tune_runner.private.torch_backend import choose_device, choose_dtype
from fine_tune_runner.private.train_spec import TrainSpec, fingerprint, finished
from fine_tune_runner.private.trainer import train_adapters
from fine_tune_runner.settings import TrainingConfig
from fine_tune_runner.types import TrainingSummary

QUICK = TrainingConfig(
    rank=4, layers=1, epochs=3, batch_size=4, learning_rate=0.01, checkpoint_every=2, device="cpu", threads=1
)


class Record:
    """A Progress that remembers, and that asks to stop after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[tuple[int, int, float]] = []
        self.checkpoints: list[int] = []
        self._stop_after = stop_after

    def on_step(self, step: int, total: int, loss: float, tokens_per_s: float, eta_s: float) -> None:
        assert tokens_per_s > 0
        assert eta_s >= 0
        self.steps.append((step, total, loss))

    def on_checkpoint(self, step: int) -> None:
        self.checkpoints.append(step)

    def stopping(self) -> bool:
        return self._stop_after is not None and len(self.steps) >= self._stop_after


def rows(count: int = 14) -> list[Row]:
    """A common prompt; each answer repeats its question's token."""
    draw = random.Random(0)
    prompt = [draw.randrange(3, 320) for _ in range(30)]
    result = []
    for _ in range(count):
        question = [draw.randrange(3, 320)] * draw.randrange(2, 9)
        tokens = [*prompt, *question, 2, *question]
        result.append(
            Row(tokens=tokens, loss_mask=[i > len(prompt) + len(question) for i in range(len(tokens))])
        )
    return result


def spec_in(folder: Path, training: TrainingConfig = QUICK) -> TrainSpec:
    """The rows are handed over as tokens; the file only has to exist."""
    base = folder.parent / "base"
    if not base.exists():
        make_tiny_llama(base, layers=2)
    (folder.parent / "v1.jsonl").write_text("{}\n")
    return TrainSpec(
        base_dir=str(base), train_path=str(folder.parent / "v1.jsonl"), out_dir=str(folder), training=training
    )


def train(spec: TrainSpec, record: Record | None = None) -> TrainingSummary:
    record = record or Record()
    (result,) = train_adapters([spec], [rows()], [record], record.stopping)
    if isinstance(result, RunnerError):
        raise result
    return result


def shuffled(seed: int, count: int = 14) -> list[Row]:
    """Another client's rows: other questions, another prompt."""
    draw = random.Random(seed)
    swap = list(range(320))
    draw.shuffle(swap)
    return [Row(tokens=[swap[t] for t in row.tokens], loss_mask=row.loss_mask) for row in rows(count)]


def weights(spec: TrainSpec) -> dict[str, torch.Tensor]:
    return load_file(str(spec.adapter_dir / "adapter_model.safetensors"))


def test_training_lowers_the_loss_and_reports_every_step(tmp_path: Path) -> None:
    record = Record()
    summary = train(spec_in(tmp_path / "out"), record)
    assert [step for step, _, _ in record.steps] == list(range(1, 13))  # 14 rows, batches of 4, 3 epochs
    assert {total for _, total, _ in record.steps} == {12}
    assert summary.final_loss < 0.8 * summary.first_loss
    assert summary.tokens == 3 * sum(len(row.tokens) for row in rows())
    assert summary.loss_tokens == 3 * sum(sum(row.loss_mask) for row in rows())


def test_the_summary_holds_the_resolved_settings(tmp_path: Path) -> None:
    settings = train(spec_in(tmp_path / "out", TrainingConfig(layers=50, device="cpu", epochs=1))).settings
    assert (settings["layers"], settings["learning_rate"], settings["batch_size"]) == (2, 2e-3, 8)
    assert (settings["device"], settings["dtype"]) == (
        "cpu",
        str(choose_dtype(QUICK, torch.device("cpu")))[6:],
    )
    assert settings["prefix_tokens"] == 30


def test_resume_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, parts = spec_in(tmp_path / "whole"), spec_in(tmp_path / "parts")
    straight = train(whole)
    for stop_after in (5, 2):  # in the middle of an epoch, and again
        with pytest.raises(Interrupted, match="steps are kept"):
            train(parts, Record(stop_after))
    record = Record()
    resumed = train(parts, record)
    assert record.steps[0][0] == 8
    expected, got = weights(whole), weights(parts)
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    assert (resumed.tokens, resumed.first_loss) == (straight.tokens, straight.first_loss)


def test_a_stop_writes_a_checkpoint_first(tmp_path: Path) -> None:
    spec, record = spec_in(tmp_path / "out"), Record(stop_after=3)
    with pytest.raises(Interrupted, match="3 of 12 steps are kept"):
        train(spec, record)
    assert record.checkpoints == [2, 3]
    assert sorted(path.name for path in spec.checkpoint_dir.iterdir()) == [
        "step-00000002.safetensors",
        "step-00000003.safetensors",
    ]
    assert not spec.adapter_dir.exists()


def test_other_settings_start_afresh(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(spec_in(tmp_path / "out"), Record(stop_after=3))
    record = Record()
    train(spec_in(tmp_path / "out", TrainingConfig(rank=2, layers=1, epochs=1, device="cpu")), record)
    assert record.steps[0][0] == 1


def test_a_finished_training_is_known_by_its_spec(tmp_path: Path) -> None:
    spec = spec_in(tmp_path / "out")
    summary = train(spec)
    assert finished(spec, fingerprint(spec)) == summary
    assert finished(spec, "0" * 64) is None


def test_what_a_kill_left_half_written_goes_with_the_next_training(tmp_path: Path) -> None:
    spec = spec_in(tmp_path / "out")
    half = Path(spec.out_dir) / ".adapter.77.tmp"
    half.mkdir(parents=True)
    (half / "adapter_config.json").write_text("{")
    spec.checkpoint_dir.mkdir()
    (spec.checkpoint_dir / ".step-00000002.safetensors.77.123.tmp").write_bytes(b"half")
    train(spec)
    assert list(Path(spec.out_dir).rglob("*.tmp")) == []


def test_a_loss_that_is_not_finite_names_step_and_remedy(tmp_path: Path) -> None:
    base = make_tiny_llama(tmp_path / "base")
    tensors = load_file(str(base / "model.safetensors"))
    tensors["model.norm.weight"][:] = math.inf
    save_file(tensors, str(base / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*lower training\.learning_rate"):
        train(spec_in(tmp_path / "out"))


def test_a_row_longer_than_the_context_is_named(tmp_path: Path) -> None:
    make_tiny_llama(tmp_path / "base", context=40)
    with pytest.raises(TrainingError, match="but the base model takes 40"):
        train(spec_in(tmp_path / "out"))


def test_a_foreign_tokenizer_is_noticed(tmp_path: Path) -> None:
    make_tiny_llama(tmp_path / "base", vocab=300)
    with pytest.raises(TrainingError, match="vocabulary of 300"):
        train(spec_in(tmp_path / "out"))


def test_together_each_client_has_the_losses_of_training_alone(tmp_path: Path) -> None:
    data = [rows(), shuffled(1, 9), shuffled(2)]
    long = msgspec.structs.replace(QUICK, epochs=4)
    trainings = [QUICK, QUICK, long]

    def specs(name: str) -> list[TrainSpec]:
        return [spec_in(tmp_path / f"{name}-{n}", training) for n, training in enumerate(trainings)]

    records = [Record() for _ in data]
    together = train_adapters(specs("together"), data, records, lambda: False)
    for place, spec in enumerate(specs("alone")):
        record = Record()
        (alone,) = train_adapters([spec], [data[place]], [record], lambda: False)
        joint = together[place]
        assert isinstance(alone, TrainingSummary)
        assert isinstance(joint, TrainingSummary)
        assert [step for step, _, _ in records[place].steps] == [step for step, _, _ in record.steps]
        losses = [[loss for _, _, loss in r.steps] for r in (records[place], record)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert (joint.steps, joint.tokens, joint.loss_tokens) == (
            alone.steps,
            alone.tokens,
            alone.loss_tokens,
        )


def test_a_client_whose_loss_is_not_finite_fails_alone_and_moves_no_bit_of_the_others(tmp_path: Path) -> None:
    hot = msgspec.structs.replace(QUICK, learning_rate=1e30)

    def neighbours(name: str, middle: TrainingConfig) -> list[TrainSpec]:
        return [spec_in(tmp_path / f"{name}-{n}", t) for n, t in enumerate((QUICK, middle, QUICK))]

    data = [rows(), shuffled(1), shuffled(2)]
    clean, poisoned = neighbours("clean", QUICK), neighbours("poisoned", hot)
    train_adapters(clean, data, [Record() for _ in data], lambda: False)
    results = train_adapters(poisoned, data, [Record() for _ in data], lambda: False)
    assert isinstance(results[1], TrainingError)
    assert "not finite" in str(results[1])
    assert not poisoned[1].adapter_dir.exists()
    for place in (0, 2):
        assert isinstance(results[place], TrainingSummary)
        expected = weights(clean[place])
        assert all(torch.equal(weights(poisoned[place])[key], value) for key, value in expected.items())


def test_together_resumes_each_where_it_was(tmp_path: Path) -> None:
    data = [rows(), shuffled(1)]
    whole = [spec_in(tmp_path / f"whole-{n}") for n in range(2)]
    parts = [spec_in(tmp_path / f"parts-{n}") for n in range(2)]
    train_adapters(whole, data, [Record(), Record()], lambda: False)
    stop = Record(stop_after=5)
    with pytest.raises(Interrupted, match="10 of 24 steps are kept"):
        train_adapters(parts, data, [stop, Record()], stop.stopping)
    records = [Record(), Record()]
    train_adapters(parts, data, records, lambda: False)
    assert [record.steps[0][0] for record in records] == [6, 6]
    for expected, got in zip(whole, parts, strict=True):
        assert all(torch.equal(weights(got)[key], value) for key, value in weights(expected).items())


def test_a_client_without_loss_is_named_and_the_other_trained(tmp_path: Path) -> None:
    silent = [Row(tokens=row.tokens, loss_mask=[False] * len(row.tokens)) for row in rows()]
    specs = [spec_in(tmp_path / "a"), spec_in(tmp_path / "b")]
    results = train_adapters(specs, [silent, rows()], [Record(), Record()], lambda: False)
    assert isinstance(results[0], TrainingError)
    assert isinstance(results[1], TrainingSummary)


def test_all_layers_train(tmp_path: Path) -> None:
    spec = spec_in(tmp_path / "out", TrainingConfig(layers="all", epochs=1, rank=2, device="cpu", threads=1))
    train(spec)
    assert any(".layers.0." in key for key in weights(spec))


def test_a_bfloat16_base_trains_float32_adapters_to_about_the_same_loss(tmp_path: Path) -> None:
    full = train(spec_in(tmp_path / "full"))
    spec = spec_in(tmp_path / "half", msgspec.structs.replace(QUICK, dtype="bfloat16"))
    assert train(spec).first_loss == pytest.approx(full.first_loss, rel=0.02)
    assert {tensor.dtype for tensor in weights(spec).values()} == {torch.float32}


def test_rate_rises_then_falls_along_a_cosine() -> None:
    rates = [learning_rate(step, 20, peak=1.0, warmup=0.2) for step in range(20)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[12] == pytest.approx(0.5)
    assert rates[19] == pytest.approx((1 + math.cos(math.pi * 15 / 16)) / 2)


def test_without_warmup_the_first_step_has_the_peak() -> None:
    assert learning_rate(0, 10, peak=0.5, warmup=0.0) == 0.5


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(TrainingError, match="'cuda'"):
        choose_device(TrainingConfig(device="cuda"))
