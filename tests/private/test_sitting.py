"""Who trains together, how many memory takes, and what becomes of the rest where one stops."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fine_tune_runner.errors import DataError, Interrupted, RunnerError, TrainingError
from fine_tune_runner.private.sitting import Seat, fitting, free_bytes, train_together
from fine_tune_runner.private.train_spec import TrainSpec
from fine_tune_runner.settings import TrainingConfig
from fine_tune_runner.types import Estimate, TokenStats, TrainingSummary

TOKENS = TokenStats(tokenizer="t", total=1000, loss=300, longest=20, longest_line=1, mean=10.0)
SUMMARY = TrainingSummary(steps=1, epochs=1, tokens=1, loss_tokens=1, seconds=1, first_loss=2, final_loss=1)
Result = TrainingSummary | RunnerError


class Waiting:
    """A run's context: what a seat needs of it, and who else waits."""

    def __init__(self, name: str, others: Sequence[Waiting] = ()) -> None:
        self.name, self.waits, self.stop = name, list(others), False
        self.said: list[tuple[str, dict[str, Any]]] = []

    def value(self, kind: type[Any]) -> Any:
        assert kind is Estimate
        return Estimate(
            dataset_sha256="", tokens_per_epoch=1, epochs=1, steps=7, cost_usd=0.0, price_source="own"
        )

    def emit(self, event: str, **data: Any) -> None:
        self.said.append((event, data))

    def cancelled(self) -> bool:
        return self.stop

    @contextlib.contextmanager
    def others(self) -> Iterator[list[Waiting]]:
        yield [other for other in self.waits if not other.stop]


class World:
    """A base, and a trainer that does as told; `sat` are the runs of each sitting."""

    def __init__(self, folder: Path) -> None:
        self.base = folder / "base"
        self.base.mkdir()
        shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4, "vocab_size": 100}
        shape["num_attention_heads"] = 2
        (self.base / "config.json").write_text(json.dumps(shape))
        self.sat: list[list[str]] = []
        self.do: Callable[[Sequence[str]], None] = lambda names: None

    def seat(self, context: Any, **training: Any) -> Seat:
        config = TrainingConfig(**{"rank": 2, "layers": 1, "batch_size": 4, "device": "cpu", **training})
        spec = TrainSpec(base_dir=str(self.base), train_path="", out_dir=context.name, training=config)
        return Seat(context, spec, "tiny", TOKENS, shared=4.0)

    def train(
        self,
        specs: Sequence[TrainSpec],
        on_event: Callable[[int, dict[str, Any]], None],
        stopping: Callable[[], bool],
    ) -> list[Result]:
        self.sat.append([spec.out_dir for spec in specs])
        for place in range(len(specs)):
            on_event(place, {"event": "step", "step": 1})
        self.do(self.sat[-1])
        if stopping():
            raise Interrupted("training stopped")
        return [SUMMARY for _ in specs]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_all_who_wait_for_the_same_sit_together_and_each_hears_of_its_own(world: World) -> None:
    birch, cedar = Waiting("birch"), Waiting("cedar")
    ash: Any = Waiting("ash", [birch, cedar])
    summary, together = train_together(world.seat(ash), world.seat, world.train)
    assert (summary, together, world.sat) == (SUMMARY, 3, [["ash", "birch", "cedar"]])
    started = {"base": "tiny", "rank": 2, "layers": 1, "steps": 7, "together": 3}
    assert cedar.said == [("train started", started), ("train step", {"step": 1})]
    assert "ash" not in str(cedar.said)


def test_other_settings_sit_elsewhere_and_who_cannot_be_seated_is_left_to_itself(world: World) -> None:
    ash: Any = Waiting("ash", [Waiting("threads"), Waiting("broken"), Waiting("rank")])

    def seat_of(context: Any) -> Seat:
        if context.name == "broken":
            raise DataError("config.json is wrong")
        return world.seat(context, threads=2 if context.name == "threads" else None, seed=3)

    _, together = train_together(world.seat(ash), seat_of, world.train)
    assert (together, world.sat) == (2, [["ash", "rank"]])


def test_one_that_is_cancelled_leaves_and_the_rest_go_on(world: World) -> None:
    birch = Waiting("birch")
    ash: Any = Waiting("ash", [birch, Waiting("cedar")])

    def cancel(names: Sequence[str]) -> None:
        birch.stop = "birch" in names

    world.do = cancel
    _, together = train_together(world.seat(ash), world.seat, world.train)
    assert (together, world.sat) == (2, [["ash", "birch", "cedar"], ["ash", "cedar"]])


def test_one_that_is_cancelled_itself_stops(world: World) -> None:
    ash: Any = Waiting("ash", [Waiting("birch")])

    def cancel(names: Sequence[str]) -> None:
        ash.stop = True

    world.do = cancel
    with pytest.raises(Interrupted):
        train_together(world.seat(ash), world.seat, world.train)
    assert len(world.sat) == 1


def test_where_the_process_fails_with_others_it_is_tried_alone(world: World) -> None:
    ash: Any = Waiting("ash", [Waiting("birch")])

    def fail(names: Sequence[str]) -> None:
        if len(names) > 1:
            raise TrainingError("killed by SIGKILL")

    world.do = fail
    assert train_together(world.seat(ash), world.seat, world.train) == (SUMMARY, 1)
    assert world.sat == [["ash", "birch"], ["ash"]]
    assert [data["message"] for event, data in ash.said if event == "warning"] == [
        "training with others failed, now alone: killed by SIGKILL"
    ]

    def always(names: Sequence[str]) -> None:
        raise TrainingError("no")

    world.do = always
    with pytest.raises(TrainingError, match=r"^no$"):
        train_together(world.seat(ash), world.seat, world.train)


def test_what_went_wrong_with_another_is_left_to_its_own_step(world: World) -> None:
    ash: Any = Waiting("ash", [Waiting("birch")])
    results: list[Result] = [SUMMARY, TrainingError("not finite")]
    summary, _ = train_together(world.seat(ash), world.seat, lambda *_: results)
    assert summary == SUMMARY
    with pytest.raises(TrainingError, match="not finite"):
        train_together(world.seat(ash), world.seat, lambda *_: list(reversed(results)))


@pytest.mark.parametrize(("device", "at_once"), [("cpu", 1), ("cuda", 3)])
def test_as_many_sit_as_memory_takes_and_always_one(world: World, device: str, at_once: int) -> None:
    """On a CPU they go through the base one after another."""
    contexts: list[Any] = [Waiting(str(number)) for number in range(5)]
    seats = [world.seat(context, device=device) for context in contexts]
    assert fitting(seats, 0) == 1
    # 4 layers of 8 * (4 * 8 + 3 * 16) numbers, two tables of 100 * 8, and logits; 4 bytes each.
    base = 16_640 + 153_600
    # 4 + 4 * (10 - 4) tokens of 5 * 8 + 2 * 8 + 2 * 16 + 7 * 2 numbers, and 8 * (8 + 16) on the way back,
    # 1.25 * 4 bytes each.
    flying = round(1.25 * 4 * 28 * (102 + 192))
    # 2 * (14 * 8 + 4 * 16) numbers of an adapter, 16 bytes each; 4 + 100 * 6 hidden states of 8 * 4.
    kept = 5_632 + 604 * 32
    three = base + at_once * flying + 3 * kept
    assert fitting(seats, round(three / 0.8) + 10) == 3
    assert fitting(seats, round(three / 0.8) - 10) == 2
    assert fitting(seats, 1 << 40) == 5


def test_this_machine_has_memory_for_something(world: World) -> None:
    context: Any = Waiting("ash")
    assert free_bytes(world.seat(context).spec) > 50 << 20
