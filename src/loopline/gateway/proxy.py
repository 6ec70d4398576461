"""What is not an invocation goes to control's Unix socket, streamed both ways, one connection per request.

Bodies are never held: a side that does not read makes the other side wait. The hop-by-hop headers of each side end
here; ``x-loopline-*`` is how the gateway speaks to control, so that no client can speak in its name.
"""

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

from loopline.errors import Unavailable
from loopline.gateway.answers import CONTINUE, RETRY_AFTER, error_body, whole_answer
from loopline.gateway.exchange import CLIENT_GONE, Exchange
from loopline.gateway.head import Head

if TYPE_CHECKING:
    from loopline.gateway.connection import Connection

HOLD_SECONDS = 3.0  # that a request waits for a control plane that does not listen
FIRST_RETRY_SECONDS = 0.02
LAST_RETRY_SECONDS = 0.25
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_FRAMING = frozenset((b"content-length", b"host"))  # never dropped because a client lists them in Connection
_OWN = b"x-loopline-"
_REQUEST_ID = b"x-request-id"
_SCHEME = b"x-forwarded-proto"
MAX_ANSWER_HEADERS = 256


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes, bytes]]:
    """(lower-case name, name, value) without what is for one hop only."""
    named: set[bytes] = set()
    for name, value in headers:
        if name.lower() == b"connection":
            named.update(token.strip().lower() for token in value.split(b","))
    dropped = (_HOP_BY_HOP | named) - _FRAMING
    return [(name.lower(), name, value) for name, value in headers if name.lower() not in dropped]


class Proxied(Exchange):
    """One request to control."""

    __slots__ = ("_upstream", "_waiting")

    def __init__(self, connection: "Connection", head: Head, request_id: bytes) -> None:
        super().__init__(connection, head, request_id)
        self._upstream: Upstream | None = None
        self._waiting: list[bytes] = []  # what came before the connection to control was open

    def start(self) -> None:
        gateway = self.connection.gateway
        self._waiting.append(self._request_head())
        self._upstream = upstream = Upstream(self)
        self.connection.hold_body()
        gateway.spawn(self._connect(upstream, str(gateway.control_socket)))

    async def _connect(self, upstream: "Upstream", path: str) -> None:
        """Open the connection; while control is being started again, which takes about a second, the request waits."""
        loop, pause = asyncio.get_running_loop(), FIRST_RETRY_SECONDS
        end = loop.time() + HOLD_SECONDS
        while not self.done:
            try:
                await loop.create_unix_connection(lambda: upstream, path)
            except OSError:
                if loop.time() < end and not self.connection.closing_soon:
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, LAST_RETRY_SECONDS)
                    continue
                told = "the control plane is not running at the moment; endpoints go on answering"
                self.fail(503, told, RETRY_AFTER)
            return

    def _request_head(self) -> bytes:
        head = self.head
        lines = [b"%b %b HTTP/1.1" % (head.method, head.target)]
        for lower, name, value in _end_to_end(head.headers):
            # an underscore: where headers become variables of a CGI program it is the same as a dash
            told = lower.replace(b"_", b"-")
            if told != _REQUEST_ID and not told.startswith(_OWN) and not (self.connection.secure and told == _SCHEME):
                lines.append(b"%b: %b" % (name, value))
        lines.append(b"x-request-id: " + self.request_id)
        lines.append(b"x-loopline-client: " + self.connection.client_address())
        if self.connection.secure:
            lines.append(b"x-forwarded-proto: https")
        # Not "connection: close": control would close as soon as it has answered, and what is then written of a body
        # that it did not want would break the connection before its answer has been read. This side closes.
        if head.chunked:
            lines.append(b"transfer-encoding: chunked")
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def opened(self, upstream: "Upstream") -> None:
        """The connection to control is open: send what has come so far and let the client go on."""
        waiting, self._waiting = self._waiting, []
        upstream.write(b"".join(waiting))
        if not self.connection.is_turn_of(self):
            upstream.hold_answer()
        if not upstream.full:
            self.connection.release_body()

    def body(self, data: bytes) -> None:
        self._send(_chunk(data) if self.head.chunked else data)

    def complete(self) -> None:
        if self.head.chunked:
            self._send(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        if self.done or self._upstream is None:
            return
        if self._upstream.is_open:
            self._upstream.write(data)
        else:
            self._waiting.append(data)

    def turn(self) -> None:
        if self._upstream is not None:
            self._upstream.release_answer()

    def abandon(self, status: int = CLIENT_GONE) -> None:  # noqa: ARG002 - nothing is recorded here
        self.done = True
        if self._upstream is not None:
            self._upstream.abort()

    def pause(self) -> None:
        if self._upstream is not None:
            self._upstream.hold_answer()

    def resume(self) -> None:
        self.turn()

    def relay(self, data: bytes) -> None:
        """A part of control's answer."""
        if not self.done:
            self.begun = True
            self.connection.deliver(self, data, last=False)

    def end(self, data: bytes = b"") -> None:
        """Control's answer is whole; an unread rest of the request ends the client's connection."""
        if not self.done:
            self.done = True
            self.close = self.close or not self.received
            self.connection.release_body()
            self.connection.deliver(self, data, last=True)

    def fail(self, status: int, message: str, headers: bytes = b"") -> None:
        """There is no answer from control, or only a part of one."""
        if self.done:
            return
        if self.begun:
            self.done = True
            self.connection.close_now()
            return
        self.close = self.close or not self.received
        headers += self.connection_header()
        body = error_body(Unavailable.code, message, self.request_id)
        self.end(whole_answer(status, body, self.request_id, headers, self.head.method != b"HEAD"))


class Upstream(asyncio.Protocol):
    """The connection to control for one request; the callbacks that begin with ``on_`` are httptools'."""

    def __init__(self, exchange: Proxied) -> None:
        self._exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._reason = b""
        self._in_body = False
        self._chunked = False
        self._until_close = False
        self._aborted = False
        self.full = False

    @property
    def is_open(self) -> bool:
        """Whether data can be written."""
        return self._transport is not None

    def write(self, data: bytes) -> None:
        """Send to control."""
        if self._transport is not None:
            self._transport.write(data)

    def hold_answer(self) -> None:
        """Read no more of the answer."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def release_answer(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        """Nobody wants the answer any more."""
        self._aborted = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._aborted:
            cast(asyncio.Transport, transport).abort()
            return
        self._transport = cast(asyncio.Transport, transport)
        self._exchange.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._until_close and exc is None:
            self._exchange.end(b"0\r\n\r\n" if self._chunked else b"")
        else:
            self._exchange.fail(502, "the control plane ended before it had answered; the request may have been done")

    def pause_writing(self) -> None:
        self.full = True
        self._exchange.connection.hold_body()

    def resume_writing(self) -> None:
        self.full = False
        self._exchange.connection.release_body()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._exchange.fail(502, "the control plane's answer was not HTTP")
            self.abort()

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:
            self._headers.append((name, value))
            if len(self._headers) > MAX_ANSWER_HEADERS:
                raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, []
        reason, self._reason = self._reason, b""
        if status < 200:
            if status == 100 and self._exchange.head.expects:
                self._exchange.connection.deliver(self._exchange, CONTINUE, last=False)
            return
        self._in_body = True
        head = self._exchange.head
        bodiless = head.method == b"HEAD" or status in (204, 304)
        answer = self._answer_head(status, reason, headers, bodiless)
        if bodiless:
            self._exchange.end(answer)
            self._close()
        else:
            self._exchange.relay(answer)

    def _answer_head(self, status: int, reason: bytes, headers: list[tuple[bytes, bytes]], bodiless: bool) -> bytes:
        exchange = self._exchange
        exchange.close = exchange.close or not exchange.received  # the rest of the request will not be read: say so
        lines = [b"HTTP/1.1 %d %b" % (status, reason)]
        sized = False
        for lower, name, value in _end_to_end(headers):
            sized = sized or lower == b"content-length"
            if lower != _REQUEST_ID:
                lines.append(b"%b: %b" % (name, value))
        lines.append(b"x-request-id: " + exchange.request_id)
        if not sized and not bodiless:
            self._until_close = not any(name.lower() == b"transfer-encoding" for name, _ in headers)
            self._chunked = not exchange.head.old
            if self._chunked:
                lines.append(b"transfer-encoding: chunked")
            else:
                exchange.close = True
        return b"\r\n".join(lines) + b"\r\n" + exchange.connection_header() + b"\r\n"

    def on_body(self, data: bytes) -> None:
        self._exchange.relay(_chunk(data) if self._chunked else data)

    def on_message_complete(self) -> None:
        if self._in_body:
            self._exchange.end(b"0\r\n\r\n" if self._chunked else b"")
            self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()
