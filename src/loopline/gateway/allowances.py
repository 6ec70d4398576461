"""What a key may still ask for (``domain.allowances``), counted for the whole host.

Each limited key has a small file that every gateway process maps, so that all of them count in the same place and a
restart forgets nothing; control counts the asynchronous requests that it takes there, too. A count is read and written
under the file's lock, which makes it exact; no gateway ever waits for another process that was stopped while it held
the lock: after a few tries it counts without, and may then lose the one count that the other was making. A power
failure loses what the kernel had not written yet, up to half a minute.
"""

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from loopline.domain import allowances
from loopline.domain.allowances import FILE_BYTES
from loopline.gateway.snapshot import KeySpec

LOCK_TRIES = 20
LATELY_SECONDS = 60.0


class Allowance:
    """The limits of one key. ``now`` gives seconds since the epoch."""

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._descriptor, FILE_BYTES)
        self._map = mmap.mmap(self._descriptor, FILE_BYTES)
        self._cells = memoryview(self._map).cast("d")
        self._now = now
        self._terms = allowances.NONE
        self._head = b""

    def configure(self, spec: KeySpec) -> None:
        """Go by these limits; what was used stays used."""
        self._terms = allowances.terms(spec.rate, spec.burst, spec.quota, spec.quota_seconds)
        self._head = b"x-ratelimit-limit: %b\r\n" % f"{spec.rate:g}".encode() if spec.rate else b""

    def spend(self) -> bytes:
        """Count one request; gives header lines that say what is left. Raises as ``domain.allowances.spend`` does."""
        locked = self._lock()
        try:
            left, quota_left = allowances.spend(self._cells, self._terms, self._now())
        finally:
            if locked:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        lines = self._head
        if lines:
            lines += b"x-ratelimit-remaining: %d\r\n" % left
        if self._terms.quota:
            lines += b"x-quota-limit: %d\r\nx-quota-remaining: %d\r\n" % (self._terms.quota, quota_left)
        return lines

    def _lock(self) -> bool:
        for _ in range(LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        return False

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
        """Let go of every other key: it was revoked or has expired. A file that was written to lately stays until the
        next time: it may be of a key that another process knows already."""
        for key_id in set(self._known) - keys:
            self._known.pop(key_id).close()
        for path in self._folder.glob("*"):
            if path.name not in keys:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > LATELY_SECONDS:
                        path.unlink()
