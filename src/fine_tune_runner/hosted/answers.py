"""Asking hosted models: a few questions at a time, each of them waiting out what is passing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING

import msgspec

from fine_tune_runner.errors import RunnerError
from fine_tune_runner.types import Decoding, Prompt, Reply

if TYPE_CHECKING:
    from fine_tune_runner.hosted.wire import Wire

CONCURRENCY = 4


class HostedAnswerer:
    """Answers over chat completions; at most `concurrency` calls are under way at any time."""

    def __init__(self, wire: Wire, concurrency: int = CONCURRENCY) -> None:
        self._wire = wire
        self._concurrency = concurrency

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """One reply a prompt, in the order in which they come back."""
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="hosted")
        try:
            calls = [pool.submit(self._reply, model_id, prompt, decoding) for prompt in prompts]
            for call in as_completed(calls):
                yield call.result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _reply(self, model_id: str, prompt: Prompt, decoding: Decoding) -> Reply:
        # Repeats of a question are drawn anew: the same seed would give the same answer.
        drawn = msgspec.structs.replace(decoding, seed=decoding.seed + prompt.k)
        try:
            said = self._wire.chat(model_id, prompt.messages, drawn)
        except RunnerError as error:
            return Reply(question_id=prompt.question_id, k=prompt.k, error=str(error))
        tokens = said.usage.completion_tokens if said.usage else 0
        if not said.text:
            return Reply(
                question_id=prompt.question_id, k=prompt.k, error="the model said nothing", tokens=tokens
            )
        return Reply(question_id=prompt.question_id, k=prompt.k, text=said.text, tokens=tokens)
