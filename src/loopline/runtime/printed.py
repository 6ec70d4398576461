"""What predict code prints and logs, line by line with the time and the requests that were being predicted.

``<iso time> [<request ids>] <text>``: at most three ids, then ``+N``; ``-`` outside of a prediction. Nothing is done
until something is printed. What compiled code writes to the descriptors itself stands between the lines as it is.
"""

import io
import os
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime

SHOWN = 3
MAX_LINE_BYTES = 16 * 1024  # a longer one is cut into several
Call = tuple[bytes, bytes, bytes]  # content type, request id, body

_current: Sequence[Call] = ()


def begin(calls: Sequence[Call]) -> None:
    """What is printed from now on belongs to these requests."""
    global _current  # noqa: PLW0603 - one process predicts one batch at a time
    _current = calls


def end() -> None:
    """What is printed from now on belongs to no request; a line that was begun ends here."""
    global _current  # noqa: PLW0603
    for stream in _streams:
        if stream.part:
            stream.write(b"\n")
    _current = ()


def _tag() -> bytes:
    shown = [call[1].decode("ascii", "replace") for call in _current[:SHOWN]]
    if len(_current) > SHOWN:
        shown.append(f"+{len(_current) - SHOWN}")
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{now} [{','.join(shown) or '-'}] ".encode()


class Tagged(io.RawIOBase):
    """A descriptor of which every line that is written gets its tag; a part of a line waits for its end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self.part = b""  # of a line that waits for its end
        self._lock = threading.RLock()  # a signal handler may print while its thread does

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False

    def write(self, data) -> int:  # type: ignore[no-untyped-def]  # any buffer, as in io
        text = bytes(data)
        with self._lock:
            *lines, part = (self.part + text).split(b"\n")
            while len(part) >= MAX_LINE_BYTES:
                lines.append(part[:MAX_LINE_BYTES])
                part = part[MAX_LINE_BYTES:]
            self.part = part
            if lines:
                tag = _tag()
                _write_all(self._descriptor, b"".join(b"%b%b\n" % (tag, line) for line in lines))
        return len(text)


def _write_all(descriptor: int, data: bytes) -> None:
    """Write, and give up where the disk is full: a prediction does not fail for its log."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            return
        except OSError:
            return


_streams: list[Tagged] = []


def install() -> None:
    """Tag what goes through ``sys.stdout`` and ``sys.stderr`` from here on."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        raw = Tagged(descriptor)
        _streams.append(raw)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)  # type: ignore[type-var]
        setattr(sys, name, stream)
