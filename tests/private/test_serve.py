"""llama.cpp answers as PyTorch does; adapters are chosen by request; faults come as replies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from peft import PeftModel
from tests.private.test_export import peft_adapter
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ServingError
from fine_tune_runner.private.bases import Base, resolve, with_gguf
from fine_tune_runner.private.export import export_adapter
from fine_tune_runner.private.llama_layout import unpermute
from fine_tune_runner.private.serve import EmbeddedAnswerer, serve_embedded
from fine_tune_runner.settings import load_settings
from fine_tune_runner.types import Decoding, Message, Model, Prompt

# PEFT reads a name that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
GREEDY = Decoding(temperature=0.0, max_tokens=12)
NEAR_TIE = 0.05
"""Logits closer than this are not told apart by two implementations; swaps were seen up to 0.01."""
QUESTIONS = (
    "Purchases count twice?",
    "No leads since Monday",
    "GA4 Config is missing",
    "The tag fires twice",
    "Duplicate transactions",
    "No events on Safari",
    "Consent banner blocks tags",
    "Wrong currency in GA4",
)


def prompt(question: str, k: int = 0) -> Prompt:
    messages = (Message(role="system", content="Expert."), Message(role="user", content=question))
    return Prompt(question_id=question, k=k, messages=messages)


PROMPTS = [prompt(question) for question in QUESTIONS]


def model(model_id: str, artifact: str | None) -> Model:
    return Model(
        model_id=model_id,
        track="B",
        provider="embedded",
        base_model="tiny",
        dataset_sha256="",
        artifact=artifact,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A client's folder: base, adapter, the adapter as GGUF, and one with the permutation left out."""
    folder = tmp_path_factory.mktemp("client")
    base = make_tiny_llama(folder / "base")
    peft_adapter(base, folder / "adapter")
    export_adapter(folder / "adapter", base, folder / "v1.gguf", {"ftr.client_id": "hre"})
    _unpermuted(folder / "v1.gguf", folder / "wrong.gguf")
    return folder


def _unpermuted(source: Path, target: Path) -> None:
    reader, writer = GGUFReader(source), GGUFWriter(target, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", reader.fields["adapter.lora.alpha"].contents())
    for tensor in reader.tensors:
        heads = {"attn_q": 4, "attn_k": 2}.get(tensor.name.split(".")[2])
        values = np.array(tensor.data)
        writer.add_tensor(
            tensor.name, unpermute(values, heads) if heads and tensor.name.endswith("_b") else values
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    settings = load_settings({"FINE_TUNE_MODELS_DIR": str(folder / "models")}, cwd=folder)
    return with_gguf(resolve(str(folder / "base"), settings, offline=True), settings, "F32")


@pytest.fixture(scope="module")
def answerer(folder: Path, base: Base) -> EmbeddedAnswerer:  # type: ignore[misc]
    models = [model("v1", "v1.gguf"), model("wrong", "wrong.gguf"), model("base", None)]
    with serve_embedded(base, models, folder, threads=1, context=512, slots=2) as served:
        yield served


def threads() -> int:
    """Native threads of this process; 0 where the system does not say."""
    tasks = Path("/proc/self/task")
    return len(list(tasks.iterdir())) if tasks.is_dir() else 0


def texts(
    answerer: EmbeddedAnswerer, model_id: str, prompts: list[Prompt], decoding: Decoding
) -> dict[str, str]:
    replies = list(answerer.replies(model_id, prompts, decoding))
    assert [r.error for r in replies] == [None] * len(prompts)
    return {r.question_id: r.text or "" for r in replies}


def greedy_in_pytorch(folder: Path, adapter: bool) -> dict[str, str]:
    """PyTorch's greedy answers as far as they are beyond doubt: up to the first near tie.

    A random model's best two tokens are often so close that the float16 KV cache of llama.cpp, or another
    processor's order of summation, swaps them; everything after that is another text.
    """
    tokenizer = ChatTokenizer(folder / "base")
    network = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    if adapter:
        network = PeftModel.from_pretrained(network, folder / "adapter")
    answers = {}
    for question in PROMPTS:
        tokens = tokenizer.prompt(question.messages)
        start = len(tokens)
        for _ in range(GREEDY.max_tokens):
            with torch.no_grad():
                logits = network(torch.tensor([tokens])).logits[0, -1]
            best, second = logits.topk(2).values.tolist()
            chosen = int(logits.argmax())
            if best - second < NEAR_TIE or chosen in (0, *tokenizer.stop_tokens):
                break  # llama.cpp ends at <|endoftext|> (0) as well
            tokens.append(chosen)
        answers[question.question_id] = tokenizer.decode(tokens[start:]).strip().rstrip("\ufffd")
    return answers


def agree(answers: dict[str, str], certain: dict[str, str]) -> dict[str, bool]:
    """Whether each answer begins with what is certain of it."""
    return {question: answers[question].startswith(text) for question, text in certain.items()}


@pytest.mark.parametrize(("model_id", "adapter"), [("v1", True), ("base", False)])
def test_greedy_answers_are_those_of_pytorch(
    model_id: str, adapter: bool, answerer: EmbeddedAnswerer, folder: Path
) -> None:
    certain = greedy_in_pytorch(folder, adapter)
    assert sum(map(len, certain.values())) >= 12, "too little of the answers is certain to compare"
    assert all(agree(texts(answerer, model_id, PROMPTS, GREEDY), certain).values())


def test_an_answer_does_not_depend_on_which_model_was_asked_before(answerer: EmbeddedAnswerer) -> None:
    """llama.cpp's RAM cache of prompts hands one adapter's keys and values to another; it must be off."""
    rounds = [{m: texts(answerer, m, PROMPTS, GREEDY) for m in ("base", "v1", "wrong")} for _ in range(2)]
    assert rounds[0] == rounds[1]


def test_without_the_permutation_the_answers_would_differ(answerer: EmbeddedAnswerer, folder: Path) -> None:
    certain = greedy_in_pytorch(folder, adapter=True)
    assert not all(agree(texts(answerer, "wrong", PROMPTS, GREEDY), certain).values())


def test_a_draw_depends_on_seed_question_and_repeat_not_on_order(answerer: EmbeddedAnswerer) -> None:
    warm = Decoding(temperature=1.0, max_tokens=12, seed=3)
    forward = texts(answerer, "v1", PROMPTS, warm)
    assert texts(answerer, "v1", PROMPTS[::-1], warm) == forward
    assert texts(answerer, "v1", PROMPTS, Decoding(temperature=1.0, max_tokens=12, seed=4)) != forward
    again = [prompt(question, k=1) for question in QUESTIONS]
    assert texts(answerer, "v1", again, warm) != forward


def test_a_call_that_fails_comes_as_an_error_beside_the_others(answerer: EmbeddedAnswerer) -> None:
    long = prompt("too long " * 400)
    replies = {r.question_id: r for r in answerer.replies("v1", [PROMPTS[0], long, PROMPTS[1]], GREEDY)}
    assert "exceeds the available context" in (replies[long.question_id].error or "")
    assert [replies[p.question_id].error for p in PROMPTS[:2]] == [None, None]


def test_a_model_that_was_not_loaded_is_named(answerer: EmbeddedAnswerer) -> None:
    with pytest.raises(ServingError, match="v9 is not loaded here; loaded: v1, wrong, base"):
        list(answerer.replies("v9", PROMPTS, GREEDY))


def test_a_missing_adapter_is_named_before_anything_is_loaded(folder: Path, base: Base) -> None:
    with (
        pytest.raises(ServingError, match=r"v2: its adapter .*v2\.gguf is missing; put it back"),
        serve_embedded(base, [model("v2", "v2.gguf")], folder, threads=1),
    ):
        pass


def test_an_adapter_that_llama_cpp_refuses_is_named(folder: Path, base: Base) -> None:
    (folder / "broken.gguf").write_bytes(b"GGUF broken")
    with (
        pytest.raises(ServingError, match=r"cannot load .*broken\.gguf"),
        serve_embedded(base, [model("v3", "broken.gguf")], folder, threads=1),
    ):
        pass


def test_leaving_ends_the_servers_threads_and_it_opens_again(
    folder: Path, base: Base, capfd: pytest.CaptureFixture[str]
) -> None:
    before = threads()
    answers = []
    for _ in range(2):
        with serve_embedded(
            base, [model("v1", "v1.gguf")], folder, threads=1, context=512, slots=2
        ) as served:
            answers.append(texts(served, "v1", PROMPTS, GREEDY))
        with pytest.raises(ServingError, match="closed"):
            list(served.replies("v1", PROMPTS, GREEDY))
    after = threads()
    assert answers[0] == answers[1]
    assert after <= before
    assert capfd.readouterr() == ("", "")
