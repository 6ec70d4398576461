"""What a key may still ask for: a token bucket (rate, burst) and a quota per window, counted for the whole host.

Each limited key has a small file that every gateway process maps, so that all of them count in the same place and a
restart forgets nothing. A count is read and written under the file's lock, which makes it exact; no gateway ever waits
for another one that was stopped while it held the lock: after a few tries it counts without, and may then lose the one
count that the other was making. A power failure loses what the kernel had not written yet, up to half a minute.

The bucket is the generic cell rate algorithm (ITU-T I.371): one number, the time at which the bucket will be full
again. Quota windows lie on the clock (UTC): a day's begins at midnight.
"""

import contextlib
import fcntl
import math
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from loopline.errors import QuotaExceeded, RateLimited
from loopline.gateway.snapshot import KeySpec

FILE_BYTES = 64
LOCK_TRIES = 20
_FULL_AT, _WINDOW, _COUNT = range(3)  # cells of 8 bytes


class Allowance:
    """The limits of one key. ``now`` gives seconds since the epoch."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, FILE_BYTES)
        self._map = mmap.mmap(self._descriptor, FILE_BYTES)
        self._cells = memoryview(self._map).cast("d")
        self._now = now
        self._spacing = self._depth = 0.0
        self._quota = self._quota_seconds = 0
        self._head = b""

    def configure(self, spec: KeySpec) -> None:
        """Go by these limits; what was used stays used."""
        self._spacing = 1 / spec.rate if spec.rate else 0.0
        self._depth = self._spacing * (spec.burst or max(1.0, spec.rate or 0.0))
        self._quota, self._quota_seconds = spec.quota or 0, spec.quota_seconds
        self._head = b"x-ratelimit-limit: %b\r\n" % f"{spec.rate:g}".encode() if spec.rate else b""

    def spend(self) -> bytes:
        """Count one request; gives header lines that say what is left.

        Raises ``RateLimited`` or ``QuotaExceeded``, with ``retry_after_seconds`` among the details; such a request
        counts for nothing.
        """
        locked = self._lock()
        try:
            return self._spend(self._now())
        finally:
            if locked:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        for _ in range(LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        return False

    def _spend(self, now: float) -> bytes:
        cells, lines = self._cells, self._head
        count = window = 0
        if self._quota:
            window = int(now // self._quota_seconds)
            count = int(cells[_COUNT]) if cells[_WINDOW] == window else 0
            if count >= self._quota:
                again = (window + 1) * self._quota_seconds - now
                raise QuotaExceeded(
                    f"this key's quota of {self._quota} requests in {self._quota_seconds} s is used up",
                    retry_after_seconds=max(1, math.ceil(again)),
                )
        if self._spacing:
            full_at = cells[_FULL_AT]
            if not now < full_at < now + self._depth + self._spacing:
                full_at = now  # full again; or the clock was set back, or the limits are new: they begin with all of it
            full_at += self._spacing
            over = full_at - now - self._depth
            if over > 1e-6:
                raise RateLimited(
                    f"this key may send {1 / self._spacing:g} requests a second",
                    retry_after_seconds=max(1, math.ceil(over)),
                )
            cells[_FULL_AT] = full_at
            lines += b"x-ratelimit-remaining: %d\r\n" % (-over / self._spacing + 1e-6)
        if self._quota:
            cells[_WINDOW], cells[_COUNT] = window, count + 1
            lines += b"x-quota-limit: %d\r\nx-quota-remaining: %d\r\n" % (self._quota, self._quota - count - 1)
        return lines

    def close(self) -> None:
        """Give the file back."""
        self._cells.release()
        self._map.close()
        os.close(self._descriptor)


class Allowances:
    """The limited keys of an installation, each with its file in ``folder``; key ids become file names, and are 8
    characters of [0-9a-z] by the snapshot's own check."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Allowance] = {}

    def of(self, key_id: str, spec: KeySpec) -> Allowance | None:
        """The key's allowance; None for a key without limits."""
        if not spec.rate and not spec.quota:
            return None
        found = self._known.get(key_id)
        if found is None:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            found = self._known[key_id] = Allowance(self._folder / key_id)
        found.configure(spec)
        return found

    def keep(self, keys: set[str]) -> None:
        """Let go of every other key: it was revoked or has expired."""
        for key_id in set(self._known) - keys:
            self._known.pop(key_id).close()
        for path in self._folder.glob("*"):
            if path.name not in keys:
                path.unlink(missing_ok=True)
