"""The contract server on a loopback socket: in a thread of the test, or as a process of its own.

`python -m tests.contract.openai_server.server` prints its address and serves until it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.contract.openai_server.account import Account
from tests.contract.openai_server.app import make_app
from tests.contract.openai_server.misbehave import Bend, Fault, Misbehaving

KEY = "-".join(("sk", "contract", "0123456789abcdef"))  # of this server only


class _Protocol(H11Protocol):
    """Hands its transport to the application, so that a fault can cut the connection."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


@dataclass
class ContractServer:
    """A running server: its address, its account, what goes wrong, and what was asked of it.

    `wrong` has every request and answer that broke the wire description.
    """

    url: str
    account: Account = field(default_factory=Account)
    faults: list[Fault] = field(default_factory=list)
    bends: list[Bend] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def asked(self, request: str) -> int:
        """How often a request such as "POST /files" came."""
        return self.seen.count(request)

    @property
    def training_files(self) -> list[str]:
        """Names of the uploads that are still there."""
        return [f.filename for f in self.account.files.values() if f.purpose == "fine-tune"]


def _listen() -> tuple[socket.socket, str]:
    # The protocol is named, for asyncio sets TCP_NODELAY on such sockets only: 40 ms a request otherwise.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def _uvicorn(server: ContractServer) -> uvicorn.Server:
    app = make_app(server.account, KEY, server.wrong)
    layer = Misbehaving(app, server.faults, server.bends, server.seen)
    config = uvicorn.Config(
        layer, http=_Protocol, loop="asyncio", lifespan="off", ws="none", log_level="critical"
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def serving() -> Iterator[ContractServer]:
    """A server in a thread of this process, on an ephemeral port."""
    listener, url = _listen()
    server = ContractServer(url)
    running = _uvicorn(server)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve([listener])), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        running.force_exit = running.should_exit = True
        thread.join(timeout=10)
        listener.close()


if __name__ == "__main__":
    main_listener, main_url = _listen()
    sys.stdout.write(f"{main_url} {KEY}\n")
    sys.stdout.flush()
    asyncio.run(_uvicorn(ContractServer(main_url)).serve([main_listener]))
