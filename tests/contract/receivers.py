"""Who takes alerts, on loopback: a webhook over HTTP and a mail server over SMTP (RFC 5321, no more)."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast


class Webhook(ThreadingHTTPServer):
    """Keeps the JSON that is posted; answers with `status`, and sends those it redirects to `moved_to`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.status = 200
        self.moved_to = ""
        self.posts: list[dict[str, Any]] = []

    @property
    def address(self) -> str:
        """As apprise takes it; the path stands for a secret."""
        return f"json://127.0.0.1:{self.server_address[1]}/secret-hook-path"


class _Hook(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = cast(Webhook, self.server)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.posts.append(json.loads(body))
        self.send_response(server.status)
        if server.moved_to:
            self.send_header("Location", server.moved_to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests quiet."""


class Mailbox(socketserver.ThreadingTCPServer):
    """Keeps the mail that is delivered."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Smtp)
        self.mails: list[EmailMessage] = []

    @property
    def address(self) -> str:
        """As apprise takes it."""
        return f"mailto://127.0.0.1:{self.server_address[1]}?from=runner@agency.test&to=anna@agency.test"


class _Smtp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self._say("220 mail.test")
        while line := self.rfile.readline().decode().strip().upper():
            if line.startswith("DATA"):
                self._say("354 go on")
                self._take()
            elif line.startswith("QUIT"):
                self._say("221 bye")
                return
            self._say("250 ok")

    def _take(self) -> None:
        lines = []
        while (line := self.rfile.readline()) != b".\r\n":
            lines.append(line)
        mail = message_from_bytes(b"".join(lines), policy=policy.default)
        cast(Mailbox, self.server).mails.append(cast(EmailMessage, mail))

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextlib.contextmanager
def listening(server: Webhook | Mailbox) -> Iterator[None]:
    """Serve in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
