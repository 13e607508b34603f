"""Types that many threads decode into at once, for the first time."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "fine_tune_runner"
# Eight types of twenty nested ones each, so that threads meet while one is taken apart.
MEET = """
import sys, threading, types, msgspec
from fine_tune_runner.decoding import threadsafe
sys.setswitchinterval(1e-6)
inner = "class Inner{0}(msgspec.Struct):\\n    a: int | None = None\\n    b: tuple[str, ...] = ()\\n"
source = "from __future__ import annotations\\nimport msgspec\\n" + "".join(map(inner.format, range(20)))
source += "class Outer(msgspec.Struct):\\n"
source += "".join(f"    f{n}: Inner{n} | None = None\\n" for n in range(20))
gave = []
for number in range(8):
    module = sys.modules[f"m{number}"] = types.ModuleType(f"m{number}")
    exec(source, module.__dict__)
    together = threading.Barrier(6)
    def decode():
        together.wait()
        value = msgspec.json.decode(b'{"f1":{"a":1},"f19":{"b":["x"]}}', type=threadsafe(module.Outer))
        gave.append((value.f1.a, value.f19.b))
    threads = [threading.Thread(target=decode) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(len(gave), set(gave))
"""


def typed_decodes() -> Iterator[tuple[str, ast.expr]]:
    """Where the package has msgspec decode into a type, and what type."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or path.name == "decoding.py":
                continue
            called, place = ast.unparse(node.func), f"{path.name} line {node.lineno}"
            if called == "msgspec.json.decode":
                yield from ((place, word.value) for word in node.keywords if word.arg == "type")
            elif called == "msgspec.convert":
                yield place, node.args[1]
            elif called == "msgspec.json.Decoder":
                yield place, node.args[0]


def test_threads_that_meet_at_the_first_use_of_a_type_all_get_their_value() -> None:
    done = subprocess.run([sys.executable, "-c", MEET], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "48 {(1, ('x',))}\n"), done.stderr


def test_every_type_that_is_decoded_into_is_taken_apart_by_one_thread_first() -> None:
    found = list(typed_decodes())
    assert len(found) > 30
    plain = ("datetime", "dict[str, Any]", "dict[str, str]", "dict[str, float]")
    bare = [place for place, kind in found if not ast.unparse(kind).startswith(("threadsafe(", *plain))]
    assert bare == []
