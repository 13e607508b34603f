"""Stored answers of one evaluation in the place of its models: the same evaluation again, without a call.

What was not answered then stays unanswered. Knows no score.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fine_tune_runner.errors import ServingError
from fine_tune_runner.evaluation.answers import read_answers
from fine_tune_runner.evaluation.stored import as_replies
from fine_tune_runner.types import Answerer, Decoding, Model, Prompt, Reply

Key = tuple[str, int]  # question id, repeat


class Replay:
    """types.Answerer over the answers of an evaluation; `labels` are model id → the name of its file.

    Only answers with one of these fingerprints (decisions aside) count: an evaluation that was broken off may
    have left others. Implements `harness.Serve` as `serve`. Raises DataError for a file that is broken.
    """

    def __init__(self, answers_dir: Path, labels: Mapping[str, str], fingerprints: Collection[str]) -> None:
        self._replies: dict[str, dict[Key, Reply]] = {}
        for model_id, label in labels.items():
            path = answers_dir / f"{label}.jsonl"
            given = read_answers(path) if path.is_file() else ()
            own = [a for a in given if a.fingerprint.partition("+")[0] in fingerprints]
            self._replies[model_id] = {(reply.question_id, reply.k): reply for reply in as_replies(own)}

    def repeats(self, model_id: str) -> int:
        """How often that model was asked each question."""
        return max((k + 1 for _, k in self._replies[model_id]), default=0)

    @contextmanager
    def serve(self, models: Sequence[Model]) -> Iterator[Mapping[str, Answerer]]:
        """ServingError where a model answered nothing then."""
        for model in models:
            if not self._replies.get(model.model_id):
                raise ServingError(
                    f"{model.model_id} was not asked in that evaluation, or its answers were replaced since; "
                    "fine-tune eval asks again"
                )
        yield {model.model_id: self for model in models}

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """What was answered then, whatever the decoding."""
        known = self._replies[model_id]
        for prompt in prompts:
            yield known.get((prompt.question_id, prompt.k)) or Reply(
                question_id=prompt.question_id, k=prompt.k, error="not answered in that evaluation"
            )
