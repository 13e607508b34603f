"""The sample clients: same seed same bytes, the spec's formats, and wordings that keep to their part."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from fine_tune_runner.dataset.read import examples
from fine_tune_runner.dataset.taxonomy import cause_line, load_taxonomy
from fine_tune_runner.errors import ConfigError, UsageError
from fine_tune_runner.sample import questions, write_clients, write_worse_version
from fine_tune_runner.sample.wordings import clients, neighbour
from fine_tune_runner.settings import Client, Settings, load_account_state, load_client
from fine_tune_runner.types import Example

STOP_WORDS = set(
    re.findall(r"\w+", "a an the of and or in on to is are was not no does do as with without by for at")
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_clients(tmp_path, seed=0)
    return tmp_path


def client(root: Path, client_id: str) -> Client:
    settings = Settings(
        data_dir=root,
        models_dir=root,
        openai_api_key=None,
        openai_base_url=None,
        ollama_host=None,
        tolerance=0.05,
        sources={},
    )
    return load_client(settings, client_id)


def rows(root: Path, name: str) -> list[Example]:
    return list(examples(root / name))


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def five_grams(rows: list[Example]) -> list[tuple[str, ...]]:
    split = [words(row.question) for row in rows]
    return [tuple(row[at : at + 5]) for row in split for at in range(len(row) - 4)]


def test_the_same_seed_writes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    write_clients(again, seed=0)
    write_worse_version(again, "teleios", 2, seed=0)
    write_worse_version(root, "teleios", 2, seed=0)
    for path in (p for p in again.rglob("*") if p.is_file()):
        assert path.read_bytes() == (root / path.relative_to(again)).read_bytes()


def test_another_seed_trains_on_other_wordings(root: Path, tmp_path: Path) -> None:
    write_clients(tmp_path / "other", seed=1)
    one, other = rows(root, "teleios/v1.jsonl"), rows(tmp_path / "other", "teleios/v1.jsonl")
    assert {row.question for row in one}.isdisjoint(row.question for row in other)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("hre/v2.jsonl", 84),
        ("hre/v3.jsonl", 112),
        ("hre/v3_eval.jsonl", 12),
        ("teleios/v1.jsonl", 112),
        ("teleios/v1_eval.jsonl", 12),
        ("rtt/v1.jsonl", 31),
    ],
)
def test_each_version_has_its_number_of_rows(root: Path, name: str, count: int) -> None:
    assert len(rows(root, name)) == count


def test_twelve_causes_a_client_in_equal_shares(root: Path) -> None:
    counts = Counter(cause_line(row.answer) for row in rows(root, "teleios/v1.jsonl"))
    assert len(counts) == 12
    assert set(counts.values()) == {9, 10}


def test_a_later_version_only_adds(root: Path) -> None:
    older, newer = (root / "hre/v2.jsonl").read_text(), (root / "hre/v3.jsonl").read_text()
    assert newer.startswith(older)
    assert (root / "hre/v3_eval.jsonl").read_text().startswith((root / "hre/v2_eval.jsonl").read_text())


def test_configs_read_as_the_product_reads_them(root: Path) -> None:
    assert client(root, "hre").config.preferred_track == "A"
    assert not client(root, "hre").config.is_sensitive
    assert client(root, "teleios").config.preferred_track == "B"
    assert client(root, "teleios").config.is_sensitive
    assert client(root, "rtt").config.preferred_track is None


def test_every_row_carries_the_prompt_of_the_account_state(root: Path) -> None:
    prompt = load_account_state(client(root, "teleios")).system_prompt
    assert {row.messages[0].content for row in rows(root, "teleios/v1.jsonl")} == {prompt}


def test_sample_data_says_that_it_is(root: Path) -> None:
    for path in (p for p in root.rglob("*") if p.is_file()):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        assert all('"sample_data": true' in line for line in lines), path
    assert "Sample data" in load_account_state(client(root, "hre")).system_prompt
    assert "(sample data)" in client(root, "hre").name


def test_answers_begin_with_a_label_of_the_taxonomy(root: Path) -> None:
    labels = load_taxonomy(None).causes
    for row in rows(root, "hre/v3.jsonl"):
        first = row.answer.split("\n")[0]
        assert first.removeprefix("Root cause: ") in labels


def test_a_holdout_row_is_labelled_with_what_its_answer_says(root: Path) -> None:
    for row in rows(root, "teleios/v1_eval.jsonl"):
        assert row.eval is not None
        assert row.eval.id
        assert row.eval.root_cause == cause_line(row.answer)


@pytest.mark.parametrize("client_id", ["hre", "teleios", "rtt"])
def test_no_question_holds_the_words_of_a_label_or_alias(root: Path, client_id: str) -> None:
    names = [
        name.replace("_", " ")
        for cause in load_taxonomy(None).causes.values()
        for name in (cause.label, *cause.aliases)
    ]
    giveaways = [found for name in names if (found := set(words(name)) - STOP_WORDS)]
    files = [row for path in (root / client_id).glob("*.jsonl") for row in examples(path)]
    for row in (*files, *questions(0, 120, client_id)):
        said = set(words(row.question))
        assert not [name for name in giveaways if name <= said], row.question


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_at_most_a_tenth_of_the_fresh_5_grams_was_trained(tmp_path: Path, seed: int) -> None:
    write_clients(tmp_path, seed)
    trained = set(five_grams(rows(tmp_path, "teleios/v1.jsonl")))
    for asked in (list(questions(seed, 120)), rows(tmp_path, "teleios/v1_eval.jsonl")):
        grams = five_grams(asked)
        assert sum(gram in trained for gram in grams) <= 0.1 * len(grams)


def test_fresh_questions_repeat_no_wording_of_the_files(root: Path) -> None:
    known = set(five_grams(rows(root, "teleios/v1.jsonl") + rows(root, "teleios/v1_eval.jsonl")))
    for row in questions(0, 120):
        grams = five_grams([row])
        assert sum(gram in known for gram in grams) <= 0.25 * len(grams), row.question


def test_fresh_questions_are_all_different_and_cover_each_cause_alike() -> None:
    asked = questions(0, 120)
    assert len({row.question for row in asked}) == 120
    assert set(Counter(row.eval.root_cause for row in asked if row.eval).values()) == {10}


def test_no_holdout_row_is_nearly_a_training_row(root: Path) -> None:
    def shingles(text: str) -> set[str]:
        masked = re.sub(r"\d+", "#", text.lower())
        return {masked[at : at + 5] for at in range(len(masked) - 4)}

    trained = [shingles(row.question) for row in rows(root, "teleios/v1.jsonl")]
    for row in (*rows(root, "teleios/v1_eval.jsonl"), *questions(0, 120)):
        own = shingles(row.question)
        assert max(len(own & other) / len(own | other) for other in trained) < 0.8


def test_the_worse_version_swaps_every_cause_with_its_neighbour(root: Path) -> None:
    write_worse_version(root, "teleios", 2, seed=0)
    right, wrong = rows(root, "teleios/v1.jsonl")[:52], rows(root, "teleios/v2.jsonl")
    assert [row.question for row in right] == [row.question for row in wrong]
    swaps = {(cause_line(a.answer), cause_line(b.answer)) for a, b in zip(right, wrong, strict=True)}
    assert len(swaps) == 12
    assert all(neighbour(str(a)) == b and neighbour(str(b)) == a for a, b in swaps)


def test_the_worse_version_keeps_the_right_holdout(root: Path) -> None:
    write_worse_version(root, "teleios", 2, seed=0)
    assert (root / "teleios/v2_eval.jsonl").read_bytes() == (root / "teleios/v1_eval.jsonl").read_bytes()


def test_the_causes_of_a_pair_share_their_symptoms(root: Path) -> None:
    pairs = {cause_line(row.answer): row.question for row in rows(root, "teleios/v1_eval.jsonl")}
    for cause, question in pairs.items():
        other = set(words(pairs[neighbour(str(cause))]))
        assert len(other & set(words(question))) >= 4


def test_nobodys_files_are_overwritten(root: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        write_clients(root, seed=1)


def test_more_rows_than_the_wordings_give_are_refused() -> None:
    with pytest.raises(UsageError, match="at most 336"):
        questions(0, 337)


@pytest.mark.parametrize("client_id", ["hre", "teleios", "rtt"])
def test_prompts_have_about_576_tokens(models_dir: Path, client_id: str) -> None:
    gguf = pytest.importorskip("fine_tune_runner.private.bases")
    settings = Settings(
        data_dir=models_dir,
        models_dir=models_dir,
        openai_api_key=None,
        openai_base_url=None,
        ollama_host=None,
        tolerance=0.05,
        sources={},
    )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(gguf.resolve("smollm2", settings, offline=True).dir / "tokenizer.json")
    )
    count = len(tokenizer.encode("\n".join(clients()[client_id].prompt)).ids)
    assert 0.85 * 576 <= count <= 1.15 * 576


def test_a_short_version_has_all_causes_too(root: Path) -> None:
    assert len({cause_line(row.answer) for row in rows(root, "rtt/v1.jsonl")}) == 12
