"""Two pipes to git's post-receive hook: it reports which refs have moved, and prints what it is answered."""

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress

MAX_ANSWER_BYTES = 32 << 10  # less than a pipe holds, so that writing never waits
MAX_REPORT_BYTES = 8 << 20
_END = b"\nend\n"


class Channel:
    """Both pipes. ``theirs`` are the hook's ends (report, answer), to be inherited and then closed here."""

    def __init__(self) -> None:
        self._report, report = os.pipe()
        answer, self._answer = os.pipe()
        self.theirs = (report, answer)
        self._theirs_open = True

    def __enter__(self) -> "Channel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close_theirs()
        self._close_answer()
        if self._report >= 0:
            os.close(self._report)
            self._report = -1

    def close_theirs(self) -> None:
        """Close this process's copies of the hook's ends."""
        if self._theirs_open:
            self._theirs_open = False
            for descriptor in self.theirs:
                os.close(descriptor)

    def _close_answer(self) -> None:
        if self._answer >= 0:
            os.close(self._answer)
            self._answer = -1

    async def report(self) -> str | None:
        """What the hook reports, ``old new ref`` a line; None when git has ended without calling it."""
        reader = asyncio.StreamReader(limit=MAX_REPORT_BYTES)
        file = os.fdopen(self._report, "rb", 0)
        self._report = -1  # the transport closes it
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
        try:
            report = b"\n"  # so that the end is a line of its own even when nothing stands before it
            while not report.endswith(_END) and len(report) < MAX_REPORT_BYTES:
                piece = await reader.read(1 << 16)
                if not piece:
                    return None
                report += piece
        finally:
            transport.close()
        return report[1 : -len(_END) + 1].decode(errors="surrogateescape")

    def answer(self, lines: Iterable[str]) -> None:
        """Say this to the pusher, and let the hook end."""
        text = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        with suppress(OSError):
            os.write(self._answer, text[:MAX_ANSWER_BYTES])
        self._close_answer()
