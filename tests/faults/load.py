"""Closed-loop load on an endpoint: keep-alive connections that each ask again as soon as they are answered.

    python tests/faults/load.py --port N --key KEY --endpoint NAME --connections 64
Each line on standard input is answered with one line of JSON: what was counted since the last one, and when each
version answered last. The end of standard input ends it.
"""

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections import Counter

BODY = b'{"instances":[{"size":-1000000.0}]}'
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
VERSION = re.compile(rb"\r\nx-loopline-version: *(\d+)", re.IGNORECASE)
PREDICTION = re.compile(rb'"predictions": *\["([^"]*)"\]')
RECONNECT_SECONDS = 0.05


class Counted:
    """What all connections have seen since the last report."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[int, int, str]] = Counter()  # status, version, prediction
        self.failures: Counter[str] = Counter()
        self.last: dict[int, float] = {}
        self.slowest_ms = 0.0

    def report(self) -> str:
        """The line for this period; counting starts anew, except when each version was seen last."""
        document = {
            "answers": [[*key, count] for key, count in self.answers.items()],
            "failures": dict(self.failures),
            "last": self.last,
            "slowest_ms": round(self.slowest_ms, 2),
        }
        self.answers.clear()
        self.failures.clear()
        self.slowest_ms = 0.0
        return json.dumps(document)


class Asking(asyncio.Protocol):
    """One connection; ``closed`` is set when it has ended."""

    def __init__(self, request: bytes, counted: Counted) -> None:
        self.request, self.counted = request, counted
        self.closed = asyncio.Event()
        self.buffer = b""
        self.asked_at = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the next request."""
        assert self.transport is not None
        self.asked_at = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = LENGTH.search(head)
        if length is None:
            self.fail("an answer without a length")
        elif len(body) >= int(length[1]):
            self.buffer = body[int(length[1]) :]
            self.count(head, body[: int(length[1])])
            self.ask()

    def count(self, head: bytes, body: bytes) -> None:
        """Note one answer."""
        status = int(head.split(b" ", 2)[1])
        version, prediction = VERSION.search(head), PREDICTION.search(body)
        number = int(version[1]) if version else 0
        said = prediction[1].decode() if prediction else body[:200].decode(errors="replace")
        self.counted.answers[status, number, said] += 1
        self.counted.last[number] = time.time()
        self.counted.slowest_ms = max(self.counted.slowest_ms, (time.perf_counter() - self.asked_at) * 1000)

    def fail(self, why: str) -> None:
        """Note what should not have happened, and end the connection."""
        self.counted.failures[why] += 1
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.counted.failures[f"connection lost: {error!r}"] += 1
        self.closed.set()


async def keep_asking(port: int, request: bytes, counted: Counted) -> None:
    """One connection after the other."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            _, asking = await loop.create_connection(lambda: Asking(request, counted), "127.0.0.1", port)
        except OSError as error:
            counted.failures[f"not connected: {type(error).__name__}"] += 1
            await asyncio.sleep(RECONNECT_SECONDS)
            continue
        await asking.closed.wait()


async def run(port: int, key: str, endpoint: str, connections: int) -> None:
    """Ask until standard input ends."""
    head = (
        f"POST /endpoints/{endpoint}/invocations HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
    )
    head += f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    counted = Counted()
    tasks = [asyncio.create_task(keep_asking(port, head.encode() + BODY, counted)) for _ in range(connections)]
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while await commands.readline():
        os.write(1, counted.report().encode() + b"\n")
    for task in tasks:
        task.cancel()


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=64)
    for name in ("--key", "--endpoint"):
        parser.add_argument(name, required=True)
    given = parser.parse_args()
    asyncio.run(run(given.port, given.key, given.endpoint, given.connections))


if __name__ == "__main__":
    main()
