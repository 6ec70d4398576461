"""Takes connections off the public port: no more than may be, and, of several gateways, no more than their share.

All gateways wait on one listening socket. Each takes one connection in a turn of its event loop, so that the one that
is less busy takes more; a gateway that took all that wait would keep a burst of long-lived connections to itself.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from typing import TYPE_CHECKING

from loopline.gateway.answers import CLOSE, RETRY_AFTER, error_body, whole_answer
from loopline.gateway.callers import Callers
from loopline.gateway.connection import HEADER_SECONDS, Connection
from loopline.gateway.logs import log

if TYPE_CHECKING:
    from loopline.gateway.gateway import Gateway

BACKLOG = 1024
AT_ONCE = 64  # connections in a turn of the event loop, where no other gateway wants some
PAUSE_SECONDS = 0.1


class Acceptor:
    """``context`` is None for plain HTTP. ``shared``: other gateways listen on the same socket."""

    def __init__(
        self,
        gateway: "Gateway",
        listening: socket.socket,
        callers: Callers,
        context: ssl.SSLContext | None,
        shared: bool,
    ) -> None:
        self._gateway = gateway
        self._listening = listening
        self._callers = callers
        self._context = context
        self._at_once = 1 if shared else AT_ONCE
        self._loop = asyncio.get_running_loop()
        self._open = True
        listening.setblocking(False)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Take no more; those that wait are for the next gateway."""
        self._open = False
        self._loop.remove_reader(self._listening)

    def _accept(self) -> None:
        for _ in range(self._at_once):
            try:
                taken, address = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:  # no descriptor is left: let some be closed
                log("connections wait", reason=str(error))
                self._loop.remove_reader(self._listening)
                self._loop.call_later(PAUSE_SECONDS, self._go_on)
                return
            taken.setblocking(False)
            caller = self._callers.enter(address[0])
            if caller is None:
                self._turn_away(taken)
            else:
                self._gateway.spawn(self._serve(taken, caller))

    def _go_on(self) -> None:
        if self._open:
            self._loop.add_reader(self._listening, self._accept)

    async def _serve(self, taken: socket.socket, caller: str) -> None:
        """Shake hands, where that is to be done, and leave the rest to the connection."""
        connection = Connection(self._gateway, on_end=lambda: self._callers.leave(caller))
        seconds = HEADER_SECONDS if self._context else None
        try:
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: connection, taken, ssl=self._context, ssl_handshake_timeout=seconds
            )
        except OSError:  # the client has gone, or does not speak TLS as it is spoken here
            taken.close()
        finally:
            if not connection.made:
                self._callers.leave(caller)

    def _turn_away(self, taken: socket.socket) -> None:
        """Say that there are too many, where that costs nothing, and do not wait for the request."""
        with contextlib.suppress(OSError), taken:
            if self._context is None:
                request_id = self._gateway.request_ids.new(time.time())
                message = "there are too many connections; keep some open and use them again"
                body = error_body("overloaded", message, request_id)
                taken.send(whole_answer(503, body, request_id, RETRY_AFTER + CLOSE))
                taken.shutdown(socket.SHUT_WR)
