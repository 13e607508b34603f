"""The package's shape: import direction, the ratchet of sizes, docstrings, exports, errors, help texts."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest
from click.testing import CliRunner

import fine_tune_runner
from fine_tune_runner import errors
from fine_tune_runner.cli import COMMANDS, fine_tune

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fine_tune_runner"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTED = [*FILES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]

# Imports point down only: a module imports what has a smaller number, or its own room.
LAYERS = {
    "addresses": 0,
    "decoding": 0,
    "errors": 0,
    "files": 0,
    "types": 0,
    "settings": 1,
    "ports": 1,
    "policy": 2,
    "dataset": 3,
    "registry": 4,
    "workflow": 4,
    "evaluation": 5,
    "hosted": 5,
    "observe": 5,
    "private": 5,
    "sample": 5,
    "alerts": 6,
    "line": 6,
    "attempts": 6,
    "driving": 6,
    "scaffold": 6,
    "runner": 7,
    "status": 8,
    "doctor": 8,
    "erasure": 8,
    "health": 8,
    "migrate": 8,
    "prune": 8,
    "reconcile": 8,
    "watching": 8,
    "rescore": 8,
    "cli": 9,
    "__main__": 10,
    "__init__": 10,
}
LONGEST_FUNCTION, LONGEST_FILE, USUAL_FUNCTION, USUAL_SHARE = 80, 500, 40, 0.9


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "fine_tune_runner":
            names = [f"fine_tune_runner.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "fine_tune_runner" and len(parts) > 1:
                yield node.lineno, parts[1]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_room_has_its_layer() -> None:
    assert {room(path) for path in FILES} == set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    own = room(path)
    wrong = [
        f"line {line}: {own} imports {other}"
        for line, other in imported_rooms(path)
        if other != own and LAYERS[other] >= LAYERS[own]
    ]
    assert wrong == []


def test_no_function_and_no_file_outgrows_the_ratchet() -> None:
    long_files = [str(path) for path in TESTED if len(path.read_text().splitlines()) > LONGEST_FILE]
    assert long_files == []
    lengths = {
        f"{path.relative_to(ROOT)}:{f.name}": (f.end_lineno or f.lineno) - f.lineno + 1
        for path in TESTED
        for f in functions(path)
    }
    assert [name for name, lines in lengths.items() if lines > LONGEST_FUNCTION] == []
    usual = sum(lines <= USUAL_FUNCTION for lines in lengths.values()) / len(lengths)
    assert usual >= USUAL_SHARE


def test_modules_and_public_functions_say_what_they_are_for() -> None:
    silent = [str(path) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    for path in FILES:
        tree = ast.parse(path.read_text())
        bodies = [tree.body, *[node.body for node in tree.body if _is_public_class(node)]]
        silent += [
            f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"
            for body in bodies
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and not node.name.startswith("_")
            and not ast.get_docstring(node)
            and not any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)
        ]
    assert silent == []


def _is_public_class(node: ast.stmt) -> TypeGuard[ast.ClassDef]:
    return isinstance(node, ast.ClassDef) and not node.name.startswith("_")


def test_public_functions_are_typed() -> None:
    untyped = [
        f"{path.relative_to(PACKAGE)}:{f.lineno} {f.name}"
        for path in FILES
        for f in functions(path)
        if f.returns is None
    ]
    assert untyped == []


def test_every_export_exists() -> None:
    for name in fine_tune_runner.__all__:
        assert getattr(fine_tune_runner, name) is not None
    assert sorted(fine_tune_runner._EXPORTS) == sorted(fine_tune_runner.__all__)


def test_every_error_is_drawn_in_the_tree_and_has_its_own_code() -> None:
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.RunnerError)]
    drawn = errors.__doc__ or ""
    assert [k.__name__ for k in kinds if f" {k.__name__} " not in drawn] == []
    assert len({k.code for k in kinds}) == len(kinds)
    lines = drawn.splitlines()
    for kind in kinds:
        (line,) = [x for x in lines if f" {kind.__name__} " in x]
        assert f" {kind.exit_code} " in line, line


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_texts_are_the_ones_in_the_docs(command: str | None) -> None:
    documented = (ROOT / "docs" / "commands.md").read_text()
    assert help_text(command) in documented, "run: make docs"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_has_an_example(command: str) -> None:
    assert f"fine-tune {command}" in help_text(command).split("Examples:")[1]


def test_reading_commands_load_nothing_heavy() -> None:
    code = (
        "import sys, fine_tune_runner.cli.status, fine_tune_runner.cli.history\n"
        "import fine_tune_runner.cli.runs, fine_tune_runner.cli.logs\n"
        "heavy = {'torch', 'transformers', 'onnxruntime', 'xllamacpp', 'gguf', 'tokenizers', 'rich'}\n"
        "heavy |= {'openai', 'sqlite3', 'jinja2', 'dbos', 'sqlalchemy', 'psycopg'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_commands_are_where_the_table_says() -> None:
    for command, module in COMMANDS.items():
        name = f"{command.replace('-', '_')}_command"
        assert hasattr(importlib.import_module(f"fine_tune_runner.cli.{module}"), name)


def help_text(command: str | None) -> str:
    arguments = [*([command] if command else []), "--help"]
    return CliRunner().invoke(fine_tune, arguments, prog_name="fine-tune", terminal_width=100).output


def write_docs() -> None:
    """What `make docs` calls."""
    parts = ["# Commands", "", "Written by `make docs`; a test keeps it current.", ""]
    for command in [None, *COMMANDS]:
        parts += [
            f"## fine-tune {command or ''}".rstrip(),
            "",
            "```",
            help_text(command).rstrip("\n"),
            "",
            "```",
            "",
        ]
    (ROOT / "docs" / "commands.md").write_text("\n".join(parts))


if __name__ == "__main__":
    write_docs()
