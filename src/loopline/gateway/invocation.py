"""One invocation: from the head of the request to the answer and its capture record, in seven stages.

Each stage is one method, which calls the next one when the request may go on: at once, or later when it has to wait.

1. ``complete``: the request is whole; ``_follow`` goes by the table in force, ``_authorise`` checks the key.
2. ``admit``: whether the key may send one more request now.
3. ``choose``: which variant answers.
4. ``enter``: the variant has a place for it, now or after a wait, or never.
5. ``connect``: which of the variant's model servers.
6. ``submit``: the request leaves for that server.
7. ``answered``: the answer goes to the client and the record to the spool.
"""

import json
import time
from typing import TYPE_CHECKING

from loopline.domain.frames import MAX_FRAME_BYTES
from loopline.errors import Forbidden, LooplineError, NotFound, Overloaded, RateLimited, Timeout, TooLarge, Unavailable
from loopline.gateway.answers import CONTINUE, RETRY_AFTER, error_body, status_line, with_request_id
from loopline.gateway.exchange import CLIENT_GONE, Exchange
from loopline.gateway.head import MAX_HEAD_BYTES, Head
from loopline.gateway.limits import Admission
from loopline.gateway.links import Link
from loopline.gateway.routing import Endpoint, Key, Table, Variant
from loopline.gateway.shadow import Original

if TYPE_CHECKING:
    from loopline.gateway.connection import Connection

JSON_TYPE = b"application/json"
NO_VARIANT = b"x-loopline-version: none\r\nx-loopline-variant: none\r\n"
MAX_TYPE_BYTES = 256
KEYLESS = "this endpoint asks for no key, and is not served to other machines: give it auth = true"
MAX_PRIVATE_BODY_BYTES = MAX_FRAME_BYTES - MAX_HEAD_BYTES


def _json_text(value: bytes | None) -> bytes:
    return b"null" if value is None else json.dumps(value[:MAX_TYPE_BYTES].decode("latin-1")).encode()


class Invocation(Exchange):
    """A request for predictions. It goes to one model server and never to a second one.

    ``done``: it has its answer, or nobody waits for one any more. ``admission``: where it holds a place.
    ``submitted``: a model server is at work on it. ``expired``: it was answered 504 while that server still is.
    ``started`` and ``deadline`` are ``time.perf_counter`` seconds, ``at`` is the wall clock.
    """

    __slots__ = (
        "admission",
        "allowed",
        "at",
        "copied",
        "deadline",
        "endpoint",
        "expired",
        "key",
        "payload",
        "purpose",
        "started",
        "submitted",
        "table",
        "told",
        "variant",
    )

    def __init__(self, connection: "Connection", head: Head, request_id: bytes, endpoint: Endpoint, at: float) -> None:
        self.connection = connection  # what Exchange.__init__ does: the call alone costs as much as all of these
        self.head = head
        self.request_id = request_id
        self.held = None
        self.done = self.received = self.begun = False
        self.close = not head.keep_alive
        self.table = connection.gateway.table_in_force
        self.endpoint = endpoint
        self.key: Key | None = None
        self.purpose = head.purpose() if connection.private else None
        self.variant: Variant | None = None
        self.payload: bytes | bytearray = b""
        self.at = at
        self.started = self.deadline = 0.0
        self.admission: Admission | None = None
        self.allowed = b""  # header lines that say what is left of the key's limits
        self.submitted = self.expired = self.copied = False
        self.told: bytes | None = None  # what the answer is, where it is no JSON

    # while the request arrives

    def start(self) -> None:
        """Check the key and the announced size before any of the body is read."""
        head = self.head
        self.started = time.perf_counter()
        if not self._authorise():
            return
        if head.length > self._max_body_bytes():
            self._refuse_size()
        elif head.expects and self.connection.is_turn_of(self):
            self.connection.deliver(self, CONTINUE, last=False)

    def _authorise(self) -> bool:
        """Whether the key may invoke the endpoint; refuses when it may not."""
        if self.connection.private:
            return True
        try:
            if self.endpoint.spec.auth:
                self.key = self.table.authorise(self.head.credential, self.endpoint.name)
            elif self.connection.gateway.exposed:
                raise Forbidden(KEYLESS)
        except LooplineError as error:
            self.refuse(error)
            return False
        return True

    def _follow(self, table: Table) -> bool:
        """Go by a table that came into force while the body was arriving; whether the request is still allowed."""
        endpoint = table.endpoints.get(self.endpoint.name.encode())
        if endpoint is None:
            self.refuse(NotFound("there is no endpoint by that name"))
            return False
        self.table, self.endpoint = table, endpoint
        return self._authorise()

    def turn(self) -> None:
        if self.head.expects and not self.received and not self.done:
            self.connection.deliver(self, CONTINUE, last=False)

    def body(self, data: bytes) -> None:
        if self.done:
            return
        if not self.payload:
            self.payload = data
        elif isinstance(self.payload, bytearray):
            self.payload += data
        else:
            self.payload = bytearray(self.payload) + data  # many tiny chunks cost their bytes, not an object each
        if len(self.payload) > self._max_body_bytes():
            self._refuse_size()

    def _refuse_size(self) -> None:
        self.refuse(TooLarge(f"the body is larger than {self._max_body_bytes()} bytes"))

    def _max_body_bytes(self) -> int:
        """What the platform itself asks was bounded where it was taken: here one frame has to carry it."""
        return MAX_PRIVATE_BODY_BYTES if self.connection.private else self.endpoint.max_body_bytes

    # the stages

    def complete(self) -> None:
        """The request is whole: check it against the table in force, and go on to ``admit``."""
        if self.done:
            return
        gateway = self.connection.gateway
        if gateway.table is not self.table and not self._follow(gateway.table_in_force):
            return
        self.started = time.perf_counter()
        self.deadline = self.started + self.endpoint.timeout_seconds
        if self.head.timeout_ms is not None:
            self.deadline = min(self.deadline, self.started + self.head.timeout_ms / 1000)
        self.admit()

    def admit(self) -> None:
        """Count the request against the limits of its key, and go on to ``choose``."""
        if self.key is not None and self.key.allowance is not None:
            try:
                self.allowed = self.key.allowance.spend()
            except RateLimited as error:
                self.refuse(error, b"retry-after: %d\r\n" % error.details["retry_after_seconds"])
                return
        self.choose()

    def choose(self) -> None:
        """Choose a variant by the weights in force, or by what the request says, and go on to ``enter``."""
        endpoint, chance = self.endpoint, self.connection.gateway.chance
        if self.head.variant is None and not endpoint.by_request:
            self.variant = endpoint.choose(chance)
        else:
            try:
                self.variant = endpoint.pick(self.head, chance)
            except LooplineError as error:
                if endpoint.spec.fetches and isinstance(error, NotFound):
                    self._fetch(error)
                else:
                    self.refuse(error)
                return
        self.enter()

    def _fetch(self, unknown: NotFound) -> None:
        """Wait for a model that the table does not know yet."""
        try:
            model = (self.head.model or b"").decode()
        except UnicodeDecodeError:
            self.refuse(unknown)
            return
        self.connection.gateway.fetching.hold(self, self.endpoint.name, model, self.deadline)

    def enter(self) -> None:
        """Take a place at the variant, and go on to ``connect``; where all are taken, wait for one."""
        variant = self.variant
        if variant is not None and variant.on_demand:
            if not variant.awake:
                self.wait_for_server(variant)
            elif variant.admission.enter(self, time.perf_counter()):
                self.admitted()
        elif variant is None or variant.admission.enter(self, self.started):
            self.admitted()

    def wait_for_server(self, variant: Variant) -> None:
        """Wait, without a place at the variant, for its server to start."""
        self.release()
        until = time.perf_counter() + variant.cold_start_seconds
        if self.head.timeout_ms is not None:
            until = min(until, self.deadline)
        self.connection.gateway.activation.hold(self, variant.links[0], variant.what, until)

    def woken(self) -> None:
        """The server has started: its time to answer begins. Or the table has changed: choose again."""
        gateway = self.connection.gateway
        if gateway.table is not self.table and not self._follow(gateway.table_in_force):
            return
        if self.head.timeout_ms is None:
            self.deadline = time.perf_counter() + self.endpoint.timeout_seconds
        self.choose()

    @property
    def lane(self) -> object:
        """Keys take turns where requests wait."""
        return self.key.meta if self.key is not None else None

    def admitted(self) -> None:
        """It has its place."""
        if self.variant is not None:
            self.admission = self.variant.admission
        self.connect()

    def turned_away(self, error: LooplineError, retry_seconds: int) -> None:
        """There is no place for it in time. No server has seen it, so that it counts for no variant."""
        self.variant = None
        self.refuse(error, b"retry-after: %d\r\n" % retry_seconds)

    def connect(self) -> None:
        """Find a model server of the variant that takes the request, and go on to ``submit``."""
        variant = self.variant
        link = variant.next_link() if variant is not None else None
        if link is None and variant is not None and variant.on_demand:
            self.wait_for_server(variant)
        elif link is None:
            self.refuse(Unavailable("no model server of this endpoint is ready"), RETRY_AFTER)
        elif link.congested:
            self.refuse(Overloaded("the model server does not take more input at the moment"), RETRY_AFTER)
        else:
            self.submit(link)

    def submit(self, link: Link) -> None:
        """Send the request; from here on it is that server's, whatever becomes of the client."""
        self.submitted = True
        payload = self.payload
        if payload.__class__ is not bytes:
            payload = self.payload = bytes(payload)
        head, variant = self.head, self.variant
        kind = head.passed() if variant is not None and variant.whole else head.content_type or JSON_TYPE
        link.submit(self, kind, self.request_id, payload)

    def answered(self, status: int, content_type: bytes, body: bytes) -> None:
        """The model server's answer."""
        self.submitted = False
        admission = self.admission
        if admission is not None:
            self.admission = None
            admission.leave(self, status < 400)
        if not self.done:
            if content_type != JSON_TYPE:
                self.told = content_type = content_type.partition(b"\n")[0]
            if status >= 400:
                body = with_request_id(body, self.request_id)
            if self.endpoint.shadows and self.purpose != b"test":
                self._finish_and_copy(status, content_type, body)
            else:
                self._finish(status, content_type, body)

    def _finish_and_copy(self, status: int, content_type: bytes, body: bytes) -> None:
        """Answer, then send copies of the request to the shadows whose turn it is; both answers are captured."""
        gateway, payload = self.connection.gateway, bytes(self.payload)
        name = None if self.variant is None else self.variant.name
        due = [
            shadow
            for shadow in self.endpoint.shadows
            if shadow.name != name and (shadow.share >= 1.0 or gateway.chance() < shadow.share)
        ]
        self.copied = bool(due)
        self._finish(status, content_type, body)
        for shadow in due:
            where = shadow.meta + b',"shadow":true'
            context = self.head.contexts.get(where) or self._context(where)
            kind = self.head.passed() if shadow.whole else self.head.content_type or JSON_TYPE
            shadow.copy(Original(context, self.request_id, self.at, kind, payload), gateway.spool)

    # the ways out

    def lost(self) -> None:
        """The model server died."""
        self.submitted = False
        self.release()
        if not self.done:
            self.refuse(Unavailable("the model server ended while it had this request"), RETRY_AFTER)

    def expire_if_late(self, now: float) -> None:
        """Answer 504; the slot stays taken until the server answers, because the server is still at work."""
        if not self.done and now >= self.deadline:
            self.expired = True
            self.refuse(Timeout("the model server did not answer in time"))

    def abandon(self, status: int = CLIENT_GONE) -> None:
        """A request that no server has yet is recorded now; one that is in flight when its answer comes."""
        if not self.done and not self.submitted:
            self.done = True
            self.release()
            self._record(status, b"")

    def release(self, good: bool | None = None) -> None:
        """Give the place back, once no model server is at work on the request; ``good``: it was answered well; None: no
        server answered it."""
        if self.admission is not None and not self.submitted:
            admission, self.admission = self.admission, None
            admission.leave(self, good)

    def refuse(self, error: LooplineError, headers: bytes = b"") -> None:
        """Answer an error without asking a model; closes where the rest of the request has not been read."""
        head = self.head
        if not self.received and (head.expects or head.chunked or head.length):
            self.close = True
        self.release()
        self._finish(error.status, JSON_TYPE, error_body(error.code, error.message, self.request_id), headers)

    def _finish(self, status: int, content_type: bytes, body: bytes, headers: bytes = b"") -> None:
        self.done = True
        self._record(status, body)
        variant = self.variant
        if status == 200 and content_type == JSON_TYPE and variant is not None and not self._is_special():
            answer = b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (variant.ok, self.request_id, len(body), body)
            self.connection.deliver(self, answer, last=True)
            return
        answer = b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b%b%b\r\n%b" % (
            status_line(status),
            content_type,
            len(body),
            self.request_id,
            NO_VARIANT if variant is None else variant.headers,
            self.allowed + headers if self.allowed else headers,
            self.connection_header(),
            body,
        )
        self.connection.deliver(self, answer, last=True)

    def _is_special(self) -> object:
        """Whether the answer needs a header beside those of every answer."""
        return self.allowed or self.close or self.head.old or self.connection.gateway.stopping

    def _record(self, status: int, answer: bytes) -> None:
        endpoint, variant = self.endpoint, self.variant
        where = endpoint.meta if variant is None else variant.meta
        if self.told is not None:
            where += b',"answer_type":%b' % _json_text(self.told)
        context = self.head.contexts.get(where) or self._context(where)
        gateway = self.connection.gateway
        latency_us = int((time.perf_counter() - self.started) * 1e6)
        if variant is not None and (endpoint.capture >= 1.0 or self.copied or gateway.chance() < endpoint.capture):
            body = self.payload
        else:
            body = answer = b""
        gateway.spool.add(context, (self.request_id, self.at, status, latency_us, body, answer))
        self.payload = b""

    def _context(self, where: bytes) -> bytes:
        """What the record shares with those of other requests that have the same head."""
        head = self.head
        context = head.contexts[where] = b'{%b,"key":%b,"content_type":%b,"join":%b%b}' % (
            where,
            b"null" if self.key is None else self.key.meta,
            _json_text(head.content_type),
            _json_text(head.join),
            b"" if self.purpose is None else b',"purpose":"%b"' % self.purpose,
        )
        return context
