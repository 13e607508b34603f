"""A look at hosted models: how long those in service live, and what at the provider nobody watches.

Pure functions over what was read elsewhere (registries, runs, the provider's lists); the commands do the
reading, the asking and the deleting.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Literal

import msgspec

from fine_tune_runner.hosted.providers import ENDS, PROVIDERS, phase
from fine_tune_runner.hosted.records import RemoteFile, RemoteJob, RemoteModel
from fine_tune_runner.hosted.remote import file_name
from fine_tune_runner.hosted.shutdown import Life, base_of, day, life
from fine_tune_runner.types import RegistryEntry, State
from fine_tune_runner.workflow.engine import RUN_ID
from fine_tune_runner.workflow.ledger import Effect

WATCHING: tuple[State, ...] = ("running", "interrupted", "queued", "waiting")


class InService(msgspec.Struct, frozen=True, kw_only=True):
    """A hosted model that answers for a client, and when it stops."""

    client_id: str
    version: int
    model_id: str
    provider: str
    life: Life

    def within(self, days: int) -> bool:
        """Whether it stops in fewer than so many days, or has stopped."""
        return self.life.days_left is not None and self.life.days_left < days


class Unwatched(msgspec.Struct, frozen=True, kw_only=True):
    """A job, a file or a model at the provider that no run watches, and the command that sees to it.

    `run_id` is None where it carries none of ours: it may belong to somebody else. `adopt` is None where
    nothing can go on with it. `model_id` is the model that a job made.
    """

    kind: Literal["job", "file", "model"]
    id: str
    run_id: str | None
    status: str
    why: str
    adopt: str | None = None
    model_id: str | None = None

    @property
    def client_id(self) -> str | None:
        """The client whose run it belongs to."""
        return _client_of(self.run_id)


def in_service(
    active: Mapping[str, RegistryEntry],
    today: date,
    listed: Mapping[str, Sequence[RemoteModel]] | None = None,
) -> list[InService]:
    """The hosted models in service by client, soonest end first.

    `active` has each client's active entry; those of the other track are left out. `listed` is what
    `GET /v1/models` said, by address; a model's own date counts, else its base's, else the published one.
    """
    found = []
    for client_id, entry in sorted(active.items()):
        provider = PROVIDERS.get(entry.provider or "openai")
        if entry.track != "A" or entry.model_id is None or provider is None:
            continue
        served = served_date((listed or {}).get(entry.endpoint or "", ()), entry.model_id, entry.base_model)
        dates = [d for d in (served, entry.shutdown_date) if d]
        known = life(provider, entry.endpoint or "", entry.model_id, today, min(dates, default=None))
        found.append(
            InService(
                client_id=client_id,
                version=entry.version,
                model_id=entry.model_id,
                provider=provider.name,
                life=known,
            )
        )
    never = 10**6
    return sorted(found, key=lambda one: never if one.life.days_left is None else one.life.days_left)


def served_date(models: Iterable[RemoteModel], model_id: str, base: str | None = None) -> date | None:
    """The earliest `shutdown_date` that the provider lists for a model or for its base."""
    names = {model_id, base_of(model_id), base}
    dates = [day(model.shutdown_date) for model in models if model.id in names]
    return min((d for d in dates if d), default=None)


def unwatched(
    jobs: Sequence[RemoteJob],
    files: Sequence[RemoteFile],
    runs: Mapping[str, State],
    registered: Iterable[str],
) -> list[Unwatched]:
    """Jobs and training files that no run watches.

    `runs` has the state of every run here by its id (`failed`: it can go on, `cancelled`: it cannot),
    `registered` the model ids of all registries. A run that can go on watches its job, unless it failed; a
    finished job is settled once its model is registered. A file is needed while its job runs, or while its
    run is alive.
    """
    models, found = set(registered), []
    needed = {job.training_file for job in jobs if not _ended(job)}
    for job in jobs:
        state = runs.get(job.run_id or "")
        if not _ended(job) and state not in WATCHING:
            why = "it runs and costs, and no run here waits for it"
        elif job.fine_tuned_model and job.fine_tuned_model not in models and state in (None, "cancelled"):
            why = "it made a model that stands in no registry"
        else:
            continue
        found.append(
            Unwatched(
                kind="job",
                id=job.id,
                run_id=job.run_id,
                status=job.status,
                why=why,
                adopt=adopt(job.run_id) if state in (None, "failed") else None,
                model_id=job.fine_tuned_model,
            )
        )
    for file in files:
        run_id = run_of(file)
        if file.id in needed or runs.get(run_id or "") in WATCHING:
            continue
        found.append(
            Unwatched(
                kind="file",
                id=file.id,
                run_id=run_id,
                status=file.status or "ready",
                why="training data that no job needs any more",
            )
        )
    return found


def exposed(entry: RegistryEntry) -> Unwatched:
    """The model of a sensitive client's hosted version, as something to delete."""
    return Unwatched(
        kind="model",
        id=entry.model_id or "",
        run_id=entry.run_id,
        status=entry.status,
        why="its client is sensitive now, and it is not in service",
        model_id=entry.model_id,
    )


def in_doubt(effects: Iterable[Effect], runs: Mapping[str, State]) -> list[Effect]:
    """Calls that were cut off and never settled, of runs that no process works on: resuming settles them."""
    return [e for e in effects if e.state == "intent" and runs.get(e.run_id) != "running"]


def run_of(file: RemoteFile) -> str | None:
    """The run that uploaded a file, by its name; None where it is none of ours."""
    stem = file.filename.removesuffix(".jsonl")
    return stem if _client_of(stem) and file.filename == file_name(stem) else None


def adopt(run_id: str | None) -> str | None:
    """The command that goes on with a run found at the provider; None for what carries no run id of ours.

    A run that this disk knows nothing of is begun again by its own name, and finds its file and its job.
    """
    return f"fine-tune resume {run_id}" if _client_of(run_id) else None


def _client_of(run_id: str | None) -> str | None:
    """The client of a hosted run; None for what is no id of one."""
    name = RUN_ID.fullmatch(run_id or "")
    return name[1] if name and name[3] == "a" else None


def _ended(job: RemoteJob) -> bool:
    provider = PROVIDERS["openai"]
    return phase(provider, job.status) in ENDS
