"""Servers that run on demand: who may start now, who has to go to make room, and who has idled long enough.

Standard library only. A server's memory is its proportional set size (PSS): pages that it shares with the forkserver
and with its siblings count in equal parts, so that the sum over a group is what the group takes. Reading it walks page
tables; it is measured little by little, and what is not measured yet is estimated by the largest that is known.
"""

import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from loopline.children import Child

MEASURE_SECONDS = 0.02  # spent on page tables at one look
USED_SHARE = 0.9  # of a budget: what grows between two measurements must not break it
BUSY_SECONDS = 0.25  # a server that was used more recently is busy; gateways write what they see twice a second
LOADING_AT_ONCE = max(1, (os.cpu_count() or 2) - 1)  # loads leave a processor to those that serve
MEASURED_SECONDS = 1.0  # a measurement is repeated when it is older
USE_SECONDS = 0.1  # so often gateways' figures are read while anything runs on demand
FORGOTTEN_SECONDS = 3.0  # whoever waits for a server repeats its request more often
FIRST_GUESS_BYTES = 64 << 20
IMPORT_SECONDS = 60.0  # so long a server waits for its forkserver to import what it would have to import itself
RESTART_SECONDS = 1.0  # and for one that is not there
SLOW_SECONDS = 5.0  # a load that takes longer keeps no other from starting

Use = dict[str, tuple[int, float]]


class Member(NamedTuple):
    """A running server of a group. ``used_at``: the time of day of its last use, or of its start; ``slow``: it loads
    for so long that others need not wait for it."""

    id: str
    bytes: float
    ready: bool
    stopping: bool
    in_flight: int
    used_at: float
    slow: bool = False


def plan(budget: float, members: list[Member], need: float, now: float) -> tuple[bool, list[str]]:
    """Whether a server that needs so many bytes may start now, and who is to be stopped for it, least used first.

    Nobody who is busy is stopped for somebody else's start; above the budget itself the least recently used go even
    so, for it holds at any price (a stopped server finishes what it has). ``need`` 0: only the budget is looked at.
    """
    room = budget * USED_SHARE
    held = sum(member.bytes for member in members)
    staying = sum(member.bytes for member in members if not member.stopping)
    victims: list[str] = []
    able = [member for member in members if member.ready and not member.stopping]
    for member in sorted(able, key=lambda member: (member.in_flight > 0, member.used_at)):
        if staying + need <= room or (not need and staying <= budget):
            break
        idle = not member.in_flight and now - member.used_at >= BUSY_SECONDS
        if idle or staying > budget:
            victims.append(member.id)
            staying -= member.bytes
    loading = sum(not member.ready and not member.slow for member in members)
    fits = held + need <= room or not members  # one alone may always start: its own limit holds it
    return need > 0 and fits and loading < LOADING_AT_ONCE, victims


def read_use(run_dir: Path) -> Use:
    """(requests in flight, time of the last use) of each server, from what every living gateway wrote last."""
    found: Use = {}
    for path in run_dir.glob("gateway-*.json"):
        with suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
            state = json.loads(path.read_bytes())
            if not Path(f"/proc/{state['pid']}").exists():
                continue
            for name, (in_flight, used_at) in state.get("servers", {}).items():
                before = found.get(name, (0, 0.0))
                found[name] = before[0] + int(in_flight), max(before[1], float(used_at))
    return found


def pss_bytes(pid: int) -> int | None:
    """The proportional set size of a process; None when it is gone or not ours to look at. Source: proc(5)."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    return None


class Meter:
    """Measures processes in turn, a bounded time at each look."""

    def __init__(self) -> None:
        self.sizes: dict[int, float] = {}
        self._looked: dict[int, float] = {}

    def look(self, pids: Iterable[int]) -> None:
        """Measure those of ``pids`` that were not measured for longest, as many as the time allows; forget others."""
        wanted = set(pids)
        for gone in self._looked.keys() - wanted:
            del self._looked[gone]
            self.sizes.pop(gone, None)
        began = time.monotonic()
        for pid in sorted(wanted, key=lambda pid: self._looked.get(pid, 0.0)):
            now = time.monotonic()
            if now - began > MEASURE_SECONDS or now - self._looked.get(pid, 0.0) < MEASURED_SECONDS:
                return
            self._looked[pid] = now
            size = pss_bytes(pid)
            if size is not None:
                self.sizes[pid] = size

    def again(self, pid: int) -> None:
        """Measure this one at the next look: it has just become another size."""
        self._looked[pid] = 0.0

    def largest(self, pids: Iterable[int]) -> float:
        """What one more server is likely to take: as much as the largest that is known."""
        return max((self.sizes[pid] for pid in pids if pid in self.sizes), default=float(FIRST_GUESS_BYTES))


class Demand:
    """Looks at all servers on demand once a turn of the supervisor. ``budgets``: group -> MB."""

    def __init__(self, run_dir: Path) -> None:
        self.budgets: dict[str, float] = {}
        self._run_dir = run_dir
        self._meters: dict[str, Meter] = {}
        self._use: Use = {}
        self._used_read = 0.0
        self._ready: set[int] = set()  # pids of servers that have come to serve
        self._cleared: set[str] = set()

    def may_start(self, child: Child, children: Mapping[str, Child], now: float) -> bool:
        """Whether a start is due and need not wait: for room, or for the forkserver that makes it quick and is coming
        up."""
        if child.start_due is None or now < child.start_due:
            return False
        path = child.spec.fork if child.spec else None
        forkserver = children.get(Path(path).stem) if path else None
        if path and forkserver:
            forkserver.ask(now)
            try:
                listens = Path(path).stat().st_mtime >= (forkserver.started_at or 0.0)
            except OSError:
                listens = False
            imports = forkserver.process is not None and now - forkserver.born < IMPORT_SECONDS
            if not (listens and forkserver.process) and (imports or now - child.start_due < RESTART_SECONDS):
                return False
        return child.spec is None or child.spec.group not in self.budgets or child.id in self._cleared

    def look(self, children: Iterable[Child], now: float) -> None:
        """Clear the next start of each group, stop who has to make room or has idled, drop requests that lapsed."""
        groups: dict[str, list[Child]] = {}
        for child in children:
            if child.spec and child.spec.on_demand:
                groups.setdefault(child.spec.group or "", []).append(child)
        self._cleared.clear()
        if not groups:
            return
        if now - self._used_read >= USE_SECONDS:
            self._used_read, self._use = now, read_use(self._run_dir)
        running = [child for group in groups.values() for child in group if child.process]
        self._ready &= {child.process.pid for child in running if child.process}
        for name, group in groups.items():
            self._forget_lapsed(group, now)
            if name in self.budgets:
                self._hold_budget(name, group, now)
        self._stop_idle(running, now)

    def _forget_lapsed(self, group: list[Child], now: float) -> None:
        for child in group:
            if child.asked_at is not None and now - child.asked_at > FORGOTTEN_SECONDS:
                child.forget_request()

    def _hold_budget(self, name: str, group: list[Child], now: float) -> None:
        meter = self._meters.setdefault(name, Meter())
        pids = [child.process.pid for child in group if child.process]
        for child in group:
            if child.process and child.process.pid not in self._ready and self.is_ready(child):
                meter.again(child.process.pid)
        meter.look(pids)
        guess = meter.largest(pids)
        members = [self._member(child, meter, guess, now) for child in group if child.process]
        waiting = [child for child in group if not child.process and (child.start_due or now + 1) <= now]
        first = min(waiting, key=lambda child: child.start_due or 0.0, default=None)
        fits, victims = plan(self.budgets[name] * 1e6, members, guess if first else 0.0, time.time())
        if first and fits:
            self._cleared.add(first.id)
        for child in group:
            if child.id in victims:
                child.stop(now)

    def _member(self, child: Child, meter: Meter, guess: float, now: float) -> Member:
        assert child.process
        pid = child.process.pid
        ready = self.is_ready(child)
        size = meter.sizes.get(pid, guess)
        in_flight, used_at = self._use.get(child.id, (0, 0.0))
        stopping = child.kill_due is not None
        return Member(
            child.id,
            size if ready else max(size, guess),
            ready,
            stopping,
            in_flight,
            max(used_at, child.started_at or 0.0),
            slow=now - child.born > SLOW_SECONDS,
        )

    def is_ready(self, child: Child) -> bool:
        """Whether it has come to serve; asked of its status file until it has."""
        assert child.process
        if child.process.pid not in self._ready and child.is_ready():
            self._ready.add(child.process.pid)
        return child.process.pid in self._ready

    def _stop_idle(self, running: list[Child], now: float) -> None:
        wall = time.time()
        for child in running:
            allowed = child.spec.idle_seconds if child.spec else None  # as it is wanted now, however it was started
            if allowed is None or child.kill_due is not None:
                continue
            in_flight, used_at = self._use.get(child.id, (0, 0.0))
            if not in_flight and wall - max(used_at, child.started_at or 0.0) > allowed and self.is_ready(child):
                child.stop(now)
