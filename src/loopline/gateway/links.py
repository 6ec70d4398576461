"""A link: one persistent framed connection to one model server, shared by all requests to it."""

import asyncio
import math
import socket
import struct
from collections.abc import Callable
from typing import Protocol, cast

from loopline.domain.frames import LEAVING, AnswerReader, predict_frames
from loopline.errors import Corrupt
from loopline.gateway.logs import log

FIRST_RETRY_SECONDS = 0.01
LAST_RETRY_SECONDS = 0.25
AWAITED_RETRY_SECONDS = 0.02  # while requests wait for a server that starts
MAX_UNASKED = 10_000
WRITE_BUFFER_BYTES = 64 * 1024 * 1024
_CREDENTIALS = struct.Struct("3i")


class Waiting(Protocol):
    """A request that waits for a model server's answer until ``deadline``, in ``time.perf_counter`` seconds."""

    deadline: float
    expired: bool

    def answered(self, status: int, content_type: bytes, body: bytes) -> None:
        """The server's answer has come."""

    def lost(self) -> None:
        """The server died with this request in flight. It is not tried elsewhere: it may be what killed the server."""

    def expire_if_late(self, now: float) -> None:
        """Answer 504 when its deadline has passed."""


# What a function asks: the call's number and payload, the request that it is at work on, and how to reply.
OnCall = Callable[[int, bytes, Waiting | None, Callable[[bytes], None]], None]


class Links(dict[str, "Link"]):
    """The links of a gateway by the paths of their sockets. One to a server on demand is made when it is asked for."""

    def __missing__(self, path: str) -> "Link":
        link = self[path] = Link(path, on_demand=True)
        return link


class Link(asyncio.Protocol):
    """Connects, and connects again, until it is retired; then closes when the last request is answered.

    ``connected``: it takes requests. For ``health``: ``heard`` (it has sent something since somebody looked),
    ``failures`` (requests that it answered 5xx since it answered one well; 4xx says neither), ``broke`` (it sent what
    is no frame), and ``sick``.
    """

    def __init__(self, path: str, *, on_demand: bool = False) -> None:
        self.path = path
        self.on_demand = on_demand  # it connects when it is woken, and sleeps again when its server has gone
        self.used_at = 0.0  # time of day, as of the last look
        self.connected = False
        self.congested = False
        self.heard = False
        self.failures = 0
        self.broke = False
        self.sick = False
        self.looked_at = self.quiet_since = self.asked_at = self.well_at = -math.inf
        self.failing_at = math.inf
        self.pending: dict[int, Waiting] = {}
        self.on_call: OnCall | None = None  # of a function's server
        self.tried = asyncio.Event()  # the first attempt to connect is over, well or badly
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = AnswerReader()
        self._soonest = math.inf  # no later than the first deadline of those that wait
        self._next_id = 0
        self._unasked = 0  # answers on this connection that nobody waited for
        self._forgotten = 0  # up to this request, the server may be at work on what nobody waits for any more
        self._process = 0  # the pid at the other end
        self._sick_process = 0
        self._kind = b""  # the content type of what leaves at the end of this turn of the event loop: `_ids`, `_bodies`
        self._ids: list[bytes] = []
        self._bodies: list[bytes] = []
        self._out: list[bytes] = []  # what leaves before them
        self._retired = False
        self._closed = asyncio.Event()
        self._leaving = False
        self._used = 0  # requests as of the last look
        self._awake: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None
        if on_demand:
            self.tried.set()
        else:
            self._task = self._loop.create_task(self._keep_connected())

    async def _keep_connected(self) -> None:
        wait = FIRST_RETRY_SECONDS
        while not self._retired:
            self._closed.clear()
            try:
                await self._loop.create_unix_connection(lambda: self, self.path)
            except OSError:
                self.tried.set()
                await asyncio.sleep(wait)
                wait = min(wait * 2, AWAITED_RETRY_SECONDS if self.on_demand else LAST_RETRY_SECONDS)
                continue
            await self._closed.wait()
            wait = FIRST_RETRY_SECONDS
            if self.on_demand and self._awake is None:
                self._task = None
                return

    def wake(self, awake: Callable[[], None]) -> None:
        """Connect to a server on demand as soon as it listens; ``awake`` is called when it can be asked."""
        self._awake = awake
        if self._task is None and not self._retired:
            self._task = self._loop.create_task(self._keep_connected())

    def stay(self) -> None:
        """The server is no longer on demand: stay connected."""
        self.on_demand = False
        self.wake(lambda: None)

    @property
    def retired(self) -> bool:
        """Whether its server is in no table any more."""
        return self._retired

    def rest(self) -> None:
        """Nobody waits for the server any more: try no longer."""
        self._awake = None
        if self._task is not None and self._transport is None:
            self._task.cancel()
            self._task = None

    def look(self, now: float) -> bool:
        """Note the time of day of the last use; whether there is a server to speak of."""
        if self.pending or self._used != self._next_id:
            self._used, self.used_at = self._next_id, now
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        self._reader = AnswerReader()
        self.congested = self._leaving = False
        self._unasked = self._forgotten = 0
        before, self._process = self._process, _peer(self._transport)
        if self._process != before:
            self.broke, self.failures = False, 0
        if self.sick and self._process != self._sick_process:
            self.take_back()
        self.connected = not self.sick
        self.tried.set()
        if self.connected and self._awake is not None:
            awake, self._awake = self._awake, None
            self._loop.call_soon(awake)

    def connection_lost(self, _: Exception | None) -> None:
        self.connected = False
        self._transport = None
        self._forget_unsent()
        self._closed.set()
        pending, self.pending = self.pending, {}
        if pending and not self._retired:
            log("model server lost", path=self.path, in_flight=len(pending))
        for waiting in pending.values():
            waiting.lost()

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False

    def submit(self, waiting: Waiting, content_type: bytes, request_id: bytes, body: bytes) -> None:
        """Send a request; what is submitted within one turn of the event loop leaves in one write."""
        number = self._next_id = self._next_id + 1
        self.pending[number] = waiting
        if waiting.deadline < self._soonest:  # noqa: PLR1730 - min() costs four times as much
            self._soonest = waiting.deadline
        if not self._bodies:
            self._kind = content_type
            self._loop.call_soon(self._flush)
        elif content_type != self._kind:
            self._put_together(number)
            self._kind = content_type
        self._ids.append(request_id)
        self._bodies.append(body)

    def _put_together(self, following: int) -> None:
        """Make frames of the requests before ``following``."""
        count = len(self._bodies)
        self._out += predict_frames(following - count, self._kind, self._ids, self._bodies)
        self._ids.clear()
        self._bodies.clear()

    def _flush(self) -> None:
        if self._transport is not None and self._bodies:
            self._put_together(self._next_id + 1)
            self._transport.write(b"".join(self._out))
        self._forget_unsent()

    def _forget_unsent(self) -> None:
        self._out.clear()
        self._ids.clear()
        self._bodies.clear()

    def _count_unasked(self, number: int) -> None:
        """Pass over an answer that nobody waits for any more. Raises ``Corrupt`` for a flood of them, which would keep
        the gateway from other servers."""
        if number >= self._forgotten:
            self._forgotten = 0
        self._unasked += 1
        if self._unasked > MAX_UNASKED:
            raise Corrupt(f"more than {MAX_UNASKED} answers that nobody asked for")

    def data_received(self, data: bytes) -> None:
        try:
            take, failures = self.pending.pop, self.failures
            answers = self._reader.feed(data)
            if self._reader.calls:
                self._take_calls([answer[0] for answer in answers])
            for number, status, content_type, body in answers:
                failures = 0 if status < 400 else failures + (status >= 500)
                waiting = take(number, None)
                if waiting is not None:
                    waiting.answered(status, content_type, body)
                elif number == LEAVING:
                    self._leaving, self.connected = True, False
                else:
                    self._count_unasked(number)
            self.heard, self.failures = True, failures
        except Corrupt as error:
            log("model server broke the framing", path=self.path, error=error.message)
            self.broke = True
            if self._transport is not None:
                self._transport.abort()
        if not self.pending:
            if self._retired:
                self._close()
            elif self._leaving and self._transport is not None:
                self._transport.close()

    def sweep(self, now: float) -> bool:
        """Expire what is late; true once a retired link has nothing left that anybody waits for."""
        if now >= self._soonest:
            for waiting in list(self.pending.values()):
                waiting.expire_if_late(now)
            self._soonest = min(
                (waiting.deadline for waiting in self.pending.values() if not waiting.expired), default=math.inf
            )
        if self._retired and all(waiting.expired for waiting in self.pending.values()):
            self._close()
            return True
        return False

    def _take_calls(self, answered: list[int]) -> None:
        """Pass on what a function asks, each with the request that it is at work on: functions answer one request after
        the other, so that it is the first of those that are not answered. ``answered``: what came with the calls.
        Raises ``Corrupt`` where a server is no function."""
        calls, self._reader.calls = self._reader.calls, []
        transport = self._transport
        if self.on_call is None or transport is None:
            raise Corrupt("a call from a server that is no function")
        for number, payload, before in calls:
            over = answered[:before]
            serving = next((waiting for each, waiting in self.pending.items() if each not in over), None)
            self.on_call(number, payload, None if self._forgotten else serving, transport.write)

    def eject(self) -> None:
        """Take no requests until another process is there, or ``take_back``; those that wait are lost."""
        self.sick, self.connected, self.heard = True, False, False
        self._sick_process = self._process
        pending, self.pending = self.pending, {}
        if pending:
            self._forgotten = self._next_id
        for waiting in pending.values():
            waiting.lost()

    def take_back(self) -> None:
        """Take requests again."""
        log("model server back in service", path=self.path)
        self.sick = self.broke = self.heard = False
        self.failures = 0
        self.connected = self._transport is not None and not self._leaving

    def retire(self) -> None:
        """Take no more requests; close after the last answer."""
        self._retired = True
        if not self.pending:
            self._close()

    def abandon(self) -> None:
        """Close at once; the process ends."""
        self._retired = True
        self._close()

    def _close(self) -> None:
        self.connected = False
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.close()


def _peer(transport: asyncio.Transport) -> int:
    """The pid of the process that listens at the other end of a Unix socket. Source: unix(7), SO_PEERCRED."""
    own = socket.socket(fileno=transport.get_extra_info("socket").fileno())
    try:
        pid: int = _CREDENTIALS.unpack(own.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[0]
        return pid
    finally:
        own.detach()
