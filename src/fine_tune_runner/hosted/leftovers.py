"""What a client that became sensitive still has at a hosted provider, as far as our own files tell.

Pure functions, light enough for `fine-tune status`: the provider is asked by `fine-tune doctor`.
"""

from __future__ import annotations

from fine_tune_runner.registry import edits
from fine_tune_runner.settings import Client
from fine_tune_runner.types import RegistryEntry
from fine_tune_runner.workflow.engine import RunState


def left_model(client: Client, entry: RegistryEntry) -> str | None:
    """What a hosted version of a sensitive client means, with the remedy; None for any other."""
    if not client.config.is_sensitive or entry.track != "A" or entry.model_id is None:
        return None
    version = f"{client.id} is sensitive, but {edits.spell(entry.key)}"
    if entry.active:
        return (
            f"{version} is in service at a hosted provider; move it: fine-tune migrate --client {client.id} "
            "--to b, then promote it"
        )
    return f"{version} is still on record as a hosted model; delete it there: fine-tune doctor"


def left_run(client: Client, state: RunState) -> str | None:
    """What an unfinished hosted run of a sensitive client means, with the remedy; None for any other."""
    if not client.config.is_sensitive or state.run.track != "A" or state.state in ("finished", "cancelled"):
        return None
    return (
        f"{client.id} is sensitive, but its run {state.run.run_id} ({state.state}) may have a job and a file "
        f"at a hosted provider; end it: fine-tune cancel {state.run.run_id}"
    )
