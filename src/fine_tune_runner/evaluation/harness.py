"""One evaluation: ask the new version and what it is compared with the same questions, and score both.

More answers a question are asked for while the gate is undecided. Models come through `serve`, so this knows
no track. Raw answers are kept as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.read import holdout_path, train_path
from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.dataset.validate import leaked
from fine_tune_runner.errors import MissingModel, ServingError
from fine_tune_runner.evaluation.answers import OnReply as OnCount
from fine_tune_runner.evaluation.answers import collect, fingerprint, score, write_answers
from fine_tune_runner.evaluation.gate import LEAST_SHARED, SCHEDULE, card_scores, undecided
from fine_tune_runner.evaluation.holdout import Holdout, load_holdout
from fine_tune_runner.evaluation.repeats import collect_repeats
from fine_tune_runner.evaluation.similarity import Remembered
from fine_tune_runner.evaluation.stored import stored_replies
from fine_tune_runner.settings import Client
from fine_tune_runner.types import (
    Answerer,
    Dataset,
    Decoding,
    Embedder,
    EvalReport,
    Model,
    Reply,
    ScoreCard,
    VersionKey,
)

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
        self._replies: dict[str, tuple[Reply, ...]] = {}
        self._asked: dict[str, int] = {}

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

    def card(self, answerers: Mapping[str, Answerer], model: Model, name: str, k: int) -> ScoreCard:
        """Ask one model every question until it has `k` answers; raw answers go to `{name}.jsonl`."""
        answerer, first = answerers[model.model_id], self._asked.get(name, 0)
        if first == 0:
            self._replies[name] = collect(
                answerer, model, self.holdout, self._decoding, 1, self._counter(name, 0, k)
            )
        if k > 1:
            firsts = [reply for reply in self._replies[name] if reply.k == 0]
            self._replies[name] += collect_repeats(
                answerer,
                model,
                self.holdout,
                self._decoding,
                range(max(first, 1), k),
                firsts,
                self._counter(name, max(first, 1), k),
            )
        self._asked[name] = k
        return self.judged(self._replies[name], name, model)

    def judged(self, replies: Sequence[Reply], name: str, model: Model) -> ScoreCard:
        """Score replies that are there already, and keep them as `{name}.jsonl`."""
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

    def _counter(self, name: str, asked: int, k: int) -> OnCount:
        questions = len(self.holdout.questions)
        return lambda done, _: self._on_reply(name, questions * asked + done, questions * k)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """Both models' cards at the last stage; `shared` and `fault` as in EvalReport."""

    new: ScoreCard
    other: ScoreCard | None
    answers: int
    shared: tuple[str, ...] = ()
    fault: str | None = None


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
    tolerance: float = 0.05,
    answers: int | None = None,
    previous_run_dir: Path | None = None,
) -> EvalReport:
    """Score `new` beside `previous`, or beside `base` for a first version, on the data set's holdout.

    `answers` a question; None is 1 to 10, until the gate is decided. `previous_run_dir` holds answers to fall
    back on where `previous` cannot be called. Raises ServingError where the new model cannot be asked.
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
        if left_out and len(holdout.questions) < LEAST_SHARED:
            not_comparable = (
                f"{len(left_out)} holdout rows are in the training set of v{previous[0].version}, "
                f"{len(holdout.questions)} are left; publish a holdout of its own"
            )
    scorer = Scorer(holdout, taxonomy, embedder, decoding, answers_dir, on_reply)
    other = (_name(previous[0]), previous[1]) if previous else ("base", base) if base else None
    stored: tuple[Reply, ...] = ()
    if previous is not None and previous_run_dir is not None:
        old_path = holdout_path(client.dir, previous[0].version)
        kept = previous_run_dir / "answers" / f"{_name(previous[0])}.jsonl"
        stored = stored_replies(kept, old_path, holdout, taxonomy)
    comparable = previous is not None and not_comparable is None
    stages = stages_of(answers, decoding) if comparable else (answers or 1,)
    with _loaded(serve, new, other[1] if other else None) as (answerers, fault):
        pair = _until_decided(scorer, answerers, (_name(key), new), other, fault, stored, stages, tolerance)
    return EvalReport(
        client_id=client.id,
        key=key,
        dataset_sha256=dataset.sha256,
        holdout_sha256=dataset.holdout_sha256,
        fingerprint=scorer.fingerprint,
        measure=holdout.measure,
        new=pair.new,
        previous=pair.other if previous else None,
        previous_key=previous[0] if previous else None,
        base=None if previous else pair.other,
        left_out=left_out,
        not_comparable=not_comparable or (pair.fault if previous and not pair.shared else None),
        shared=pair.shared,
        answers_per_question=pair.answers,
        warnings=(
            f"{pair.fault}; its stored answers to {len(pair.shared)} shared questions were scored again",
        )
        if pair.shared
        else (),
    )


def stages_of(answers: int | None, decoding: Decoding) -> Sequence[int]:
    """Answers a question, stage by stage; at temperature 0 repeats would change nothing."""
    if answers is not None:
        return (answers,)
    return SCHEDULE if decoding.temperature > 0 else SCHEDULE[:1]


def _until_decided(
    scorer: Scorer,
    answerers: Mapping[str, Answerer],
    new: tuple[str, Model],
    other: tuple[str, Model] | None,
    fault: str | None,
    stored: Sequence[Reply],
    stages: Sequence[int],
    tolerance: float,
) -> Pair:
    """Ask both models stage by stage until P(worse) is clear; stored replies stand in for a dead one."""
    shared: tuple[str, ...] = ()
    for k in stages:
        card = scorer.card(answerers, new[1], new[0], k)
        other_card = None
        if other is not None and fault is None:
            other_card = scorer.card(answerers, other[1], other[0], k)
            if other_card.answers == 0:
                fault, other_card = f"{other[1].model_id} answered no question", None
        if other is not None and fault is not None and stored:
            other_card, shared = _stood_in(scorer.judged(stored, other[0], other[1]))
            if len(shared) < LEAST_SHARED:
                fault = f"{fault}; stored answers of it cover only {len(shared)} of the questions"
                other_card, shared = None, ()
        if other_card is None or not undecided(card_scores(card, shared), card_scores(other_card), tolerance):
            break
    return Pair(new=card, other=other_card, answers=k, shared=shared, fault=fault)


def _stood_in(card: ScoreCard) -> tuple[ScoreCard, tuple[str, ...]]:
    shared = tuple(card.per_question)
    return msgspec.structs.replace(card, questions=len(shared)), shared


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
