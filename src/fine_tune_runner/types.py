"""The frozen nouns that flow along the line, and the seams between rooms.

    Request → Dataset → Findings → Job → Model → EvalReport → Verdict → RegistryEntry

Each value fits into JSON (msgspec reads and writes it) and names the hash of the one before it where it
has one. Nothing in here reads a file, opens a socket or knows a track.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Track = Literal["A", "B"]
Purpose = Literal["iteration", "production"]
Level = Literal["fail", "warn", "info"]
Status = Literal["eval", "active", "archived", "refused", "held", "failed"]
State = Literal["queued", "waiting", "running", "finished", "failed", "cancelled", "interrupted"]
# Where a step may be done (workflow/durable.py): at the home host, at any worker, or on one trainer's host.
Place = Literal["registry", "hosted", "evaluate", "train"]
PLACES: tuple[Place, ...] = ("registry", "hosted", "evaluate", "train")
Decision = Literal["promote", "refuse", "hold"]
# How an answer was judged: its own `Root cause:` line; a sentence naming exactly one label; nearness (earlier
# releases); nearer to its own reference than to other causes' (approximate); a person; a judge; not at all.
Method = Literal["line", "committed", "nearest", "contrast", "review", "judge", "unresolved"]
Measure = Literal["recall", "contrast", "similarity"]  # by which score the gate compared

T = TypeVar("T")
Clock = Callable[[], datetime]  # timezone-aware, UTC


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One chat turn; `weight` 0 keeps an assistant turn out of the loss (OpenAI chat format)."""

    role: Literal["system", "user", "assistant"]
    content: str
    weight: Literal[0, 1] | None = None


class EvalLabels(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The optional `eval` object of a holdout row (facts/evaluation.md)."""

    id: str | None = None
    root_cause: str | None = None
    accept: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    reject: tuple[str, ...] = ()


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a training file or holdout that passed the shape check; `line` counts from 1."""

    line: int
    messages: tuple[Message, ...]
    eval: EvalLabels | None = None

    @property
    def question(self) -> str:
        """All user turns, joined by line feeds."""
        return "\n".join(m.content for m in self.messages if m.role == "user")

    @property
    def answer(self) -> str:
        """The last message, which the shape check guarantees to be the assistant's."""
        return self.messages[-1].content


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What the command asked for, before anything was looked at."""

    client_id: str
    version: int
    track: Track | None = None
    purpose: Purpose | None = None
    max_cost_usd: float | None = None
    again: bool = False
    strict: bool = False  # hold where the evidence for a promotion is weak
    answers: int | None = None  # to each question; None: as config.json says


class TrackChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The track a run takes, and the rule that decided, in words."""

    track: Track
    reason: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt: `run.json`; `run_id` is `{client}-v{N}-{track}-{first 8 of dataset_sha256}-{attempt}`."""

    run_id: str
    client_id: str
    version: int
    track: Track
    track_reason: str
    attempt: int
    dataset_sha256: str
    created_at: datetime
    who: str
    max_cost_usd: float | None = None
    strict: bool = False
    answers: int | None = None


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """A version and its holdout as files and hashes; rows stay on disk.

    Hashes are over the normalised content (dataset/fingerprint.py): white space between JSON tokens and
    metadata keys do not count. Paths are as the user would type them (below the data folder).
    """

    client_id: str
    version: int
    train_path: str
    holdout_path: str
    sha256: str
    holdout_sha256: str
    examples: int
    holdout_examples: int
    account_state_version: str
    system_prompt: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a check has to say, secrets and personal data masked; `line` from 1, None: the whole file."""

    check: str
    level: Level
    message: str
    path: str
    line: int | None = None
    remedy: str = ""


class TokenStats(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of a training file under the base model's own tokenizer and chat template."""

    tokenizer: str
    total: int
    loss: int
    longest: int
    longest_line: int
    mean: float


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """All findings of one data set, worst first; `tokens` is None where no tokenizer was at hand."""

    dataset_sha256: str
    items: tuple[Finding, ...]
    tokens: TokenStats | None = None

    @property
    def failed(self) -> bool:
        """Whether a finding stands that forbids training."""
        return any(item.level == "fail" for item in self.items)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a run will take; unknown values are None, never guessed silently."""

    dataset_sha256: str
    tokens_per_epoch: int
    epochs: int
    steps: int
    cost_usd: float | None
    price_source: str
    duration_s: float | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A submitted run, as the library returns it."""

    run_id: str
    client_id: str
    version: int
    track: Track
    state: State
    model_id: str | None = None
    verdict: Verdict | None = None


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is; `step` and `total_steps` are optimizer steps, `eta_s` counts training only."""

    run_id: str
    state: State
    stage: str
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    eta_s: float | None = None
    error: str | None = None


class TrainingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What training did: optimizer steps, dataset tokens seen, seconds, last loss, peak memory in bytes."""

    steps: int
    epochs: float
    tokens: int
    loss_tokens: int
    seconds: float
    first_loss: float
    final_loss: float
    peak_memory_bytes: int | None = None
    settings: dict[str, Any] = {}


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that exists and can be asked; `artifact` (below the client's folder) None is the bare base.

    `endpoint` None means embedded here; from `shutdown_date` on the provider no longer answers. `run_id` is
    there where it comes from a registry entry that names its run.
    """

    model_id: str
    track: Track
    provider: str
    base_model: str
    dataset_sha256: str
    run_id: str | None = None
    endpoint: str | None = None
    artifact: str | None = None
    artifact_sha256: str | None = None
    training: TrainingSummary | None = None
    shutdown_date: date | None = None
    cost_usd: float | None = None


class Decoding(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are drawn; part of every scorer fingerprint."""

    temperature: float = 0.2
    max_tokens: int = 256
    seed: int = 0


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One question to one model; `k` counts repeats from 0."""

    question_id: str
    k: int
    messages: tuple[Message, ...]


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """What came back: exactly one of `text` and `error` is set; a failed call is not a wrong answer."""

    question_id: str
    k: int
    text: str | None = None
    error: str | None = None
    tokens: int = 0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `answers/{version}-{track}.jsonl`: raw text and how it was scored.

    `score` is 1.0 or 0.0 (recall or contrast), None for a failed call; `cause` the label committed to;
    `similarity` the cosine to the reference, of whole answers only; `decided_by` who judged it (review).
    """

    question_id: str
    k: int
    text: str | None
    score: float | None
    method: Method | None
    fingerprint: str
    error: str | None = None
    cause: str | None = None
    similarity: float | None = None
    tokens: int = 0
    decided_by: str | None = None
    nearest: str | None = None  # cause by embedding where none could be read; for people, never counted


class ScoreCard(msgspec.Struct, frozen=True, kw_only=True):
    """The scores of one model on one holdout; fractions in 0..1.

    `recall` is pooled over all answers that came back, None without labels (then `contrast` has the
    approximate share). `similarity_floor` is the mean cosine between references of different rows.
    """

    label: str
    model_id: str
    questions: int
    answers: int
    failed: int
    unresolved: tuple[str, ...]
    similarity: float | None
    similarity_floor: float | None
    own_reference_share: float | None
    recall: float | None = None
    contrast: float | None = None
    per_question: dict[str, float] = {}
    methods: dict[str, int] = {}
    fingerprint: str = ""
    similarity_questions: int | None = None  # whose answers were held against references (answers.sampled)
    tokens_per_answer: float | None = None  # of whole answers, by the count of who gave them


class VersionKey(msgspec.Struct, frozen=True, kw_only=True):
    """The key of a registry entry."""

    version: int
    track: Track


class EvalReport(msgspec.Struct, frozen=True, kw_only=True):
    """A model's scores beside those of the version in service (or of the base, for a first version).

    `previous` None with `previous_key` set: the version in service could not be asked (`not_comparable`).
    `left_out` names rows of the other version's training set. `shared` names the only questions that can be
    compared where the previous version's stored answers (of `stored_at`) stand in; empty means all.
    """

    client_id: str
    key: VersionKey
    dataset_sha256: str
    holdout_sha256: str
    fingerprint: str
    measure: Measure
    new: ScoreCard
    previous: ScoreCard | None = None
    previous_key: VersionKey | None = None
    base: ScoreCard | None = None
    left_out: tuple[str, ...] = ()
    not_comparable: str | None = None
    shared: tuple[str, ...] = ()
    stored_at: datetime | None = None
    drawn_alike: bool = True  # False: those were given under another system prompt or decoding
    answers_per_question: int = 1
    judge: str | None = None  # the model that read what no rule could, with its digest
    decoding: Decoding | None = None  # None in reports of earlier releases
    warnings: tuple[str, ...] = ()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate decided, and by what; `compared_with` None means a first version.

    `p_worse` is P(loss beyond the tolerance); `low` and `high` bound 80 % of the draws (bootstrap.py).
    """

    decision: Decision
    reason: str
    measure: Measure
    tolerance: float
    new: float | None = None
    previous: float | None = None
    delta: float | None = None
    compared_with: VersionKey | None = None
    lost: tuple[str, ...] = ()
    gained: tuple[str, ...] = ()
    holdout_sha256: str = ""
    p_worse: float | None = None
    low: float | None = None
    high: float | None = None
    strength: Literal["strong", "weak"] | None = None
    smallest_visible_drop: float | None = None
    answers_per_question: int | None = None
    strict: bool = False


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """The part of an evaluation that the registry keeps for good."""

    method: str
    recall: float | None
    similarity: float | None
    questions: int
    answers: int
    fingerprint: str
    verdict: Verdict
    at: datetime


class RegistryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One version in `model_registry.json`; the first six keys are read by a downstream router."""

    version: int
    track: Track
    model_id: str | None
    eval_score: float | None
    active: bool
    created_at: datetime
    status: Status
    provider: str | None = None
    endpoint: str | None = None
    artifact: str | None = None
    artifact_sha256: str | None = None
    base_model: str | None = None
    dataset_sha256: str | None = None
    holdout_sha256: str | None = None
    training_examples: int | None = None
    account_state_version: str | None = None
    run_id: str | None = None
    evaluation: Evaluation | None = None
    shutdown_date: date | None = None
    cost_usd: float | None = None

    @property
    def key(self) -> VersionKey:
        """(version, track), unique in a registry."""
        return VersionKey(version=self.version, track=self.track)


class Embedder(Protocol):
    """Turns texts into unit vectors; `fingerprint` names weights, tokenizer and length limit."""

    @property
    def fingerprint(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """[n texts, d], rows of length 1."""
        ...


class Tokenizer(Protocol):
    """Counts tokens as the base model sees them, chat template included."""

    @property
    def name(self) -> str: ...

    @property
    def context(self) -> int:
        """The longest row the base model takes, in tokens."""
        ...

    def count(self, rows: Sequence[tuple[Message, ...]]) -> list[tuple[int, int]]:
        """(tokens, tokens with loss) of each row."""
        ...


class Answerer(Protocol):
    """Models that are loaded and can be asked, each by its `Model.model_id`."""

    def replies(self, model_id: str, prompts: Iterable[Prompt], decoding: Decoding) -> Iterator[Reply]:
        """One reply a prompt, in any order; a call that failed comes as `Reply.error`, never as a raise."""
        ...


class RunContext(Protocol):
    """What a step is given: the run, its folders, the values of earlier steps, and where to report.

    `run_dir` is `runs/{run_id}` of `client_dir`, `attempt_dir` the folder for training output below it.
    """

    run: Run
    client_dir: Path
    run_dir: Path
    attempt_dir: Path

    def value(self, kind: type[T]) -> T:
        """The value of that type from an earlier step of this run; KeyError where none gave one."""
        ...

    def emit(self, event: str, **data: object) -> None:
        """Append to `events.jsonl` and show it; `data` fits into JSON and holds no client text."""
        ...

    def approved(self) -> bool:
        """Whether somebody said yes to what this run costs."""
        ...

    def cancelled(self) -> bool:
        """Whether the step shall stop now: by `fine-tune cancel`, or because its process ends."""
        ...

    def check_cancelled(self) -> None:
        """Raise `Interrupted` where `cancelled()`."""
        ...

    def others(self) -> AbstractContextManager[Sequence[RunContext]]:
        """Other runs that wait here for this very step, kept from doing it while the block lasts."""
        ...


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One durable step: `do` gives a value of type `gives`, on record under `name` and then not run again;
    until then it must be safe to start again from its beginning. `label`: only workers that carry it.
    `provider`: whose rate limit a hosted step counts against.
    """

    name: str
    gives: type
    do: Callable[[RunContext], Any]
    place: Place = "registry"
    label: str | None = None
    provider: str | None = None
