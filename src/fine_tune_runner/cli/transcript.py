"""What a run prints: its events as the lines of spec.md, a live bar on a terminal, or JSON lines.

Labels, rules and ticks are fixed and stand in one table; this module decides nothing about a run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from fine_tune_runner.cli.common import echo, echo_json
from fine_tune_runner.workflow.engine import Event

RULE = "─" * 54
LABEL_WIDTH = 29
EVERY_S = 10.0  # seconds between two plain progress lines

Data = dict[str, Any]


class JsonLines:
    """Every event as one JSON object a line."""

    def __call__(self, event: Event) -> None:
        """Print one event."""
        echo_json({"event": event.event, "run_id": event.run_id, "at": event.at, **event.data})

    def close(self) -> None:
        """Nothing is left to do."""


class Bars:
    """Live bars at the bottom of a terminal, one for each run that has something to show."""

    def __init__(self) -> None:
        self._progress: Any = None

    def begin(self, prefix: str, what: str, total: int) -> Any:
        """Show another bar; what `update` and `end` take."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            first, last = TextColumn("{task.fields[prefix]}    "), TextColumn("{task.description}")
            self._progress = Progress(first, *columns, last, transient=True)
            self._progress.start()
        return self._progress.add_task(what, total=total, prefix=prefix)

    def update(self, bar: Any, done: int, total: int, text: str) -> None:
        """Move a bar on."""
        self._progress.update(bar, completed=done, total=total, description=text)

    def end(self, bar: Any) -> None:
        """Take a bar away, and with the last one all that was drawn."""
        self._progress.remove_task(bar)
        if not self._progress.tasks:
            self._progress.stop()
            self._progress = None


class Transcripts:
    """The transcripts of several clients as things happen, each line with its client's id before it.

    `names` by client id. One client alone has no prefix; what is not of these clients is not shown.
    """

    def __init__(self, names: Mapping[str, str], *, live: bool | None = None) -> None:
        width, bars = max(map(len, names), default=0), Bars()
        self._of = {
            client_id: Transcript(
                name, live=live, prefix=f"{client_id:<{width}} │ " if len(names) > 1 else "", bars=bars
            )
            for client_id, name in names.items()
        }

    def __call__(self, event: Event) -> None:
        """Print what one event calls for."""
        client_id = event.run_id.rsplit("-", 4)[0]
        if transcript := self._of.get(client_id):
            transcript(event)

    def close(self) -> None:
        """Take the bars away."""
        for transcript in self._of.values():
            transcript.close()


class Transcript:
    """The lines of spec.md; `live` shows a bar instead of progress lines.

    `prefix` stands before every line and bar, where several clients share the output and its `bars`.
    """

    def __init__(
        self, client_name: str, *, live: bool | None = None, prefix: str = "", bars: Bars | None = None
    ) -> None:
        self._name = client_name
        self._live = sys.stdout.isatty() if live is None else live
        self._prefix = prefix
        self._bars = bars or Bars()
        self._bar: Any = None
        self._since: datetime | None = None
        self._printed: datetime | None = None
        self._polled = False
        self._printers: dict[str, Callable[[Data, Event], None]] = {
            "run planned": self._header,
            "loaded": lambda d, _: self._tick("Loading JSONL...", f"{d['path']} ({d['records']} records)"),
            "train started": self._train_started,
            "train step": self._train_step,
            "train finished": self._train_finished,
            "export progress": lambda d, e: self._copying("written", d, e),
            "exported": self._exported,
            "upload progress": lambda d, e: self._copying("sent", d, e),
            "compared": self._compared,
            "created": lambda d, _: self._tick("Creating model...", d["model_id"]),
            "confirmed": self._confirmed,
            "uploaded": lambda d, _: self._tick(
                f"Uploading to {d['provider']}...", f"file_id: {d['file_id']}"
            ),
            "job created": self._job_created,
            "job status": self._job_status,
            "job finished": lambda d, _: self._model(d["model_id"]),
            "evaluation started": self._evaluation_started,
            "evaluation progress": self._evaluation_progress,
            "evaluated": self._evaluated,
            "promoted": self._promoted,
            "archived": lambda d, _: self._tick(f"Archiving v{d['key']['version']}...", "archived"),
            "alert": self._alert,
            "warning": self._warning,
        }

    def __call__(self, event: Event) -> None:
        """Print what one event calls for; unknown events print nothing."""
        if printer := self._printers.get(event.event):
            printer(event.data, event)

    def close(self) -> None:
        """Take the bar away, also after an error."""
        if self._bar is not None:
            self._bars.end(self._bar)
            self._bar = None

    def _echo(self, text: str = "", *, err: bool = False, fg: str | None = None) -> None:
        echo(f"{self._prefix}{text}".rstrip() if self._prefix else text, err=err, fg=fg)

    def _tick(self, label: str, text: str, *, mark: str = "✓", indent: int = 2) -> None:
        self.close()
        colour = {"✓": "green", "✗": "red"}.get(mark)
        head = (" " * indent + label).ljust(LABEL_WIDTH - 1) + " "
        self._echo(head + f"{mark} {text}" if mark else head + text, fg=colour if mark == "✗" else None)

    def _header(self, data: Data, _event: Event) -> None:
        self._echo(RULE)
        self._echo(f"  Fine-Tune Runner — {self._name} v{data['version']} · {data['title']}")
        self._echo(RULE)

    def _train_started(self, data: Data, event: Event) -> None:
        self._since, self._printed = event.at, None
        text = f"{data['base']} · rank {data['rank']} · {data['layers']} layers · {data['steps']} steps"
        if others := data.get("together", 1) - 1:
            text += f" · together with {others} other{'s' if others > 1 else ''}"
        self._tick("Training LoRA...", text, mark="")
        self._start_bar("training", data["steps"])

    def _train_step(self, data: Data, event: Event) -> None:
        text = (
            f"step {data['step']}/{data['total']} — loss {data['loss']:.3f}, "
            f"{data['tokens_per_s']:.0f} tokens/s, ETA {clock(data['eta_s'])}"
        )
        self._progress(event, data["step"], data["total"], text)

    def _train_finished(self, data: Data, event: Event) -> None:
        self.close()
        self._echo(
            f"    [{self._elapsed(event)}] done — loss {data['first_loss']:.3f} → {data['final_loss']:.3f}"
        )

    def _copying(self, what: str, data: Data, event: Event) -> None:
        done, total = data["done"], data["total"]
        self._since, self._printed = self._since or event.at, self._printed or event.at
        if done < total:
            self._progress(event, done, total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB {what}")
        else:
            self.close()

    def _exported(self, data: Data, _event: Event) -> None:
        way = f", {data['way']}" if "way" in data else ""
        self._tick("Exporting GGUF...", f"{data['path']} ({data['size_mb']:.1f} MB{way})")

    def _compared(self, data: Data, _event: Event) -> None:
        text = (
            f"{data['served_local']:.3f} nats from the trained model (at most {data['tolerance']:g}), "
            f"{data['served_bare']:.3f} from the base"
        )
        self._tick("Checking parity...", text)

    def _confirmed(self, data: Data, _event: Event) -> None:
        self._tick("Confirming...", f"answers ({data['seconds']:.1f} s to load and answer)")
        self._model(data["model_id"])

    def _model(self, model_id: str) -> None:
        self.close()
        self._echo()
        self._echo("  Fine-tuned model:".ljust(LABEL_WIDTH) + model_id)
        self._echo()

    def _job_created(self, data: Data, _event: Event) -> None:
        self._tick("Creating fine-tune job...", f"job_id: {data['job_id']}")
        self._echo("  Model suffix:".ljust(LABEL_WIDTH) + data["suffix"])
        self._echo()
        self._polling()

    def _polling(self) -> None:
        self._polled = True
        self._echo("  Polling status...")

    def _job_status(self, data: Data, _event: Event) -> None:
        if not self._polled:  # a run that goes on
            self._polling()
        steps = f" — step {data['step']}/{data['total']}" if data.get("step") else ""
        eta = f", ETA {clock(data['eta_s'])}" if data.get("eta_s") else ""
        self._echo(f"    [{clock(data['elapsed_s'])}] {data['status']}{steps}{eta}")

    def _evaluation_started(self, data: Data, event: Event) -> None:
        self.close()
        self._since, self._printed = event.at, event.at
        self._echo(RULE)
        self._echo(f"  Running eval harness (holdout: {data['holdout']})...")

    def _evaluation_progress(self, data: Data, event: Event) -> None:
        what = "answers" if not data["model"].startswith("judge ") else f"calls to {data['model']}"
        self._progress(event, data["done"], data["total"], f"{data['done']}/{data['total']} {what}")

    def _evaluated(self, data: Data, _event: Event) -> None:
        self.close()
        report, verdict = data["report"], data["verdict"]
        new = report["new"]
        recall = new["recall"] if new["recall"] is not None else new["contrast"]
        approximate = "" if new["recall"] is not None else " (approximate, by contrast)"
        if recall is None:
            self._tick("Problem recall:", "not measured: the holdout has no labels", mark="–", indent=4)
        else:
            self._tick("Problem recall:", f"{recall:.0%}{approximate}", indent=4)
        if new["similarity"] is not None:
            held, questions = new["similarity_questions"], new["questions"]
            of = f" (of {held} of {questions} questions)" if held and held < questions else ""
            self._tick("Solution accuracy:", f"{new['similarity']:.2f} cosine sim{of}", indent=4)
        self._comparison(report, verdict)
        self._echo()
        self._echo(RULE)
        self._tick("Registering model...", "model_registry.json updated")

    def _comparison(self, report: Data, verdict: Data) -> None:
        if report["previous_key"] is None:
            self._tick("Regression guard:", "first version, nothing to compare with", mark="–", indent=4)
            if base := report["base"]:
                recall = "–" if base["recall"] is None else f"{base['recall']:.0%}"
                similarity = "–" if base["similarity"] is None else f"{base['similarity']:.2f}"
                text = f"{recall} recall, {similarity} cosine sim on the same questions"
                self._tick("Base model:", text, mark="–", indent=4)
            return
        key, other = report["key"], report["previous_key"]
        across = f" on track {other['track']}" if other["track"] != key["track"] else ""
        label = f"Regression vs v{other['version']}{across}:"
        if verdict["delta"] is None:
            self._tick(label, verdict["reason"], mark="✗", indent=4)
            return
        delta = verdict["delta"]
        word = "improvement" if delta > 0 else "no change" if delta == 0 else "lower"
        mark = "✓" if verdict["decision"] == "promote" else "✗"
        self._tick(label, f"{delta:+.2f} {word}", mark=mark, indent=4)

    def _promoted(self, data: Data, _event: Event) -> None:
        self._tick("Promoting to active...", f"{data['client_id']} → {data['model_id']}")

    def _alert(self, data: Data, event: Event) -> None:
        words = {"refuse": "refused", "hold": "held"}[data["decision"]]
        self._tick("Promoting to active...", f"{words}: {data['reason']}", mark="✗")
        self._echo(
            f"ALERT {event.run_id}: v{data['key']['version']} {words}: {data['reason']}", err=True, fg="red"
        )

    def _warning(self, data: Data, _event: Event) -> None:
        self._echo(f"Warning: {data['message']}", err=True, fg="yellow")

    def _start_bar(self, what: str, total: int) -> None:
        if self._live and self._bar is None:
            self._bar = self._bars.begin(self._prefix, what, total)

    def _progress(self, event: Event, done: int, total: int, text: str) -> None:
        self._start_bar("", total)  # also where a question took the bars away
        if self._bar is not None:
            self._bars.update(self._bar, done, total, text)
            return
        due = self._printed is None or (event.at - self._printed).total_seconds() >= EVERY_S
        if not self._live and (due or done == total):
            self._printed = event.at
            self._echo(f"    [{self._elapsed(event)}] {text}")

    def _elapsed(self, event: Event) -> str:
        return clock((event.at - (self._since or event.at)).total_seconds())


def clock(seconds: float | None) -> str:
    """`02:14`, with hours in front from one hour on; `--:--` where it is not known."""
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"
