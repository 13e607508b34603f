"""What a provider answers, as far as this system reads it: lenient where providers differ, typed after that.

Only `id` is taken for granted. Absent keys have defaults, unknown ones are skipped, and `"error": {}` on a
job that did not fail is no error.
"""

from __future__ import annotations

from typing import Any

import msgspec


class RemoteFile(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file; `status` None means that the provider has no such word, so it is ready."""

    id: str
    filename: str = ""
    bytes: int | None = None
    created_at: float = 0
    purpose: str = ""
    status: str | None = None


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed; all None on the empty object that stands for "no error"."""

    code: str | None = None
    message: str | None = None


class RemoteJob(msgspec.Struct, frozen=True, kw_only=True):
    """A fine-tuning job; times are seconds since 1970 by the provider's clock."""

    id: str
    status: str = ""
    model: str = ""
    created_at: float = 0
    finished_at: float | None = None
    error: JobError | None = None
    fine_tuned_model: str | None = None
    training_file: str | None = None
    result_files: tuple[str, ...] | None = ()
    trained_tokens: int | None = None
    hyperparameters: dict[str, Any] | None = None
    method: dict[str, Any] | None = None
    metadata: dict[str, str] | None = None
    seed: int | None = None

    @property
    def run_id(self) -> str | None:
        """The run that the job was tagged with, where the provider echoes metadata."""
        return (self.metadata or {}).get("run_id")

    @property
    def resolved(self) -> dict[str, Any]:
        """Hyperparameters as the provider settled them, from wherever it reports them."""
        nested = ((self.method or {}).get("supervised") or {}).get("hyperparameters") or {}
        return nested | (self.hyperparameters or {})


class RemoteEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a job; `type` "metrics" carries step, total_steps and train_loss in `data`."""

    id: str
    created_at: float = 0
    level: str = "info"
    message: str = ""
    type: str | None = None
    data: dict[str, Any] | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A model as it was after one epoch."""

    id: str
    step_number: int = 0
    fine_tuned_model_checkpoint: str | None = None
    metrics: dict[str, Any] | None = None
    result_files: tuple[str, ...] | None = ()


class RemoteModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model of the account; `shutdown_date` is `YYYY-MM-DD` or None."""

    id: str
    shutdown_date: str | None = None


class _Turn(msgspec.Struct, frozen=True, kw_only=True):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct, frozen=True, kw_only=True):
    message: _Turn


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A chat completion: its first choice, and the tokens it took."""

    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None

    @property
    def text(self) -> str | None:
        """The answer; None where the model refused or said nothing."""
        return self.choices[0].message.content if self.choices else None
