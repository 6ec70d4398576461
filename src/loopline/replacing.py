"""Model servers that fail whatever they are asked: another process of the same program takes the place of each.

Standard library only. Gateways say which (``{"kind": "replace", "id"}``), again and again while it goes on. The new
process starts beside the old one, under paths of its own; when it is ready its socket and status file are renamed to
those of the old one, which then finishes what it has. Where memory does not hold both, and for servers on demand, whose
memory is counted, the one is restarted. A model that is simply broken is not restarted for ever: each attempt waits
twice as long as the one before, and after a few in a row the server is left as it is.
"""

import time
from collections import deque
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loopline.children import Child, Spec, kill_group
from loopline.demand import pss_bytes

ATTEMPTS = 6  # in a row
FIRST_WAIT_SECONDS = 30.0  # between two attempts; then twice as long each time
WELL_SECONDS = 3600.0  # nobody complained for so long: the next complaint is a first one
CURRENT_SECONDS = 60.0  # a complaint that is not repeated for so long is over
START_SECONDS = 300.0  # within which the new process has to be ready
SPARE_SHARE = 0.05  # of the machine's memory stays free beside two processes
KEPT = 20
_PLACES = ("--socket", "--status")  # what a server is given that its replacement cannot share
_MARKS = "abcdefghijklmnopqrstuvwxyz"  # one character more: a Unix socket's path has to be short


@dataclass
class _Case:
    """What was done about one server. ``attempts``: in a row; ``not_before``: when the next one may begin, and
    ``next_at`` the same as a time of day, 0 where there is none; ``done_at``: when the last one had taken its place."""

    asked_at: float
    attempts: int = 0
    done_at: float = 0.0
    not_before: float = 0.0
    next_at: float = 0.0
    says: str = ""


def wait_seconds(attempts: int) -> float:
    """How long after so many attempts in a row the next one may begin."""
    return FIRST_WAIT_SECONDS * 2.0 ** (attempts - 1)


def beside(spec: Spec, mark: str) -> Spec | None:
    """The same program with a socket and a status file of its own; None for one that has none to be renamed."""
    argv = list(spec.argv)
    if spec.on_demand or spec.status is None or any(option not in argv[:-1] for option in _PLACES):
        return None
    for option in _PLACES:
        place = argv.index(option) + 1
        argv[place] = _marked(argv[place], mark)
    return spec._replace(id=f"{spec.id}.{mark}", argv=tuple(argv), status=_marked(spec.status, mark))


def _marked(path: str, mark: str) -> str:
    return str(Path(path).with_suffix(f".{mark}{Path(path).suffix}"))


def _places(spec: Spec) -> list[Path]:
    return [Path(spec.argv[spec.argv.index(option) + 1]) for option in _PLACES]


def _exit(child: Child) -> str:
    how = child.last_exit or {}
    return str(how.get("error") or (f"signal {how['signal']}" if how.get("signal") else f"exit code {how.get('code')}"))


def has_room(pid: int) -> bool:
    """Whether the machine's memory holds another process of this one's size. Source: proc(5), meminfo."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines)}
        return found["MemAvailable"] - (pss_bytes(pid) or 0) > SPARE_SHARE * found["MemTotal"]
    except (OSError, ValueError, LookupError):
        return True


class Replacing:
    """Replaces one server at a time. ``told``: the newest of what was done, for the state file."""

    def __init__(self) -> None:
        self.told: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._cases: dict[str, _Case] = {}
        self._fresh: Child | None = None
        self._leaving: list[Child] = []
        self._place = ""  # whose replacement is under way
        self._marks = 0

    @property
    def children(self) -> list[Child]:
        """The processes that are in nobody's place yet, or no more."""
        return [*self._leaving, *([self._fresh] if self._fresh else [])]

    def describe(self, now: float) -> dict[str, dict[str, Any]]:
        """Of each server that fails now: the attempts in a row, what became of the last, and when the next may be."""
        return {
            place: {"attempts": case.attempts, "says": case.says, "next_at": case.next_at or None}
            for place, case in self._cases.items()
            if case.done_at < case.asked_at and now - case.asked_at < CURRENT_SECONDS
        }

    def ask(self, child: Child, now: float) -> None:
        """A gateway says that a server fails whatever it is asked."""
        case = self._cases.get(child.id)
        if case is None or now - case.asked_at > WELL_SECONDS:
            case = self._cases[child.id] = _Case(now)
        case.asked_at = now
        spec, process = child.spec, child.process
        idle = self._fresh is None and process is not None and child.kill_due is None
        if spec is None or spec.kind != "server" or process is None or not idle or now < case.not_before:
            return
        if case.attempts == ATTEMPTS:
            if case.next_at:
                case.next_at, case.says = 0.0, f"{ATTEMPTS} processes in a row failed; it is left as it is"
                self._tell(child.id, "left", case.says)
            return
        case.attempts += 1
        case.not_before = now + wait_seconds(case.attempts)
        case.next_at = time.time() + wait_seconds(case.attempts)
        self._marks += 1
        twin = beside(spec, _MARKS[self._marks % len(_MARKS)])
        if twin is not None and has_room(process.pid):
            self._fresh, self._place = Child(twin), child.id
            case.says = f"another process starts beside it (attempt {case.attempts} of {ATTEMPTS})"
            return
        why = "it runs on demand" if spec.on_demand else "memory does not hold two"
        case.says = f"restarted in its place, for {why} (attempt {case.attempts} of {ATTEMPTS})"
        self._tell(child.id, "restarted", case.says)
        child.stop(now, again=True)

    def look(self, children: MutableMapping[str, Child], log: Path, now: float) -> None:
        """To be called every turn: move the replacement on that is under way. ``log``: the folder of logs."""
        for old in self._leaving:
            old.reap(now)
            old.kill_when_due(now)
        self._leaving = [old for old in self._leaving if old.process]
        fresh, child = self._fresh, children.get(self._place)
        if fresh is None:
            return
        fresh.reap(now)
        if child is None or child.spec is None or beside(child.spec, fresh.id.rpartition(".")[2]) != fresh.spec:
            self._drop(fresh, None)  # it is no longer wanted, or another program is
        elif fresh.running is None:
            fresh.start(log / f"{self._place}.log", now)
        elif fresh.process is None:
            self._drop(fresh, f"it ended with {_exit(fresh)} before it was ready")
        elif fresh.is_ready():
            self._take_over(fresh, child, child.spec, children, now)
        elif now - fresh.born > START_SECONDS:
            self._drop(fresh, f"it was not ready within {START_SECONDS:g} s")

    def _take_over(
        self, fresh: Child, old: Child, wanted: Spec, children: MutableMapping[str, Child], now: float
    ) -> None:
        assert fresh.running and fresh.process
        try:
            for own, place in zip(_places(fresh.running), _places(wanted), strict=True):
                own.replace(place)
        except OSError as error:
            self._drop(fresh, f"its files cannot be renamed: {error}")
            return
        case = self._cases[self._place]
        case.says = f"process {fresh.process.pid} took its place (attempt {case.attempts} of {ATTEMPTS})"
        case.done_at = now
        self._tell(self._place, "replaced", f"it failed whatever it was asked; {case.says}")
        mark = fresh.id
        fresh.id, fresh.spec, fresh.running = old.id, wanted, wanted
        fresh.restarts, fresh.last_exit = old.restarts + 1, old.last_exit
        children[old.id] = fresh
        old.id, old.spec = f"{mark}.old", None
        if old.process:
            old.stop(now)
            self._leaving.append(old)
        self._fresh, self._place = None, ""

    def _drop(self, fresh: Child, reason: str | None) -> None:
        """Let go of a process that does not take the place; what is there goes on."""
        if reason is not None:
            self._cases[self._place].says = f"what was started beside it did not come to serve: {reason}"
            self._tell(self._place, "not_replaced", self._cases[self._place].says)
        if fresh.process:
            kill_group(fresh.process.pid)
            self._leaving.append(fresh)
        for path in _places(fresh.running) if fresh.running else ():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        self._fresh, self._place = None, ""

    def _tell(self, server: str, kind: str, reason: str) -> None:
        self.told.append({"server": server, "kind": kind, "reason": reason, "at": time.time()})
