"""Serve one exported model over HTTP, with nothing but the standard library and the model's own packages.

    python server.py --host 127.0.0.1 --port 8000

``POST /invocations`` takes and gives what an endpoint of loopline does, errors included; ``GET /ping`` says that it
serves. No key is asked for: whoever reaches the port is answered.
"""

import argparse
import json
import secrets
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .answers import ModelError
from .batches import Batcher
from .loading import CannotServe, load_model
from .signature import InputError, Signature

MAX_BODY_MB = 6
MAX_DRAINED_BYTES = 64 << 20
IDLE_SECONDS = 60.0
INVOCATIONS, PING = "/invocations", "/ping"
JSON_TYPE = "application/json"


class _Server(ThreadingHTTPServer):
    """One model; requests that arrive at the same time are predicted one after another."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], batcher: Batcher, max_body_bytes: int) -> None:
        super().__init__(address, _Handler)
        self._batcher = batcher
        self._predicting = threading.Lock()
        self.max_body_bytes = max_body_bytes

    def predict(self, content_type: str, request_id: str, body: bytes) -> tuple[int, bytes]:
        """Status and body of one answer."""
        with self._predicting:
            return self._batcher.answer([(content_type.encode("latin-1"), request_id.encode(), body)])[0]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "loopline-export"
    timeout = IDLE_SECONDS

    def setup(self) -> None:
        super().setup()
        self._request_id = ""

    def do_POST(self) -> None:
        """Predict."""
        self._begin()
        if self.path != INVOCATIONS:
            self._refuse(404, "not_found", f"there is no {self.path}; POST {INVOCATIONS}", close=True)
            return
        length = self.headers.get("content-length", "")
        if not length.isdecimal():
            self._refuse(411, "invalid_input", "the request needs a content-length", close=True)
        elif int(length) > self.server.max_body_bytes:
            message = f"the body is larger than {self.server.max_body_bytes} bytes"
            self._refuse(413, "too_large", message, close=True)
        else:
            body = self.rfile.read(int(length))
            status, answer = self.server.predict(self.headers.get("content-type", ""), self._request_id, body)
            self._send(status, answer if status < 400 else self._named(answer))

    def do_GET(self) -> None:
        """Say that it serves."""
        self._begin()
        if self.path == PING:
            self._send(200, b'{"status":"ok"}')
        else:
            self._refuse(404, "not_found", f"there is no {self.path}; GET {PING} or POST {INVOCATIONS}")

    def _begin(self) -> None:
        self._request_id = f"rq_{secrets.token_hex(10)}"

    def _named(self, body: bytes) -> bytes:
        """An error with the request's id in it."""
        document = json.loads(body)
        document["error"]["request_id"] = self._request_id
        return json.dumps(document).encode()

    def _refuse(self, status: int, code: str, message: str, *, close: bool = False) -> None:
        if close:  # what is not read of a body would be the next request; a client that still sends reads no answer
            self.close_connection = True
            length = self.headers.get("content-length", "")
            left = min(int(length), MAX_DRAINED_BYTES) if length.isdecimal() else 0
            while left and (piece := self.rfile.read(min(left, 1 << 16))):
                left -= len(piece)
        self._send(status, self._named(json.dumps({"error": {"code": code, "message": message}}).encode()))

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", JSON_TYPE)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-request-id", self._request_id)
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(body)


def load(folder: Path) -> Batcher:
    """The model of an exported folder, warmed up. Raises ``CannotServe``."""
    spec = json.loads((folder / "spec.json").read_text(encoding="utf-8"))
    features = (spec["signature"] or {}).get("features")
    code = folder / "code"
    given = {**spec, "model_dir": str(folder / "model"), "code_dir": str(code) if code.is_dir() else None}
    batcher = Batcher(load_model(given), Signature(features) if features else None)
    try:
        batcher.warm_up(spec.get("warmup") or [])
    except (InputError, ModelError) as error:
        raise CannotServe(f"the warm-up prediction failed: {error}") from error
    return batcher


def main(folder: Path, arguments: list[str] | None = None) -> int:
    """Serve an exported folder until SIGTERM or Ctrl-C; the process's exit code."""
    parser = argparse.ArgumentParser(description="Serve this model over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--max-body-mb", type=int, default=MAX_BODY_MB)
    given = parser.parse_args(arguments)
    try:
        server = _Server((given.host, given.port), load(folder), given.max_body_mb << 20)
    except (CannotServe, OSError) as error:
        print(f"cannot serve: {error}", flush=True)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host, port = server.server_address[:2]
    print(f"serving at http://{host!s}:{port}{INVOCATIONS}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        return 0
    finally:
        server.server_close()
    return 0
