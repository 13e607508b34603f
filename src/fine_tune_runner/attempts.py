"""Choosing a run: which attempt at a version a request means, and whether a new one may begin.

Reads client, data set, registry and runs; begins nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fine_tune_runner.dataset import read
from fine_tune_runner.errors import DataError, PolicyError, RunError
from fine_tune_runner.policy.track import choose_track
from fine_tune_runner.ports import TrackPort
from fine_tune_runner.registry import edits
from fine_tune_runner.registry.store import Registry
from fine_tune_runner.settings import Client, Settings, check_judge, load_client
from fine_tune_runner.types import Clock, Dataset, Request, Run, Track, TrackChoice, VersionKey
from fine_tune_runner.workflow.engine import RUN_ID, Engine, RunState

UNFINISHED = ("interrupted", "queued", "waiting")  # states of a run that goes on when it is told to


class Attempts:
    """The runs that there are and may be; `port` gives a client on a track, `who` begins new ones."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        port: Callable[[Client, Track], TrackPort],
        clock: Clock,
        who: str,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._port = port
        self._clock = clock
        self._who = who

    def plan(self, request: Request) -> tuple[Client, Dataset, TrackChoice]:
        """Client, data set and track choice of a request, checked, nothing begun."""
        client = load_client(self._settings, request.client_id)
        check_judge(self._settings, client)  # else `evaluate` says it, when all is trained and paid for
        if client.config.is_sensitive and request.track == "A":
            choose_track(client, request.track, request.purpose, 0)  # refused before a row is read
        dataset = read.load(client, request.version)
        choice = choose_track(client, request.track, request.purpose, dataset.examples)
        return client, dataset, choice

    def run_for(self, request: Request) -> Run:
        """The run that a request means: the newest attempt at this content, or a new one.

        Raises the DataError, PolicyError or RunError that forbids it; changes nothing.
        """
        client, dataset, choice = self.plan(request)
        track_port = self._port(client, choice.track)
        attempts = self._known(client, dataset, choice.track)
        last = attempts[-1] if attempts else None
        if last and not request.again:
            # A run that was begun goes on, whether or not the track would take a new one today.
            if last.state != "finished" and (reason := track_port.ended(last.run)):
                raise RunError(
                    f"run {last.run.run_id} is at its end ({reason}); another attempt: "
                    "the same command with --again"
                )
            return _worded(last.run, request)
        if last and last.state == "running":
            raise RunError(f"run {last.run.run_id} is alive in process {last.pid}")
        if last and last.state in UNFINISHED and track_port.ended(last.run) is None:
            run_id = last.run.run_id  # what it paid for may still be going on elsewhere
            raise RunError(f"run {run_id} is unfinished: fine-tune resume {run_id}, or cancel it first")
        if reason := track_port.unavailable():
            raise PolicyError(f"Track {choice.track} ({choice.reason}) is not available: {reason}")
        if last and last.state != "finished" and (going := track_port.pending(last.run)):
            run_id = last.run.run_id
            on = "" if track_port.ended(last.run) else f"go on with it: fine-tune resume {run_id}, or "
            raise RunError(
                f"run {run_id} is {last.state} here, but {going}, so nothing new was begun; "
                f"{on}stop it: fine-tune cancel {run_id}"
            )
        # Asked before anything is trained or paid for, though `register` would refuse it as well.
        key = VersionKey(version=dataset.version, track=choice.track)
        edits.check_replaceable(Registry(client.dir, self._clock).entries(), key)
        run = self._new(client, dataset, choice, 1 + max((one.run.attempt for one in attempts), default=0))
        return _worded(run, request)

    def named(self, run_id: str) -> Run:
        """The run of that name; one that this disk lost is begun again under it, to find what it paid for.

        Raises RunError for a name that is none, and where the content is not the one it names.
        """
        name = RUN_ID.fullmatch(run_id)
        if name is None:
            return self._engine.find(run_id).run
        if known := [state.run for state in self._engine.runs(name[1]) if state.run.run_id == run_id]:
            return known[0]
        track: Track = "A" if name[3] == "a" else "B"
        request = Request(client_id=name[1], version=int(name[2]), track=track)
        client, dataset, choice = self.plan(request)
        if dataset.sha256[:8] != name[4]:
            raise RunError(
                f"run {run_id} is unknown here, and {dataset.train_path} is not the content that it names; "
                "`fine-tune status` lists clients and their runs"
            )
        return self._new(client, dataset, choice, int(name[5]))

    def _new(self, client: Client, dataset: Dataset, choice: TrackChoice, attempt: int) -> Run:
        return Run(
            run_id=f"{client.id}-v{dataset.version}-{choice.track.lower()}-{dataset.sha256[:8]}-{attempt}",
            client_id=client.id,
            version=dataset.version,
            track=choice.track,
            track_reason=choice.reason,
            attempt=attempt,
            dataset_sha256=dataset.sha256,
            created_at=self._clock(),
            who=self._who,
        )

    def _known(self, client: Client, dataset: Dataset, track: Track) -> list[RunState]:
        """The runs of this version on this track, oldest first; DataError where its content changed."""
        runs = [state for state in self._engine.runs(client.id) if state.run.version == dataset.version]
        if other := [state for state in runs if state.run.dataset_sha256 != dataset.sha256]:
            raise DataError(
                f"{dataset.train_path}: a run of v{dataset.version} began with another content "
                f"({other[0].run.run_id}); publish v{dataset.version + 1}"
            )
        return [state for state in runs if state.run.track == track]


def _worded(run: Run, request: Request) -> Run:
    """The run with the words of this command; one begun as strict stays so."""
    return msgspec.structs.replace(
        run,
        max_cost_usd=request.max_cost_usd,
        strict=run.strict or request.strict,
        answers=request.answers or run.answers,
    )
