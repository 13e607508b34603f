"""One evaluation: ask the new version and what it is compared with the same questions, and score both.

More answers a question are asked for while the gate is undecided. Models come through `serve`, so this knows
no track. Raw answers are kept as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.read import holdout_path, train_path
from fine_tune_runner.dataset.taxonomy import Taxonomy, load_taxonomy
from fine_tune_runner.dataset.validate import leaked
from fine_tune_runner.errors import DataError, MissingModel, PolicyError, ServingError
from fine_tune_runner.evaluation.answers import OnReply as OnCount
from fine_tune_runner.evaluation.answers import (
    Read,
    collect,
    drawn_as,
    fingerprint,
    score,
    unresolved,
    write_answers,
)
from fine_tune_runner.evaluation.decisions import decisions_path
from fine_tune_runner.evaluation.gate import DRAWN_APART, LEAST_SHARED, card_scores, schedule, undecided
from fine_tune_runner.evaluation.holdout import Holdout, edited, load_holdout
from fine_tune_runner.evaluation.judging import Reader
from fine_tune_runner.evaluation.nearest import CauseIndex, with_suggestions
from fine_tune_runner.evaluation.repeats import collect_repeats
from fine_tune_runner.evaluation.similarity import Remembered
from fine_tune_runner.evaluation.stored import StandIn, StoredAnswers, stand_in
from fine_tune_runner.evaluation.vectors import vectors_path
from fine_tune_runner.ports import Judge
from fine_tune_runner.settings import Client
from fine_tune_runner.types import (
    Answer,
    Answerer,
    Clock,
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
NAMED = 10  # rows that one warning names


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
        reader: Reader | None,
    ) -> None:
        self.holdout = holdout
        self._taxonomy = taxonomy
        self._embedder = embedder
        self._decoding = decoding
        self._answers_dir = answers_dir
        self._on_reply = on_reply
        self._reader = reader
        self._replies: dict[str, tuple[Reply, ...]] = {}
        self._answers: dict[str, tuple[Answer, ...]] = {}
        self._asked: dict[str, int] = {}
        self._read: Read = {}

    @property
    def fingerprint(self) -> str:
        """What the scores depend on beside the model."""
        return fingerprint(
            embedder=self._embedder.fingerprint,
            decoding=self._decoding,
            system_prompt=self.holdout.system_prompt,
            taxonomy=self._taxonomy,
            holdout_sha256=self.holdout.sha256,
            decisions_sha256=self.holdout.decisions_sha256,
            judge=self.holdout.judge,
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
        """Score replies that are there already, and keep them as `{name}.jsonl`; asks the judge, if any."""
        if self._reader is not None:
            unread = unresolved(replies, self.holdout, self._taxonomy, self._embedder, self._read)
            self.holdout = self._reader.read(self.holdout, unread)
        card, answers = score(
            replies,
            self.holdout,
            self._taxonomy,
            self._embedder,
            self._decoding,
            label=name,
            model_id=model.model_id,
            read=self._read,
        )
        self._answers[name] = answers
        write_answers(self._answers_dir / f"{name}.jsonl", answers)
        return card

    def suggest(self) -> None:
        """Keep the nearest cause beside each answer that stayed unresolved, for people; after the verdict."""
        index = CauseIndex(self._taxonomy, self._embedder)
        for name, answers in self._answers.items():
            if any(a.method == "unresolved" for a in answers) and self.holdout.measure == "recall":
                path = self._answers_dir / f"{name}.jsonl"
                write_answers(path, with_suggestions(answers, self.holdout, index))

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
    stored: StoredAnswers | None = None,
    judge: Judge | None = None,
    clock: Clock = lambda: datetime.now(UTC),
) -> EvalReport:
    """Score `new` beside `previous`, or beside `base` for a first version, on the data set's holdout.

    `answers` a question; None is up to 10, until the gate is decided. `stored` are answers to fall back on
    where `previous` cannot be called. `judge` reads what no rule can; where it fails, two versions are not
    compared. Raises ServingError where the new model cannot be asked.
    """
    taxonomy = load_taxonomy(client.dir)
    identity = judge.identity if judge else None
    whole = load_holdout(holdout_path(client.dir, dataset.version), taxonomy, dataset.system_prompt, identity)
    holdout, left_out = _without_leaked(client, dataset, whole, previous)
    not_comparable = None
    if previous and left_out and len(holdout.questions) < LEAST_SHARED:
        not_comparable = (
            f"{len(left_out)} holdout rows are in the training set of v{previous[0].version}, "
            f"{len(holdout.questions)} are left; publish a holdout of its own"
        )
    remembered = Remembered(embedder, vectors_path(client.dir))
    kept = decisions_path(client.dir)
    reader = Reader(judge, taxonomy, kept, clock, on_reply) if judge else None
    scorer = Scorer(holdout, taxonomy, remembered, decoding, answers_dir, on_reply, reader)
    other = (_name(previous[0]), previous[1]) if previous else ("base", base) if base else None
    stood_in = stand_in(stored, holdout, taxonomy) if previous and stored else StandIn()
    comparable = previous is not None and not_comparable is None
    stages = stages_of(answers, decoding, len(holdout.questions)) if comparable else (answers or 1,)
    with _loaded(serve, new, other[1] if other else None) as (answerers, fault):
        pair = _until_decided(scorer, answerers, (_name(key), new), other, fault, stood_in, stages, tolerance)
    scorer.suggest()
    remembered.keep()
    drawn_alike = not pair.shared or stood_in.drawn == {drawn_as(scorer.fingerprint)}
    return EvalReport(
        client_id=client.id,
        key=key,
        dataset_sha256=dataset.sha256,
        holdout_sha256=whole.sha256,  # as it was asked: labels may be confirmed while a run trains
        fingerprint=scorer.fingerprint,
        measure=holdout.measure,
        new=pair.new,
        previous=pair.other if previous else None,
        previous_key=previous[0] if previous else None,
        base=None if previous else pair.other,
        left_out=left_out,
        not_comparable=not_comparable or (_not_compared(pair, reader) if previous else None),
        shared=pair.shared,
        stored_at=stored.at if stored and pair.shared else None,
        drawn_alike=drawn_alike,
        answers_per_question=pair.answers,
        judge=identity,
        decoding=decoding,
        warnings=(
            *filter(None, [reader.warning if reader else None]),
            *_edited(client, dataset, holdout, taxonomy, previous[0] if previous else None),
            *_stood_in_for(pair, stored, drawn_alike),
        ),
    )


def _not_compared(pair: Pair, reader: Reader | None) -> str | None:
    """Why two versions cannot be compared: one was not asked, or the judge read one's answers in part."""
    if pair.fault and not pair.shared:
        return pair.fault
    return reader.warning if reader else None


def stages_of(answers: int | None, decoding: Decoding, questions: int) -> Sequence[int]:
    """Answers a question, stage by stage; at temperature 0 repeats would change nothing."""
    if answers is not None:
        return (answers,)
    return schedule(questions) if decoding.temperature > 0 else (1,)


def _without_leaked(
    client: Client, dataset: Dataset, holdout: Holdout, previous: tuple[VersionKey, Model] | None
) -> tuple[Holdout, tuple[str, ...]]:
    """The holdout less the rows that the previous version was trained on, and the ids of those."""
    other_train = train_path(client.dir, previous[0].version) if previous else None
    if other_train is None or not other_train.is_file():
        return holdout, ()
    left_out = leaked(holdout_path(client.dir, dataset.version), other_train)
    return holdout.without(left_out), left_out


def _edited(
    client: Client, dataset: Dataset, holdout: Holdout, taxonomy: Taxonomy, previous: VersionKey | None
) -> tuple[str, ...]:
    """A warning that names the rows which the previous version's holdout has with another right answer."""
    if previous is None or previous.version == dataset.version:
        return ()
    path, old_path = (holdout_path(client.dir, version) for version in (dataset.version, previous.version))
    try:
        old = load_holdout(old_path, taxonomy) if old_path.is_file() else None
    except DataError:
        return ()  # the data check's business, when that version was submitted
    rows = edited(holdout, old) if old else ()
    if not rows:
        return ()
    named = [f"line {q.line} ({q.id}; line {was.line} there)" for q, was in rows[:NAMED]]
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return (
        f"{path} asks questions of {old_path} with another reference or label: {', '.join(named)}{more}; "
        "earlier scores on them do not compare with those of today",
    )


def _stood_in_for(pair: Pair, stored: StoredAnswers | None, drawn_alike: bool) -> tuple[str, ...]:
    if not pair.shared or stored is None:
        return ()
    otherwise = "" if drawn_alike else f"; {DRAWN_APART}, so the evidence is weak at best"
    return (
        f"{pair.fault}; its answers of {stored.at:%Y-%m-%d} to {len(pair.shared)} shared questions were "
        f"scored again in its place{otherwise}",
    )


def _until_decided(
    scorer: Scorer,
    answerers: Mapping[str, Answerer],
    new: tuple[str, Model],
    other: tuple[str, Model] | None,
    fault: str | None,
    stored: StandIn,
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
        if other is not None and fault is not None:
            if len({reply.question_id for reply in stored.replies}) < LEAST_SHARED:
                return Pair(new=card, other=None, answers=k, fault=f"{fault}; {stored.fault}")
            other_card = scorer.judged(stored.replies, other[0], other[1])
            shared = tuple(other_card.per_question)
            other_card = msgspec.structs.replace(other_card, questions=len(shared))
        if other_card is None or not undecided(card_scores(card, shared), card_scores(other_card), tolerance):
            break
    return Pair(new=card, other=other_card, answers=k, shared=shared, fault=fault)


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
        except (ServingError, MissingModel, PolicyError) as error:
            if other is None:
                raise
            answerers = stack.enter_context(serve([new]))
            fault = f"the version in service cannot be called: {error}"
        yield answerers, fault
