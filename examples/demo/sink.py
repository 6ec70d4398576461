"""A receiver of webhooks on this machine: checks each message's signature as Standard Webhooks asks, and keeps it."""

import base64
import hashlib
import hmac
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

TOLERANCE_SECONDS = 300


class Message(NamedTuple):
    """A received message; ``signed``: the signature is right and the timestamp is fresh."""

    at: float
    type: str
    data: dict[str, Any]
    signed: bool


class Sink:
    """``with Sink() as sink``: listens on a free port of this machine. ``secret`` is set once it is known."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.secret = ""
        sink = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                sink.take({name.lower(): value for name, value in self.headers.items()}, body)
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, name="sink", daemon=True)

    @property
    def place(self) -> str:
        """host:port"""
        return f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Sink":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, headers: dict[str, str], body: bytes) -> None:
        """Keep a message."""
        found = json.loads(body)
        self.messages.append(Message(time.time(), found["type"], found["data"], self._is_signed(headers, body)))

    def _is_signed(self, headers: dict[str, str], body: bytes) -> bool:
        stamp = headers.get("webhook-timestamp", "")
        if not stamp.isdecimal() or abs(time.time() - int(stamp)) > TOLERANCE_SECONDS:
            return False
        key = base64.b64decode(self.secret.removeprefix("whsec_"))
        signed = f"{headers.get('webhook-id', '')}.{stamp}.".encode() + body
        wanted = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        given = [each.removeprefix("v1,") for each in headers.get("webhook-signature", "").split()]
        return any(hmac.compare_digest(wanted, each) for each in given)

    def first(self, kind: str) -> Message | None:
        """The first message of a type."""
        return next((message for message in list(self.messages) if message.type == kind), None)
