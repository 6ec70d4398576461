"""The socket of a model server: frames in, batches to the predicting thread, frames out.

The event loop lives in a thread of its own; user code keeps the main thread, where it behaves as in a script (signal
handlers, libraries bound to one thread). Pings are answered by the loop, so that a slow prediction is no silence.
"""

import asyncio
import math
import os
import queue
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .batches import JSON_TYPE, Answer, error_body
from .frames import (
    MAX_FRAME_BYTES,
    PING,
    PREDICT,
    Frame,
    FrameError,
    FrameReader,
    decode_predict,
    encode_answer,
    encode_frame,
)

WATCH_SECONDS = 0.5
OUT_OF_MEMORY = 137  # the exit code of a process that the kernel killed for its memory
MAX_ANSWER_BYTES = MAX_FRAME_BYTES - 1024


def resident_mb() -> float:
    """The memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1048576


class Request(NamedTuple):
    """A predict request and the connection that its answer goes to."""

    connection: "Connection"
    id: int
    content_type: bytes
    request_id: bytes
    body: bytes


Inbox = queue.SimpleQueue[list[Request] | None]


class Connection(asyncio.Protocol):
    """One gateway's connection. Answers leave in the order of the requests, because batches are predicted in order."""

    def __init__(self, listener: "Listener") -> None:
        self._listener = listener
        self._reader = FrameReader()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._listener.connections.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self.transport = None
        self._listener.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._reader.feed(data):
                self._take(frame)
        except FrameError:
            if self.transport is not None:
                self.transport.abort()

    def _take(self, frame: Frame) -> None:
        if frame.kind == PREDICT:
            self._listener.arrived(Request(self, frame.id, *decode_predict(frame.payload)))
        elif frame.kind == PING:
            self.send(encode_frame(frame.id, PING, b""))
        else:
            raise FrameError(f"unknown frame kind {frame.kind}")

    def send(self, data: bytes) -> None:
        """Write, unless the gateway has gone."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)


class Listener:
    """Runs the event loop; ``inbox`` gets one list of requests per tick, and ``None`` when all is finished."""

    def __init__(self, bound: socket.socket, inbox: Inbox, parent: int, memory_mb: float = math.inf) -> None:
        self.connections: set[Connection] = set()
        self._bound = bound
        self._memory_mb = memory_mb
        self._inbox = inbox
        self._parent = parent
        self._tick: list[Request] = []
        self._outstanding = 0
        self._stopping = False
        self._finished = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None

    def run(self, ready: Callable[[BaseException | None], None]) -> None:
        """Serve until ``stop`` and the last answer; ``ready`` is called once, with the error when listening failed."""
        asyncio.run(self._serve(ready))

    async def _serve(self, ready: Callable[[BaseException | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            self._server = await self._loop.create_unix_server(lambda: Connection(self), sock=self._bound, backlog=64)
        except OSError as error:
            ready(error)
            return
        ready(None)
        watch = asyncio.create_task(self._watch())
        await self._finished.wait()
        watch.cancel()
        for connection in list(self.connections):
            if connection.transport is not None:
                connection.transport.close()  # writes what is buffered first
        while self.connections:
            await asyncio.sleep(0.01)
        self._inbox.put(None)

    async def _watch(self) -> None:
        """End the process when its parent has ended or its memory is more than it may have."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if os.getppid() != self._parent:
                os._exit(1)
            if resident_mb() > self._memory_mb:
                print(f"the model server uses more than {self._memory_mb} MB of memory", file=sys.stderr, flush=True)
                os._exit(OUT_OF_MEMORY)

    def arrived(self, request: Request) -> None:
        """Collect what comes within one turn of the event loop."""
        assert self._loop is not None
        if not self._tick:
            self._loop.call_soon(self._pass_on)
        self._tick.append(request)
        self._outstanding += 1

    def _pass_on(self) -> None:
        batch, self._tick = self._tick, []
        self._inbox.put(batch)

    def deliver(self, requests: list[Request], answers: list[Answer]) -> None:
        """Send answers; from any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._send, requests, answers)

    def _send(self, requests: list[Request], answers: list[Answer]) -> None:
        by_connection: dict[Connection, list[bytes]] = {}
        for request, answer in zip(requests, answers, strict=True):
            by_connection.setdefault(request.connection, []).append(_frame(request.id, answer))
        for connection, frames in by_connection.items():
            connection.send(b"".join(frames))
        self._outstanding -= len(requests)
        self._finish_if_idle()

    def stop(self) -> None:
        """Take no new connection, finish what has arrived, then end; from any thread and from a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._stopping = True
        if self._server is not None:
            self._server.close()
        self._finish_if_idle()

    def _finish_if_idle(self) -> None:
        if self._stopping and not self._outstanding:
            self._finished.set()


def _frame(number: int, answer: Answer) -> bytes:
    if len(answer.body) > MAX_ANSWER_BYTES:
        message = "the predictions are larger than an answer may be"
        return encode_answer(number, 500, JSON_TYPE, error_body("model_error", message))
    return encode_answer(number, answer.status, JSON_TYPE, answer.body)
