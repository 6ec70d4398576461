"""The capture spool: segments that grow by appending and are rotated; written beside the event loop, never in it."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from loopline.domain.capture import Captured, encode_captured
from loopline.gateway.logs import log

FLUSH_BYTES = 64 * 1024  # what is put together stays in the processor's cache; larger writes want larger free pages
RECORD_BYTES = 45  # of a record without its body and answer
SEGMENT_BYTES = 8 * 1024 * 1024
SEGMENT_SECONDS = 60.0
WAITING_BYTES = 16 * 1024 * 1024  # what a disk that does not answer may make the gateway hold


class Segment:
    """The file that is being written. Used by the writing thread alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor = -1
        self._size = 0
        self._opened_at = 0.0
        self._last_name = 0

    def append(self, records: list[bytes]) -> tuple[int, OSError | None]:
        """Write records or blocks; returns how many are in the file now, and what kept the others out.

        One that is in the file whole stays there, because a reader may have seen it already; the torn one behind
        it is cut off.
        """
        data, written = b"".join(records), 0
        try:
            if self._descriptor < 0 or self._size >= SEGMENT_BYTES or time.time() - self._opened_at >= SEGMENT_SECONDS:
                self._rotate()
            while written < len(data):
                written += os.write(self._descriptor, memoryview(data)[written:])
        except OSError as error:
            return self._keep_whole(records, written), error
        self._size += written
        return len(records), None

    def _rotate(self) -> None:
        self.close()
        self._opened_at = time.time()
        name = max(int(self._opened_at * 1000), self._last_name + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        while self._descriptor < 0:
            try:
                self._descriptor = os.open(self._folder / f"{name:015d}.seg", flags, 0o600)
            except FileExistsError:
                name += 1
        self._last_name = name
        self._size = 0

    def _keep_whole(self, records: list[bytes], written: int) -> int:
        """Cut a torn record off; where that fails too, leave the segment with its torn tail for a new one."""
        kept = 0
        while kept < len(records) and written >= len(records[kept]):
            written -= len(records[kept])
            self._size += len(records[kept])
            kept += 1
        if self._descriptor >= 0 and written:
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                self.close()
        return kept

    def close(self) -> None:
        """Finish the segment."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Spool:
    """Puts records of one context together and hands them to one writing thread; at most one write is under way."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.dropped = 0
        self._segment = Segment(folder)
        self._open: dict[bytes, list[Captured]] = {}  # by context
        self._open_size = 0
        self._blocks: list[bytes] = []  # what is put together, and how many records each has
        self._counts: list[int] = []
        self._size = 0  # of everything that waits
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._writing: asyncio.Future[tuple[int, OSError | None]] | None = None
        self._failing = False

    def add(self, context: bytes, captured: Captured) -> None:
        """Keep one record. Never blocks and never raises: what cannot be kept is counted in ``dropped``."""
        if self._size >= WAITING_BYTES:
            self._drop(1, "the disk does not keep up")
            return
        there = self._open.get(context)
        if there is None:
            self._open[context] = [captured]
        else:
            there.append(captured)
        size = RECORD_BYTES + len(captured[4]) + len(captured[5])
        self._size += size
        self._open_size += size
        if self._open_size >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Put together what there is, and start to write it unless a write is under way."""
        if self._open:
            for context, captured in self._open.items():
                self._blocks.append(encode_captured(context, captured))
                self._counts.append(len(captured))
            self._open, self._open_size = {}, 0
        if self._blocks and self._writing is None:
            blocks, counts = self._blocks, self._counts
            self._blocks, self._counts, self._size = [], [], 0
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(self._thread, self._segment.append, blocks)
            self._writing.add_done_callback(lambda done: self._written(done, counts))

    def _written(self, done: "asyncio.Future[tuple[int, OSError | None]]", counts: list[int]) -> None:
        self._writing = None
        kept, error = done.result()
        if error is not None:
            self._drop(sum(counts[kept:]), str(error))
        elif self._failing:
            self._failing = False
            log("captures are written again", dropped=self.dropped)
        if self._size >= FLUSH_BYTES:
            self.flush()

    def _drop(self, count: int, reason: str) -> None:
        self.dropped += count
        if not self._failing:
            self._failing = True
            log("captures are dropped", reason=reason)

    async def close(self) -> None:
        """Write everything and end the segment."""
        while self._writing is not None or self._open or self._blocks:
            self.flush()
            if self._writing is not None:
                await asyncio.wait([self._writing])
                await asyncio.sleep(0)
        self._thread.shutdown(wait=True)
        self._segment.close()
