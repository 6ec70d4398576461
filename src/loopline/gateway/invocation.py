"""One invocation: from the head of the request to the answer and its capture record."""

import json
import time
from typing import TYPE_CHECKING

from loopline.errors import LooplineError, NotFound, Overloaded, Timeout, TooLarge, Unavailable
from loopline.gateway.answers import CONTINUE, RETRY_AFTER, error_body, status_line, with_request_id
from loopline.gateway.exchange import CLIENT_GONE, Exchange
from loopline.gateway.head import Head
from loopline.gateway.routing import Endpoint, Key, Table, Variant

if TYPE_CHECKING:
    from loopline.gateway.connection import Connection

JSON_TYPE = b"application/json"
NO_VARIANT = b"x-loopline-version: none\r\nx-loopline-variant: none\r\n"
MAX_TYPE_BYTES = 256
_types: dict[bytes, bytes] = {}


def _json_text(value: bytes | None) -> bytes:
    return b"null" if value is None else json.dumps(value[:MAX_TYPE_BYTES].decode("latin-1")).encode()


def _type_text(value: bytes | None) -> bytes:
    """The content type as JSON; the few that clients use are kept."""
    if value is None:
        return b"null"
    text = _types.get(value)
    if text is None:
        if len(_types) > 256:
            _types.clear()
        text = _types[value] = _json_text(value)
    return text


class Invocation(Exchange):
    """A request for predictions. It goes to one model server and never to a second one."""

    __slots__ = (
        "_at",
        "_body",
        "_deadline",
        "_endpoint",
        "_holds_slot",
        "_key",
        "_purpose",
        "_started",
        "_table",
        "_variant",
        "expired",
    )

    def __init__(self, connection: "Connection", head: Head, request_id: str, endpoint: Endpoint) -> None:
        super().__init__(connection, head, request_id)
        self._table = connection.gateway.table_in_force
        self._endpoint = endpoint
        self._key: Key | None = None
        self._purpose = head.purpose() if connection.private else None
        self._variant: Variant | None = None
        self._body: bytes | bytearray = b""
        self._at = time.time()
        self._started = time.perf_counter()
        self._deadline = 0.0
        self._holds_slot = False
        self.expired = False

    def start(self) -> None:
        """Check the key and the announced size before any of the body is read."""
        head = self.head
        if not self._authorise():
            return
        if head.length > self._endpoint.max_body_bytes:
            self._refuse_size()
        elif head.expects and self.connection.is_turn_of(self):
            self.connection.deliver(self, CONTINUE, last=False)

    def _authorise(self) -> bool:
        """Whether the key may invoke the endpoint; refuses when it may not."""
        if self._endpoint.spec.auth and not self.connection.private:
            try:
                self._key = self._table.authorise(self.head.credential, self._endpoint.name)
            except LooplineError as error:
                self._refuse(error)
                return False
        return True

    def _follow(self, table: Table) -> bool:
        """Go by a table that came into force while the body was arriving; whether the request is still allowed."""
        endpoint = table.endpoints.get(self._endpoint.name.encode())
        if endpoint is None:
            self._refuse(NotFound("there is no endpoint by that name"))
            return False
        self._table, self._endpoint = table, endpoint
        return self._authorise()

    def turn(self) -> None:
        if self.head.expects and not self.received and not self.done:
            self.connection.deliver(self, CONTINUE, last=False)

    def body(self, data: bytes) -> None:
        if self.done:
            return
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            self._body = bytearray(self._body) + data  # many tiny chunks cost their bytes, not an object each
        if len(self._body) > self._endpoint.max_body_bytes:
            self._refuse_size()

    def _refuse_size(self) -> None:
        self._refuse(TooLarge(f"the body is larger than {self._endpoint.max_body_bytes} bytes"))

    def _refuse(self, error: LooplineError, headers: bytes = b"") -> None:
        """Answer an error without asking a model; closes where the rest of the request has not been read."""
        head = self.head
        if not self.received and (head.expects or head.chunked or head.length):
            self.close = True
        self._finish(error.status, JSON_TYPE, error_body(error.code, error.message, self.request_id), headers)

    def complete(self) -> None:
        """Send the request to a model server."""
        if self.done:
            return
        body = self._body = bytes(self._body)
        gateway = self.connection.gateway
        if gateway.table is not self._table and not self._follow(gateway.table_in_force):
            return
        endpoint = self._endpoint
        now = self._started = time.perf_counter()
        if endpoint.slots.used >= endpoint.spec.max_concurrent:
            self._refuse(Overloaded(), RETRY_AFTER)
            return
        self._variant = variant = endpoint.choose(gateway.chance)
        link = variant.next_link() if variant is not None else None
        if link is None:
            self._refuse(Unavailable("no model server of this endpoint is ready"), RETRY_AFTER)
        elif link.congested:
            self._refuse(Overloaded("the model server does not take more input at the moment"), RETRY_AFTER)
        else:
            self._holds_slot = True
            endpoint.slots.used += 1
            self._deadline = now + endpoint.timeout_seconds
            link.submit(self, self.head.content_type or JSON_TYPE, self.request_id.encode(), body)

    def answered(self, status: int, content_type: bytes, body: bytes) -> None:
        """The model server's answer."""
        self._release()
        if not self.done:
            if status >= 400:
                body = with_request_id(body, self.request_id)
            self._finish(status, content_type, body)

    def lost(self) -> None:
        """The model server died."""
        self._release()
        if not self.done:
            self._refuse(Unavailable("the model server ended while it had this request"), RETRY_AFTER)

    def expire_if_late(self, now: float) -> None:
        """Answer 504; the slot stays taken until the server answers, because the server is still at work."""
        if not self.done and now >= self._deadline:
            self.expired = True
            self._refuse(Timeout("the model server did not answer in time"))

    def abandon(self, status: int = CLIENT_GONE) -> None:
        """A request that no server has yet is recorded now; one that is in flight when its answer comes."""
        if not self.done and not self._holds_slot:
            self.done = True
            self._record(status, b"")

    def _release(self) -> None:
        if self._holds_slot:
            self._holds_slot = False
            self._endpoint.slots.used -= 1

    def _finish(self, status: int, content_type: bytes, body: bytes, headers: bytes = b"") -> None:
        self.done = True
        self._record(status, body)
        variant = self._variant
        answer = b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b%b\r\n%b" % (
            status_line(status),
            content_type,
            len(body),
            self.request_id.encode(),
            NO_VARIANT if variant is None else variant.headers,
            headers,
            self.connection_header(),
            body,
        )
        self.connection.deliver(self, answer, last=True)

    def _record(self, status: int, answer: bytes) -> None:
        endpoint, variant, head = self._endpoint, self._variant, self.head
        meta = b'{"id":"%b","at":%.6f,%b,"key":%b,"status":%d,"latency_us":%d,"content_type":%b,"join":%b%b}' % (
            self.request_id.encode(),
            self._at,
            endpoint.meta if variant is None else variant.meta,
            b"null" if self._key is None else self._key.meta,
            status,
            (time.perf_counter() - self._started) * 1e6,
            _type_text(head.content_type),
            _json_text(head.join),
            b"" if self._purpose is None else b',"purpose":"%b"' % self._purpose,
        )
        gateway = self.connection.gateway
        sampled = variant is not None and (endpoint.capture >= 1.0 or gateway.chance() < endpoint.capture)
        if sampled:
            gateway.spool.record(meta, bytes(self._body), answer)
        else:
            gateway.spool.record(meta, b"", b"")
        self._body = b""
