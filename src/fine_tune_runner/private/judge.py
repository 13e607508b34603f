"""The judge at OLLAMA_HOST: a closed choice at temperature 0, as JSON by a schema. Implements ports.Judge.

It knows no holdout and no prompt. For a sensitive client the egress policy refuses a host that is not
private.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import ProviderError
from fine_tune_runner.policy.egress import policy_of
from fine_tune_runner.private.ollama import Ollama, full_name
from fine_tune_runner.private.tunnel import way_to
from fine_tune_runner.settings import Client, Settings, check_judge
from fine_tune_runner.types import Message

MOST_TOKENS = 1024  # of a reply: some models think before they answer
ROOM = 4096  # tokens for question, answer and reply; the list of causes comes on top
BYTES = 3  # of UTF-8 a token, at least: of English about four, of a Chinese character all three


class _Chosen(msgspec.Struct):
    cause: str


class OllamaJudge:
    """One model at one host; `identity` is its full name and the first digits of its digest."""

    def __init__(self, ollama: Ollama, model: str, digest: str) -> None:
        self._ollama = ollama
        self._model = model
        self.identity = f"{model}@{digest[:12]}"

    def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> str | None:
        """One of `choices`; None where it said none, or where the turns do not fit into its context.

        Ollama cuts silently what does not fit, and a cut list is another question.
        """
        listed = sum(len(m.content.encode()) for m in messages if m.role == "system") // BYTES
        asked = sum(len(m.content.encode()) for m in messages if m.role != "system") // BYTES
        if asked > ROOM - MOST_TOKENS:
            return None
        # The same for all answers of an evaluation: a host loads a model anew for another context.
        context = ROOM + 1024 * (1 + listed // 1024)
        schema = {
            "type": "object",
            "properties": {"cause": {"type": "string", "enum": list(choices)}},
            "required": ["cause"],
        }
        options = {"temperature": 0, "seed": 0, "num_predict": MOST_TOKENS, "num_ctx": context}
        said = self._ollama.chat(self._model, messages, options, schema=schema)
        try:
            cause = msgspec.json.decode(said.text, type=threadsafe(_Chosen)).cause
        except msgspec.DecodeError:
            return None
        return cause if cause in choices else None


@contextmanager
def judge_at_host(settings: Settings, client: Client) -> Iterator[OllamaJudge]:
    """The model that `eval.judge` of config.json names, at OLLAMA_HOST, as long as the block.

    Raises ConfigError without a host, PolicyError for one that the client's policy forbids, ProviderError
    where it does not answer or lacks the model.
    """
    check_judge(settings, client)
    model, host = full_name(client.config.eval.judge or ""), settings.ollama_host or ""
    with (
        way_to(host, policy_of(settings, client)) as (url, transport),
        Ollama(url, transport=transport, headers=settings.ollama_headers) as ollama,
    ):
        listed = ollama.find(model)
        if listed is None:
            raise ProviderError(f"{host} has no {model}, the judge; there: ollama pull {model}")
        yield OllamaJudge(ollama, model, listed.digest)
