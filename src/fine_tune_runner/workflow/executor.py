"""The process that does runs: DBOS decides which step is next and where, threads of this process do it.

A run is one workflow at the home host; the steps that belong elsewhere are legs on the queues of their place.
Outcomes are values, never errors of the database, so that a run can be set going again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import operator
import os
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import sqlalchemy
from dbos import DBOS, DBOSPortableJSONSerializer, SetEnqueueOptions, SetWorkflowID
from dbos._error import DBOSAwaitedWorkflowCancelledError

from fine_tune_runner.errors import (
    DatabaseAway,
    Interrupted,
    NeedsApproval,
    PolicyError,
    RunError,
    RunnerError,
)
from fine_tune_runner.files import locked
from fine_tune_runner.types import PLACES, Place, Run, Step
from fine_tune_runner.workflow.database import APP, APP_VERSION, POLL_S, Database
from fine_tune_runner.workflow.engine import PATIENCE, Event, Patience, Plan
from fine_tune_runner.workflow.record import STOPPED, Record, StepContext, finish, outcome, perform
from fine_tune_runner.workflow.together import company

if TYPE_CHECKING:
    from fine_tune_runner.workflow.lease import Lease

SWEEP_S = 2.0
TAKING_S = 10.0  # how long a look at a queue may take that is under way when its process stops
TURNS = ("run queued", "step started", "run interrupted")  # events that tell whether a run goes on by itself
# With a label there are two queues of training, and one GPU; what was given up here may still be on it.
TRAINING = threading.Lock()
Outcome = dict[str, Any]  # {"state": "done" | the state of the run, "code"}: no text, which may be a client's


class Stopping(BaseException):
    """A step ended because its process does; the workflow stays as it is, for another process."""


class Executor:
    """Does the runs of the queues of `places`; one a process, for DBOS is one a process.

    `labels` are what this host may be trusted with. `bugs` are the exceptions that no step should raise.
    """

    def __init__(
        self,
        record: Record,
        plan: Plan,
        database: Database,
        *,
        places: Sequence[Place] = PLACES,
        labels: Sequence[str] = (),
        notice: Callable[[str], None] = lambda _text: None,
        listener: Callable[[Event], None] = lambda _event: None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._record = record
        self._plan = plan
        self._database = database
        self._places = places
        self._labels = labels
        self.notice = notice
        self._listener = listener
        self._stopping = threading.Event()
        self._threads: set[threading.Thread] = set()
        # Never that of an earlier process: at its start DBOS takes up whatever bears its executor's id.
        self.id = f"{database.here}-{os.getpid()}-{time.time_ns():x}"
        self.bugs: dict[str, BaseException] = {}
        self._active: set[str] = set()
        self._dropped: set[str] = set()
        self._swept = 0.0
        self.lost = threading.Event()  # its runs were taken over by another worker
        self._lease = _lease(database, self, patience) if not database.embedded else None

    def start(self) -> None:
        """Begin to take work off the queues; names loudly what belongs to another application version."""
        queues = self._database.register(self._places, self._labels)
        for stranger in self._database.strangers():
            self.notice(
                f"workflow {stranger.id} belongs to application version {stranger.app_version!r} and is left "
                f"alone; cancel its run and submit it again"
            )
        _log_to(self.notice)
        self._dbos = DBOS(
            config={
                "name": APP,
                "system_database_url": self._database.url,
                "application_version": APP_VERSION,
                "executor_id": self.id,
                "serializer": DBOSPortableJSONSerializer(),
                "enable_otlp": False,
                "log_level": "ERROR",
                "notification_listener_polling_interval_sec": POLL_S,  # how long the end of its thread takes
            }
        )

        @DBOS.workflow(name="run", max_recovery_attempts=None)
        async def run(client_id: str, run_id: str) -> Outcome:
            return await self._tracked(self._run(self._record.load(client_id, run_id)))

        @DBOS.workflow(name="leg", max_recovery_attempts=None)
        async def leg(client_id: str, run_id: str, steps: list[str], queue: str) -> Outcome:
            today = self._database.today(queue)
            return await self._tracked(self._leg(self._record.load(client_id, run_id), steps, today))

        self._leg_workflow = leg
        DBOS.listen_queues(queues)
        if self._lease is not None:
            self._lease.start(queues)
        with self._database.one_line():
            DBOS.launch()

    def wanted(self, run_id: str) -> bool:
        """Whether a run goes on by itself: not one stopped with Ctrl-C, nor one that is gone."""
        try:
            events = self._record.events(run_id)
        except RunError:
            return False
        # After a second Ctrl-C a step may have said something behind it.
        turns = [event.event for event in events if event.event in TURNS]
        return not turns or turns[-1] != "run interrupted"

    def active(self) -> set[str]:
        """The workflows that this process is doing."""
        return set(self._active)

    def sweep(self) -> None:
        """Put back what this process has dropped because the database was away; to be called now and then."""
        if time.monotonic() - self._swept < SWEEP_S:
            return
        self._swept = time.monotonic()
        dropped = set(self._database.pending(self.id)) - self._active
        # Seen twice, for one that was just taken off its queue is not active at once.
        self._database.put_back(self._dropped & dropped)
        self._dropped = dropped

    def give_up(self) -> None:
        """Stop every step: another worker has taken over."""
        self._stopping.set()
        self.lost.set()

    def stop(self, wait_s: float = 150.0) -> None:
        """Ask every step to end where it can go on later, wait for them, and leave the workflows alone."""
        left_s = 0.0 if self._stopping.is_set() else wait_s  # nobody is waited for twice
        self._stopping.set()
        if self._lease is not None:
            self._lease.close_queues()
        self._take_no_more(min(TAKING_S, left_s))
        deadline = time.monotonic() + left_s
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        DBOS.destroy(destroy_registry=True)
        if self._lease is not None:
            self._lease.stop()

    def _take_no_more(self, wait_s: float) -> None:
        """End the threads that take work off the queues while there is an event loop to hand it to.

        DBOS itself stops the loop first: what they have just taken is then never begun, and one that waits
        for the answer of a stopped loop waits for ever.
        """
        for event in self._dbos.background_thread_stop_events:
            event.set()
        deadline = time.monotonic() + wait_s
        for thread in threading.enumerate():
            if "queue_thread" in thread.name or thread.name.startswith("queue-worker-"):
                thread.join(max(0.0, deadline - time.monotonic()))

    async def _tracked(self, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Let a workflow go, without a word to the database, where that is away; `sweep` takes it up."""
        name = str(DBOS.workflow_id)
        self._active.add(name)
        try:
            return await work
        except sqlalchemy.exc.SQLAlchemyError as error:
            self.notice(f"{name} waits for the database: {_first_line(error)}")
            raise asyncio.CancelledError from None
        finally:
            self._active.discard(name)

    async def _run(self, run: Run) -> Outcome:
        """All that is left of a run; each next leg is decided by what is on record."""
        async with self._held(run):
            for number in itertools.count(1):
                leg = await self._step("next", run, lambda: self._next(run))
                if leg["state"] != "next":
                    return leg
                if leg["queue"] is None:
                    ended = await self._leg(run, leg["steps"], None)
                else:
                    ended = await self._elsewhere(run, number, leg)
                if ended["state"] != "done":
                    return ended
        raise AssertionError("the loop returns")

    async def _elsewhere(self, run: Run, number: int, leg: Outcome) -> Outcome:
        """Do a leg on its own queue and wait for it."""
        own = DBOS.workflow_id or run.run_id
        name = f"{own}.{number}" if "~" in own else f"{own}~1.{number}"
        queue = self._database.today(leg["queue"])
        # None but for `hosted`; a leg that was decided before there was a provider in it counts for itself.
        share = (leg.get("provider") or "none") if queue.startswith("hosted") else None
        with SetWorkflowID(name), SetEnqueueOptions(priority=leg["priority"], queue_partition_key=share):
            handle = await DBOS.enqueue_workflow_async(
                queue, self._leg_workflow, run.client_id, run.run_id, leg["steps"], queue
            )
        try:
            return dict(await handle.get_result(polling_interval_sec=POLL_S))
        except DBOSAwaitedWorkflowCancelledError:
            return await self._step("cancelled", run, lambda: self._cancelled(run))

    async def _leg(self, run: Run, steps: Sequence[str], queue: str | None) -> Outcome:
        """Consecutive steps of one place."""
        ended: Outcome = {"state": "done"}
        for name in steps:
            ended = await self._step(name, run, functools.partial(self._perform, run, name, queue))
            if ended["state"] != "done":
                break
        return ended

    async def _step(self, name: str, run: Run, work: Callable[[], Outcome]) -> Outcome:
        async def body() -> Outcome:
            try:
                return await self._in_thread(lambda: self._answered(run, work))
            except Stopping:
                # Neither a result nor an error: whoever takes the workflow over does this step again.
                raise asyncio.CancelledError from None

        return await DBOS.run_step_async({"name": name}, body)

    async def _in_thread(self, work: Callable[[], Outcome]) -> Outcome:
        """A thread of its own, which does not keep the process alive."""
        if self._stopping.is_set():
            raise Stopping
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()

        def body() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the edge of a thread
                future.set_exception(error)
            finally:
                self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=body, daemon=True)
        self._threads.add(thread)
        thread.start()
        return await asyncio.wrap_future(future)

    def _answered(self, run: Run, work: Callable[[], Outcome]) -> Outcome:
        """What a step gave, or why the run stops."""
        try:
            return work()
        except Interrupted as error:
            if (self._record.folder(run) / "cancel").exists():
                return self._stopped(run, "cancelled", error)
            if self._stopping.is_set():
                raise Stopping from None
            return self._stopped(run, "interrupted", error)
        except NeedsApproval as error:
            return self._stopped(run, "waiting", error)
        except (DatabaseAway, sqlalchemy.exc.SQLAlchemyError) as error:
            # No error of the step's: on record it would be raised again for ever.
            self.notice(f"{run.run_id} waits for the database: {_first_line(error)}")
            raise Stopping from None
        except RunnerError as error:
            return self._stopped(run, "failed", error)
        except Exception as error:  # noqa: BLE001 - raised again where no database keeps its text
            self.bugs[run.run_id] = error
            self._record.say_why(run, traceback.format_exc())
            raise RuntimeError(f"{type(error).__name__}, see {self._record.folder(run) / STOPPED}") from None

    def _stopped(self, run: Run, state: str, error: RunnerError) -> Outcome:
        self._record.say_why(run, str(error))
        return {"state": state, "code": error.code}

    def _next(self, run: Run) -> Outcome:
        """The next leg by record and plan: its steps and its queue, None for this very workflow."""
        context = self._open(run)
        with outcome(context):
            done = context.done()
            todo = [step for step in self._plan(run) if step.name not in done]
            if not todo:
                finish(context)
                return {"state": "finished"}
            first = todo[0]
            where = operator.attrgetter("place", "label", "provider")
            same = itertools.takewhile(lambda step: where(step) == where(first), todo)
            return {
                "state": "next",
                "provider": first.provider,
                "steps": [step.name for step in same],
                "queue": None if first.place == "registry" else self._queue(context, first),
                "priority": 1,
            }

    def _queue(self, context: StepContext, step: Step) -> str:
        """Where a step is enqueued; training stays on the host that began it, while that is there."""
        if step.place != "train" or self._database.embedded:
            return self._database.queue(step.place, step.label)
        offered = self._trainers(context, step.label)
        before = [e.data["queue"] for e in self._record.events(context.run.run_id) if e.event == "placed"]
        if before and before[-1] in offered:
            return str(before[-1])
        chosen = self._database.shortest(offered)
        context.emit("placed", queue=chosen)
        return chosen

    def _trainers(self, context: StepContext, label: str | None) -> list[str]:
        """The queues of the hosts that train now; where there is none, the first to come is waited for."""
        told = False
        while not (offered := self._database.trainers(label)):
            if not told:
                context.emit("no trainer")
                how = f"fine-tune worker --label {label}" if label else "fine-tune worker"
                self.notice(f"{context.run.run_id} waits, for no such worker trains now; start one: {how}")
                told = True
            context.check_cancelled()
            time.sleep(SWEEP_S)
        return offered

    def _perform(self, run: Run, name: str, queue: str | None) -> Outcome:
        """One step, alone in its run's folder."""
        waiting = self._open(run)
        turn = self._turn(waiting) if queue and queue.startswith("train") else contextlib.nullcontext()
        with outcome(waiting), turn, _alone(waiting):
            context = self._open(run)  # another worker may have put the step on record while this one waited
            step = next((step for step in self._plan(run) if step.name == name), None)
            if step is None:
                raise RunError(f"step {name} is not a step of this version of fine-tune; submit with --again")
            self._admit(step, queue)
            if queue is not None:
                context.company = functools.partial(
                    company, self._record, self._plan, self._database, context, step, queue, self._open
                )
            return {"state": "done", "sha256": perform(context, step)}

    @contextlib.contextmanager
    def _turn(self, context: StepContext) -> Iterator[None]:
        """One training at a time in this process, whichever queue it came from."""
        while not TRAINING.acquire(timeout=1.0):
            context.check_cancelled()
        try:
            yield
        finally:
            TRAINING.release()

    def _admit(self, step: Step, queue: str | None) -> None:
        """PolicyError where this worker may not do a step, whatever queue brought it here."""
        if step.label is not None and step.label not in self._labels:
            raise PolicyError(
                f"step {step.name} runs only on workers labelled {step.label}; "
                f"start one: fine-tune worker --label {step.label}"
            )
        if step.place == "train" and queue != (ours := self._database.queue("train", step.label)):
            raise RunError(f"step {step.name} belongs to {queue}, but this worker trains for {ours}")

    def _cancelled(self, run: Run) -> Outcome:
        with contextlib.suppress(Interrupted), outcome(self._open(run)):
            raise Interrupted(f"run {run.run_id} was cancelled")
        return {"state": "cancelled"}

    def _open(self, run: Run) -> StepContext:
        return self._record.open(run, listener=self._listener, stopping=self._stopping.is_set)

    @contextlib.asynccontextmanager
    async def _held(self, run: Run) -> AsyncIterator[None]:
        """Hold the run; a predecessor that was stopped, not killed, is waited for."""
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(self._record.held(run))
                    break
                except RunError:
                    await asyncio.sleep(POLL_S)
            yield


@contextlib.contextmanager
def _alone(context: StepContext) -> Iterator[None]:
    """Let no two processes do a step of the same run at the same time."""
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(context.run_dir / "step.lock", wait_s=1.0))
                break
            except BlockingIOError:
                context.check_cancelled()
        yield


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().partition("\n")[0]


def _lease(database: Database, executor: Executor, patience: Patience) -> Lease:
    from fine_tune_runner.workflow.lease import Lease

    return Lease(
        database,
        executor.id,
        lost=executor.give_up,
        notice=executor.notice,
        wanted=executor.wanted,
        active=executor.active,
        patience=patience,
    )


def _log_to(notice: Callable[[str], None]) -> None:
    """Let DBOS complain in one line through `notice` instead of with a traceback on stderr."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.exc_info[1] if record.exc_info else None
            text = f"{record.getMessage()} {said or ''}".strip()
            notice(f"engine: {text.splitlines()[0]}")

    logger = logging.getLogger("dbos")
    logger.handlers[:] = [Handler()]
    logger.propagate = False
