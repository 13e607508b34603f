"""Labels proposed for a holdout without: from the reference where it says so, else a guess that is marked."""

from __future__ import annotations

from tests.scripted_track import Letters

from fine_tune_runner.dataset.taxonomy import Cause, Taxonomy
from fine_tune_runner.evaluation.holdout import Holdout, Question
from fine_tune_runner.evaluation.proposals import proposals
from fine_tune_runner.types import Embedder, Message

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
