"""The Ollama stand-in on a loopback socket: in a thread of the test, or as a process of its own.

`python -m tests.contract.ollama_server.server FOLDER [ADDRESS]` prints its URL and serves until killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from tests.contract.ollama_server.app import make_app
from tests.contract.ollama_server.store import Store


@dataclass
class OllamaServer:
    """A running server: its address, what it keeps, and every request that came, such as "POST /api/copy"."""

    url: str
    store: Store
    seen: list[str] = field(default_factory=list)

    def asked(self, request: str) -> int:
        """How often a request came."""
        return self.seen.count(request)

    @property
    def names(self) -> set[str]:
        """Names of the models that are there."""
        return set(self.store.models)


def _uvicorn(server: OllamaServer, token: str | None) -> uvicorn.Server:
    app = make_app(server.store, token)

    async def seeing(scope: Any, receive: Any, send: Any) -> None:
        server.seen.append(f"{scope['method']} {scope['path'].partition('/sha256')[0]}")
        await app(scope, receive, send)

    config = uvicorn.Config(
        seeing, http="h11", loop="asyncio", lifespan="off", ws="none", log_level="critical"
    )
    return uvicorn.Server(config)


def listen(address: str = "127.0.0.1") -> socket.socket:
    """An ephemeral port of this machine."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind((address, 0))
    return listener


@contextlib.contextmanager
def serving(folder: Path, *, version: str = "0.34.1", token: str | None = None) -> Iterator[OllamaServer]:
    """A server in a thread of this process, on an ephemeral port; its blobs lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    listener = listen()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = OllamaServer(url, Store(folder, version))
    running = _uvicorn(server, token)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve([listener])), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.force_exit = running.should_exit = True
        thread.join(timeout=10)
        server.store.close()
        listener.close()


if __name__ == "__main__":
    main_address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    main_listener = listen(main_address)
    main_folder = Path(sys.argv[1])
    main_folder.mkdir(parents=True, exist_ok=True)
    main_url = f"http://{main_address}:{main_listener.getsockname()[1]}"
    sys.stdout.write(main_url + "\n")
    sys.stdout.flush()
    asyncio.run(_uvicorn(OllamaServer(main_url, Store(main_folder)), None).serve([main_listener]))
