"""The whole line on Track A against the contract server: sample client in, the lines of spec.md out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fine_tune_runner.cli.submit import closing
from fine_tune_runner.cli.transcript import RULE, Transcript
from fine_tune_runner.hosted.flow import Pace
from fine_tune_runner.hosted.track import Hosted
from fine_tune_runner.runner import FineTuneRunner
from fine_tune_runner.sample.generate import write_clients
from tests.contract.openai_server.server import KEY, ContractServer, serving
from tests.hosted.world import make_settings

MODEL = r"ft:gpt-4o-mini-2024-07-18:contract:hre-v3:\d+"
# Labels, rules and ticks as spec.md has them; ids, times, steps and scores vary.
LINES = [
    RULE,
    r"  Fine-Tune Runner — HRE v3 · Track A \(OpenAI\)",
    RULE,
    r"  Loading JSONL\.\.\.           ✓ data/clients/hre/v3\.jsonl \(112 records\)",
    r"  Uploading to OpenAI\.\.\.     ✓ file_id: file-\d+",
    r"  Creating fine-tune job\.\.\.  ✓ job_id: ftjob-\d+",
    r"  Model suffix:              gpt-4o-mini-2024-07-18:hre-v3",
    r"",
    r"  Polling status\.\.\.",
    r"    \[\d\d:\d\d\] queued",
    r"    \[\d\d:\d\d\] running — step 112/336",
    r"    \[\d\d:\d\d\] running — step 224/336, ETA 01:00",
    r"    \[\d\d:\d\d\] succeeded",
    r"",
    rf"  Fine-tuned model:          {MODEL}",
    r"",
    RULE,
    r"  Running eval harness \(holdout: v3_eval\.jsonl\)\.\.\.",
    r"    Problem recall:          ✓ \d+%",
    r"    Solution accuracy:       ✓ \d\.\d\d cosine sim",
    r"    Regression vs v2:        ✓ [+-]\d\.\d\d (improvement|no change|lower)",
    r"",
    RULE,
    r"  Registering model\.\.\.       ✓ model_registry\.json updated",
    rf"  Promoting to active\.\.\.     ✓ hre → {MODEL}",
    r"  Archiving v2\.\.\.            ✓ archived",
    RULE,
    r"  ✓ HRE v3 live — ready for routing",
    rf"  Next: openclaw register --client hre --model {MODEL}",
]


class Words:
    """A stand-in for the embedder: each word is a direction of its own."""

    fingerprint = "words"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.full((len(texts), 4096), 1e-6, dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % 4096] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def server() -> Iterator[ContractServer]:
    with serving() as running:
        yield running
        assert running.wrong == []


def test_the_transcript_of_the_spec(
    tmp_path: Path,
    server: ContractServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # paths are shown as a user types them
    write_clients(Path("data/clients"), 0)
    settings = make_settings(Path("data/clients"), server.url, KEY)
    runner = FineTuneRunner(
        settings,
        listener=Transcript("HRE", live=False),
        tracks={"A": lambda settings, client: Hosted(settings, client, pace=Pace(poll_s=0))},
        embedder=lambda _settings: Words(),
    )
    runner.submit("hre", 2, "A")
    capsys.readouterr()
    job = runner.submit("hre", 3, "A")
    code = closing(job, runner.entry("hre", 3, "A"), "HRE", as_json=False)
    said = [line for line in capsys.readouterr().out.splitlines() if not line.endswith("answers")]
    assert [
        (line, want) for line, want in zip(said, LINES, strict=True) if not re.fullmatch(want, line)
    ] == []
    assert code == 0
    assert len(server.account.jobs) == 2
    assert server.account.files == {}
    assert [(e.version, e.active) for e in runner.registry("hre").entries()] == [(2, False), (3, True)]
