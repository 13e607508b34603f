"""Loss and gradients of the tree layout against plain per-example batches through PEFT, float32."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.private.batches import TREE_TOKENS, Corpus, Row, lay_out, make_batch
from fine_tune_runner.private.llama import Llama, load_llama
from fine_tune_runner.private.lora import Adapter, new_adapter
from fine_tune_runner.private.shared_prefix import Branch, backward, losses
from fine_tune_runner.private.trunk import Trunk

# peft 0.21 asks transformers 5.23 under the older of two names.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
RANK, ALPHA = 4, 8.0


def numbers(seed: int, count: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, 320) for _ in range(count)]


def chat(seed: int, prompt: list[int], *turns: tuple[int, int, bool]) -> Row:
    """`prompt`, then for each turn so many user tokens and so many assistant tokens, with loss or without."""
    tokens, mask = list(prompt), [False] * len(prompt)
    for turn, (user, assistant, loss) in enumerate(turns):
        tokens += numbers(100 * seed + turn, user + assistant)
        mask += [False] * user + [loss] * assistant
    return Row(tokens=tokens, loss_mask=mask)


PROMPT, OTHER = numbers(0, 40), numbers(1, 33)
SHARED_TURN = [*PROMPT, *numbers(2, 50)]
CASES = {
    "several lengths": [
        chat(1, PROMPT, (5, 9, True)),
        chat(2, PROMPT, (8, 3, True)),
        chat(3, PROMPT, (3, 17, True)),
    ],
    "weight 0": [chat(1, PROMPT, (5, 9, False), (4, 6, True)), chat(2, PROMPT, (7, 6, True), (3, 5, False))],
    "row without loss": [chat(1, PROMPT, (5, 9, True)), chat(2, PROMPT, (6, 4, False))],
    "multi-turn": [chat(1, PROMPT, (5, 9, True), (4, 6, True)), chat(2, PROMPT, (7, 6, True))],
    "two prompts": [chat(n, (PROMPT, OTHER)[n % 2], (5, 9, True)) for n in range(4)],
    "a shared turn below the prompt": [
        chat(1, SHARED_TURN, (4, 6, True)),
        chat(2, PROMPT, (7, 6, True)),
        chat(3, SHARED_TURN, (5, 2, True)),
    ],
    "a row that goes on where another ends": [
        chat(1, PROMPT, (5, 9, True)),
        chat(1, PROMPT, (5, 9, True), (4, 6, True)),
    ],
    "loss in what rows share": [
        Row(tokens=[*SHARED_TURN, n, 7], loss_mask=[i > 60 for i in range(len(SHARED_TURN) + 2)])
        for n in (3, 4)
    ],
    "no common prefix": [chat(1, [7], (5, 9, True)), chat(2, [8], (6, 12, True))],
    "answer right after the prompt": [chat(1, PROMPT, (0, 9, True)), chat(2, PROMPT, (0, 4, True))],
    "one row": [chat(1, PROMPT, (5, 9, True))],
    "the same row twice": [chat(1, PROMPT, (5, 9, True))] * 2,
}


def lively_adapter(model: Llama, first: int, seed: int = 4) -> Adapter:
    """B away from zero, so that every matrix has a gradient."""
    adapter = new_adapter(
        dict.fromkeys(range(first, model.config.layers), model.config.shapes), rank=RANK, alpha=ALPHA, seed=3
    )
    generator = torch.Generator().manual_seed(seed)
    adapter.load({k: torch.randn(v.shape, generator=generator) / 8 for k, v in adapter.tensors().items()})
    return adapter


def peft_twin(folder: Path, adapter: Adapter) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=modules, layers_to_transform=sorted(adapter.layers)
    )
    twin = get_peft_model(base, config)
    own = {key.replace(".weight", ".default.weight"): value for key, value in adapter.tensors().items()}
    missing, unexpected = twin.load_state_dict(own, strict=False)
    assert not unexpected
    assert not [key for key in missing if "lora" in key]
    return twin


def plain_loss(twin: PeftModel, rows: list[Row]) -> torch.Tensor:
    """Row by row, full logits, no padding: the reference."""
    total, count = torch.zeros(()), 0
    for row in rows:
        tokens, mask = torch.tensor(row.tokens), torch.tensor(row.loss_mask)[1:]
        if mask.any():
            logits = twin(tokens[None]).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits[mask], tokens[1:][mask], reduction="sum")
            count += int(mask.sum())
    return total / count


def gradients(adapter: Adapter) -> dict[str, torch.Tensor]:
    twin = new_adapter(
        {
            i: {g: (w.a.shape[1], tuple(b.shape[0] for b in w.b)) for g, w in groups.items()}
            for i, groups in adapter.layers.items()
        },
        rank=adapter.rank,
        alpha=adapter.alpha,
        seed=0,
    )
    with torch.no_grad():
        for into, parameter in zip(twin.parameters(), adapter.parameters(), strict=True):
            assert parameter.grad is not None
            into.copy_(parameter.grad)
    return twin.tensors()


def mean_loss(
    model: Llama, adapter: Adapter, corpus: Corpus, first: int, tree_tokens: int, at_once: int
) -> float:
    """Of all rows as one batch; its gradients lie in the adapter."""
    trunk = Trunk(model, corpus, first)
    batch = make_batch(corpus, range(len(corpus.chats)), tree_tokens)
    made = [Branch(tree, corpus, trunk.states(tree), adapter) for tree in batch.trees]
    return sum(backward(model, [branch], [1 / batch.loss_tokens], at_once)[0] for branch in made)


def worst_difference(own: dict[str, torch.Tensor], reference: dict[str, torch.Tensor | None]) -> float:
    """The largest relative difference of a gradient, by norm."""
    assert own.keys() == reference.keys()
    pairs = [(own[key], value) for key, value in reference.items() if value is not None]
    assert len(pairs) == len(own)
    return max(float((mine - theirs).norm() / theirs.norm()) for mine, theirs in pairs)


@pytest.mark.parametrize(
    ("tree_tokens", "at_once"),
    [(TREE_TOKENS, TREE_TOKENS), (60, TREE_TOKENS), (TREE_TOKENS, 40), (TREE_TOKENS, 1), (60, 30)],
    ids=["one tree", "several trees", "in parts", "a span at a time", "several trees in parts"],
)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("rows", CASES.values(), ids=list(CASES))
def test_loss_and_gradients_are_those_of_peft(
    tmp_path: Path, rows: list[Row], layers: int, tree_tokens: int, at_once: int
) -> None:
    folder = make_tiny_llama(tmp_path, layers=3)
    model = load_llama(folder)
    adapter = lively_adapter(model, 3 - layers)
    loss = mean_loss(model, adapter, lay_out(rows), 3 - layers, tree_tokens, at_once)

    twin = peft_twin(folder, adapter)
    expected = plain_loss(twin, rows)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    reference = {k.replace(".default", ""): p.grad for k, p in twin.named_parameters() if p.requires_grad}
    assert worst_difference(gradients(adapter), reference) < 1e-3


def branches(model: Llama, cases: list[list[Row]]) -> tuple[list[Branch], list[Adapter]]:
    """Several clients' batches, each with an adapter of its own."""
    adapters = [lively_adapter(model, 1, seed) for seed in range(len(cases))]
    made = []
    for rows, adapter in zip(cases, adapters, strict=True):
        corpus = lay_out(rows)
        tree = make_batch(corpus, range(len(corpus.chats))).trees[0]
        made.append(Branch(tree, corpus, Trunk(model, corpus, 1).states(tree), adapter))
    return made, adapters


@pytest.mark.parametrize("at_once", [TREE_TOKENS, 40])
def test_clients_together_have_the_losses_and_gradients_of_each_alone(tmp_path: Path, at_once: int) -> None:
    model = load_llama(make_tiny_llama(tmp_path, layers=3))
    cases = [CASES[name] for name in ("several lengths", "two prompts", "multi-turn")]
    together, adapters = branches(model, cases)
    values = backward(model, together, [1.0] * len(together), at_once)
    alone, single = branches(model, cases)
    for place, branch in enumerate(alone):
        (value,) = losses(model, [branch])
        value.backward()
        assert values[place] == pytest.approx(float(value.detach()), rel=1e-5)
        reference: dict[str, torch.Tensor | None] = dict(gradients(single[place]))
        assert worst_difference(gradients(adapters[place]), reference) < 1e-4


@pytest.mark.parametrize("at_once", [TREE_TOKENS, 40])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_a_poisoned_client_changes_no_bit_of_the_others(tmp_path: Path, poison: float, at_once: int) -> None:
    model = load_llama(make_tiny_llama(tmp_path, layers=3))
    cases = [CASES["several lengths"], CASES["multi-turn"], CASES["two prompts"]]
    clean, adapters = branches(model, cases)
    backward(model, clean, [1.0] * len(clean), at_once)
    bad, poisoned = branches(model, cases)
    with torch.no_grad():
        for tensor in poisoned[1].parameters():
            tensor.fill_(poison)
    backward(model, bad, [1.0] * len(bad), at_once)
    for place in (0, 2):
        for mine, theirs in zip(poisoned[place].parameters(), adapters[place].parameters(), strict=True):
            assert mine.grad is not None
            assert theirs.grad is not None
            assert torch.equal(mine.grad, theirs.grad)
    assert not all(torch.isfinite(t.grad).all() for t in poisoned[1].parameters() if t.grad is not None)
