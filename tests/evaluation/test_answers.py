"""Asking, scoring and keeping answers, with a hand-made embedder whose cosines are known."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from fine_tune_runner.dataset.taxonomy import Cause, Taxonomy
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.answers import (
    SAMPLED,
    collect,
    drawn_as,
    fingerprint,
    read_answers,
    sampled,
    score,
    write_answers,
)
from fine_tune_runner.evaluation.holdout import Holdout, Question, measure_of
from fine_tune_runner.evaluation.recall import Commitment, committed
from fine_tune_runner.types import Answer, Decoding, Message, Model, Prompt, Reply, ScoreCard

TAXONOMY = Taxonomy({label: Cause(label=label) for label in ("late_default", "no_update", "dns_record")})
MODEL = Model(model_id="hre-client:v3", track="B", provider="embedded", base_model="b", dataset_sha256="d")
DECODING = Decoding()


class Letters:
    """Embeds a text by how often it has the letters a to z: cosines can be worked out by hand."""

    fingerprint = "letters"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        counts = np.array([[t.lower().count(chr(97 + i)) for i in range(26)] for t in texts], np.float32)
        counts = counts.reshape(len(texts), 26) + 1e-6
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


def ask(row_id: str, label: str | None, reference: str) -> Question:
    return Question(
        id=row_id, messages=(Message(role="user", content="Why?"),), reference=reference, label=label
    )


def holdout(*questions: Question) -> Holdout:
    return Holdout(questions=questions, measure=measure_of(questions), sha256="h")


TWO = holdout(
    ask("q1", "late_default", "Root cause: late_default"), ask("q2", "no_update", "Root cause: no_update")
)


def judged(replies: Sequence[Reply], questions: Holdout) -> tuple[ScoreCard, tuple[Answer, ...]]:
    return score(replies, questions, TAXONOMY, Letters(), DECODING, label="v3", model_id="m")


def reply(row_id: str, text: str | None, k: int = 0, error: str | None = None) -> Reply:
    return Reply(question_id=row_id, k=k, text=text, error=error)


class Flaky:
    """Fails each prompt `failures` times, then answers with the question's id."""

    def __init__(self, failures: dict[str, int]) -> None:
        self.left = dict(failures)
        self.calls = 0

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        for prompt in reversed(list(prompts)):
            self.calls += 1
            if self.left.get(prompt.question_id, 0) > 0:
                self.left[prompt.question_id] -= 1
                yield reply(prompt.question_id, None, prompt.k, "timed out")
            else:
                yield reply(prompt.question_id, f"{model_id} {prompt.question_id}", prompt.k)


def test_replies_come_in_the_order_of_the_questions() -> None:
    replies = collect(Flaky({}), MODEL, TWO, DECODING, k=2)
    assert [(r.question_id, r.k) for r in replies] == [("q1", 0), ("q1", 1), ("q2", 0), ("q2", 1)]
    assert replies[0].text == "hre-client:v3 q1"


def test_a_failed_call_is_asked_for_again() -> None:
    answerer = Flaky({"q1": 2})
    replies = collect(answerer, MODEL, TWO, DECODING)
    assert [r.text is not None for r in replies] == [True, True]
    assert answerer.calls == 4  # q2 once, q1 three times


def test_a_call_that_keeps_failing_is_recorded_as_failed() -> None:
    replies = collect(Flaky({"q1": 9}), MODEL, TWO, DECODING)
    assert (replies[0].text, replies[0].error) == (None, "timed out")


def test_a_reply_that_never_comes_is_recorded_as_failed() -> None:
    class Silent:
        def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
            return iter(())

    replies = collect(Silent(), MODEL, TWO, DECODING)
    assert [r.error for r in replies] == ["no reply came"] * 2


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    collect(Flaky({"q1": 9}), MODEL, TWO, DECODING, on_reply=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_recall_is_pooled_over_the_answers_that_came_back() -> None:
    replies = [
        reply("q1", "Root cause: late_default", 0),
        reply("q1", "Root cause: no_update", 1),
        reply("q1", "Root cause: late_default", 2),
        reply("q2", "Root cause: no_update", 0),
        reply("q2", None, 1, "timed out"),
    ]
    card, answers = judged(replies, TWO)
    assert card.recall == 0.75  # 3 of 4, not the mean of 2/3 and 1
    assert card.per_question == {"q1": pytest.approx(2 / 3), "q2": 1.0}
    assert (card.questions, card.answers, card.failed) == (2, 4, 1)
    assert card.methods == {"line": 4}
    assert [a.score for a in answers] == [1.0, 0.0, 1.0, 1.0, None]
    assert answers[4].error == "timed out"


def test_a_question_whose_calls_all_failed_has_no_score() -> None:
    card, _ = judged([reply("q1", "Root cause: late_default"), reply("q2", None, 0, "x")], TWO)
    assert card.per_question == {"q1": 1.0}
    assert card.recall == 1.0


def test_no_answers_at_all_give_no_scores() -> None:
    card, answers = judged([reply("q1", None, 0, "x"), reply("q2", None, 0, "x")], TWO)
    assert (card.recall, card.similarity, card.own_reference_share) == (None, None, None)
    assert card.per_question == {}
    assert [a.method for a in answers] == [None, None]


def test_unresolved_answers_are_wrong_and_listed() -> None:
    card, _ = judged([reply("q1", "Hard to say."), reply("q2", "Root cause: no_update")], TWO)
    assert card.recall == 0.5
    assert card.unresolved == ("q1",)


def test_similarity_is_the_mean_cosine_to_the_own_reference_beside_its_floor() -> None:
    # References "ab" and "ac"; answers "ab" (cosine 1) and "a" (cosine 1/sqrt 2). Floor: 1/2.
    questions = holdout(ask("q1", None, "ab"), ask("q2", None, "ac"))
    card, answers = judged([reply("q1", "ab"), reply("q2", "a")], questions)
    assert [a.similarity for a in answers] == [
        pytest.approx(1.0, abs=1e-4),
        pytest.approx(0.5**0.5, abs=1e-4),
    ]
    assert card.similarity == pytest.approx((1 + 0.5**0.5) / 2, abs=1e-4)
    assert card.similarity_floor == pytest.approx(0.5, abs=1e-4)
    assert card.own_reference_share == 1.0  # "a" is as near to "ab" as to "ac"


def test_without_labels_contrast_is_reported_and_recall_is_not() -> None:
    questions = holdout(ask("q1", None, "zzz zz"), ask("q2", None, "qqq qq"))
    replies = [
        reply("q1", "The root cause is zzz zzzz zzzz zz."),
        reply("q2", "The root cause is zzz zzzz zz."),
    ]
    card, answers = judged(replies, questions)
    assert (card.recall, card.contrast) == (None, 0.5)
    assert card.per_question == {"q1": 1.0, "q2": 0.0}
    assert [a.method for a in answers] == ["contrast", "contrast"]


def test_contrast_holds_nothing_against_a_reference_of_the_same_cause() -> None:
    same = ask("q1", "no_update", "zzz"), ask("q2", "no_update", "zzz zz"), ask("q3", None, "qqq")
    card, _ = judged([reply("q1", "The root cause is zz.")], holdout(*same))
    assert card.per_question == {"q1": 1.0}


def test_contrast_leaves_what_commits_to_nothing_unresolved() -> None:
    questions = holdout(ask("q1", None, "zzz zz"), ask("q2", None, "qqq qq"))
    card, _ = judged([reply("q1", "The root cause is not zzz."), reply("q2", "qqq")], questions)
    assert card.contrast == 0.0
    assert card.unresolved == ("q1", "q2")


def test_with_one_reference_only_similarity_is_left() -> None:
    card, answers = judged([reply("q1", "abc")], holdout(ask("q1", None, "abc")))
    assert (card.recall, card.contrast) == (None, None)
    assert card.per_question == {"q1": pytest.approx(1.0, abs=1e-5)}
    assert (answers[0].score, answers[0].method) == (None, None)


def test_replies_to_rows_that_were_left_out_do_not_count() -> None:
    replies = [reply("q1", "Root cause: late_default"), reply("q2", "Root cause: late_default")]
    card, answers = judged(replies, TWO.without(["q2"]))
    assert (card.recall, len(answers)) == (1.0, 1)


def test_answers_are_kept_and_read_back(tmp_path: Path) -> None:
    _, answers = judged([reply("q1", "Root cause: late_default\nüñ"), reply("q2", None, 0, "x")], TWO)
    path = tmp_path / "answers" / "3-B.jsonl"
    write_answers(path, answers)
    assert read_answers(path) == answers
    assert len(path.read_bytes().splitlines()) == 2


@pytest.mark.parametrize("line", [b'{"question_id": 7}', b'{"question_id": "\xff"}', b"", b"\x00"])
def test_a_broken_line_of_answers_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "3-B.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=r"3-B\.jsonl line 1"):
        read_answers(path)


BASE: dict[str, Any] = {
    "embedder": "e",
    "decoding": DECODING,
    "system_prompt": "s",
    "taxonomy": TAXONOMY,
    "holdout_sha256": "h",
}


@pytest.mark.parametrize(
    "change",
    [
        {"embedder": "f"},
        {"decoding": Decoding(temperature=0.3)},
        {"decoding": Decoding(seed=1)},
        {"system_prompt": "t"},
        {"system_prompt": None},
        {"taxonomy": Taxonomy({"x": Cause(label="x")})},
        {"holdout_sha256": "i"},
    ],
)
def test_whatever_a_score_depends_on_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(**BASE | change) != fingerprint(**BASE)


def test_a_fingerprint_tells_how_answers_were_drawn_from_how_they_were_scored() -> None:
    drawn = [{"decoding": Decoding(temperature=0.7)}, {"system_prompt": "Another."}]
    scored = [{"embedder": "other"}, {"taxonomy": Taxonomy({})}, {"holdout_sha256": "other"}]
    today = drawn_as(fingerprint(**BASE))
    assert [drawn_as(fingerprint(**BASE | change)) == today for change in drawn] == [False, False]
    assert [drawn_as(fingerprint(**BASE | change)) == today for change in scored] == [True, True, True]


def test_an_answer_that_was_read_before_is_not_read_again() -> None:
    read: dict[tuple[str, str], Commitment] = {}
    words = {"label": "v3", "model_id": "m", "read": read}
    replies = [reply("q1", "Root cause: late_default"), reply("q1", "Root cause: late_default", k=1)]
    first, _ = score(replies, TWO, TAXONOMY, Letters(), DECODING, **words)
    assert (first.recall, list(read)) == (1.0, [("q1", "Root cause: late_default")])
    read["q1", "Root cause: late_default"] = Commitment("no_update", "line", "told to be")
    again, _ = score(replies, TWO, TAXONOMY, Letters(), DECODING, **words)
    assert again.recall == 0.0


def test_a_line_that_was_read_before_is_read_by_the_taxonomy_at_hand() -> None:
    question = ask("q", None, "Look into it.")
    found = [
        committed("Root cause: mute banner", question, Taxonomy({label: Cause(label, aliases=names)}))
        for label, names in (("first", ("mute banner",)), ("second", ("mute banner",)), ("third", ()))
    ]
    assert [one.cause for one in found] == ["first", "second", None]


def test_the_card_and_each_answer_carry_the_fingerprint() -> None:
    card, answers = judged([reply("q1", "Root cause: late_default")], TWO)
    expected = fingerprint(**BASE | {"embedder": "letters", "system_prompt": None})
    assert (card.fingerprint, answers[0].fingerprint) == (expected, expected)


def test_a_card_fits_into_json() -> None:
    card, _ = judged([reply("q1", "Root cause: late_default")], TWO)
    assert msgspec.json.decode(msgspec.json.encode(card), type=ScoreCard) == card


def many(n: int, *, labelled: bool) -> Holdout:
    """Questions `q0`, `q1`, ... of two causes."""
    causes = ("late_default", "no_update")
    return holdout(
        *(ask(f"q{i}", causes[i % 2] if labelled else None, f"{'ab'[i % 2]}{'c' * i}") for i in range(n))
    )


def test_of_few_questions_all_answers_are_held_against_references() -> None:
    assert sampled(many(SAMPLED, labelled=True)) == list(range(SAMPLED))


def test_of_many_questions_a_sample_is_where_it_decides_nothing() -> None:
    questions = many(300, labelled=True)
    rows = sampled(questions)
    assert len(rows) == len(set(rows)) == SAMPLED
    card, answers = judged([reply(f"q{i}", "Root cause: no_update") for i in range(300)], questions)
    assert (card.recall, card.similarity_questions) == (0.5, SAMPLED)
    assert [i for i, a in enumerate(answers) if a.similarity is not None] == rows


def test_the_same_rows_are_drawn_whatever_stands_around_them() -> None:
    long = many(400, labelled=True)
    short = holdout(*long.questions[:300])
    assert [row for row in sampled(long) if row < 300] == [
        row for row in sampled(short) if row in set(sampled(long))
    ]


def test_where_similarity_decides_no_answer_is_left_out() -> None:
    questions = holdout(*(ask(f"q{i}", None, "abc") for i in range(300)))
    assert questions.measure == "similarity"
    card, _ = judged([reply(f"q{i}", "abc") for i in range(300)], questions)
    assert (len(card.per_question), card.similarity_questions) == (300, 300)
