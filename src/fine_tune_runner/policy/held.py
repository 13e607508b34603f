"""What is done for a client is done under its policy: the steps of its runs, and the library's calls.

The one place that ties the guard to a run and its record. It knows steps, but none of them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fine_tune_runner.policy.egress import EgressPolicy, policy_of
from fine_tune_runner.policy.guard import guarded
from fine_tune_runner.policy.record import RECORD
from fine_tune_runner.settings import Settings, load_client
from fine_tune_runner.types import RunContext, Step

Emit = Callable[..., None]
F = TypeVar("F", bound=Callable[..., Any])


def held_step(step: Step, policy: EgressPolicy) -> Step:
    """The same step under a policy, on the record of its run, whichever thread or process does it."""

    def do(context: RunContext) -> Any:
        with on_record(policy, context.run_dir, context.emit):
            return step.do(context)

    return msgspec.structs.replace(step, do=do)


@contextlib.contextmanager
def on_record(policy: EgressPolicy, run_dir: Path, emit: Emit) -> Iterator[None]:
    """A block under a policy, on the record of a run; what was refused in it becomes a warning each."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with guarded(policy, run_dir / RECORD) as guard:
        try:
            yield
        finally:
            # Also what a library swallowed, and what a child process tried.
            for said in dict.fromkeys(line.told for line in guard.refused()):
                emit("warning", message=f"{said}; all attempts: fine-tune egress {run_dir.name}")


@contextlib.contextmanager
def all_held(settings: Settings, client_ids: Iterable[str]) -> Iterator[None]:
    """A block under the policies of all these clients, a sensitive one innermost, so that it decides here."""
    policies = [policy_of(settings, load_client(settings, client_id)) for client_id in client_ids]
    with contextlib.ExitStack() as stack:
        for policy in sorted(policies, key=lambda policy: policy.sensitive):
            stack.enter_context(guarded(policy))
        yield


def held(method: F) -> F:
    """A method of something with `settings`, under the policy of the client that its first argument names."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def under_policy(*args: Any, **words: Any) -> Any:
        self, subject = signature.bind(*args, **words).args[:2]
        client_id = subject if isinstance(subject, str) else subject.client_id
        with guarded(policy_of(self.settings, load_client(self.settings, client_id))):
            return method(*args, **words)

    return under_policy  # type: ignore[return-value]
