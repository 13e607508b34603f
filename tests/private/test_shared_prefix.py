"""Loss and gradients of the shared-prefix layout against plain per-example batches through PEFT, float32."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.tiny_llama import make_tiny_llama
from transformers import AutoModelForCausalLM

from fine_tune_runner.private.batches import Row, lay_out, make_batch
from fine_tune_runner.private.llama import Llama, load_llama
from fine_tune_runner.private.lora import Adapter, new_adapter
from fine_tune_runner.private.shared_prefix import Trunk, batch_loss

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


PROMPT = numbers(0, 40)
CASES = {
    "right padding": [
        chat(1, PROMPT, (5, 9, True)),
        chat(2, PROMPT, (8, 3, True)),
        chat(3, PROMPT, (3, 17, True)),
    ],
    "weight 0": [chat(1, PROMPT, (5, 9, False), (4, 6, True)), chat(2, PROMPT, (7, 6, True), (3, 5, False))],
    "row without loss": [chat(1, PROMPT, (5, 9, True)), chat(2, PROMPT, (6, 4, False))],
    "multi-turn": [chat(1, PROMPT, (5, 9, True), (4, 6, True)), chat(2, PROMPT, (7, 6, True))],
    "no common prefix": [chat(1, [7], (5, 9, True)), chat(2, [8], (6, 12, True))],
    "answer right after the prompt": [chat(1, PROMPT, (0, 9, True)), chat(2, PROMPT, (0, 4, True))],
    "one row": [chat(1, PROMPT, (5, 9, True))],
    "the same row twice": [chat(1, PROMPT, (5, 9, True))] * 2,
}


def lively_adapter(model: Llama, first: int) -> Adapter:
    """B away from zero, so that every matrix has a gradient."""
    adapter = new_adapter(
        dict.fromkeys(range(first, model.config.layers), model.config.shapes), rank=RANK, alpha=ALPHA, seed=3
    )
    generator = torch.Generator().manual_seed(4)
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


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("rows", CASES.values(), ids=list(CASES))
def test_loss_and_gradients_are_those_of_peft(tmp_path: Path, rows: list[Row], layers: int) -> None:
    folder = make_tiny_llama(tmp_path, layers=3)
    model = load_llama(folder)
    adapter = lively_adapter(model, 3 - layers)
    corpus = lay_out(rows)
    batch = make_batch(corpus, range(len(corpus.suffixes)))
    loss = batch_loss(model, adapter, Trunk(model, corpus, 3 - layers), batch)
    loss.backward()

    twin = peft_twin(folder, adapter)
    expected = plain_loss(twin, rows)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    reference = {k.replace(".default", ""): p.grad for k, p in twin.named_parameters() if p.requires_grad}
    own = gradients(adapter)
    assert own.keys() == reference.keys()
    worst = max(float((own[k] - reference[k]).norm() / reference[k].norm()) for k in own)
    assert worst < 1e-3


def test_a_kept_trunk_gives_the_same_bits_as_one_without_room(tmp_path: Path) -> None:
    model = load_llama(make_tiny_llama(tmp_path, layers=3))
    corpus = lay_out(CASES["right padding"])
    kept, fresh = Trunk(model, corpus, 2), Trunk(model, corpus, 2, cache_bytes=0)
    for index in range(len(corpus.suffixes)):
        first = kept.row(index)
        assert kept.row(index) is first
        assert fresh.row(index) is not fresh.row(index)
        assert torch.equal(first, fresh.row(index))


def test_the_trunk_keeps_rows_up_to_its_budget(tmp_path: Path) -> None:
    model = load_llama(make_tiny_llama(tmp_path))
    corpus = lay_out(CASES["right padding"])
    first = len(corpus.suffixes[0].inputs) * model.config.hidden * 4
    trunk = Trunk(model, corpus, 1, cache_bytes=first)
    assert trunk.row(0) is trunk.row(0)
    assert trunk.row(1) is not trunk.row(1)
