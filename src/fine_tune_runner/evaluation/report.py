"""An EvalReport and its Verdict as `report.json`, `report.md` and `report.html`: the verdict, then the proof.

All three say the same (content.py) and are made again from what the run's folder holds: `report.json` keeps
report and verdict, the rest is read where it lies. Asks no model and scores nothing.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from fine_tune_runner.decoding import threadsafe
from fine_tune_runner.errors import DataError
from fine_tune_runner.evaluation.content import Content, content
from fine_tune_runner.evaluation.markdown import markdown
from fine_tune_runner.evaluation.proof import read_proof
from fine_tune_runner.files import write_atomic
from fine_tune_runner.types import EvalReport, Verdict


class Paths(msgspec.Struct, frozen=True, kw_only=True):
    """Where the three forms of a report lie."""

    json: Path
    markdown: Path
    html: Path


class _Kept(msgspec.Struct):
    report: EvalReport
    verdict: Verdict


def paths(run_dir: Path) -> Paths:
    """`report.json`, `report.md` and `report.html` of a run, whether they are there or not."""
    return Paths(json=run_dir / "report.json", markdown=run_dir / "report.md", html=run_dir / "report.html")


def write_report(run_dir: Path, report: EvalReport, verdict: Verdict) -> Content:
    """Write the three forms into the run's folder, each all or nothing."""
    from fine_tune_runner.evaluation.page import page

    whole = content(report, verdict, read_proof(run_dir, report))
    html, to = page(whole), paths(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(to.json, msgspec.json.format(msgspec.json.encode(whole), indent=2) + b"\n")
    write_atomic(to.markdown, markdown(whole).encode())
    write_atomic(to.html, html.encode())
    return whole


def read_report(run_dir: Path) -> tuple[EvalReport, Verdict]:
    """Report and verdict of a run, every text in them masked; DataError where it never had one."""
    path = paths(run_dir).json
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=threadsafe(_Kept))
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: this version was not evaluated yet; fine-tune eval scores it"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; fine-tune eval makes it anew") from None
    return kept.report, kept.verdict


def rewrite_report(run_dir: Path) -> Content:
    """Make the report of a run again from its folder; DataError where it never had one."""
    return write_report(run_dir, *read_report(run_dir))
