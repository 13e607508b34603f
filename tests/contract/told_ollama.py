"""An Ollama on a loopback socket that has one model and says to each chat what a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIGEST = "0123456789abcdef" * 4
Body = dict[str, Any]


@dataclass
class ToldOllama:
    """`say` gets the body of a chat and gives the answer's text, or a status that refuses; `bodies` came."""

    say: Callable[[Body], str | int]
    model: str = "reader:8b"
    url: str = ""
    bodies: list[Body] = field(default_factory=list)

    def answer(self, path: str, body: Body) -> tuple[int, Body]:
        """Status and body of what a request gets."""
        if path == "/api/tags":
            return 200, {"models": [{"name": self.model, "digest": DIGEST, "size": 1}]}
        if path != "/api/chat":
            return 404, {"error": "not here"}
        self.bodies.append(body)
        said = self.say(body)
        if isinstance(said, int):
            return said, {"error": "told to fail"}
        return 200, {"message": {"role": "assistant", "content": said}, "done": True, "eval_count": 5}


def _handler(server: ToldOllama) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply({})

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, body: Body) -> None:
            status, answer = server.answer(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on stderr."""

    return Handler


@contextlib.contextmanager
def told_ollama(say: Callable[[Body], str | int], model: str = "reader:8b") -> Iterator[ToldOllama]:
    """The server, in a thread of this process, as long as the block."""
    told = ToldOllama(say, model)
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(told)) as listening:
        told.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield told
        finally:
            listening.shutdown()
            thread.join()
