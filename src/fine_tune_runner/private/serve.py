"""Models answering in this process: the base GGUF with the adapters of several versions on llama.cpp.

Prompts go in as the token ids of `ChatTokenizer`, so what is asked is exactly what was trained on. The
server listens on a socket in a private folder, on no port. Knows nothing of holdouts, scores and registries.
"""

from __future__ import annotations

import hashlib
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ServingError
from fine_tune_runner.private.bases import Base
from fine_tune_runner.types import Decoding, Model, Prompt, Reply

Complete = Callable[[dict[str, Any]], Mapping[str, Any]]


@contextmanager
def serve_embedded(
    base: Base,
    models: Sequence[Model],
    client_dir: Path,
    *,
    threads: int,
    context: int = 2048,
    slots: int = 1,
) -> Iterator[EmbeddedAnswerer]:
    """Load a base and the adapters of `models` (paths below `client_dir`); leaving frees memory and threads.

    `base` comes from `bases.with_gguf`. `context` is tokens a slot, `slots` how many prompts are answered at
    once: every slot computes the shared system prompt anew, and on a CPU batching gives nothing back, so 1
    is fastest there (measured on SmolLM2, one thread: 12 prompts of 800 tokens cost 8, 26, 53 CPU-seconds
    with 1, 4, 8 slots). More threads than free cores make it many times slower. Raises ServingError where
    an adapter is missing or llama.cpp refuses a file.
    """
    if base.gguf is None:
        raise ServingError(f"{base.name} has no GGUF yet; make it with bases.with_gguf")
    tokenizer = ChatTokenizer(base.dir, base.name)
    adapters: list[Path] = []
    lora_of: dict[str, int | None] = {}
    for model in models:
        if model.artifact is None:
            lora_of[model.model_id] = None
            continue
        path = client_dir / model.artifact
        if not path.is_file():
            raise ServingError(
                f"{model.model_id}: its adapter {path} is missing; put it back from a backup, or train the "
                "version again"
            )
        lora_of[model.model_id] = len(adapters)
        adapters.append(path)
    with tempfile.TemporaryDirectory(prefix="ftr-") as folder:
        server = _load(base.gguf, adapters, Path(folder) / "llama.sock", threads, context, slots)
        answerer = EmbeddedAnswerer(server.handle_completions, tokenizer, lora_of, len(adapters), slots)
        del server
        try:
            yield answerer
        finally:
            answerer.close()


class EmbeddedAnswerer:
    """Implements `types.Answerer`; `complete` is llama.cpp's completions handler."""

    def __init__(
        self,
        complete: Complete,
        tokenizer: ChatTokenizer,
        lora_of: Mapping[str, int | None],
        adapters: int,
        slots: int,
    ) -> None:
        self._complete: Complete | None = complete
        self._tokenizer = tokenizer
        self._lora_of = lora_of
        self._adapters = adapters
        self._slots = slots

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """One reply a prompt, as they are ready; a call that failed comes as `Reply.error`.

        A reply depends on decoding, question id and k, not on the order of the prompts. Raises ServingError
        for a model that was not loaded.
        """
        complete = self._server(model_id)
        waiting = iter(prompts)
        # The first prompt alone: it leaves the shared system prompt behind for the others.
        for prompt in islice(waiting, 1):
            yield self._reply(complete, model_id, prompt, decoding)
        yield from _in_parallel(
            lambda prompt: self._reply(complete, model_id, prompt, decoding), waiting, self._slots
        )

    def next_tokens(self, model_id: str, tokens: Sequence[int], top: int = 100) -> dict[int, float]:
        """Natural-log probabilities of the `top` likeliest tokens after `tokens`, by id.

        From the raw logits, so no sampling setting counts. Raises ServingError where llama.cpp refuses.
        """
        complete = self._server(model_id)
        # Log-probabilities are withheld where half a character is drawn: so it is made to draw a letter.
        letter = self._tokenizer.text_ids("a")[-1]
        asked = {"prompt": list(tokens), "max_tokens": 1, "logprobs": top, "logit_bias": [[letter, 1e6]]}
        answer = complete({**asked, "temperature": 0.0, "cache_prompt": True, "lora": self._scales(model_id)})
        if "error" in answer:
            raise ServingError(f"{model_id}: llama.cpp answers {answer['error']['message']}")
        (first,) = answer["choices"][0]["logprobs"]["content"]
        return {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}

    def close(self) -> None:
        """Let go of the server, which ends its threads."""
        self._complete = None

    def _server(self, model_id: str) -> Complete:
        if model_id not in self._lora_of:
            raise ServingError(f"{model_id} is not loaded here; loaded: {', '.join(self._lora_of) or 'none'}")
        if self._complete is None:
            raise ServingError(f"{model_id}: the server is closed; open it again")
        return self._complete

    def _scales(self, model_id: str) -> list[dict[str, float]]:
        # Scale 0 is said for every other adapter: llama.cpp takes the start-up scale for those left out.
        wanted = self._lora_of[model_id]
        return [{"id": n, "scale": 1.0 if n == wanted else 0.0} for n in range(self._adapters)]

    def _reply(self, complete: Complete, model_id: str, prompt: Prompt, decoding: Decoding) -> Reply:
        try:
            answer = complete(
                {
                    "prompt": self._tokenizer.prompt(prompt.messages),
                    "max_tokens": decoding.max_tokens,
                    "temperature": decoding.temperature,
                    "seed": seed_of(decoding, prompt),
                    "cache_prompt": True,
                    "lora": self._scales(model_id),
                    **_NEUTRAL_SAMPLING,
                }
            )
        except Exception as error:  # noqa: BLE001 - one answer of an evaluation: on record, not raised
            reason = f"{type(error).__name__}: {error}"
            return Reply(question_id=prompt.question_id, k=prompt.k, error=reason)
        if "error" in answer:
            return Reply(question_id=prompt.question_id, k=prompt.k, error=str(answer["error"]["message"]))
        text = str(answer["choices"][0]["text"]).strip()
        tokens = int(answer["usage"]["completion_tokens"])
        return Reply(question_id=prompt.question_id, k=prompt.k, text=text, tokens=tokens)


# Temperature shapes the draw, as `Decoding` says; top_k (Ollama's default too) only saves sorting.
_NEUTRAL_SAMPLING: dict[str, Any] = {"top_k": 40, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}


def seed_of(decoding: Decoding, prompt: Prompt) -> int:
    """The seed of one answer: it depends on the question and the repeat, not on the order of asking."""
    key = f"{decoding.seed} {prompt.question_id} {prompt.k}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") % 2**31


def _in_parallel(
    answer: Callable[[Prompt], Reply], prompts: Iterable[Prompt], workers: int
) -> Iterator[Reply]:
    """Replies as they are ready, at most `workers` at once; leaving early starts no further ones."""
    done: queue.SimpleQueue[Reply] = queue.SimpleQueue()
    stopped = threading.Event()
    waiting = iter(prompts)

    def work(prompt: Prompt) -> None:
        if not stopped.is_set():
            done.put(answer(prompt))

    with ThreadPoolExecutor(workers) as pool:
        try:
            running = 0
            for prompt in islice(waiting, workers):
                pool.submit(work, prompt)
                running += 1
            while running:
                yield done.get()
                running -= 1
                for prompt in islice(waiting, 1):
                    pool.submit(work, prompt)
                    running += 1
        finally:
            stopped.set()


def _load(gguf: Path, adapters: Sequence[Path], socket: Path, threads: int, context: int, slots: int) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(path), 1.0) for path in adapters]
    params.lora_init_without_apply = True
    params.n_ctx = context * slots
    params.n_parallel = slots
    # Its cache of prompts in RAM knows no adapters: what one version computed would serve another.
    params.cache_ram_mib = 0
    params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.verbosity = -1  # no log lines on the terminal
    params.hostnames = [str(socket)]
    params.endpoint_slots = params.ui = False
    try:
        return xllamacpp.Server(params)
    except RuntimeError as error:
        files = ", ".join(str(path) for path in (gguf, *adapters))
        raise ServingError(f"llama.cpp cannot load {files}: {error}; fetch or export them again") from None
