"""`fine-tune report`: which version it takes, what it prints, and that it can be opened."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fine_tune_runner.cli import fine_tune
from fine_tune_runner.errors import DataError, RegistryError
from tests.test_runner import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """v1 in service, v2 refused."""
    desk = Desk(tmp_path, track_preference="b")
    desk.runner().submit("small", 1)
    desk.runner().submit("small", 2)
    return desk


def report(desk: Desk, *words: str, **env: str) -> Result:
    environment = {"CLIENT_DATA_DIR": str(desk.settings.data_dir), **env}
    return CliRunner().invoke(fine_tune, ["report", "--client", "small", *words], env=environment)


def test_it_prints_the_path_of_the_newest_evaluated_version(desk: Desk) -> None:
    result = report(desk)
    path = Path(result.stdout.strip())
    assert (result.exit_code, path.name, path.parent.name[:10]) == (0, "report.html", "small-v2-b")
    assert "small v2 is refused" in path.read_text(encoding="utf-8")


def test_the_forms_go_to_standard_output(desk: Desk) -> None:
    data = json.loads(report(desk, "--version", "1", "--json").stdout)
    assert data["headline"].startswith("small v1 may go into service as the first version")
    assert len(data["questions"]) == 12
    text = report(desk, "--version", "2", "--track", "b", "--markdown").stdout
    assert text.startswith("# small v2 (track B)")


def test_a_report_that_was_lost_is_made_again_with_what_happened_since(desk: Desk) -> None:
    first = Path(report(desk).stdout.strip())
    first.unlink()
    desk.runner().promote("small", 2, override="asked for")
    again = Path(report(desk).stdout.strip()).read_text(encoding="utf-8")
    assert "asked for" in again


def test_the_report_that_a_run_leaves_knows_that_its_version_went_into_service(desk: Desk) -> None:
    (path,) = desk.client.glob("runs/small-v1-*/report.json")
    (past,) = [p for p in json.loads(path.read_text())["history"] if p["here"]]
    assert (past["status"], past["active"]) == ("active", True)


def test_open_hands_the_file_to_the_browser(desk: Desk, tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(tmp_path / 'seen')!r}, 'w').write(sys.argv[1])\n"
    )
    browser.chmod(0o755)
    code = (
        "import sys; from fine_tune_runner.cli import main; "
        "sys.exit(main(['report', '--client', 'small', '--open']))"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env={
            "CLIENT_DATA_DIR": str(desk.settings.data_dir),
            "BROWSER": f"{browser} %s",
            "HOME": str(tmp_path),
        },
        check=True,
        capture_output=True,
    )
    opened = (tmp_path / "seen").read_text()
    assert opened.startswith("file://")
    assert opened.endswith("/report.html")


def test_a_client_or_version_without_a_report_is_told_what_to_do(tmp_path: Path) -> None:
    desk = Desk(tmp_path, track_preference="b")
    none = report(desk)
    assert isinstance(none.exception, DataError)
    assert "fine-tune eval --client small" in str(none.exception)
    assert isinstance(report(desk, "--version", "7").exception, RegistryError)
