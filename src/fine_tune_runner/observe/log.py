"""Structured logs: one JSON object a line with run id, client and step, for whatever collects logs.

A log that cannot be written stops no run: it is said once. Knows no run but by its events.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from fine_tune_runner.observe.told import ENDS, client_of, facts
from fine_tune_runner.workflow.engine import Event


class Log:
    """Appends to `path`, which is opened for each line, so that it may be rotated at any time."""

    def __init__(self, path: Path, notice: Callable[[str], None]) -> None:
        self._path = path
        self._notice = notice
        self._steps: dict[str, str] = {}  # the step that each run is at
        self._told = False

    def __call__(self, event: Event) -> None:
        """Write one event as `{"at", "event", "run_id", "client", "step", "data"}`."""
        if event.event == "step started":
            self._steps[event.run_id] = event.data["step"]
        line = {
            "at": event.at,
            "event": event.event,
            "run_id": event.run_id,
            "client": client_of(event.run_id),
            "step": self._steps.get(event.run_id),
            "data": facts(event),
        }
        self.write({name: value for name, value in line.items() if value not in (None, {})})
        if event.event == "step done" or event.event in ENDS:
            self._steps.pop(event.run_id, None)

    def write(self, line: dict[str, Any]) -> None:
        """Append one line."""
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(msgspec.json.encode(line) + b"\n")
            self._told = False
        except OSError as error:
            if not self._told:
                self._notice(f"{self._path}: {error.strerror or error}; runs go on without log lines")
            self._told = True
