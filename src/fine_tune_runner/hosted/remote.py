"""What of a run stands at the provider: found by the run's name, cancelled, deleted.

The run id is in the file's name and in the job's metadata, so that all of it is found without our own disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from fine_tune_runner.errors import ProviderError
from fine_tune_runner.hosted.providers import ENDS, Provider, phase
from fine_tune_runner.types import T
from fine_tune_runner.workflow.ledger import Busy, Effect, Found, Unanswered

if TYPE_CHECKING:
    from fine_tune_runner.hosted.wire import Wire


D = TypeVar("D")


def file_name(run_id: str) -> str:
    """The name under which a run's training file is uploaded."""
    return f"{run_id}.jsonl"


def find_file(wire: Wire, run_id: str) -> Found:
    """The run's upload, by its name."""
    listing = wire.files()
    mine = (file.id for file in listing.items if file.filename == file_name(run_id))
    return Found(next(mine, None), listing.complete)


def find_job(wire: Wire, run_id: str, file_id: str | None) -> Found:
    """The run's oldest job by its metadata, else by its file, for there are providers that drop metadata."""
    tagged = or_else(lambda: wire.jobs(run_id), None)
    mine = [job for job in tagged.items if job.run_id == run_id] if tagged else []
    complete = True
    if not mine:
        every = wire.jobs()
        complete = every.complete
        mine = [
            job
            for job in every.items
            if job.run_id == run_id
            or (job.run_id is None and file_id is not None and job.training_file == file_id)
        ]
    oldest = min(mine, key=lambda job: (job.created_at, job.id), default=None)
    return Found(oldest.id if oldest else None, complete)


def still_on(
    wire: Wire,
    provider: Provider,
    run_id: str,
    effects: Sequence[Effect],
    *,
    closed: bool,
    settled: Callable[[Effect], bool],
) -> str | None:
    """What of a run may still be going on and cost, in words; None where the provider says that it is over.

    `effects` are those of the run on record, `closed` whether somebody has ended it already, and `settled`
    whether a call that was cut off can take effect no more.
    """
    from fine_tune_runner.hosted.wire import Rejected

    made = {effect.step: effect.provider_id for effect in effects if effect.provider_id}
    job_id = made.get("create")
    if job_id is None:
        found = find_job(wire, run_id, made.get("upload"))
        job_id = found.id
        if job_id is None and not found.complete:
            return (
                "the provider's list of jobs cannot be read to its end, so nobody can tell whether one runs"
            )
    if job_id is None:
        doubts = [effect for effect in effects if effect.step == "create" and not settled(effect)]
        return "a call that was cut off may still start its job" if doubts else None
    try:
        job = wire.job(job_id)
    except Rejected as error:
        if error.status == 404 and closed:
            return None  # it was cancelled, and there is none of that name any more
        raise
    if phase(provider, job.status) in ENDS:
        return None
    return f'its job {job.id} is "{job.status}" at {provider.title}'


def delete_files(wire: Wire, run_id: str, file_ids: Sequence[str] = ()) -> None:
    """Delete the named files, and whatever else carries the run's name."""
    named = [file.id for file in wire.files().items if file.filename == file_name(run_id)]
    for file_id in dict.fromkeys([*file_ids, *named]):
        wire.delete_file(file_id)


def cancel_job(wire: Wire, provider: Provider, job_id: str) -> None:
    """Stop a job, unless it has ended meanwhile or is not there; ProviderError where it may go on."""
    from fine_tune_runner.hosted.wire import Rejected

    try:
        wire.cancel_job(job_id)
    except Rejected as error:
        if not _is_over(wire, provider, job_id):
            raise ProviderError(
                f"{error}; job {job_id} may still run and cost: stop it on the provider's own page, or "
                "cancel again with a key that may"
            ) from None


def _is_over(wire: Wire, provider: Provider, job_id: str) -> bool:
    from fine_tune_runner.hosted.wire import Rejected

    try:
        return phase(provider, wire.job(job_id).status) in ENDS
    except Rejected as error:
        return error.status == 404


def model_of_job(wire: Wire, job_id: str) -> str | None:
    """The model that a job made; None where it made none, or there is no such job."""
    return or_else(lambda: wire.job(job_id).fine_tuned_model, None)


def or_else(call: Callable[[], T], default: D) -> T | D:
    """What the provider answers, or the default where it offers no such thing; what passes still raises."""
    try:
        return call()
    except (Busy, Unanswered):
        raise
    except ProviderError:
        return default
