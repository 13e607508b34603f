"""Which policy is in force: here in this thread's run, in threads that know none, and in child processes.

The audit hook (hook.py) and every client of ours (transport.py) ask here. It opens no connection.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.policy.caller import calling_frame
from fine_tune_runner.policy.egress import (
    CHILD,
    POLICY_VARIABLE,
    EgressPolicy,
    EgressRefused,
    Lookup,
    is_inherited,
    system_lookup,
)
from fine_tune_runner.policy.record import Attempt, EgressRecord, What

# What libraries read before they phone home; for a sensitive run, here and in every child.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "disabled",
    "PIP_NO_INDEX": "1",
    "NO_PROXY": "*",
    "no_proxy": "*",
}
# A proxy in the private network would pass the check and carry the connection anywhere.
PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "ftp_proxy"})


class Guard:
    """One policy in force and the record that it writes; `record` None keeps none."""

    def __init__(self, policy: EgressPolicy, record: EgressRecord | None) -> None:
        self.policy = policy
        self.record = record
        self._start = record.size() if record else 0

    def note(self, what: What, host: str, port: int | None = None, **more: Any) -> Attempt:
        """Put an attempt on record; `more` are further fields of `Attempt`."""
        line = Attempt(at=datetime.now(UTC), pid=os.getpid(), what=what, host=host, port=port, **more)
        if self.record is not None:
            self.record.write(line)
        return line

    def refuse(self, what: What, host: str, port: int | None, reason: str) -> NoReturn:
        """Put on record what was not allowed, and raise EgressRefused that names the caller."""
        raise EgressRefused(self.note(what, host, port, refused=reason, by=calling_frame()).told)

    def addresses(self, host: str, port: int, lookup: Lookup = system_lookup) -> tuple[str, ...]:
        """`EgressPolicy.addresses`, a refusal on record and with its caller."""
        try:
            with vouched():
                return self.policy.addresses(host, port, lookup)
        except EgressRefused as error:
            self.refuse("connect", host, port, str(error))

    def refused(self) -> list[Attempt]:
        """What was refused since this guard began, in child processes too."""
        return [line for line in self.record.read(self._start) if line.refused] if self.record else []

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """`env` for a child: it starts under this guard, and offline where the policy is sensitive."""
        record = str(self.record.path.resolve()) if self.record else None
        word = msgspec.json.encode(_Inherited(self.policy, record)).decode()
        search = os.pathsep.join(filter(None, [str(CHILD), env.get("PYTHONPATH")]))
        given = dict(env) if is_inherited(env) else {**env, "PYTHONPATH": search}
        if self.policy.sensitive:
            given = {name: value for name, value in given.items() if name.lower() not in PROXIES} | OFFLINE
        return given | {POLICY_VARIABLE: word}


class _Inherited(msgspec.Struct, frozen=True):
    policy: EgressPolicy
    record: str | None


_here: ContextVar[Guard | None] = ContextVar("guard", default=None)
_vouched: ContextVar[bool] = ContextVar("vouched", default=False)
_lock = threading.Lock()
_in_force: tuple[Guard, ...] = ()  # replaced, never changed, so that the hook reads it without the lock
_left: Guard | None = None  # the last sensitive one whose block ended, in a process that keeps it
_keeps = False
_before: dict[str, str] | None = None  # the environment to go back to


def current() -> Guard | None:
    """The guard of this thread's run; in a thread without one, such as a library's, a sensitive one first."""
    here = _here.get()
    if here is not None:
        return here
    sensitive = [guard for guard in _in_force if guard.policy.sensitive]
    return sensitive[-1] if sensitive else _left or (_in_force[-1] if _in_force else None)


def deciding() -> Guard | None:
    """The guard that a connection made right here must pass; None where none is or it was checked already."""
    return None if _vouched.get() else current()


@contextlib.contextmanager
def guarded(policy: EgressPolicy, record: Path | None = None) -> Iterator[Guard]:
    """Hold everything in this block, and threads that know no other block, to a policy.

    A block inside a block keeps the outer record unless it names its own. For a sensitive client the
    environment of this process is offline and without proxies until the last such block ends.
    """
    from fine_tune_runner.policy.hook import install

    if policy.sensitive and (sys.flags.ignore_environment or sys.flags.isolated or sys.flags.no_site):
        raise EgressRefused("python was started with -I, -E or -S, which its children inherit; start without")
    install()
    outer = _here.get()
    kept = outer.record if outer else None
    guard = Guard(policy, EgressRecord(record) if record else kept)
    token = _here.set(guard)
    _enter(guard)
    try:
        yield guard
    finally:
        _leave(guard)
        _here.reset(token)


@contextlib.contextmanager
def vouched() -> Iterator[None]:
    """For connections and programs that were checked already, in this block and thread only."""
    token = _vouched.set(True)
    try:
        yield
    finally:
        _vouched.reset(token)


def keep_to_the_end() -> None:
    """From now on a sensitive guard stays in force when its block ends, to the end of this process.

    For commands: what a library gathered in a run it may send later, from a thread of its own or at exit.
    """
    global _keeps
    _keeps = True


def child_environment(env: Mapping[str, str]) -> dict[str, str]:
    """`env` for a child process, under the guard in force here; unchanged where there is none."""
    guard = current()
    return dict(env) if guard is None else guard.environment(env)


def environment_before() -> Mapping[str, str] | None:
    """What the environment was before a sensitive run took the proxies away; None where it is as it was."""
    return _before


def install_from_environment() -> None:
    """Put this child process under the guard of its parent, to its end; nothing where it has none."""
    from fine_tune_runner.policy.hook import install

    word = os.environ.get(POLICY_VARIABLE)
    if word is not None and not _in_force:
        parent = msgspec.json.decode(word, type=threadsafe(_Inherited))
        install()
        _enter(Guard(parent.policy, EgressRecord(Path(parent.record)) if parent.record else None))


def _enter(guard: Guard) -> None:
    global _in_force, _before
    with _lock:
        _in_force = (*_in_force, guard)
        if guard.policy.sensitive:
            _before = dict(os.environ) if _before is None else _before
            _replace_environment(guard.environment(os.environ))


def _leave(guard: Guard) -> None:
    global _in_force, _left, _before
    with _lock:
        _in_force = tuple(other for other in _in_force if other is not guard)
        if _keeps and guard.policy.sensitive:
            _left = guard
        elif _before is not None and not any(other.policy.sensitive for other in _in_force):
            _replace_environment(_before)
            _before = None


def _replace_environment(wanted: Mapping[str, str]) -> None:
    """Only what differs is touched: native threads may be reading the environment."""
    for name in [name for name in os.environ if name not in wanted]:
        del os.environ[name]
    os.environ.update({name: value for name, value in wanted.items() if os.environ.get(name) != value})
