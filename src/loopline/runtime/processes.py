"""What /proc says about processes: who is alive, who descends from whom, who carries an attempt's mark.

A process is named by its pid *and* its start time (clock ticks since boot), because pids are used again.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH110, PTH208

import ctypes
import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

MARK = "LOOPLINE_ATTEMPT"
MADV_COLLAPSE = 25
HUGE_PAGE_BYTES = 2 << 20
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """The fields of ``/proc/<pid>/stat`` that are used here; ``start_time`` is in clock ticks since boot."""

    state: str
    parent: int
    group: int
    session: int
    start_time: int


def _read(path: str) -> bytes:
    """A file of /proc, or nothing when its process is gone or not ours to look at."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(descriptor, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _fields(pid: int | str) -> list[bytes]:
    """The fields of stat from the third on; the second is a name that may hold spaces and parentheses."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def stat(pid: int) -> Stat | None:
    """What the kernel says about a process, or None when there is none."""
    fields = _fields(pid)
    if len(fields) < 20:
        return None
    return Stat(fields[0].decode("ascii"), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def start_time(pid: int) -> int:
    """When a living process started, in clock ticks since boot; 0 when there is no such process."""
    found = stat(pid)
    return found.start_time if found else 0


def alive(pid: int, started: int) -> bool:
    """Whether exactly that process runs; a zombie does not."""
    found = stat(pid)
    return found is not None and found.start_time == started and found.state not in "ZXx"


def boot_id() -> str:
    """Names this boot of this machine: pids of another one mean nothing here."""
    return _read("/proc/sys/kernel/random/boot_id").decode("ascii").strip()


def all_pids() -> list[int]:
    """Every process that this mount of /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """The direct children of a process, zombies included."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        found.extend(int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split())
    return found


def descendants(pid: int) -> list[int]:
    """Everything below a process. Where the kernel lists no children, the parents of all processes are read."""
    if not os.path.exists(f"/proc/{pid}/task/{pid}/children"):
        return _descendants_by_parent(pid)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children(waiting.pop())
        found.extend(below)
        waiting.extend(below)
    return found


def _descendants_by_parent(pid: int) -> list[int]:
    by_parent: dict[int, list[int]] = {}
    for other in all_pids():
        found = stat(other)
        if found:
            by_parent.setdefault(found.parent, []).append(other)
    result: list[int] = []
    waiting = [pid]
    while waiting:
        below = by_parent.get(waiting.pop(), [])
        result.extend(below)
        waiting.extend(below)
    return result


def resident_bytes(pids: list[int]) -> int:
    """The sum of the resident sets: cheap, and counts a page once for every process that shares it."""
    total = 0
    for pid in pids:
        fields = _read(f"/proc/{pid}/statm").split()
        total += int(fields[1]) * PAGE_BYTES if len(fields) > 1 else 0
    return total


def proportional_bytes(pids: list[int]) -> int:
    """The memory of the processes with shared pages divided among those who share them; costs a walk of their pages."""
    total = 0
    for pid in pids:
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                total += int(line.split()[1]) * 1024
                break
        else:
            total += resident_bytes([pid])
    return total


def carries_mark(pid: int, attempt: str) -> bool:
    """Whether the process was started by that attempt, going by its environment."""
    return f"{MARK}={attempt}".encode() in _read(f"/proc/{pid}/environ").split(b"\0")


def marked(attempt: str) -> Iterator[int]:
    """Every process of this user that carries the attempt's mark, except the one that asks."""
    me = os.getpid()
    for pid in all_pids():
        if pid != me and carries_mark(pid, attempt):
            yield pid


def overwrite_environ(text: bytes) -> bool:
    """Make /proc/self/environ say ``text``, for this process and those that it forks.

    A process that was forked and did not exec shows the environment of its ancestor's exec; the mark has to be
    written over it. The caller has emptied ``os.environ`` before, so that nothing points there any more.
    Returns False, and changes nothing, when the room does not suffice.
    """
    fields = _fields("self")
    if len(fields) < 49:
        return False
    begin, end = int(fields[47]), int(fields[48])
    if not begin or end - begin <= len(text):
        return False
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)
    return True


def gather_pages() -> int:
    """Put this process's anonymous memory into huge pages, so that a fork copies fewer entries; how many regions moved.

    Kernels before 6.1 do not know the request, and then nothing changes.
    """
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    moved = 0
    for line in _read("/proc/self/maps").splitlines():
        span, rights, _, _, inode = line.split()[:5]
        begin, end = (int(edge, 16) for edge in span.split(b"-"))
        begin, end = -(-begin // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES, end // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        if rights.startswith(b"rw") and inode == b"0" and begin < end:
            length = ctypes.c_size_t(end - begin)
            moved += madvise(ctypes.c_void_p(begin), length, ctypes.c_int(MADV_COLLAPSE)) == 0
    return moved


def send(pid: int, number: int) -> None:
    """Signal a process; one that is gone, or not ours, is left alone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def kill_marked(attempt: str, group: tuple[int, int] | None) -> int:
    """Kill what is left of an attempt whose shim is dead, and say how many processes that were.

    ``group`` is the pid and start time of the job, which led a session of its own. Repeats until nobody is found,
    since a dying parent may still fork.
    """
    killed: set[int] = set()
    for _ in range(50):
        found = [pid for pid in _remains(attempt, group) if pid not in killed]
        if not found:
            break
        for pid in found:
            _kill_checked(pid, attempt, group)
        killed.update(found)
    return len(killed)


def _remains(attempt: str, group: tuple[int, int] | None) -> Iterator[int]:
    me = os.getpid()
    for pid in all_pids():
        if pid != me and (carries_mark(pid, attempt) or in_session(pid, group)):
            yield pid


def in_session(pid: int, group: tuple[int, int] | None) -> bool:
    """Whether the process belongs to the session that the job led, or is the job."""
    found = stat(pid)
    if group is None or found is None or found.state in "ZXx":
        return False
    leader, started = group
    if pid == leader:
        return found.start_time == started
    return found.session == leader and found.start_time >= started


def _kill_checked(pid: int, attempt: str, group: tuple[int, int] | None) -> None:
    """Kill through a pidfd that is checked after it was opened: the pid cannot have passed to somebody else."""
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if carries_mark(pid, attempt) or in_session(pid, group):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    except OSError:
        return
    finally:
        os.close(handle)


class Family:
    """The descendants of a process that adopts orphans (a subreaper): signals, reaps and ends them."""

    def __init__(self, main: int) -> None:
        self.main = main
        self.status: int | None = None  # the wait status of the main child, once it was reaped

    def reap(self, *, block: bool = False) -> bool:
        """Collect one dead child; False when none is dead (or, blocking, when there is no child at all)."""
        try:
            pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == self.main:
            self.status = status
        return pid != 0

    def members(self) -> list[int]:
        """Everything below this process."""
        return descendants(os.getpid())

    def end(self) -> None:
        """Kill all, however deep and in whatever session, and return when none is left.

        They are stopped before they are killed, so that a process that forks without end cannot run ahead.
        """
        seen: set[int] = set()
        while True:
            while self.reap():
                pass
            members = self.members()
            if not members:
                return
            new = [pid for pid in members if pid not in seen]
            for pid in new:
                send(pid, signal.SIGSTOP)
            seen.update(new)
            if new:
                continue
            for pid in members:
                send(pid, signal.SIGKILL)
            self.reap(block=True)
