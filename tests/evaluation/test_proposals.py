"""Labels proposed for a holdout without: from the reference where it says so, else a guess that is marked.
And the nearest cause beside an answer, a suggestion to a person."""

from __future__ import annotations

import pytest
from tests.scripted_track import Letters

from fine_tune_runner.dataset.taxonomy import Cause, Taxonomy
from fine_tune_runner.evaluation.holdout import Holdout, Question
from fine_tune_runner.evaluation.nearest import CauseIndex, with_suggestions
from fine_tune_runner.evaluation.proposals import proposals
from fine_tune_runner.types import Answer, Embedder, Message

TAXONOMY = Taxonomy(
    {
        cause.label: cause
        for cause in (
            Cause("qqq_zzz", aliases=("qz lost",)),
            Cause("banner_mute", aliases=("banner never sends update",)),
        )
    }
)


def found(
    reference: str, label: str | None = None, embedder: Embedder | None = None
) -> list[tuple[str | None, str | None, bool]]:
    question = Question(
        id="q", messages=(Message(role="user", content="Why?"),), reference=reference, label=label
    )
    holdout = Holdout(questions=(question,), measure="similarity")
    return [(p.label, p.source, p.sure) for p in proposals(holdout, TAXONOMY, embedder)]


def test_a_line_that_names_a_cause_is_taken_at_its_word() -> None:
    assert found("Root cause: it is that the banner never sends update, I am sure.\nFix it.") == [
        ("banner_mute", "line", True)
    ]


def test_a_sentence_that_commits_is_taken_at_its_word() -> None:
    assert found("Visitors agree. This happens because the banner never sends update.") == [
        ("banner_mute", "committed", True)
    ]


def test_what_is_only_mentioned_is_a_guess() -> None:
    assert found("It is not that the banner never sends update.") == [("banner_mute", "mentioned", False)]


def test_the_nearest_by_embedding_is_a_guess_with_its_cosines() -> None:
    assert found("zq zq zq", embedder=Letters()) == [("qqq_zzz", "nearest", False)]
    question = Question(id="q", messages=(Message(role="user", content="Why?"),), reference="zq")
    (one,) = proposals(Holdout(questions=(question,), measure="similarity"), TAXONOMY, Letters())
    # qqq zzz has three of each letter, zq one of each: the same direction.
    assert one.nearest[0] == ("qqq_zzz", 1.0)
    assert [label for label, _ in one.nearest] == ["qqq_zzz", "banner_mute"]


def test_without_an_embedder_nothing_is_guessed_by_nearness() -> None:
    assert found("zq zq zq") == [(None, None, False)]


def test_a_row_with_a_label_is_left_alone() -> None:
    assert found("zq", label="banner_mute", embedder=Letters()) == []


ASKED = Question(id="q", messages=(Message(role="user", content="Why?"),), reference="", label="qqq_zzz")


def suggested(answer: str) -> str | None:
    return CauseIndex(TAXONOMY, Letters()).suggested(answer, ASKED)


def test_the_nearest_cause_is_suggested_where_it_leads() -> None:
    assert suggested("The root cause is zq zq zq zq zq zq zq zq zq.") == "qqq_zzz"


@pytest.mark.parametrize(
    "answer",
    [
        "The root cause is not zq zq zq zq zq zq zq zq zq.",
        "It might be zq zq zq zq zq zq zq zq zq.",
        "Have a look at zq zq zq zq zq zq zq zq zq.",
        "",
    ],
)
def test_what_is_denied_hedged_or_not_committed_suggests_nothing(answer: str) -> None:
    assert suggested(answer) is None


def test_what_tells_the_question_again_suggests_nothing() -> None:
    asked = Question(id="q", messages=(Message(role="user", content="The cause is zq zq?"),), reference="")
    assert CauseIndex(TAXONOMY, Letters()).suggested("The cause is zq zq.", asked) is None


def test_a_suggestion_stands_beside_unresolved_answers_only_and_is_not_counted() -> None:
    text = "The root cause is zq zq zq zq zq zq zq zq zq."
    answers = [
        Answer(question_id="q", k=k, text=text, score=0.0, method=method, fingerprint="")  # type: ignore[arg-type]
        for k, method in enumerate(("unresolved", "committed"))
    ]
    holdout = Holdout(questions=(ASKED,), measure="recall")
    marked = with_suggestions(answers, holdout, CauseIndex(TAXONOMY, Letters()))
    assert [(a.nearest, a.score, a.cause) for a in marked] == [("qqq_zzz", 0.0, None), (None, 0.0, None)]
