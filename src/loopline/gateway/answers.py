"""What the gateway itself says over HTTP: heads of answers, JSON errors, request ids."""

import json
import random
import time
from http import HTTPStatus

from loopline.domain.names import encode_base32

STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE = b"connection: close\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"
RETRY_AFTER = b"retry-after: 1\r\n"
_PAIRS = [encode_base32(number, 2) for number in range(1024)]


class RequestIds:
    """Ids as ``names.make_id("rq", ...)`` makes them, ten times as fast: a millisecond's digits are kept."""

    def __init__(self, rng: random.Random) -> None:
        self._bits = rng.getrandbits
        self._millisecond = -1
        self._prefix = ""

    def new(self) -> str:
        """A time-sortable id."""
        now = int(time.time() * 1000)
        if now != self._millisecond:
            self._millisecond = now
            self._prefix = "rq_" + encode_base32(now, 10)
        bits = self._bits(50)
        return (
            f"{self._prefix}{_PAIRS[bits >> 40]}{_PAIRS[(bits >> 30) & 1023]}{_PAIRS[(bits >> 20) & 1023]}"
            f"{_PAIRS[(bits >> 10) & 1023]}{_PAIRS[bits & 1023]}"
        )


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def error_body(code: str, message: str, request_id: str) -> bytes:
    """The one JSON error shape."""
    return json.dumps({"error": {"code": code, "message": message, "request_id": request_id}}).encode()


def with_request_id(body: bytes, request_id: str) -> bytes:
    """A model server's JSON error with the request id added; anything else is returned as it is."""
    try:
        document = json.loads(body)
        document["error"]["request_id"] = request_id
    except (ValueError, KeyError, TypeError):
        return body
    return json.dumps(document).encode()


def whole_answer(status: int, body: bytes, request_id: str, headers: bytes = b"", with_body: bool = True) -> bytes:
    """A complete JSON answer; ``headers`` are lines that end in CRLF. ``with_body`` is false for HEAD."""
    return b"%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
        status_line(status),
        len(body),
        request_id.encode(),
        headers,
        body if with_body else b"",
    )
