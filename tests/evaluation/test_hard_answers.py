"""Hard answers that somebody else wrote and judged, through the public scoring (benchmarks/recall.py).

The rules of recall were mended with `hard_dev.jsonl`, so this guards against falling back and measures
nothing new. Rows marked `doubtful` are those whose author was not sure himself.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.recall import Outcome, outcomes, read_rows

from fine_tune_runner.evaluation.similarity import MiniLM, Remembered

DATA = Path(__file__).parent / "data"
FILES = tuple(path.name for path in sorted(DATA.glob("hard_*.jsonl")))


@pytest.fixture(scope="module", params=FILES)
def found(request: pytest.FixtureRequest, models_dir: Path) -> list[Outcome]:
    files = (models_dir / "minilm" / "model.onnx", models_dir / "minilm" / "tokenizer.json")
    return outcomes(read_rows(DATA / request.param), Remembered(MiniLM(*files, threads=1)))


def test_no_wrong_answer_is_accepted(found: list[Outcome]) -> None:
    wrong = [o for o in found if not o.row.right and not o.row.doubtful]
    assert wrong
    assert [(o.row.id, o.row.kind) for o in wrong if o.accepted] == []


def test_nine_in_ten_right_answers_are_recognised(found: list[Outcome]) -> None:
    right = [o for o in found if o.row.right]
    assert right
    assert sum(o.accepted for o in right) >= 0.9 * len(right)
