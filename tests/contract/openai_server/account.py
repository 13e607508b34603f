"""What a hosted provider remembers: files, jobs and models of one account, and how a job goes on.

Nothing here knows HTTP. Time moves with polls only: each look at a job moves it one status on along its
script, and the clock by a minute.
"""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from typing import Any

SCRIPT = ("queued", "running", "running", "succeeded")
BASES = ("gpt-4o-mini-2024-07-18", "gpt-4o-2024-08-06", "gpt-4.1-mini-2025-04-14")
ALIASES = {"gpt-4o-mini": "gpt-4o-mini-2024-07-18", "gpt-4o": "gpt-4o-2024-08-06"}
ENDS = ("succeeded", "failed", "cancelled")
MINUTE = 60
MINIMUM_ROWS = 10


class WireError(Exception):
    """An answer that says no: status, machine-readable code, words."""

    def __init__(self, status: int, code: str | None, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass
class StoredFile:
    """One uploaded or written file."""

    id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int

    def public(self) -> dict[str, Any]:
        """The file object of the wire format."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


@dataclass
class StoredJob:
    """One job: its public object, what it still goes through, and the rows it learned."""

    public: dict[str, Any]
    script: list[str]
    rows: list[list[dict[str, str]]]
    suffix: str | None
    epochs: int
    events: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    step: int = 0

    @property
    def total(self) -> int:
        """Optimizer steps of the whole job at batch size 1."""
        return len(self.rows) * self.epochs


@dataclass
class Account:
    """Everything one account has at the provider; tests look into it and set `script` before a job.

    `error` is what a job that ends "failed" carries.
    """

    script: tuple[str, ...] = SCRIPT
    error: dict[str, Any] | None = None
    files: dict[str, StoredFile] = field(default_factory=dict)
    jobs: dict[str, StoredJob] = field(default_factory=dict)
    shutdown_dates: dict[str, str] = field(default_factory=dict)
    now: int = 1_795_000_000
    _count: int = 0

    def add_file(self, filename: str, purpose: str, content: bytes) -> StoredFile:
        """Keep an upload."""
        file = StoredFile(self._id("file-"), filename, purpose, content, self.now)
        self.files[file.id] = file
        return file

    def file(self, file_id: str) -> StoredFile:
        """One file, or 404."""
        if file_id not in self.files:
            raise WireError(404, None, f"No such File object: {file_id}", "id")
        return self.files[file_id]

    def job(self, job_id: str) -> StoredJob:
        """One job, or 404."""
        if job_id not in self.jobs:
            raise WireError(404, "fine_tune_not_found", f"Could not find fine tune: {job_id}")
        return self.jobs[job_id]

    def create_job(self, body: dict[str, Any]) -> StoredJob:
        """Begin a job; 400 where the file is unknown, 404 where the model is."""
        base = ALIASES.get(body["model"], body["model"])
        if base not in BASES:
            raise WireError(404, "model_not_found", f"The model {base} does not exist", "model")
        file = self.files.get(body["training_file"])
        if file is None or file.purpose != "fine-tune":
            raise WireError(
                400,
                "invalid_request_error",
                f"invalid training_file: {body['training_file']}",
                "training_file",
            )
        rows = [json.loads(line)["messages"] for line in file.content.splitlines()]
        given = body.get("method", {}).get("supervised", {}).get("hyperparameters") or body.get(
            "hyperparameters", {}
        )
        job = StoredJob(
            public={
                "object": "fine_tuning.job",
                "id": self._id("ftjob-"),
                "created_at": self.now,
                "error": None,
                "fine_tuned_model": None,
                "finished_at": None,
                "hyperparameters": {"n_epochs": "auto", "batch_size": "auto"} | given,
                "model": base,
                "organization_id": "org-contract",
                "result_files": [],
                "seed": body.get("seed") or 0,
                "status": "validating_files",
                "trained_tokens": None,
                "training_file": file.id,
                "validation_file": body.get("validation_file"),
                "estimated_finish": 0,
                "metadata": body.get("metadata"),
            },
            script=list(self.script),
            rows=rows,
            suffix=body.get("suffix"),
            epochs=_epochs(given.get("n_epochs", "auto"), len(rows)),
        )
        if len(rows) < MINIMUM_ROWS:
            job.script = ["failed"]
            self.error = {
                "code": "invalid_n_examples",
                "message": f"Training file has {len(rows)} example(s), but must have at least 10 examples",
                "param": "training_file",
            }
        self.jobs[job.public["id"]] = job
        self._event(job, f"Created fine-tuning job: {job.public['id']}")
        return job

    def look(self, job_id: str) -> dict[str, Any]:
        """One look at a job, which moves it one status on."""
        job = self.job(job_id)
        if job.public["status"] not in ENDS and job.script:
            self.now += MINUTE
            self._enter(job, job.script.pop(0))
        return job.public

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop a job that has not ended; 400 otherwise."""
        job = self.job(job_id)
        if job.public["status"] in ENDS:
            raise WireError(400, None, f"Job has already completed: {job_id}")
        self._enter(job, "cancelled")
        return job.public

    def pause(self, job_id: str, status: str) -> dict[str, Any]:
        """Set a live job to `paused`, or back to `running`."""
        job = self.job(job_id)
        job.public["status"] = status
        return job.public

    def models(self) -> list[dict[str, Any]]:
        """Base models and finished fine-tunes."""
        tuned = [job.public["fine_tuned_model"] for job in self.jobs.values()]
        return [
            {
                "id": name,
                "object": "model",
                "created": self.now,
                "owned_by": "contract",
                "shutdown_date": self.shutdown_dates.get(name),
            }
            for name in (*BASES, *(name for name in tuned if name))
        ]

    def delete_model(self, name: str) -> None:
        """Forget a fine-tune; 404 for anything else."""
        for job in self.jobs.values():
            if job.public["fine_tuned_model"] == name:
                job.public["fine_tuned_model"] = None
                return
        raise WireError(404, "model_not_found", f"The model '{name}' does not exist", "model")

    def answer(self, model: str, messages: list[dict[str, Any]]) -> str:
        """The trained answer to the most similar question; a base model knows none."""
        names = {entry["id"] for entry in self.models()}
        model = ALIASES.get(model, model)
        if model not in names:
            raise WireError(404, "model_not_found", f"The model `{model}` does not exist", "model")
        rows = [job.rows for job in self.jobs.values() if job.public["fine_tuned_model"] == model]
        if not rows:
            return "I cannot tell the cause from this description alone."
        asked = _words(messages)
        best = max(rows[0], key=lambda row: _overlap(asked, _words(row)))
        return best[-1]["content"]

    def _enter(self, job: StoredJob, status: str) -> None:
        job.public["status"] = status
        if status == "running":
            job.public["hyperparameters"] = {
                "n_epochs": job.epochs,
                "batch_size": 1,
                "learning_rate_multiplier": 1.8,
            }
            before, left = job.step, 1 + job.script.count("running")
            job.step += (job.total - before) // (left + 1)
            self._metrics(job, job.step)
        elif status in ENDS:
            job.public["finished_at"] = self.now
            {"succeeded": self._succeed, "failed": self._fail, "cancelled": lambda job: None}[status](job)
        self._event(job, f"Status: {status}")

    def _succeed(self, job: StoredJob) -> None:
        self._metrics(job, job.total)
        lines = [f"{step},{_loss(step, job.total)},0.9,," for step in range(1, job.total + 1)]
        table = "\n".join(["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy", *lines])
        result = self.add_file(
            "step_metrics.csv", "fine-tune-results", base64.b64encode(table.encode() + b"\n")
        )
        model = f"ft:{job.public['model']}:contract:{job.suffix or ''}:{result.id[-6:]}"
        tokens = sum(len(message["content"]) // 4 + 4 for row in job.rows for message in row) * job.epochs
        job.public |= {"fine_tuned_model": model, "result_files": [result.id], "trained_tokens": tokens}
        for epoch in range(max(1, job.epochs - 2), job.epochs + 1):
            step = len(job.rows) * epoch
            job.checkpoints.append(
                {
                    "object": "fine_tuning.job.checkpoint",
                    "id": self._id("ftckpt-"),
                    "created_at": self.now,
                    "fine_tuned_model_checkpoint": f"{model}:ckpt-step-{step}",
                    "step_number": step,
                    "metrics": {"step": step, "train_loss": _loss(step, job.total)},
                    "fine_tuning_job_id": job.public["id"],
                }
            )

    def _fail(self, job: StoredJob) -> None:
        job.public["error"] = self.error
        if self.error:
            self._event(job, self.error["message"], level="error")

    def _metrics(self, job: StoredJob, step: int) -> None:
        loss = _loss(step, job.total)
        data = {"step": step, "train_loss": loss, "total_steps": job.total}
        self._event(job, f"Step {step}/{job.total}: training loss={loss}", type="metrics", data=data)

    def _event(self, job: StoredJob, message: str, **more: Any) -> None:
        event = {
            "object": "fine_tuning.job.event",
            "id": self._id("ftevent-"),
            "created_at": self.now,
            "level": "info",
            "message": message,
            "type": "message",
            "data": {},
        }
        job.events.insert(0, event | more)  # newest first, as OpenAI lists them

    def _id(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count:06}"


def _loss(step: int, total: int) -> float:
    return round(2.0 - 1.5 * step / total, 4)


def _epochs(given: int | str, rows: int) -> int:
    """The auto rule of facts/openai.md, in this server's own words."""
    if given != "auto":
        return int(given)
    if rows * 3 < 100:
        return min(25, 100 // rows)
    return max(1, 25000 // rows) if rows * 3 > 25000 else 3


def _words(messages: list[dict[str, Any]]) -> frozenset[str]:
    asked = " ".join(message["content"] for message in messages if message["role"] == "user")
    return frozenset(re.findall(r"\w+", asked.lower()))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one | other) or 1)


def page(rows: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """One page of a list, with the ids that a caller turns it by."""
    ids = [row["id"] for row in rows]
    start = ids.index(after) + 1 if after in ids else 0
    data = rows[start : start + limit]
    return {
        "object": "list",
        "data": data,
        "has_more": start + limit < len(rows),
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
    }
