"""Functions: requests to ``/functions/NAME`` as events for a function's process, and what that process asks endpoints.

A function has no key and no network of its own: it asks by the connection on which its requests come, and may ask the
endpoints that its declaration names. The gateway decides; what the function's process says of itself counts nothing.
"""

import json
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from loopline.domain.frames import decode_call, encode_reply
from loopline.errors import Forbidden, FunctionFailed, LooplineError, NotFound, Overloaded, Timeout
from loopline.gateway.answers import error_body, with_request_id
from loopline.gateway.exchange import Exchange
from loopline.gateway.head import Head
from loopline.gateway.invocation import JSON_TYPE, Invocation
from loopline.gateway.links import Link, Waiting
from loopline.gateway.routing import Endpoint, Table

if TYPE_CHECKING:
    from loopline.gateway.connection import Connection
    from loopline.gateway.gateway import Gateway

ROUTE = b"/functions/"
METHODS = frozenset((b"GET", b"POST", b"PUT", b"PATCH", b"DELETE"))
TEST = b"test"  # the purpose of what the platform asks before traffic moves
EVENT_TYPE = b"application/vnd.loopline.event"
MAX_ASKING = 64  # open questions of one process of a function
MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 1024
# What a function answers shares its origin with the console: as a document it must not act in a user's name.
SAFE = b"content-security-policy: sandbox\r\nx-content-type-options: nosniff\r\n"
_HOP = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect")
)
_SECRETS = frozenset(("authorization", "x-api-key", "cookie", "proxy-authorization"))
_OWN = _HOP | {
    "content-length",
    "content-type",
    "content-security-policy",
    "x-content-type-options",
    "set-cookie",
    "x-request-id",
}
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_VALUE = re.compile(r"[\x20-\x7e\xa0-\xff]{0,4096}")


class FunctionInvocation(Invocation):
    """A request to a function. Its key must open ``function:NAME``, which is the name of its endpoint here.

    ``tested``: the endpoint and the variant that the platform's own request tests; what the function asks that endpoint
    on its behalf goes to that variant.
    """

    __slots__ = ("_path", "tested")

    def __init__(self, connection: "Connection", head: Head, request_id: bytes, table: Table, name: bytes) -> None:
        super().__init__(connection, head, request_id, table.functions[name], time.time())
        self._path = head.path[len(ROUTE) + len(name) :] or b"/"
        self.tested = head.tested() if self.purpose == TEST else None

    def _follow(self, table: Table) -> bool:
        name = self.endpoint.name.partition(":")[2].encode()
        if name not in table.functions:
            self.refuse(NotFound("there is no function by that name"))
            return False
        self.table, self.endpoint = table, table.functions[name]
        return self._authorise()

    def submit(self, link: Link) -> None:
        """Send the request as an event."""
        self.submitted = True
        self.payload = bytes(self.payload)
        head = json.dumps(
            {
                "method": self.head.method.decode("latin-1"),
                "path": self._path.decode("latin-1"),
                "query": self.head.target.partition(b"?")[2].decode("latin-1"),
                "headers": _visible(self.head.headers),
                "deadline": time.time() + self.deadline - time.perf_counter(),
            }
        ).encode()
        link.submit(self, EVENT_TYPE, self.request_id, len(head).to_bytes(4, "big") + head + self.payload)

    def answered(self, status: int, content_type: bytes, body: bytes) -> None:  # noqa: ARG002 - stands in the envelope
        """The function's answer."""
        self.submitted = False
        self.release(good=status < 500)
        if self.done:
            return
        try:
            said, body = _open(body)
            kind, lines = _headers(said.get("headers") or {})
        except (ValueError, TypeError, AttributeError) as error:
            self.refuse(FunctionFailed(f"the function's answer cannot be sent: {error}"))
            return
        if said.get("failed"):
            kind, body = JSON_TYPE, with_request_id(body, self.request_id)
        self.allowed += SAFE + lines
        self._finish(status, kind, body)

    def lost(self) -> None:
        """The function's process died."""
        self.submitted = False
        self.release()
        if not self.done:
            self.refuse(FunctionFailed("the function ended while it had this request"))

    def expire_if_late(self, now: float) -> None:
        """Answer 504; the place stays taken until the function has finished."""
        if not self.done and now >= self.deadline:
            self.expired = True
            self.refuse(Timeout("the function did not answer in time"))


def _visible(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """What a function sees of the request's headers: no credentials, nothing of this hop, nothing of the platform's."""
    seen: dict[str, str] = {}
    for name, value in headers:
        lower = name.decode("latin-1").lower()
        if lower not in _HOP and lower not in _SECRETS and not lower.startswith("x-loopline-"):
            text = value.decode("latin-1")
            seen[lower] = f"{seen[lower]}, {text}" if lower in seen else text
    return seen


def _open(envelope: bytes) -> tuple[dict[str, Any], bytes]:
    """(what is said about the answer, its body). Raises ``ValueError``."""
    size = int.from_bytes(envelope[:4], "big")
    said = json.loads(envelope[4 : 4 + size])
    if not isinstance(said, dict):
        raise ValueError("it is no answer")
    return said, envelope[4 + size :]


def _headers(headers: dict[str, Any]) -> tuple[bytes, bytes]:
    """(content type, other header lines) of an answer. Raises ``ValueError`` for what would not be headers."""
    kind, lines = "application/json", []
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"it has more than {MAX_HEADERS} headers")
    for name, value in headers.items():
        if not (isinstance(value, str) and _NAME.fullmatch(name) and _VALUE.fullmatch(value)):
            raise ValueError(f"{name[:100]!r} is not a header that can be sent")
        lower = name.lower()
        if lower == "content-type":
            kind = value
        elif lower not in _OWN and not lower.startswith("x-loopline-"):
            lines.append(f"{lower}: {value}\r\n")
    joined = "".join(lines).encode("latin-1")
    if len(joined) > MAX_HEADER_BYTES:
        raise ValueError(f"its headers take more than {MAX_HEADER_BYTES} bytes")
    return kind.encode("latin-1"), joined


class _Inside:
    """Stands where a client's connection does, for a request that comes from within."""

    private = True
    closing_soon = False

    def __init__(self, gateway: "Gateway") -> None:
        self.gateway = gateway

    def deliver(self, exchange: Exchange, data: bytes, last: bool) -> None:
        """Nobody reads HTTP here: ``FunctionCall`` replies by itself."""

    def is_turn_of(self, exchange: Exchange) -> bool:
        """Nothing is ahead of it."""
        return exchange is not None


class FunctionCall(Invocation):
    """What a function asks an endpoint: an invocation like any other, whose answer goes back by the function's link."""

    __slots__ = ("_asker", "_reply")

    def __init__(
        self, asker: "Asker", endpoint: Endpoint, head: Head, reply: Callable[[int, bytes, bytes], None]
    ) -> None:
        inside = cast("Connection", _Inside(asker.gateway))
        now = time.time()
        super().__init__(inside, head, asker.gateway.request_ids.new(now), endpoint, now)
        self._asker = asker
        self._reply = reply

    @property
    def lane(self) -> object:
        return self._asker

    def _finish(self, status: int, content_type: bytes, body: bytes, headers: bytes = b"") -> None:  # noqa: ARG002
        self.done = True
        self._asker.asking -= 1
        self._record(status, body)
        self._reply(status, content_type, body)


class Asker:
    """What one process of a function asks. ``asking``: how many of its questions are open."""

    def __init__(self, gateway: "Gateway", function: bytes) -> None:
        self.gateway = gateway
        self.asking = 0
        self._function = function

    def ask(self, number: int, payload: bytes, serving: Waiting | None, write: Callable[[bytes], None]) -> None:
        """The function's process asks an endpoint while it is at work on ``serving``, whose purpose and variant under
        test it goes on with. Raises ``Corrupt`` for what is no call."""
        name, kind, milliseconds, body = decode_call(payload)

        def reply(status: int, content_type: bytes, answer: bytes) -> None:
            write(encode_reply(number, status, content_type, answer))

        try:
            endpoint = self._endpoint(name)
        except LooplineError as error:
            request_id = self.gateway.request_ids.new(time.time())
            reply(error.status, JSON_TYPE, error_body(error.code, error.message, request_id))
            return
        self.asking += 1
        call = FunctionCall(self, endpoint, _call_head(name, kind, milliseconds, serving), reply)
        call.received = True
        call.start()
        call.body(body)
        call.complete()

    def _endpoint(self, name: bytes) -> Endpoint:
        """The endpoint, if the function may ask it now. Raises ``Forbidden``, ``NotFound`` and ``Overloaded``."""
        table = self.gateway.table_in_force
        if name not in table.calls.get(self._function, ()):
            function = self._function.decode("latin-1")
            raise Forbidden(f"the function {function} may not invoke that endpoint: name it in its endpoints")
        if name not in table.endpoints:
            raise NotFound("there is no endpoint by that name")
        if self.asking >= MAX_ASKING:
            raise Overloaded("the function has too many questions open")
        return table.endpoints[name]


def _call_head(name: bytes, kind: bytes, milliseconds: int, serving: Waiting | None) -> Head:
    test = isinstance(serving, FunctionInvocation) and serving.purpose == TEST
    headers = [
        (b"host", b"function"),
        (b"content-type", kind[:256]),
        (b"x-loopline-purpose", TEST if test else b"function"),
        (b"x-loopline-timeout-ms", b"%d" % min(max(1, milliseconds), 999_999_999)),
    ]
    if isinstance(serving, FunctionInvocation) and serving.tested is not None and serving.tested[0] == name:
        headers.append((b"x-loopline-variant", serving.tested[1]))
    return Head(b"POST", b"/endpoints/%b/invocations" % name, "1.1", headers)
