"""One evaluation: ask the new version and what it is compared with the same questions, and score both.

Models come through `serve`, so this knows no track. Raw answers are kept as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from fine_tune_runner.dataset.read import holdout_path, train_path
from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.dataset.validate import leaked
from fine_tune_runner.errors import MissingModel, ServingError
from fine_tune_runner.evaluation.answers import collect, fingerprint, score, write_answers
from fine_tune_runner.evaluation.holdout import Holdout, load_holdout
from fine_tune_runner.evaluation.similarity import Remembered
from fine_tune_runner.settings import Client
from fine_tune_runner.types import (
    Answerer,
    Dataset,
    Decoding,
    Embedder,
    EvalReport,
    Model,
    ScoreCard,
    VersionKey,
)

LEAST_QUESTIONS = 5  # fewer left after leaving leaked rows out say nothing (facts/evaluation.md, gate rule 2)

Serve = Callable[[Sequence[Model]], AbstractContextManager[Mapping[str, Answerer]]]
OnReply = Callable[[str, int, int], None]  # (label of the model, answers so far, answers in all)


class Scorer:
    """Asks and scores models on one holdout, each in the same way."""

    def __init__(
        self,
        holdout: Holdout,
        taxonomy: Taxonomy,
        embedder: Embedder,
        decoding: Decoding,
        answers_dir: Path,
        on_reply: OnReply,
    ) -> None:
        self.holdout = holdout
        self._taxonomy = taxonomy
        self._embedder = Remembered(embedder)  # both models are held against the same references
        self._decoding = decoding
        self._answers_dir = answers_dir
        self._on_reply = on_reply

    @property
    def fingerprint(self) -> str:
        """What the scores depend on beside the model."""
        return fingerprint(
            embedder=self._embedder.fingerprint,
            decoding=self._decoding,
            system_prompt=self.holdout.system_prompt,
            taxonomy=self._taxonomy,
            holdout_sha256=self.holdout.sha256,
        )

    def card(self, answerers: Mapping[str, Answerer], model: Model, name: str) -> ScoreCard:
        """Ask one model every question; raw answers go to `{name}.jsonl`."""
        replies = collect(
            answerers[model.model_id],
            model,
            self.holdout,
            self._decoding,
            on_reply=lambda done, total: self._on_reply(name, done, total),
        )
        card, answers = score(
            replies,
            self.holdout,
            self._taxonomy,
            self._embedder,
            self._decoding,
            label=name,
            model_id=model.model_id,
        )
        write_answers(self._answers_dir / f"{name}.jsonl", answers)
        return card


def measure(
    client: Client,
    dataset: Dataset,
    *,
    new: Model,
    key: VersionKey,
    previous: tuple[VersionKey, Model] | None,
    base: Model | None,
    serve: Serve,
    embedder: Embedder,
    decoding: Decoding,
    answers_dir: Path,
    on_reply: OnReply,
) -> EvalReport:
    """Score `new` beside `previous`, or beside `base` for a first version, on the data set's holdout.

    Raises ServingError where the new model cannot be asked; a previous one that cannot is said in the report.
    """
    taxonomy = load_taxonomy(client.dir)
    path = holdout_path(client.dir, dataset.version)
    holdout = load_holdout(path, taxonomy, dataset.system_prompt)
    left_out: tuple[str, ...] = ()
    not_comparable = None
    if previous is not None:
        other_train = train_path(client.dir, previous[0].version)
        left_out = leaked(path, other_train) if other_train.is_file() else ()
        holdout = holdout.without(left_out)
        if left_out and len(holdout.questions) < LEAST_QUESTIONS:
            not_comparable = (
                f"{len(left_out)} holdout rows are in the training set of v{previous[0].version}, "
                f"{len(holdout.questions)} are left; publish a holdout of its own"
            )
    scorer = Scorer(holdout, taxonomy, embedder, decoding, answers_dir, on_reply)
    other = previous[1] if previous else base
    with _loaded(serve, new, other) as (answerers, fault):
        card = scorer.card(answerers, new, _name(key))
        other_card = None
        if other is not None and fault is None:
            other_card = scorer.card(answerers, other, _name(previous[0]) if previous else "base")
    return EvalReport(
        client_id=client.id,
        key=key,
        dataset_sha256=dataset.sha256,
        holdout_sha256=dataset.holdout_sha256,
        fingerprint=scorer.fingerprint,
        measure=holdout.measure,
        new=card,
        previous=other_card if previous else None,
        previous_key=previous[0] if previous else None,
        base=None if previous else other_card,
        left_out=left_out,
        not_comparable=not_comparable or (fault if previous else None),
    )


def _name(key: VersionKey) -> str:
    return f"{key.version}-{key.track}"


@contextmanager
def _loaded(
    serve: Serve, new: Model, other: Model | None
) -> Iterator[tuple[Mapping[str, Answerer], str | None]]:
    """Both models loaded; where the older one cannot be called, the new one alone, and why."""
    with ExitStack() as stack:
        fault = None
        try:
            answerers = stack.enter_context(serve([new, other] if other else [new]))
        except (ServingError, MissingModel) as error:
            if other is None:
                raise
            answerers = stack.enter_context(serve([new]))
            fault = f"the version in service cannot be called: {error}"
        yield answerers, fault
