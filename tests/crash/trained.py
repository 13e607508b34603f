"""Track B of the kill matrix: it trains for real, and what there must be of that in the end.

The product's own trainer runs in the worker itself, so that a kill hits it in the midst of a step, of a
checkpoint or of a rename; the product's child, which hears that its parent is gone and writes a checkpoint
first, is test_kill.py's matter. Answers are told: those of a random base say nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import RunnerError
from fine_tune_runner.files import locked, sha256_file
from fine_tune_runner.line import run_dir_of
from fine_tune_runner.private.adapter import read_adapter
from fine_tune_runner.private.batches import Row
from fine_tune_runner.private.llama_layout import MODULES
from fine_tune_runner.private.safetensors_file import model_tensors
from fine_tune_runner.private.track import Embedded
from fine_tune_runner.private.train_spec import TrainSpec, fingerprint, finished
from fine_tune_runner.private.trainer import train_adapters
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.settings import Client, Settings, load_client
from fine_tune_runner.types import Answerer, Decoding, Model, Prompt, Reply, TrainingSummary

TOP = 1  # the layer that is trained; the one below it is frozen
TRAINING = {
    "rank": 4,
    "layers": 1,
    "epochs": 2,
    "batch_size": 8,
    "checkpoint_every": 1,
    "threads": 1,
    "device": "cpu",
    "dtype": "float32",
}


def write_base(folder: Path, seed: int) -> Path:
    """A tiny random base of a client's own, so that no adapter passes for another's.

    And it trains alone: last bits depend on who trains beside it.
    """
    from tests.tiny_llama import make_tiny_llama

    return make_tiny_llama(folder, seed=seed, context=1024)


class Told:
    """Answers by name of the model: a trained one is right now and then, a bare base never."""

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """As Answerer."""
        text = "Root cause: csp_blocks_tags" if model_id.endswith("-client:v1") else "no"
        for prompt in prompts:
            yield Reply(question_id=prompt.question_id, k=prompt.k, text=text, tokens=3)


class Trained(Embedded):
    """Track B as it is, but for where it trains and who answers."""

    def __init__(self, settings: Settings, client: Client) -> None:
        super().__init__(settings, client, trainer=train_here)

    @contextlib.contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Answerer]:
        """Nothing is loaded."""
        yield Told()


class Heard:
    """A learner.Progress: passes on its events, and keeps the loss of each step."""

    def __init__(self, on_event: Callable[[int, dict[str, Any]], None] = lambda _place, _event: None) -> None:
        self._on_event = on_event
        self.losses: dict[int, float] = {}

    def on_step(self, step: int, total: int, loss: float, tokens_per_s: float, eta_s: float) -> None:
        """As learner.Progress."""
        self.losses[step] = loss
        words = {"step": step, "total": total, "loss": loss, "tokens_per_s": tokens_per_s, "eta_s": eta_s}
        self._on_event(0, {"event": "step", **words})

    def on_checkpoint(self, step: int) -> None:
        """As learner.Progress."""
        self._on_event(0, {"event": "checkpoint", "step": step})


def train_here(
    specs: Sequence[TrainSpec],
    on_event: Callable[[int, dict[str, Any]], None],
    stopping: Callable[[], bool],
) -> list[TrainingSummary | RunnerError]:
    """As process.train_together, in this very process; BlockingIOError where another one is at it."""
    (spec,) = specs
    folder = Path(spec.out_dir)
    folder.mkdir(exist_ok=True)
    with locked(folder / ".lock"):
        return train_adapters(specs, [rows_of(spec)], [Heard(on_event)], stopping)


def rows_of(spec: TrainSpec) -> list[Row]:
    """The tokenised training file."""
    tokenizer = ChatTokenizer(Path(spec.base_dir))
    encoded = (tokenizer.encode(example.messages) for example in examples(Path(spec.train_path)))
    return [Row(tokens=row.tokens, loss_mask=row.loss_mask) for row in encoded]


class Trainings(NamedTuple):
    """How often trainings were begun, and on from a checkpoint; optimizer steps, and those taken again."""

    begun: int = 0
    resumed: int = 0
    steps: int = 0
    again: int = 0

    def plus(self, other: Trainings) -> Trainings:
        """Both together."""
        return Trainings(*(a + b for a, b in zip(self, other, strict=True)))


def check_trained(line: FineTuneRunner, client_id: str, scratch: Path) -> Trainings:
    """A client's one adapter is whole, and has every bit of a training without interruption.

    So has the loss of every step, also of one that was taken again; nothing half-written is left. That other
    training stays in `scratch`.
    """
    client = load_client(line.settings, client_id)
    (entry,) = line.registry(client_id).entries()
    assert entry.run_id is not None
    spec = TrainSpec(
        base_dir=str(Embedded(line.settings, client).weights.dir),
        train_path=str(client.dir / "v1.jsonl"),
        out_dir=str(run_dir_of(client, entry) / "attempt-1"),
        training=client.config.training,
    )
    straight, heard = msgspec.structs.replace(spec, out_dir=str(scratch / client_id)), Heard()
    (summary,) = train_adapters([straight], [rows_of(straight)], [heard], lambda: False)
    assert isinstance(summary, TrainingSummary), summary
    assert finished(spec, fingerprint(straight)) is not None
    found, expected = read_adapter(spec.adapter_dir), read_adapter(straight.adapter_dir)
    base = model_tensors(Path(spec.base_dir))
    assert {where: pair.shape for where, pair in found.pairs.items()} == {
        (TOP, module): base[f"model.layers.{TOP}.{module}.weight"].shape for module in MODULES
    }
    assert found.sha256 == expected.sha256, f"{spec.out_dir} is not {straight.out_dir}"
    assert list(Path(spec.out_dir).rglob("*.tmp")) == []
    assert entry.artifact is not None
    assert sha256_file(client.dir / entry.artifact) == entry.artifact_sha256
    return _trainings(line, entry.run_id, heard.losses)


def _trainings(line: FineTuneRunner, run_id: str, losses: dict[int, float]) -> Trainings:
    """What the run's events tell; AssertionError where a step is missing, or had another loss than here."""
    begun: list[int] = []  # of each sitting: its first step, 0 where it came to none
    steps = []
    for event in line.engine.events(run_id):
        if event.event == "train started":
            begun.append(0)
        elif event.event == "train step":
            steps.append((event.data["step"], event.data["loss"]))
            begun[-1] = begun[-1] or event.data["step"]
    assert set(steps) == set(losses.items())
    return Trainings(
        begun=len(begun),
        resumed=sum(first > 1 for first in begun),
        steps=len(losses),
        again=len(steps) - len(losses),
    )
