"""git http-backend as a subprocess: the request goes in, the answer comes out, neither faster than it is taken.

Pipes are read and written by threads, a few at a time: an event loop's own subprocesses inherit more descriptors than
they are given, and a git that holds its own input's other end never sees it end.
"""

import asyncio
import io
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import anyio
import anyio.to_thread
from starlette.requests import ClientDisconnect

from loopline.errors import LooplineError, TooLarge, Unavailable

CHUNK_BYTES = 1 << 16
MAX_HEAD_BYTES = 1 << 14
GRACE_SECONDS = 2.0


class Head(NamedTuple):
    """An answer's status and headers."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Backend:
    """One run of git http-backend. Use as an async context manager: leaving it ends git and all that it started."""

    def __init__(
        self,
        program: str,
        environ: Mapping[str, str],
        limiter: anyio.CapacityLimiter,
        descriptors: tuple[int, ...] = (),
    ) -> None:
        self._argv = (program, "http-backend")
        self._environ = dict(environ)
        self._descriptors = descriptors
        self._limiter = limiter
        self._pump: asyncio.Task[None] | None = None
        self._held = b""
        self._finished = False
        self._ending = threading.Lock()

    async def __aenter__(self) -> "Backend":
        self._process = await self._thread(self._start)
        return self

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self._argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environ,
            cwd="/",
            pass_fds=self._descriptors,
            start_new_session=True,
        )

    async def _thread(self, function: Callable[..., Any], *given: Any) -> Any:
        return await anyio.to_thread.run_sync(function, *given, limiter=self._limiter, abandon_on_cancel=True)

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._end)  # never behind a thread that waits for this very process
            if self._pump is not None:
                self._pump.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await self._pump
            await anyio.to_thread.run_sync(self._close)

    def _end(self) -> None:
        """Git removes its lock files when it is asked to end; killed at once it would leave them."""
        with self._ending:
            if self._process.returncode is not None:
                return
            if self._finished:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(GRACE_SECONDS)
                    return
            group = self._process.pid  # not waited for yet, so that the number is nobody else's
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(group, number)
                deadline = time.monotonic() + GRACE_SECONDS
                while _any_alive(group) and time.monotonic() < deadline:
                    time.sleep(0.005)  # between two looks
            self._process.wait()

    def _close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def feed(self, body: AsyncIterator[bytes], limit: int) -> None:
        """Begin to write the request's body to git, at most ``limit`` bytes of it."""
        self._pump = asyncio.create_task(self._write(body, limit))

    async def _write(self, body: AsyncIterator[bytes], limit: int) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        total, open_ = 0, True
        try:
            async for chunk in body:
                total += len(chunk)
                if total > limit:
                    raise TooLarge(f"the request is larger than {limit} bytes")
                if open_ and chunk:
                    try:
                        await self._thread(_write_all, stdin, chunk)
                    except OSError:
                        open_ = False  # git has said why in its answer; the client reads that when it has sent all
            with suppress(OSError):
                await self._thread(stdin.close)
        except BaseException:
            await self._thread(self._end)
            raise

    async def head(self) -> Head:
        """The answer's head; raises what the body's sender raised, and ``Unavailable`` when there is no answer."""
        found = b""
        while (end := found.find(b"\r\n\r\n")) < 0:
            piece = await self._read()
            found += piece
            if not piece or len(found) > MAX_HEAD_BYTES + CHUNK_BYTES:
                await self._fail()
        self._held = found[end + 4 :]
        status, headers = 200, []
        for line in found[:end].split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"status":
                status = int(value.split()[0])
            else:
                headers.append((name.lower(), value.strip()))
        return Head(status, headers)

    async def _read(self) -> bytes:
        stdout = self._process.stdout
        assert isinstance(stdout, io.BufferedReader)
        piece: bytes = await self._thread(stdout.read1, CHUNK_BYTES)
        self._finished = self._finished or not piece
        return piece

    async def _fail(self) -> None:
        """Git ended without an answer; it is the body's sender who may know why."""
        if self._pump is not None:
            await asyncio.wait([self._pump], timeout=GRACE_SECONDS)
            if self._pump.done() and not self._pump.cancelled():
                error = self._pump.exception()
                if isinstance(error, LooplineError | ClientDisconnect):
                    raise error
        raise Unavailable("git gave no answer; try again")

    async def body(self) -> AsyncIterator[bytes]:
        """The rest of the answer, chunk by chunk."""
        piece = self._held or await self._read()
        while piece:
            yield piece
            piece = await self._read()


def _write_all(pipe: IO[bytes], chunk: bytes) -> None:
    pipe.write(chunk)
    pipe.flush()


def _any_alive(group: int) -> bool:
    """Whether a process of this group still runs (one that has ended and is not waited for does not)."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    return True
    return False
