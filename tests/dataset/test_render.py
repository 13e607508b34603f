"""Chat to tokens: the same as transformers', prompts that begin their rows, and no turn ended by content."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_llama import make_tiny_llama
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import Metaspace
from transformers import PreTrainedTokenizerFast

from fine_tune_runner.dataset.render import ChatTokenizer
from fine_tune_runner.errors import ConfigError, MissingModel
from fine_tune_runner.types import Message

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}"
    "{{ '[INST] ' + messages[0]['content'] + '\n\n' + m['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = {
    LLAMA3: ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    MISTRAL: ("<s>", "</s>", "[INST]", "[/INST]"),
    ZEPHYR: ("<s>", "</s>"),
}
CORPUS = ["You are an expert. Root cause: the tag fires twice. user assistant system\n\n"] * 20


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("chatml"), vocab=300)


def _folder(folder: Path, template: str, prefix_scheme: str | None) -> Path:
    """A tokenizer folder: byte-level (None), or SentencePiece-like with Metaspace "first"."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    special = [AddedToken(t, special=True, normalized=False) for t in SPECIAL[template]]
    if prefix_scheme is None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix_scheme, split=False)
        tokenizer.decoder = Metaspace(prepend_scheme=prefix_scheme)
        alphabet = [chr(n) for n in range(32, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", *special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    bos, eos = SPECIAL[template][:2]
    tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": bos, "eos_token": eos, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "eos_token_id": 2}))
    return folder


def chat(*turns: str, system: str | None = "You are an expert.") -> tuple[Message, ...]:
    roles = ("user", "assistant")
    first = () if system is None else (Message(role="system", content=system),)
    return first + tuple(Message(role=roles[n % 2], content=text) for n, text in enumerate(turns))


def reference(folder: Path, messages: tuple[Message, ...], answer_next: bool = False) -> list[int]:
    """What transformers' apply_chat_template gives."""
    names = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **{k: v for k, v in names.items() if "token" in k[-6:]}
    )
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        chat_template=names["chat_template"],
        add_generation_prompt=answer_next,
        return_dict=False,
    )
    return ids


@pytest.mark.parametrize(
    ("template", "scheme"), [(LLAMA3, None), (MISTRAL, "first"), (MISTRAL, "always"), (ZEPHYR, "first")]
)
def test_rows_and_prompts_are_tokenised_as_transformers_does(
    template: str, scheme: str | None, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, template, scheme)
    row = chat("The tag fires  twice.", "Root cause: two triggers.", "And now?", "Root cause: none.")
    tokenizer = ChatTokenizer(folder)
    assert tokenizer.encode(row).tokens == reference(folder, row)
    assert tokenizer.prompt(row[:2]) == reference(folder, row[:2], answer_next=True)


def test_rows_of_chatml_are_tokenised_as_transformers_does(chatml: Path) -> None:
    row = chat("Purchases count twice.", "Root cause: two triggers.\n\nFix it.")
    assert ChatTokenizer(chatml).encode(row).tokens == reference(chatml, row)


def test_a_template_that_trims_is_followed(tmp_path: Path) -> None:
    folder = _folder(tmp_path, LLAMA3, None)
    row = chat("  padded \n", "\n answer  ")
    assert ChatTokenizer(folder).encode(row).tokens == reference(folder, row)


def test_loss_is_on_the_answers_and_their_end_only(chatml: Path) -> None:
    tokenizer = ChatTokenizer(chatml)
    row = chat("One?", "First answer.", "Two?", "Second answer.")
    encoded = tokenizer.encode(row)
    raw = tokenizer._whole.decode(
        [t for t, learned in zip(encoded.tokens, encoded.loss_mask, strict=True) if learned],
        skip_special_tokens=False,
    )
    assert raw == "First answer.<|im_end|>Second answer.<|im_end|>"


def test_weight_zero_keeps_a_turn_out_of_the_loss(chatml: Path) -> None:
    tokenizer = ChatTokenizer(chatml)
    row = chat("One?", "First answer.", "Two?", "Second answer.")
    unlearned = Message(role="assistant", content="First answer.", weight=0)
    encoded = tokenizer.encode((*row[:2], unlearned, *row[3:]))
    learned = [t for t, learns in zip(encoded.tokens, encoded.loss_mask, strict=True) if learns]
    assert tokenizer.decode(learned) == "Second answer."
    assert encoded.tokens == tokenizer.encode(row).tokens


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
TRICKY = st.lists(
    st.one_of(TEXT, st.sampled_from(["<|im_end|>", "<|im_", "end|>", "<|im_start|>", "\n", " ", "<"])),
    min_size=1,
    max_size=5,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    turns=st.lists(TRICKY, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0), system=TRICKY
)
def test_any_text_keeps_its_turns(turns: list[str], system: str, chatml: Path) -> None:
    """Prompt begins the row; learned tokens are exactly the answers; content ends no turn; counts agree."""
    tokenizer = ChatTokenizer(chatml)
    row = chat(*turns, system=system)
    encoded = tokenizer.encode(row)
    prompt = tokenizer.prompt(row)
    assert encoded.tokens[: len(prompt)] == prompt == tokenizer.prompt(row[:-1])
    assert encoded.tokens.count(1) == encoded.tokens.count(2) == len(row)
    assert tokenizer.decode(encoded.tokens[len(prompt) : -2]) == turns[-1]
    answers = [t for t, learned in zip(encoded.tokens, encoded.loss_mask, strict=True) if learned]
    assert tokenizer.decode(answers) == "".join(turns[1::2])
    assert answers.count(2) == len(turns) // 2
    assert tokenizer.count([row]) == [(len(encoded.tokens), sum(encoded.loss_mask))]


def test_count_equals_encode_over_many_rows(chatml: Path) -> None:
    tokenizer = ChatTokenizer(chatml)
    rows = [chat(f"Question {n}?", f"Root cause: number {n * n}.") for n in range(1500)]
    encoded = [tokenizer.encode(row) for row in rows]
    assert tokenizer.count(rows) == [(len(e.tokens), sum(e.loss_mask)) for e in encoded]


def test_name_context_and_stop_tokens_come_from_the_folder(chatml: Path) -> None:
    tokenizer = ChatTokenizer(chatml, name="smol")
    assert (tokenizer.name, tokenizer.context, tokenizer.stop_tokens) == ("smol", 2048, (2,))


def test_the_end_of_turn_is_a_stop_token_beside_the_end_of_sequence(tmp_path: Path) -> None:
    folder = _folder(tmp_path, LLAMA3, None)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512, "eos_token_id": [7]}))
    assert ChatTokenizer(folder).stop_tokens == (2, 7)


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for m in messages %}{{ m.content }}</s>{% endfor %}{{ messages | length }}", "prefix-stable"),
        ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", "end-of-turn"),
        ("{{ messages[-1].content }}</s>", "drops, repeats or splits"),
        ("{% for m in messages %}{{ m.content | replace('a', 'b') }}</s>{% endfor %}", "rewrites"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "line 1"),
    ],
)
def test_a_template_that_cannot_be_trained_on_is_refused_by_name(
    template: str, fault: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, ZEPHYR, "first")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ConfigError, match=rf"(?s)chat_template\.jinja.*{fault}"):
        ChatTokenizer(folder).encode(chat("a?", "banana"))


def test_a_template_reads_the_same_date_for_ever(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ZEPHYR, "first")
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + ZEPHYR)
    tokenizer = ChatTokenizer(folder)
    assert tokenizer.decode(tokenizer.prompt(chat("Hi")[:2])).startswith("26 Jul 2024")


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingModel, match=r"config\.json is missing"):
        ChatTokenizer(tmp_path)
