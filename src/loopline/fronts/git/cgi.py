"""git http-backend as a subprocess: the request goes in, the answer comes out, neither faster than it is taken."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from starlette.requests import ClientDisconnect

from loopline.errors import LooplineError, TooLarge, Unavailable

CHUNK_BYTES = 1 << 16
MAX_HEAD_BYTES = 1 << 14


class Head(NamedTuple):
    """An answer's status and headers."""

    status: int
    headers: list[tuple[bytes, bytes]]


class Backend:
    """One run of git http-backend. Use as an async context manager: leaving it ends the program whatever it does."""

    def __init__(self, program: str, environ: Mapping[str, str], descriptors: tuple[int, ...] = ()) -> None:
        self._argv = (program, "http-backend")
        self._environ = dict(environ)
        self._descriptors = descriptors
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Backend":
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=self._environ,
            pass_fds=self._descriptors,
            limit=CHUNK_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._pump is not None:
            self._pump.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._pump
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()

    def feed(self, body: AsyncIterator[bytes], limit: int) -> None:
        """Begin to write the request's body to the program, at most ``limit`` bytes."""
        self._pump = asyncio.create_task(self._write(body, limit))

    async def _write(self, body: AsyncIterator[bytes], limit: int) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        total, open_ = 0, True
        try:
            async for chunk in body:
                total += len(chunk)
                if total > limit:
                    raise TooLarge(f"the push is larger than {limit} bytes")
                if open_:
                    try:
                        stdin.write(chunk)
                        await stdin.drain()
                    except (BrokenPipeError, ConnectionResetError):
                        open_ = False  # it has said why in its answer; the client reads that after it has sent all
        except BaseException:
            with suppress(ProcessLookupError):
                self._process.kill()
            raise
        finally:
            stdin.close()

    async def head(self) -> Head:
        """The answer's head; raises what the body's sender raised, and ``Unavailable`` when there is no answer."""
        assert self._process.stdout is not None
        lines: list[bytes] = []
        size = 0
        while (line := await self._line()) not in (b"\r\n", b"\n"):
            size += len(line)
            if not line or size > MAX_HEAD_BYTES:
                await self._raise()
            lines.append(line.rstrip(b"\r\n"))
        status, headers = 200, []
        for line in lines:
            name, _, value = line.partition(b":")
            if name.lower() == b"status":
                status = int(value.split()[0])
            else:
                headers.append((name.lower(), value.strip()))
        return Head(status, headers)

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        try:
            return await self._process.stdout.readline()
        except ValueError:
            return b""

    async def _raise(self) -> None:
        await self._process.wait()
        if self._pump is not None and self._pump.done() and not self._pump.cancelled():
            error = self._pump.exception()
            if isinstance(error, LooplineError | ClientDisconnect):
                raise error
        raise Unavailable("git gave no answer; the server's log may say why")

    async def body(self) -> AsyncIterator[bytes]:
        """The rest of the answer, chunk by chunk."""
        assert self._process.stdout is not None
        while chunk := await self._process.stdout.read(CHUNK_BYTES):
            yield chunk
