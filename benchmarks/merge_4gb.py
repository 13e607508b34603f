"""Peak memory of merging and of uploading a large base, against the size of the file.

    python benchmarks/merge_4gb.py                 # about 4 GB, needs 9 GB of disk
    python benchmarks/merge_4gb.py --gb 1 --json

A synthetic Llama in Q8_0 with the vocabulary and the widths of Llama 3.1 8B, and as many layers as the size
asks for; the adapter (rank 16) is on the last ten. Each phase runs in a process of its own, whose peak
resident set is what counts. The upload goes to a server on loopback that throws everything away.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, INNER, KEYS, VOCAB, RANK, TRAINED = 4096, 14336, 1024, 128256, 16, 10
LINEARS = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (KEYS, WIDTH),
    "self_attn.v_proj": (KEYS, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
Q8_0 = 8
BLOCK_BYTES, BLOCK = 34, 32


def main() -> int:
    """Run both phases and print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--phase", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        return phase(*options.phase)
    with tempfile.TemporaryDirectory(prefix="merge-") as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < (2.1 * options.gb + 0.5) * 1e9:
            print(f"{folder} has too little room for twice {options.gb} GB; set TMPDIR", file=sys.stderr)
            return 1
        layers = write_base(folder / "base.gguf", options.gb)
        write_adapter(folder / "adapter", layers)
        figures = {"base_mb": (folder / "base.gguf").stat().st_size / 1e6, "layers": layers}
        figures |= run("merge", str(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), Discard)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        figures |= run("upload", str(folder), f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        server.server_close()
    if options.json:
        print(json.dumps(figures))
    else:
        for key, value in figures.items():
            print(f"{key:18} {value:10,.1f}")
    return 0


def run(*phase_of: str) -> dict[str, float]:
    """One phase in a process of its own."""
    command = [sys.executable, __file__, "--phase", *phase_of]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def phase(name: str, folder: str, url: str = "") -> int:
    """What the child process does; it prints its own peak."""
    started = time.monotonic()
    PHASES[name](Path(folder), url)
    print(json.dumps({f"{name}_peak_mb": peak_mb(), f"{name}_seconds": time.monotonic() - started}))
    return 0


def peak_mb() -> float:
    """Of this process's own memory: on Linux getrusage(2) would count what the parent had before exec."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: in bytes


def merge(folder: Path, _url: str) -> None:
    """As the export step does it."""
    from fine_tune_runner.private.merge import merge_gguf

    merge_gguf(folder / "base.gguf", folder / "adapter", folder / "merged.gguf", stamp={"ftr.client_id": "b"})


def upload(folder: Path, url: str) -> None:
    """As Ollama's client does it."""
    from fine_tune_runner.private.ollama import Ollama

    with Ollama(url) as host:
        host.upload(folder / "merged.gguf", f"sha256:{'0' * 64}", lambda _sent, _total: None)


PHASES: dict[str, Callable[[Path, str], None]] = {"merge": merge, "upload": upload}


class Discard(BaseHTTPRequestHandler):
    """Has no file, and takes every one."""

    def do_HEAD(self) -> None:
        """Not here."""
        self.send_response(404)
        self.end_headers()

    def do_POST(self) -> None:
        """Read to the end and forget."""
        left = int(self.headers["Content-Length"])
        while left > 0 and (data := self.rfile.read(min(left, 1 << 20))):
            left -= len(data)
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""


def write_base(path: Path, gigabytes: float) -> int:
    """A Llama of about this size, chunk by chunk; the number of its layers."""
    from gguf import GGUFWriter

    from fine_tune_runner.private.gguf_file import Piece, read_header, write_gguf

    layer_bytes = sum(rows * columns for rows, columns in LINEARS.values()) // BLOCK * BLOCK_BYTES
    embedding = VOCAB * WIDTH // BLOCK * BLOCK_BYTES
    layers = max(1, round((gigabytes * 1e9 - embedding) / layer_bytes))
    writer = GGUFWriter(path.with_suffix(".kv"), "llama")
    writer.add_block_count(layers)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    # As many tokens and merges as Llama 3.1 has: a reader that keeps them all would show.
    writer.add_token_list([f"token {n}" for n in range(VOCAB)])
    writer.add_token_merges([f"{n} {n}" for n in range(280_147)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    shapes = {"token_embd.weight": (VOCAB, WIDTH)}
    shapes |= {f"blk.{n}.{short}.weight": shape for n in range(layers) for short, shape in gguf_linears()}
    pieces = [Piece(name, shape, Q8_0, partial(blocks, shape)) for name, shape in shapes.items()]
    write_gguf(path, read_header(path.with_suffix(".kv")), {}, pieces)
    return layers


def gguf_linears() -> list[tuple[str, tuple[int, int]]]:
    """The linears under llama.cpp's names."""
    from fine_tune_runner.private.llama_layout import MODULES

    return [(MODULES[module], shape) for module, shape in LINEARS.items()]


def blocks(shape: tuple[int, int]) -> Iterator[bytes]:
    """Valid Q8_0 rows: a float16 scale and 32 small numbers a block."""
    generator = np.random.default_rng(0)
    row_blocks = shape[1] // BLOCK
    rows = np.zeros((256, row_blocks, BLOCK_BYTES), np.uint8)
    rows[:, :, :2] = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
    rows[:, :, 2:] = generator.integers(0, 256, (256, row_blocks, BLOCK), np.uint8)
    for start in range(0, shape[0], 256):
        yield rows[: min(256, shape[0] - start)].tobytes()


def write_adapter(folder: Path, layers: int) -> None:
    """A PEFT folder of random numbers on the last layers."""
    from safetensors.numpy import save_file

    folder.mkdir()
    generator = np.random.default_rng(1)
    tensors = {}
    for n in range(max(layers - TRAINED, 0), layers):
        for module, (rows, columns) in LINEARS.items():
            key = f"base_model.model.model.layers.{n}.{module}"
            tensors[f"{key}.lora_A.weight"] = generator.random((RANK, columns), np.float32)
            tensors[f"{key}.lora_B.weight"] = generator.random((rows, RANK), np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 32}))


if __name__ == "__main__":
    raise SystemExit(main())
