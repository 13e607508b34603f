"""A judge reads the answers that no rule could: each twice, the causes in two orders, each for good.

What it says goes where people's decisions are; a person's word stands over it. Knows no model: a judge comes
as ports.Judge.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from fine_tune_runner.dataset.taxonomy import Cause, Taxonomy
from fine_tune_runner.errors import ProviderError, ServingError
from fine_tune_runner.evaluation.decisions import Decided, answer_sha256, append_decision
from fine_tune_runner.evaluation.holdout import Holdout, Question
from fine_tune_runner.evaluation.judge_prompt import UNDECIDED, judge_messages
from fine_tune_runner.ports import Judge, OpenJudge
from fine_tune_runner.types import Clock, Message

RETRIES = 1
NO_CHOICE = "gave no readable choice"
Key = tuple[str, str]  # hash of the question, hash of the answer
OnRead = Callable[[str, int, int], None]  # ("judge" and its name, calls so far, calls in all)


class Away:
    """A judge that cannot be asked, and why; implements ports.Judge, so that nothing else needs to know."""

    def __init__(self, identity: str, fault: str) -> None:
        self.identity = identity
        self._fault = fault

    def choose(self, messages: Sequence[Message], choices: Sequence[str]) -> str | None:
        """Raises ServingError."""
        raise ServingError(self._fault)


@contextmanager
def opened(judge: OpenJudge | None, name: str | None) -> Iterator[Judge | None]:
    """The judge of a client, `Away` where its host does not answer or lacks it; None where none is named.

    What is wrong in the settings, or forbidden, is raised.
    """
    if judge is None or name is None:
        yield None
        return
    with ExitStack() as stack:
        try:
            found: Judge = stack.enter_context(judge())
        except (ProviderError, ServingError) as error:
            found = Away(name, str(error))
        yield found


def orders(taxonomy: Taxonomy) -> tuple[tuple[Cause, ...], tuple[Cause, ...]]:
    """The causes in an order drawn by their labels' hashes, and in the reverse of it.

    A model that takes to a place of the list says two different things then.
    """
    drawn = sorted(taxonomy.causes.values(), key=lambda cause: hashlib.sha256(cause.label.encode()).digest())
    return tuple(drawn), tuple(reversed(drawn))


class Reader:
    """One judge through one evaluation; `fault` is why it could not be asked, if so, and `unread` what for.

    After a fault it is asked no more, so that an evaluation does not wait for each answer. An answer to which
    it said nothing that can be read is unread too, and is asked again by the next evaluation only.
    """

    def __init__(
        self, judge: Judge, taxonomy: Taxonomy, decisions: Path, clock: Clock, on_read: OnRead
    ) -> None:
        self._judge = judge
        self._taxonomy = taxonomy
        self._decisions = decisions
        self._clock = clock
        self._on_read = on_read
        self.fault: str | None = None
        self.unread: set[Key] = set()

    @property
    def warning(self) -> str | None:
        """What a report says of answers that were to be read and were not; None where all were."""
        if not self.unread:
            return None
        return (
            f"judge {self._judge.identity} could not read {len(self.unread)} answers, which stay unresolved: "
            f"{self.fault or NO_CHOICE}"
        )

    def read(self, holdout: Holdout, answers: Sequence[tuple[Question, str]]) -> Holdout:
        """The holdout with what the judge says of these answers, as far as nobody said anything before.

        Calls the judge twice an answer, once where it is undecided at the first call, and keeps each decision
        at once. Whatever `on_read` raises ends it; what was kept stays.
        """
        asked = {
            (question.sha256, answer_sha256(text)): (question, text)
            for question, text in answers
            if text.strip() and holdout.decision(question.id, text) is None
        }
        asked = {key: asked[key] for key in asked if key not in self.unread}
        found = self._asked(asked) if self.fault is None else {}
        self.unread |= asked.keys() - found.keys()
        decided = {row_id: dict(of_question) for row_id, of_question in holdout.decided.items()}
        for question, text in answers:
            if said := found.get((question.sha256, answer_sha256(text))):
                decided.setdefault(question.id, {})[said.answer] = said
        return msgspec.structs.replace(holdout, decided=decided)

    def _asked(self, asked: Mapping[Key, tuple[Question, str]]) -> dict[Key, Decided]:
        """Each order for all answers before the next one, so that the host computes its list but once."""
        one_way, other_way = orders(self._taxonomy)
        found: dict[Key, Decided] = {}
        first: dict[Key, str] = {}
        total = 2 * len(asked)
        try:
            for done, (key, (question, text)) in enumerate(asked.items(), 1):
                cause = self._choose(one_way, question, text)
                if cause == UNDECIDED:
                    found[key] = self._kept(key, question, None)
                elif cause is not None:
                    first[key] = cause
                self._on_read(f"judge {self._judge.identity}", done, total)
            for done, (key, cause) in enumerate(first.items(), total - len(first) + 1):
                question, text = asked[key]
                again = self._choose(other_way, question, text)
                if again is not None:
                    found[key] = self._kept(key, question, cause if again == cause else None)
                self._on_read(f"judge {self._judge.identity}", done, total)
        except (ProviderError, ServingError) as error:
            self.fault = str(error)
        return found

    def _choose(self, causes: Sequence[Cause], question: Question, text: str) -> str | None:
        """A label or UNDECIDED; None where it said neither. Raises what the last try raised."""
        messages = judge_messages(causes, question.text, text)
        choices = [*(cause.label for cause in causes), UNDECIDED]
        for attempt in range(RETRIES + 1):
            try:
                return self._judge.choose(messages, choices)
            except (ProviderError, ServingError):
                if attempt == RETRIES:
                    raise
        return None

    def _kept(self, key: Key, question: Question, cause: str | None) -> Decided:
        decided = Decided(
            question=key[0],
            answer=key[1],
            right=None if cause is None else cause in question.right,
            who=self._judge.identity,
            at=self._clock(),
            by_judge=True,
            cause=cause,
        )
        append_decision(self._decisions, decided)
        return decided
