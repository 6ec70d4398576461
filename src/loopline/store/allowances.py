"""The counts of keys whose requests are limited: files that gateways map, and count in, as well.

What the numbers mean, and where the files are, ``domain.allowances`` says.
"""

import array
import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from loopline.domain import allowances

LOCK_SECONDS = 0.2  # longer than any count takes: a process that was stopped in its middle is not waited for
LOOK_SECONDS = 0.001


def spend(path: Path, limits: allowances.Terms, now: float) -> None:
    """Count one request of a key in its file. Raises as ``domain.allowances.spend`` does."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor)
        size = allowances.CELLS * 8
        cells = array.array("d", os.pread(descriptor, size, 0).ljust(size, b"\0"))
        allowances.spend(cells, limits, now)
        os.pwrite(descriptor, cells.tobytes(), 0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    until = time.monotonic() + LOCK_SECONDS
    while time.monotonic() < until:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(LOOK_SECONDS)
