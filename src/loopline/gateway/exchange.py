"""An exchange: one request and its answer on a client's connection, which holds answers back until it is their turn."""

from typing import TYPE_CHECKING

from loopline.gateway.answers import CLOSE, KEEP_ALIVE, whole_answer
from loopline.gateway.head import Head

if TYPE_CHECKING:
    from loopline.gateway.connection import Connection

CLIENT_GONE = 499


class Exchange:
    """What a connection asks of every kind of request. ``held`` is what may not be sent yet."""

    __slots__ = ("begun", "close", "connection", "done", "head", "held", "received", "request_id")

    def __init__(self, connection: "Connection", head: Head, request_id: bytes) -> None:
        self.connection = connection
        self.head = head
        self.request_id = request_id
        self.held: list[bytes] | None = None
        self.done = False
        self.received = False
        self.begun = False  # a part of the answer has been sent
        self.close = not head.keep_alive

    def start(self) -> None:
        """The head has been read."""

    def body(self, data: bytes) -> None:
        """A part of the request's body."""

    def complete(self) -> None:
        """The whole request has been read."""

    def turn(self) -> None:
        """Every earlier answer on the connection has been sent."""

    def abandon(self, status: int = CLIENT_GONE) -> None:
        """Nobody waits for the answer: the client has gone, or was answered ``status`` for what it sent."""

    def pause(self) -> None:
        """The client does not read as quickly as answers come."""

    def resume(self) -> None:
        """The client reads again."""

    def connection_header(self) -> bytes:
        """The ``connection`` header of the answer; empty where HTTP's default is meant."""
        if self.close or self.connection.closing_soon:
            self.close = True
            return CLOSE
        return KEEP_ALIVE if self.head.old else b""


class Reply(Exchange):
    """An answer that the gateway gives by itself once the request has been read."""

    __slots__ = ("_answer",)

    def __init__(
        self,
        connection: "Connection",
        head: Head,
        request_id: bytes,
        answer: tuple[int, bytes, bytes],
    ) -> None:
        """``answer``: status, body and header lines."""
        super().__init__(connection, head, request_id)
        self._answer = answer

    def start(self) -> None:
        if self.head.expects or self.head.length > 65536 or self.head.chunked:
            self.close = True
            self._send()

    def complete(self) -> None:
        if not self.done:
            self._send()

    def _send(self) -> None:
        self.done = True
        status, body, headers = self._answer
        headers += self.connection_header()
        self.connection.deliver(
            self, whole_answer(status, body, self.request_id, headers, self.head.method != b"HEAD"), last=True
        )
