"""A load on an endpoint, from outside: what callers would see at a given rate, or at a given number of connections.

At a rate each request has the time at which it is meant to be sent, and its latency counts from then: a server that
stalls is charged for every request that had to wait, not for the one that it kept (no coordinated omission). Without a
rate each connection asks again as soon as it is answered.

    python -m loopline.sdk.load    one plan as a line of JSON on standard input, its figures on standard output
"""

import asyncio
import base64
import json
import math
import re
import ssl
import sys
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

from loopline.domain.latency import Histogram
from loopline.errors import InvalidInput, Unavailable

TICK_SECONDS = 0.001
RECONNECT_SECONDS = 0.05
GRACE_SECONDS = 10.0  # how long what is under way at the end is waited for
BATCH = 1 << 16  # latencies that are kept before they are counted
MAX_CONNECTING = 64
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_VARIANT = re.compile(rb"\r\nx-loopline-variant: *([^\r]*)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)

Look = Callable[[int, int, bytes, bytes, float], None]


@dataclass(frozen=True)
class Plan:
    """``requests``: the bytes that are sent, in turn. ``rate``: requests/s, 0 for as fast as they are answered.

    ``unix`` is the path of a socket, in place of ``host`` and ``port``. ``look(which, status, head, body, seconds)``
    sees each answer, and which of the requests it belongs to.
    """

    requests: Sequence[bytes]
    connections: int
    seconds: float
    rate: float = 0.0
    host: str = "127.0.0.1"
    port: int = 0
    unix: str = ""
    tls: ssl.SSLContext | None = None
    look: Look | None = None


@dataclass
class Counted:
    """What has been seen. ``statuses`` holds those of answers, and ``lost`` (the connection ended), ``unanswered`` (no
    answer by the end) and ``unsent`` (no connection was free in time)."""

    statuses: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    latencies: "array[float]" = field(default_factory=lambda: array("d"))
    histogram: Histogram = field(default_factory=Histogram)
    problem: str = ""

    def took(self, seconds: float) -> None:
        """Note a latency."""
        self.latencies.append(max(seconds, 0.0) * 1e6)
        if len(self.latencies) >= BATCH:
            self.settle()

    def settle(self) -> None:
        """Count the latencies that are kept."""
        self.histogram += Histogram.of(self.latencies)
        del self.latencies[:]


def post(host: str, target: str, body: bytes, content_type: str, headers: dict[str, str]) -> bytes:
    """The bytes of a POST over a connection that stays; raises ``InvalidInput`` for what cannot be a header."""
    given = {"Host": host, "Content-Type": content_type, "Content-Length": str(len(body)), **headers}
    for name, value in given.items():
        if not value.isascii() or not value.isprintable():
            raise InvalidInput(f"{name}: {value!r} cannot be sent as a header")
    lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Load:
    """One load while it is on."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.counted = Counted()
        self.idle: list[_Connection] = []
        self.busy: set[_Connection] = set()
        self.issued = 0
        self.began = 0.0
        self.ended = False
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """Put the load on; gives the figures. Raises ``Unavailable`` when no connection can be made."""
        for start in range(0, self.plan.connections, MAX_CONNECTING):
            most = min(MAX_CONNECTING, self.plan.connections - start)
            await asyncio.gather(*(self._connect() for _ in range(most)))
        if not self.idle:
            raise Unavailable(f"no connection can be made: {self.counted.problem}")
        self.began = time.perf_counter()
        end = self.began + self.plan.seconds
        while (now := time.perf_counter()) < end or (self._is_behind(now) and now < end + GRACE_SECONDS):
            self.send_due(now)
            await asyncio.sleep(TICK_SECONDS)
        self.ended = True
        return self._figures()

    def _is_behind(self, now: float) -> bool:
        """Whether something that was to be sent has not been answered."""
        return bool(self.busy) or self.issued < self.due(now)

    # -- sending

    def due(self, now: float) -> int:
        """How many requests should have been sent by now; without a rate, whether there is another one."""
        elapsed = now - self.began
        if not self.plan.rate:
            return self.issued + (elapsed < self.plan.seconds)
        return min(int(elapsed * self.plan.rate) + 1, math.ceil(self.plan.seconds * self.plan.rate))

    def send_due(self, now: float) -> None:
        """Send what is due as far as connections are free."""
        while self.idle and self.issued < self.due(now):
            self.send(self.idle.pop(), now)

    def send(self, connection: "_Connection", now: float) -> None:
        """Send the next request; its time is the one at which it was meant to be sent."""
        connection.which = self.issued % len(self.plan.requests)
        connection.meant_at = self.began + self.issued / self.plan.rate if self.plan.rate else now
        self.issued += 1
        self.busy.add(connection)
        connection.ask(self.plan.requests[connection.which])

    def free(self, connection: "_Connection", now: float) -> None:
        """A connection has its answer."""
        if self.issued < self.due(now):
            self.send(connection, now)
        else:
            self.busy.discard(connection)
            self.idle.append(connection)

    # -- connections

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            if self.plan.unix:
                await loop.create_unix_connection(lambda: _Connection(self), self.plan.unix)
            else:
                await loop.create_connection(
                    lambda: _Connection(self),
                    self.plan.host,
                    self.plan.port,
                    ssl=self.plan.tls,
                    server_hostname=self.plan.host if self.plan.tls else None,
                )
        except OSError as error:
            self.counted.problem = str(error)
            if self.began and not self.ended:
                await asyncio.sleep(RECONNECT_SECONDS)
                self.reconnect()

    def reconnect(self) -> None:
        """Open a connection in place of one that ended."""
        task = asyncio.get_running_loop().create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    # -- figures

    def _figures(self) -> dict[str, Any]:
        counted, plan = self.counted, self.plan
        now = time.perf_counter()
        for connection in self.busy:
            counted.statuses["unanswered"] += 1
            counted.took(now - connection.meant_at)
        unsent = self.due(now) - self.issued
        if unsent:
            counted.statuses["unsent"] = unsent
        counted.settle()
        asked = sum(counted.statuses.values())
        good = sum(count for status, count in counted.statuses.items() if status.startswith("2"))
        p50, p90, p99, p999, worst = (counted.histogram.percentile(each) for each in (50, 90, 99, 99.9, 100))
        return {
            "requests": asked,
            "errors": asked - good,
            "error_share": round((asked - good) / asked, 6) if asked else 0.0,
            "statuses": dict(counted.statuses),
            "variants": dict(counted.variants),
            "seconds": plan.seconds,
            "rate": plan.rate,
            "connections": plan.connections,
            "per_second": round((asked - counted.statuses["unsent"]) / plan.seconds, 1),
            "good_per_second": round(good / plan.seconds, 1),
            "p50_ms": _milliseconds(p50),
            "p90_ms": _milliseconds(p90),
            "p99_ms": _milliseconds(p99),
            "p999_ms": _milliseconds(p999),
            "max_ms": _milliseconds(worst),
        }


def _milliseconds(microseconds: float | None) -> float | None:
    return None if microseconds is None else round(microseconds / 1000, 3)


class _Connection(asyncio.Protocol):
    """One connection: a request at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._buffer = b""
        self._asked = False
        self._transport: asyncio.Transport | None = None
        self.meant_at = 0.0
        self.which = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        load = self._load
        if load.ended:
            self._transport.abort()
        else:
            load.idle.append(self)
            if load.began:
                load.send_due(time.perf_counter())

    def ask(self, request: bytes) -> None:
        """Send a request."""
        assert self._transport is not None
        self._asked = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return
        length = _LENGTH.search(data, 0, end)
        if length is None:
            self._load.counted.problem = "an answer without Content-Length"
            self._break()
            return
        whole = end + 4 + int(length[1])
        if len(data) < whole:
            self._buffer = data
            return
        self._buffer = b""
        if len(data) > whole or not self._asked:
            self._load.counted.problem = "an answer that nobody asked for"
            self._break()
            return
        self._answered(data[:end], data[end + 4 :])

    def _answered(self, head: bytes, body: bytes) -> None:
        load, counted = self._load, self._load.counted
        now = time.perf_counter()
        self._asked = False
        status = head[9:12]
        counted.statuses[status.decode("latin-1")] += 1
        counted.took(now - self.meant_at)
        variant = _VARIANT.search(head)
        if variant is not None:
            counted.variants[variant[1].decode("latin-1")] += 1
        if load.plan.look is not None:
            load.plan.look(self.which, int(status), head, body, now - self.meant_at)
        if _CLOSE.search(head):
            self._break()
        else:
            load.free(self, now)

    def _break(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        load = self._load
        load.busy.discard(self)
        if self in load.idle:
            load.idle.remove(self)
        if self._asked:
            load.counted.statuses["lost"] += 1
            load.counted.took(time.perf_counter() - self.meant_at)
        if error is not None:
            load.counted.problem = repr(error)
        if not load.ended:
            load.reconnect()


def run(plan: Plan) -> dict[str, Any]:
    """Put a load on from this process; gives its figures."""
    return uvloop.run(Load(plan).run())


async def _serve() -> int:
    """The plan from standard input; when that ends before the load does, nobody waits for its figures any more."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    given = json.loads(await reader.readline())
    plan = Plan(**{**given, "requests": [base64.b64decode(each) for each in given["requests"]]})
    running = asyncio.ensure_future(Load(plan).run())
    gone = asyncio.ensure_future(reader.read())
    await asyncio.wait({running, gone}, return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        return 1
    gone.cancel()
    try:
        sys.stdout.write(json.dumps(running.result()) + "\n")
    except Unavailable as error:
        sys.stdout.write(json.dumps({"problem": error.message}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(_serve()))
