"""What the shim looks after while a job runs: the stop request, the clock, memory and disk."""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH110

import os
import resource
import signal
import stat
import time
from collections.abc import Iterator
from typing import Any

from . import folder as files
from . import processes

STOP_LOOK_SECONDS = 0.1
MEMORY_LOOK_SECONDS = 0.05
DISK_LOOK_SECONDS = 1.0
DEFAULT_GRACE_SECONDS = 5.0
# Walking a big folder costs: it may take this share of the time at most.
DISK_LOOK_SHARE = 0.05


class Watch:
    """Ends a job that is asked to stop or passes a limit; ``reason`` then says why (None: it ended by itself)."""

    def __init__(self, folder: str, spec: dict[str, Any], family: processes.Family, now: float) -> None:
        self.family = family
        self.limits: dict[str, Any] = spec.get("limits") or {}
        self.reason: str | None = None
        self.peak_bytes = 0
        self._stop_path = f"{folder}/{files.STOP}"
        self._folder = folder
        self._written = [str(spec["workdir"]), f"{folder}/{files.OUTPUTS}", f"{folder}/{files.SCRATCH}"]
        timeout = self.limits.get("timeout_seconds")
        self._ends_at = None if timeout is None else now + float(timeout)
        grace = self.limits.get("grace_seconds")
        self._grace = DEFAULT_GRACE_SECONDS if grace is None else float(grace)
        self._kill_at: float | None = None
        self._requested: str | None = None
        self._next_look = now + STOP_LOOK_SECONDS
        self._next_disk_look = now + DISK_LOOK_SECONDS

    def request(self, reason: str) -> None:
        """Ask, from a signal handler, that the job be ended at the next look."""
        self._requested = reason
        self._next_look = 0.0

    def wait_ms(self, now: float) -> int:
        """How long one may wait for output before the next look, in milliseconds."""
        until = min(time for time in (self._next_look, self._ends_at, self._kill_at) if time is not None)
        return max(0, int((until - now) * 1000) + 1)

    def over_cpu(self) -> bool:
        """Whether the processes of the job have used the processor time they were given."""
        allowed = self.limits.get("cpu_seconds")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return bool(allowed) and used.ru_utime + used.ru_stime >= float(allowed or 0)

    def file_is_full(self) -> bool:
        """Whether a file has reached the size at which the kernel refuses the next byte."""
        allowed = self.limits.get("disk_mb")
        return bool(allowed) and largest_bytes(self._written) >= int(float(allowed or 0) * 1048576)

    def look(self, now: float) -> None:
        """Look once at everything that is due."""
        if self._kill_at is not None and now >= self._kill_at:
            self.family.end()
            return
        if self._ends_at is not None and now >= self._ends_at and self.reason is None:
            self._terminate("timeout", self._grace, now)
        if now < self._next_look:
            return
        memory = self.limits.get("memory_mb")
        self._next_look = now + (MEMORY_LOOK_SECONDS if memory else STOP_LOOK_SECONDS)
        self._look_for_stop(now)
        if memory:
            self._look_at_memory(float(memory) * 1048576)
        if self.limits.get("disk_mb") and now >= self._next_disk_look:
            self._look_at_disk(float(self.limits["disk_mb"]) * 1048576)

    def _terminate(self, reason: str, grace: float, now: float) -> None:
        """Ask the job's group to end, and remember when it has to have done so."""
        self.reason = self.reason or reason
        kill_at = now + max(0.0, grace)
        if self._kill_at is None:
            processes.send(-self.family.main, signal.SIGTERM)
            processes.send(-self.family.main, signal.SIGCONT)
            self._kill_at = kill_at
        self._kill_at = min(self._kill_at, kill_at)
        self._ends_at = None

    def _look_for_stop(self, now: float) -> None:
        if self._requested is not None:
            self._terminate(self._requested, self._grace, now)
            self._requested = None
        if not os.path.exists(self._stop_path):
            return
        asked = (files.read_json(self._folder, files.STOP) or {}).get("grace_seconds")
        grace = float(asked) if isinstance(asked, int | float) else self._grace
        if self._kill_at is None or now + grace < self._kill_at:
            self._terminate("stopped", grace, now)

    def _kill(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.family.end()

    def _look_at_memory(self, allowed: float) -> None:
        """Resident sets first: they are cheap and never too low. Only above the limit are shared pages divided."""
        members = self.family.members()
        used = processes.resident_bytes(members)
        if used > allowed:
            used = processes.proportional_bytes(members)
        self.peak_bytes = max(self.peak_bytes, used)
        if used > allowed:
            self._kill("memory")

    def _look_at_disk(self, allowed: float) -> None:
        began = time.monotonic()
        if written_bytes(self._written) > allowed:
            self._kill("disk")
        ended = time.monotonic()
        self._next_disk_look = ended + max(DISK_LOOK_SECONDS, (ended - began) / DISK_LOOK_SHARE)


def written_bytes(folders: list[str]) -> int:
    """The disk space that the files below some folders take; what is linked or listed twice counts once."""
    return sum(found.st_blocks * 512 for found in _files(folders))


def largest_bytes(folders: list[str]) -> int:
    """The size of the largest regular file below some folders."""
    return max((found.st_size for found in _files(folders) if stat.S_ISREG(found.st_mode)), default=0)


def _files(folders: list[str]) -> Iterator[os.stat_result]:
    """Everything below some folders, each inode once; what vanishes meanwhile is passed over."""
    seen: set[tuple[int, int]] = set()
    waiting = list(folders)
    while waiting:
        try:
            entries = list(os.scandir(waiting.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                found = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                yield found
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(entry.path)
