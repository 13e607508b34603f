"""Merging and uploading in constant memory: a small run of benchmarks/merge_4gb.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "merge_4gb.py"


def test_merge_and_upload_take_less_memory_than_the_file_has_bytes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--gb", "0.8", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["base_mb"] > 700
    assert max(figures["merge_peak_mb"], figures["upload_peak_mb"]) < 300
