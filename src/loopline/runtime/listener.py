"""The socket of a model server: frames in, one batch for all that has arrived, frames out, on the main thread.

There is no thread between the socket and the model: a hop between threads costs as much as a small prediction. User
code keeps the main thread, where it behaves as in a script (signal handlers, libraries bound to one thread). A second
thread looks after the process; during a long prediction it also takes in what arrives and answers pings, so that a
slow model is no silence. Nothing ever waits for a gateway to read: what it does not take yet is kept.
"""

import errno
import math
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .answers import Body, error_body
from .batches import Answer
from .frames import (
    CALL,
    LEAVING,
    MANY,
    MAX_FRAME_BYTES,
    PING,
    PREDICT,
    FrameError,
    FrameReader,
    decode_many,
    decode_predict,
    decode_reply,
    encode_answer,
    encode_answers,
    encode_call,
    encode_frame,
)
from .printed import Call

WATCH_SECONDS = 0.5
WAIT_SECONDS = 2.0  # a signal whose wake-up was lost is seen after this time
FINISH_SECONDS = 10.0
LEAVE_SECONDS = 5.0  # so long a gateway may take to read that this server leaves; it closes when it has
READ_BYTES = 256 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024  # of requests taken in during a prediction, and of answers that nobody reads
OUT_OF_MEMORY = 137  # the exit code of a process that the kernel killed for its memory
MAX_ANSWER_BYTES = MAX_FRAME_BYTES - 1024
JSON_TYPE = b"application/json"
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT


def resident_mb() -> float:
    """The memory that this process occupies."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1048576


def _sendable(status: int, body: bytes) -> tuple[int, bytes, bytes]:
    """Status, content type and body of an answer, or of the error where it is too large for a frame."""
    if len(body) > MAX_ANSWER_BYTES:
        return 500, JSON_TYPE, error_body("model_error", "the predictions are larger than an answer may be")
    return status, body.content_type if type(body) is Body else JSON_TYPE, body


class Connection:
    """One gateway's connection. Answers leave in the order of the requests, because batches are predicted in order."""

    def __init__(self, link: socket.socket) -> None:
        self.socket = link
        self.reader = FrameReader()
        self.unsent = bytearray()
        self.watched = _IN
        self.closed = False
        self.together = False  # the gateway sends several requests in a frame, and takes several answers in one


class Listener:
    """Answers what arrives on a bound socket, until it is stopped and all that has arrived is answered."""

    def __init__(self, bound: socket.socket, parent: int, memory_mb: float = math.inf) -> None:
        self._bound = bound
        self._memory_mb = memory_mb
        self._parent = parent
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self._owners: list[tuple[Connection, int]] = []
        self._calls: list[Call] = []
        self._waiting_bytes = 0
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._wake, self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._turn = threading.Lock()  # who holds it may touch sockets and requests
        self._predicting = False
        self._stopping = False
        self._asker: Connection | None = None  # whose request is being answered
        self._asked: set[int] = set()
        self._replies: dict[int, bytes] = {}
        self._last_call = 0
        self._left_at: float | None = None

    def listen(self) -> None:
        """Take connections from now on. Raises ``OSError``."""
        self._bound.listen(64)
        self._bound.setblocking(False)
        self._epoll.register(self._bound.fileno(), _IN)
        self._epoll.register(self._wake, _IN)

    def stop(self) -> None:
        """Take no new connection, finish what has arrived, then end; from a signal handler."""
        self._stopping = True
        os.write(self._waker, b"x")

    def serve(self, answer: Callable[[Sequence[Call]], list[Answer]], one_by_one: bool = False) -> None:
        """Answer until stopped; ``one_by_one``: never several requests at a time."""
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        with self._turn:
            while True:
                if self._stopping and self._left_at is None:
                    self._leave()
                if not self._calls:
                    self._exchange(0.02 if self._stopping else WAIT_SECONDS)
                owners, calls = self._owners, self._calls
                if calls:
                    rest = 1 if one_by_one else len(calls)
                    self._owners, self._calls, self._waiting_bytes = owners[rest:], calls[rest:], 0
                    owners, calls = owners[:rest], calls[:rest]
                    self._asker = owners[0][0]
                    self._send(owners, self._predict(answer, calls))
                    if self._left_at is not None:
                        self._left_at = time.monotonic()
                elif self._has_left():
                    break
            self._finish()

    def _leave(self) -> None:
        """Take no new connection but those made already, and tell every gateway to send nothing more."""
        self._left_at = time.monotonic()
        while self._accept():
            pass
        self._epoll.unregister(self._bound.fileno())
        self._bound.close()
        for connection in list(self._connections.values()):
            self._write(connection, encode_answer(LEAVING, 200, JSON_TYPE, b""))

    def _has_left(self) -> bool:
        """Whether every gateway was told and has closed, or has had the time to."""
        if self._left_at is None:
            return False
        return not self._connections or time.monotonic() - self._left_at > LEAVE_SECONDS

    def ask(self, endpoint: str, content_type: str, seconds: float, body: bytes) -> tuple[int, str, bytes]:
        """Ask an endpoint, from within ``answer``, by the gateway whose request it is: (status, content type, body).

        Raises ``TimeoutError`` after ``seconds``, ``ConnectionError`` when that gateway has ended.
        """
        end = time.monotonic() + seconds
        with self._turn:
            asker = self._asker
            number = self._last_call = self._last_call + 1
            assert asker is not None
            self._asked.add(number)
            try:
                kind = content_type.encode("latin-1")
                self._write(asker, encode_call(number, endpoint.encode(), kind, max(1, int(seconds * 1000)), body))
                while number not in self._replies:
                    left = end - time.monotonic()
                    if asker.closed:
                        raise ConnectionError("the gateway ended before the endpoint had answered")
                    if left <= 0:
                        raise TimeoutError(f"the endpoint {endpoint} did not answer in time")
                    self._exchange(min(left, WAIT_SECONDS))
                status, kind, answer = decode_reply(self._replies.pop(number))
            finally:
                self._asked.discard(number)
        return status, kind.decode("latin-1"), answer

    def _predict(self, answer: Callable[[Sequence[Call]], list[Answer]], calls: list[Call]) -> list[Answer]:
        """The answers; meanwhile the other thread may have its turn."""
        self._predicting = True
        self._turn.release()
        try:
            return answer(calls)
        finally:
            self._turn.acquire()
            self._predicting = False

    def _watch(self) -> None:
        """End the process when its parent has ended or its memory is more than it may have; never let it seem dead."""
        while True:
            time.sleep(WATCH_SECONDS)
            if os.getppid() != self._parent:
                os._exit(1)
            if resident_mb() > self._memory_mb:
                print(f"the model server uses more than {self._memory_mb} MB of memory", file=sys.stderr, flush=True)
                os._exit(OUT_OF_MEMORY)
            if self._predicting and self._turn.acquire(blocking=False):
                try:
                    self._exchange(0)
                finally:
                    self._turn.release()

    # -- sockets ------------------------------------------------------------------------------------------------------

    def _exchange(self, wait: float) -> None:
        """Read once from every connection that has something, and send what can be sent."""
        for number, events in self._epoll.poll(wait):
            connection = self._connections.get(number)
            if connection is not None:
                if events & _OUT:
                    self._flush(connection)
                if events & ~_OUT:
                    self._read(connection)
            elif number == self._wake:
                self._drain_wake()
            elif number == self._bound.fileno():
                self._accept()

    def _drain_wake(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            return

    def _accept(self) -> bool:
        """Take one connection; whether there was one."""
        try:
            link, _ = self._bound.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.01)  # the model holds every descriptor: do not spin
            return False
        link.setblocking(False)
        self._connections[link.fileno()] = Connection(link)
        self._epoll.register(link.fileno(), _IN)
        return True

    def _read(self, connection: Connection) -> None:
        if self._waiting_bytes > MAX_WAITING_BYTES:
            return
        try:
            size = connection.socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._close(connection)
            return
        self._waiting_bytes += size
        try:
            for number, kind, payload in connection.reader.feed(bytes(self._view[:size])):
                if kind == MANY:
                    calls = decode_many(payload)
                    self._calls += calls
                    self._owners += [(connection, each) for each in range(number, number + len(calls))]
                    connection.together = True
                elif kind == PREDICT:
                    self._calls.append(decode_predict(payload))
                    self._owners.append((connection, number))
                else:
                    self._take_other(connection, number, kind, payload)
        except FrameError:
            self._close(connection)

    def _take_other(self, connection: Connection, number: int, kind: int, payload: bytes) -> None:
        """A frame that asks for no prediction. Raises ``FrameError`` for one of no known kind."""
        if kind == CALL:
            if number in self._asked:
                self._replies[number] = payload
        elif kind == PING:
            self._write(connection, encode_frame(number, PING, b""))
        else:
            raise FrameError(f"unknown frame kind {kind}")

    def _send(self, owners: list[tuple[Connection, int]], answers: list[Answer]) -> None:
        if len(answers) == 1:
            connection, number = owners[0]
            status, kind, body = _sendable(*answers[0])
            self._write(connection, encode_answer(number, status, kind, body))
            return
        sent: dict[tuple[Connection, bytes], tuple[list[int], list[int], list[bytes]]] = {}
        for (connection, number), answer in zip(owners, answers, strict=True):
            status, kind, body = _sendable(*answer)
            place = (connection, kind)
            if place not in sent:
                sent[place] = ([], [], [])
            numbers, statuses, bodies = sent[place]
            numbers.append(number)
            statuses.append(status)
            bodies.append(body)
        for (connection, kind), (numbers, statuses, bodies) in sent.items():
            if connection.together:
                self._write(connection, encode_answers(kind, numbers, statuses, bodies))
            else:
                parts = zip(numbers, statuses, bodies, strict=True)
                self._write(connection, b"".join([encode_answer(n, status, kind, body) for n, status, body in parts]))

    def _write(self, connection: Connection, data: bytes) -> None:
        """Send, and keep what the gateway does not take yet."""
        if connection.closed:
            return
        if connection.unsent:
            connection.unsent += data
            self._flush(connection)
            return
        sent = self._send_some(connection, data)
        if sent is not None and sent < len(data):
            connection.unsent += memoryview(data)[sent:]
            self._update_interest(connection)

    def _flush(self, connection: Connection) -> None:
        sent = self._send_some(connection, connection.unsent)
        if sent is not None:
            del connection.unsent[:sent]
            self._update_interest(connection)

    def _send_some(self, connection: Connection, data: bytes | bytearray) -> int | None:
        """How many bytes the gateway has taken; None when it has gone."""
        try:
            return connection.socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._close(connection)
            return None

    def _update_interest(self, connection: Connection) -> None:
        """Wait for what can be done: while too much stands unsent, no more requests are taken."""
        unsent = connection.unsent
        wanted = _IN if not unsent else _OUT if len(unsent) > MAX_WAITING_BYTES else _IN | _OUT
        if wanted != connection.watched:
            connection.watched = wanted
            self._epoll.modify(connection.socket.fileno(), wanted)

    def _close(self, connection: Connection) -> None:
        connection.closed = True
        number = connection.socket.fileno()
        self._connections.pop(number, None)
        self._epoll.unregister(number)
        connection.socket.close()

    def _finish(self) -> None:
        """Send what is left, for as long as somebody takes it."""
        end = time.monotonic() + FINISH_SECONDS
        while any(each.unsent for each in self._connections.values()) and time.monotonic() < end:
            self._exchange(0.1)
        for connection in list(self._connections.values()):
            self._close(connection)
