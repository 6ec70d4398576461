"""What the gateway itself says over HTTP: heads of answers, JSON errors, request ids."""

import json
import random
from http import HTTPStatus

from loopline.domain.names import encode_base32

STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CLOSE = b"connection: close\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"
RETRY_AFTER = b"retry-after: 1\r\n"
_PAIRS = [encode_base32(number, 2).encode() for number in range(1024)]


class RequestIds:
    """Ids as ``names.make_id("rq", ...)`` makes them, as bytes and ten times as fast.

    A millisecond's digits are kept, and so are 40 of the 50 bits of chance, for at most 1024 ids; the rest counts.
    """

    def __init__(self, rng: random.Random) -> None:
        self._bits = rng.getrandbits
        self._millisecond = -1
        self._time = b""
        self._prefix = b""
        self._next = 1024

    def new(self, now: float) -> bytes:
        """A time-sortable id of 23 bytes; ``now`` is the wall clock in seconds."""
        millisecond = int(now * 1000)
        if millisecond != self._millisecond:
            self._millisecond = millisecond
            self._time = b"rq_" + encode_base32(millisecond, 10).encode()
            self._next = 1024
        place = self._next
        if place == 1024:
            bits = self._bits(40)
            chance = b"".join(_PAIRS[(bits >> shift) & 1023] for shift in (30, 20, 10, 0))
            self._prefix = self._time + chance
            place = 0
        self._next = place + 1
        return self._prefix + _PAIRS[place]


def status_line(status: int) -> bytes:
    """The first line of an answer."""
    return STATUS_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status


def error_body(code: str, message: str, request_id: bytes) -> bytes:
    """The one JSON error shape."""
    return json.dumps({"error": {"code": code, "message": message, "request_id": request_id.decode()}}).encode()


def with_request_id(body: bytes, request_id: bytes) -> bytes:
    """A model server's JSON error with the request id added; anything else is returned as it is."""
    try:
        document = json.loads(body)
        document["error"]["request_id"] = request_id.decode()
    except (ValueError, KeyError, TypeError):
        return body
    return json.dumps(document).encode()


def whole_answer(status: int, body: bytes, request_id: bytes, headers: bytes = b"", with_body: bool = True) -> bytes:
    """A complete JSON answer; ``headers`` are lines that end in CRLF. ``with_body`` is false for HEAD."""
    return b"%bcontent-type: application/json\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
        status_line(status),
        len(body),
        request_id,
        headers,
        body if with_body else b"",
    )
