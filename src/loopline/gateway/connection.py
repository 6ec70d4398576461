"""A client's connection: bytes to requests, requests to exchanges, answers back in order; deadlines and limits."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools

from loopline.errors import InvalidInput
from loopline.gateway.answers import CLOSE, RETRY_AFTER, error_body, whole_answer
from loopline.gateway.exchange import Exchange, Reply
from loopline.gateway.functions import METHODS, ROUTE, FunctionInvocation
from loopline.gateway.head import ENDPOINTS, MAX_HEAD_BYTES, MAX_HEADERS, Head, malformed, refusal, too_big
from loopline.gateway.headcache import KnownHead
from loopline.gateway.invocation import Invocation
from loopline.gateway.proxy import Proxied
from loopline.gateway.signed import SignedInvocation

if TYPE_CHECKING:
    from loopline.gateway.gateway import Gateway

HEADER_SECONDS = 10.0
BODY_SECONDS = 60.0
LEAST_BODY_RATE = 32 * 1024  # bytes a second, beside those sixty seconds
IDLE_SECONDS = 75.0
WRITE_SECONDS = 60.0
LINGER_SECONDS = 2.0
MAX_PIPELINED = 64
HELD_BACK, DEEP, UPSTREAM = 1, 2, 4  # why reading is paused
PING, HEALTH = b"/ping", b"/healthz"


class Connection(asyncio.Protocol):
    """One client. The callbacks that begin with ``on_`` are httptools'.

    A ``private`` client came by the Unix socket in the run directory, which only this installation may open: it needs
    no key, and may say what an invocation is for.
    """

    def __init__(self, gateway: "Gateway", private: bool = False, on_end: Callable[[], None] | None = None) -> None:
        self.gateway = gateway
        self.private = private
        self.made = False  # whether there has been a connection
        self._on_end = on_end
        self.deadline = gateway.now() + HEADER_SECONDS
        self.transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()
        self._current: Exchange | None = None
        self._receiving = False
        self._finished = False
        self._paused = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._unparsed = 0
        self._refusal: InvalidInput | None = None
        self.secure = False
        self._body_began = 0.0
        self._body_bytes = 0
        self._repeats = not private  # whether the next request may begin with a head that is known
        self._last: KnownHead | None = None
        self._body_head = b""  # set between the head of an upgrade that is declined and its body

    # the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.gateway.connections.add(self)
        self.made = True
        self.secure = not self.private and transport.get_extra_info("ssl_object") is not None

    def connection_lost(self, _: Exception | None) -> None:
        self.transport = None
        self._finished = True
        self.gateway.connections.discard(self)
        if self._on_end is not None:
            self._on_end()
        for exchange in self._queue:
            exchange.abandon()
        self._queue.clear()

    def eof_received(self) -> bool:
        """A client that has finished sending may still wait for answers; TLS ends both ways at once."""
        if not self._queue or self._receiving or self.secure:
            return False
        self.closing_after_answers()
        return True

    def pause_writing(self) -> None:
        self._pause(HELD_BACK)
        self.deadline = self.gateway.now() + WRITE_SECONDS
        if self._queue:
            self._queue[0].pause()

    def resume_writing(self) -> None:
        self._resume(HELD_BACK)
        if self._queue:
            self.deadline = self.gateway.now() + BODY_SECONDS if self._receiving else math.inf
            self._queue[0].resume()
        elif not self._finished:
            self._rest()

    def _pause(self, reason: int) -> None:
        if not self._paused and self.transport is not None:
            self.transport.pause_reading()
        self._paused |= reason

    def _resume(self, reason: int) -> None:
        if self._paused & reason:
            self._paused &= ~reason
            if not self._paused and self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def hold_body(self) -> None:
        """Read no more of a request's body until ``release_body``; that wait is not the client's fault."""
        self._pause(UPSTREAM)
        self.deadline = math.inf

    def release_body(self) -> None:
        """Read on."""
        if self._paused & UPSTREAM:
            self._resume(UPSTREAM)
            if self._receiving:
                self._body_began, self._body_bytes = self.gateway.now(), 0
                self.deadline = self._body_began + BODY_SECONDS

    def data_received(self, data: bytes) -> None:
        if self._finished:
            return
        if self._repeats and not self._receiving and (data := self._take_known(data)) == b"":
            return
        before = self._head_bytes
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError as error:
            self._fail(self._refusal or _internal(error))
            return
        except httptools.HttpParserError as error:
            self._fail(malformed(f"not HTTP: {error}"))
            return
        if self._receiving and self._current is None and self._head_bytes == before:
            self._unparsed += len(data)
            if self._unparsed > MAX_HEAD_BYTES:
                self._fail(too_big())
        else:
            self._unparsed = 0

    def _take_known(self, data: bytes) -> bytes:
        """Start the requests at the front of ``data`` whose heads are known; the rest is for the parser.

        The parser stands between two messages before and after, and knows nothing of those that are taken here.
        """
        gateway = self.gateway
        heads = gateway.heads
        if heads is None:
            return data
        now, queue = time.time(), self._queue
        at, size = 0, len(data)
        while at < size and len(queue) < MAX_PIPELINED:
            known = self._last
            if known is None or known.cache is not heads or not data.startswith(known.raw, at):
                known = self._last = heads.find(data, at)
                if known is None:
                    break
            begin = at + known.size
            end = begin + known.length
            if end > size or now >= known.expires_at:
                break
            invocation = Invocation(self, known.head, gateway.request_ids.new(now), known.endpoint, now)
            invocation.key = known.key
            invocation.payload = data[begin:end]
            invocation.received = True
            queue.append(invocation)
            self.deadline = math.inf
            at = end
            invocation.complete()
            if self._finished:
                return b""
        return data[at:] if at else data

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:  # an upgrade is declined by answering in HTTP/1.1
                data = data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)
                if self._body_head:
                    self._parser.feed_data(self._body_head)
            else:
                return

    # the parser

    def on_message_begin(self) -> None:
        if self._body_head:
            return
        if self._finished:
            self._refuse(malformed("the connection is being closed"))
        self._url = b""
        self._headers = []
        self._head_bytes = 1
        self._receiving = True
        self._current = None
        self.deadline = self.gateway.now() + HEADER_SECONDS

    def on_url(self, url: bytes) -> None:
        if self._body_head:
            return
        self._url += url
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(too_big())

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._body_head:
            return
        self._headers.append((name, value))
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > MAX_HEAD_BYTES or len(self._headers) > MAX_HEADERS:
            self._refuse(too_big())

    def _refuse(self, error: InvalidInput) -> None:
        self._refusal = error
        raise error

    def on_headers_complete(self) -> None:
        if self._body_head:
            self._body_head = b""
            return
        parser = self._parser
        try:
            head = Head(parser.get_method(), self._url, parser.get_http_version(), self._headers)
            exchange = self._exchange(head)
        except InvalidInput as error:
            self._refuse(error)
            return
        self._headers = []  # what follows are trailers: counted, and dropped
        self._body_began, self._body_bytes = self.gateway.now(), 0
        self.deadline = self._body_began + BODY_SECONDS
        if parser.should_upgrade() and (head.length or head.chunked):
            # httptools takes the body for another protocol's bytes; a second parser reads it under this head
            framing = b"transfer-encoding: chunked" if head.chunked else b"content-length: %d" % head.length
            self._body_head = b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing
        self._current = exchange
        self._queue.append(exchange)
        if len(self._queue) > MAX_PIPELINED:
            self._pause(DEEP)
        exchange.start()

    def _exchange(self, head: Head) -> Exchange:
        head.keep_alive = self._parser.should_keep_alive()
        if not head.keep_alive:
            self._repeats = False  # nothing may follow, and the parser says so
        gateway = self.gateway
        now = time.time()
        request_id = gateway.request_ids.new(now)
        table = gateway.table
        if table is None:
            body = error_body("unavailable", "the server is starting", request_id)
            return Reply(self, head, request_id, (503, body, RETRY_AFTER))
        path = head.path
        if path == HEALTH and head.method in (b"GET", b"HEAD"):  # balancers ask by address, whatever the name
            return Reply(self, head, request_id, self._health(request_id))
        if not self.private:
            head.check_host(table.hosts)
        name = head.invokes()
        if name is not None:
            return self._invocation(head, request_id, name, now)
        if path.startswith(ENDPOINTS) and head.method in (b"GET", b"HEAD") and path.endswith(PING):
            return self._ping(head, request_id, path[len(ENDPOINTS) : -len(PING)])
        if path.startswith(ROUTE):
            return self._function(head, request_id, path[len(ROUTE) :].partition(b"/")[0])
        if self.private:
            body = error_body("not_found", "this socket answers /endpoints/NAME/invocations and .../ping", request_id)
            return Reply(self, head, request_id, (404, body, b""))
        return Proxied(self, head, request_id)

    def _health(self, request_id: bytes) -> tuple[int, bytes, bytes]:
        """Whether this process takes requests; the control plane may be stopped all the while."""
        if self.closing_soon:
            return 503, error_body("unavailable", "the gateway is stopping", request_id), RETRY_AFTER
        return 200, b'{"ready": true}', b""

    def _invocation(self, head: Head, request_id: bytes, name: bytes, now: float) -> Exchange:
        table = self.gateway.table_in_force
        endpoint = table.endpoints.get(name)
        if head.signed and not self.private:
            return SignedInvocation(self, head, request_id, endpoint, now, name)
        if endpoint is not None:
            return Invocation(self, head, request_id, endpoint, now)
        return Reply(self, head, request_id, self.gateway.unknown_endpoint(head, name, request_id))

    def _function(self, head: Head, request_id: bytes, name: bytes) -> Exchange:
        table = self.gateway.table_in_force
        if head.method not in METHODS:
            body = error_body("not_allowed", "a function answers GET, POST, PUT, PATCH and DELETE", request_id)
            return Reply(self, head, request_id, (405, body, b"allow: GET, POST, PUT, PATCH, DELETE\r\n"))
        if name in table.functions:
            return FunctionInvocation(self, head, request_id, table, name)
        return Reply(self, head, request_id, self.gateway.unknown_endpoint(head, b"function:" + name, request_id))

    def _ping(self, head: Head, request_id: bytes, name: bytes) -> Exchange:
        endpoint = self.gateway.table_in_force.endpoints.get(name)
        if endpoint is not None and endpoint.ready:
            return Reply(self, head, request_id, (200, b'{"ready": true}', b""))
        body = error_body("unavailable", "the endpoint is not ready, or there is none by that name", request_id)
        return Reply(self, head, request_id, (503, body, RETRY_AFTER))

    def on_body(self, data: bytes) -> None:
        if self._current is not None:
            self._body_bytes += len(data)
            if self.deadline < math.inf:  # a large body has its time; one that trickles in has not
                self.deadline = self._body_began + BODY_SECONDS + self._body_bytes / LEAST_BODY_RATE
            self._current.body(data)

    def on_message_complete(self) -> None:
        if self._body_head:
            return
        self._receiving = False
        self.deadline = math.inf
        exchange, self._current = self._current, None
        if exchange is not None:
            exchange.received = True
            exchange.complete()
        if not self._queue:
            self._rest()

    # answers

    @property
    def closing_soon(self) -> bool:
        """Whether the process is about to end, so that no further request is welcome."""
        return self.gateway.stopping

    def client_address(self) -> bytes:
        """The client's ``address:port``."""
        peer = self.transport.get_extra_info("peername") if self.transport is not None else None
        return f"{peer[0]}:{peer[1]}".encode() if peer else b"unknown"

    def is_turn_of(self, exchange: Exchange) -> bool:
        """Whether every earlier answer has been sent."""
        return bool(self._queue) and self._queue[0] is exchange

    def deliver(self, exchange: Exchange, data: bytes, last: bool) -> None:
        """Send a part of an exchange's answer, or hold it until its turn; ``last`` ends the answer."""
        queue = self._queue
        if not queue or queue[0] is not exchange:
            held = exchange.held = [] if exchange.held is None else exchange.held
            held.append(data)
            exchange.done = exchange.done or last
            if last:
                held.append(b"")  # the mark that nothing follows
            return
        if data and self.transport is not None:
            self.transport.write(data)
        if last:
            queue.popleft()
            if queue or exchange.close or self._receiving or self.gateway.stopping:
                self._next(exchange)
            else:
                self.deadline = self.gateway.now() + IDLE_SECONDS

    def _next(self, sent: Exchange) -> None:
        """Go on after an answer was sent whole."""
        queue = self._queue
        while not sent.close:
            if not queue:
                self._rest()
                return
            if len(queue) == MAX_PIPELINED:
                self._resume(DEEP)
            head = queue[0]
            held, head.held = head.held, None
            if held and self.transport is not None:
                self.transport.write(b"".join(held))
            if not held or held[-1] != b"":
                head.turn()
                return
            sent = queue.popleft()
        self._linger()

    def _rest(self) -> None:
        """Nothing is under way: wait for the next request."""
        if not self._receiving:
            self.deadline = self.gateway.now() + IDLE_SECONDS
            if self.gateway.stopping:
                self._linger()

    def _linger(self) -> None:
        """Close so that the client reads the answer: end our side first and wait a moment for it to end its own."""
        self._finished = True
        for exchange in self._queue:
            exchange.abandon()
        self._queue.clear()
        self.deadline = self.gateway.now() + LINGER_SECONDS
        if self.transport is not None:
            if self._receiving and self.transport.can_write_eof():
                self._resume(self._paused)
                self.transport.write_eof()
            else:
                self.transport.close()

    def _fail(self, error: InvalidInput) -> None:
        """Answer after what is still to be answered, then close: where the next request begins is not known."""
        if self.transport is None or self._finished:
            return
        self._finished = True
        self._receiving = True
        status, code = int(error.details["status"]), str(error.details["code"])
        current, self._current = self._current, None
        if current is not None and not current.done and current in self._queue:
            self._queue.remove(current)
            current.abandon(status)
            if current.begun:
                self.transport.abort()
                return
        request_id = self.gateway.request_ids.new(time.time())
        reply = Exchange(self, _NO_HEAD, request_id)
        reply.close = True
        body = error_body(code, error.message, request_id)
        self._queue.append(reply)
        self.deliver(reply, whole_answer(status, body, request_id, CLOSE), last=True)

    def close_now(self) -> None:
        """Drop the connection; used where an answer that was begun cannot be ended."""
        if self.transport is not None:
            self.transport.abort()

    def closing_after_answers(self) -> None:
        """Read no more; close when every request that was read is answered."""
        self._finished = True
        if self._queue:
            self._queue[-1].close = True
        else:
            self._linger()

    def expire(self) -> None:
        """The deadline has passed."""
        if self._receiving and not self._finished:
            self._fail(refusal(408, "timeout", "the request took too long to arrive"))
            self.deadline = self.gateway.now() + LINGER_SECONDS
        elif self.transport is not None:
            self.transport.abort()

    def stop(self) -> None:
        """The process ends: finish what was read, close what is idle."""
        if not self._queue and not self._receiving:
            self._linger()


def _internal(error: BaseException) -> InvalidInput:
    cause = error.__context__ or error
    if isinstance(cause, InvalidInput):
        return cause
    raise cause


_NO_HEAD = Head(b"GET", b"/", "1.1", [(b"host", b"")])
_NO_HEAD.keep_alive = False
