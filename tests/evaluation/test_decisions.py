"""What people decided: kept for good, used by the scorer, and never for another question or answer."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.scripted_track import Letters

from fine_tune_runner.dataset.taxonomy import load_taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.answer_sets import gate_answers
from fine_tune_runner.evaluation.answers import score, write_answers
from fine_tune_runner.evaluation.decisions import (
    Decided,
    answer_sha256,
    append_decision,
    decisions_path,
    read_decisions,
)
from fine_tune_runner.evaluation.holdout import Holdout, Question, load_holdout
from fine_tune_runner.types import Answer, Decoding, Message, Reply, ScoreCard

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
TAXONOMY = load_taxonomy(None)
RIGHT, UNREAD = "consent_update_missing", "The banner is to blame, somehow."


def row(question: str, **labels: Any) -> dict[str, Any]:
    turns = (("system", "You are an expert."), ("user", question), ("assistant", f"Root cause: {RIGHT}"))
    return {
        "messages": [{"role": role, "content": content} for role, content in turns],
        "eval": {"id": question[:2], "root_cause": RIGHT, **labels},
    }


def holdout_in(folder: Path, *rows: dict[str, Any]) -> Holdout:
    path = folder / "v3_eval.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return load_holdout(path, TAXONOMY)


def decide(folder: Path, question: Question, text: str, right: bool, who: str = "anna") -> None:
    decided = Decided(question=question.sha256, answer=answer_sha256(text), right=right, who=who, at=NOON)
    append_decision(decisions_path(folder), decided)


def judged(holdout: Holdout, *texts: str) -> tuple[ScoreCard, tuple[Answer, ...]]:
    replies = [
        Reply(question_id=q.id, k=0, text=text) for q, text in zip(holdout.questions, texts, strict=True)
    ]
    return score(replies, holdout, TAXONOMY, Letters(), Decoding(), label="3-B", model_id="m")


def test_an_answer_that_no_rule_could_read_scores_as_decided(tmp_path: Path) -> None:
    before = holdout_in(tmp_path, row("q1?"), row("q2?"))
    assert judged(before, UNREAD, UNREAD)[0].unresolved == ("q1", "q2")
    decide(tmp_path, before.questions[0], UNREAD, right=True)
    decide(tmp_path, before.questions[1], UNREAD, right=False)
    card, answers = judged(holdout_in(tmp_path, row("q1?"), row("q2?")), UNREAD, UNREAD)
    assert [(a.score, a.method, a.cause, a.decided_by) for a in answers] == [
        (1.0, "review", RIGHT, "anna"),
        (0.0, "review", None, "anna"),
    ]
    assert (card.recall, card.unresolved, card.methods) == (0.5, (), {"review": 2})


def test_a_decision_stands_over_the_rules(tmp_path: Path) -> None:
    before = holdout_in(tmp_path, row("q1?"))
    says = f"Root cause: {RIGHT}"
    assert judged(before, says)[0].recall == 1.0
    decide(tmp_path, before.questions[0], says, right=False)
    _, (answer,) = judged(holdout_in(tmp_path, row("q1?")), says)
    assert (answer.score, answer.cause, answer.decided_by) == (0.0, None, "anna")


def test_case_and_white_space_do_not_make_another_answer_but_words_and_lines_do(tmp_path: Path) -> None:
    question = holdout_in(tmp_path, row("q1?")).questions[0]
    decide(tmp_path, question, UNREAD, right=True)
    holdout = holdout_in(tmp_path, row("q1?"))
    assert holdout.decision("q1", f"  {UNREAD.upper()} \n\n") is not None
    assert holdout.decision("q1", UNREAD.replace("is", "is not")) is None
    assert holdout.decision("q1", UNREAD.replace(", ", ",\n")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"root_cause": "consent_default_missing_or_late"},
        {"accept": ["consent_default_missing_or_late"]},
        {"reject": [RIGHT]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_row_with_another_right_answer_has_no_decisions(tmp_path: Path, change: dict[str, Any]) -> None:
    decide(tmp_path, holdout_in(tmp_path, row("q1?")).questions[0], UNREAD, right=True)
    assert holdout_in(tmp_path, row("q1?", **change)).decided == {}


def test_a_row_keeps_its_decisions_under_another_id_place_and_system_prompt(tmp_path: Path) -> None:
    decide(tmp_path, holdout_in(tmp_path, row("q1?")).questions[0], UNREAD, right=True)
    later = row("q1?", id="hre-9")
    later["messages"][0]["content"] = "You know HRE by heart."
    assert list(holdout_in(tmp_path, row("q2?"), later).decided) == ["hre-9"]


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)
TURNS = st.lists(TEXTS, min_size=1, max_size=3)


def question_of(turns: list[str], reference: str, labels: list[str]) -> Question:
    roles = ("user", "assistant")
    messages = tuple(Message(role=roles[i % 2], content=t) for i, t in enumerate(turns))  # type: ignore[arg-type]
    return Question(id="same", messages=messages, reference=reference, accept=tuple(labels))


def words(question: Question) -> tuple[object, ...]:
    """What a person reads, as the hash may see it at most: case folded, white space folded."""
    texts = [*(m.content for m in question.turns), question.reference]
    lines = [[" ".join(x.split()) for x in fold(t).splitlines() if x.strip()] for t in texts]
    return lines, sorted(question.right)


def fold(text: str) -> str:
    import unicodedata

    return "\n".join(unicodedata.normalize("NFKC", line).lower() for line in text.splitlines())


QUESTIONS = st.builds(question_of, TURNS, TEXTS, st.lists(st.sampled_from(["a", "b", "ab"]), unique=True))


@settings(max_examples=200, deadline=None)
@given(QUESTIONS, QUESTIONS)
def test_a_decision_never_crosses_to_another_question(one: Question, other: Question) -> None:
    """Equal hashes only where turns, reference and right labels are the same words."""
    if one.sha256 == other.sha256:
        assert len(one.turns) == len(other.turns)
        assert sorted(one.right) == sorted(other.right)
        assert words(one) == words(other)
    else:
        assert (one.turns, one.reference, one.right) != (other.turns, other.reference, other.right)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=2, max_size=4), st.data())
def test_words_moved_between_turns_make_another_question(turns: list[str], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(turns) - 2))
    joined = [*turns[:at], f"{turns[at]} {turns[at + 1]}", *turns[at + 2 :]]
    assert question_of(turns, "r", []).sha256 != question_of(joined, "r", []).sha256


def test_the_last_word_counts(tmp_path: Path) -> None:
    question = holdout_in(tmp_path, row("q1?")).questions[0]
    decide(tmp_path, question, UNREAD, right=True)
    decide(tmp_path, question, UNREAD, right=False, who="ben")
    found = holdout_in(tmp_path, row("q1?")).decision("q1", UNREAD)
    assert found is not None
    assert (found.right, found.who) == (False, "ben")
    assert len(decisions_path(tmp_path).read_text().splitlines()) == 2


def test_only_decisions_about_its_questions_are_in_the_fingerprint(tmp_path: Path) -> None:
    holdout = holdout_in(tmp_path, row("q1?"))
    plain = judged(holdout, UNREAD)[0].fingerprint
    elsewhere = msgspec.structs.replace(holdout.questions[0], reference="another one")
    decide(tmp_path, elsewhere, UNREAD, right=True)
    assert judged(holdout_in(tmp_path, row("q1?")), UNREAD)[0].fingerprint == plain
    decide(tmp_path, holdout.questions[0], UNREAD, right=True)
    right = judged(holdout_in(tmp_path, row("q1?")), UNREAD)[0].fingerprint
    decide(tmp_path, holdout.questions[0], UNREAD, right=False)
    wrong = judged(holdout_in(tmp_path, row("q1?")), UNREAD)[0].fingerprint
    assert len({plain, right, wrong}) == 3
    assert right.partition("+")[0] == wrong.partition("+")[0] == plain


def test_a_torn_last_line_never_took_effect_and_the_next_decision_replaces_it(tmp_path: Path) -> None:
    question = holdout_in(tmp_path, row("q1?")).questions[0]
    decide(tmp_path, question, UNREAD, right=True)
    path = decisions_path(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(read_decisions(path)[question.sha256]) == 1
    decide(tmp_path, question, "Another answer.", right=False)
    assert path.read_bytes().startswith(whole)
    assert [d.right for d in read_decisions(path)[question.sha256].values()] == [True, False]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    decisions_path(tmp_path).write_bytes(b'{"question":"a"}\n')
    with pytest.raises(DataError, match=r"decisions\.jsonl line 1: not a decision .* restore the file"):
        holdout_in(tmp_path, row("q1?"))


def test_no_text_is_in_the_file(tmp_path: Path) -> None:
    decide(tmp_path, holdout_in(tmp_path, row("q1 about amber?")).questions[0], UNREAD, right=True)
    text = decisions_path(tmp_path).read_text()
    assert ("amber" in text, "banner" in text, "anna" in text) == (False, False, True)


def test_the_gate_on_two_files_uses_them_too(tmp_path: Path) -> None:
    rows = [row(f"q{i}?") for i in range(6)]
    holdout = holdout_in(tmp_path, *rows)
    for name, text in (("new", UNREAD), ("old", f"Root cause: {RIGHT}")):
        write_answers(tmp_path / f"{name}.jsonl", judged(holdout, *[text] * 6)[1])
    files = tmp_path / "new.jsonl", tmp_path / "old.jsonl", tmp_path / "v3_eval.jsonl"
    assert gate_answers(*files, Letters()).decision == "refuse"
    for question in holdout.questions:
        decide(tmp_path, question, UNREAD, right=True)
    assert gate_answers(*files, Letters()).decision == "promote"
