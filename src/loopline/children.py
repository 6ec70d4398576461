"""One process of an installation's tree, over all its lives: how it starts, what its end means, where its log goes.

Standard library only. `supervisor.py` decides when; this file knows how.
"""

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from loopline.errors import InvalidInput

QUICK_SECONDS = 1.0  # a process that lived for less died quickly
FIRST_BACKOFF_SECONDS = 0.1
DRAIN_SECONDS = 10.0
ADOPT_SECONDS = 1.0  # a fork takes milliseconds; who does not answer by then is not waited for
ADOPT_TRIES = 2  # more, before an interpreter is started in place of a forkserver that does not answer
MAX_LOG_BYTES = 10 * 1000 * 1000

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


class Kind(NamedTuple):
    """How a kind of process is kept: when it is stopped, how long at most until it is tried again."""

    stop_order: int
    max_backoff_seconds: float
    again_after_success: bool = True


KINDS = {
    "gateway": Kind(0, 2.0),
    "monitor": Kind(1, 2.0),
    "server": Kind(1, 10.0),
    "control": Kind(2, 2.0),
    "forkserver": Kind(3, 10.0, again_after_success=False),  # it ends by itself when idle
}


def backoff_seconds(kind: Kind, quick_deaths: int) -> float:
    """How long to wait before the next start: not at all after a first death, then twice as long each time."""
    if quick_deaths < 2:
        return 0.0
    return min(FIRST_BACKOFF_SECONDS * 2.0 ** min(quick_deaths - 2, 16), kind.max_backoff_seconds)


class Spec(NamedTuple):
    """One process that should run. ``status`` is a model server's status file; ``fds`` are passed by number.

    ``on_demand``: it starts when somebody asks for it, and stays away once it has ended; with ``idle_seconds`` it is
    stopped when no gateway has used it for so long. ``fork``: the socket of a forkserver that can make it quicker.
    ``group``: whose memory it counts in.
    """

    id: str
    kind: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    cwd: str | None = None
    status: str | None = None
    drain_seconds: float = DRAIN_SECONDS
    fds: tuple[int, ...] = ()
    on_demand: bool = False
    idle_seconds: float | None = None
    fork: str | None = None
    group: str | None = None

    def launch(self) -> tuple[Any, ...]:
        """What decides whether a running process is still the one that is wanted."""
        return self.argv, dict(self.environ), self.cwd, self.fds


def read_processes(raw: bytes, reserved: Iterable[str]) -> tuple[list[Spec], list[str]]:
    """What ``processes.json`` asks for, and what is wrong with the entries left out.

    Raises ``InvalidInput`` when the file as a whole cannot be read.
    """
    try:
        wanted = json.loads(raw)
        entries = [("server", e) for e in wanted.get("servers", [])]
        entries += [("forkserver", e) for e in wanted.get("forkservers", [])]
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise InvalidInput(f"processes.json cannot be read: {error}") from None
    specs: dict[str, Spec] = {}
    problems = []
    taken = set(reserved)
    for kind, entry in entries:
        try:
            spec = _spec(kind, entry)
        except InvalidInput as error:
            problems.append(error.message)
            continue
        if spec.id in taken:
            problems.append(f"{spec.id}: the id is taken")
            continue
        taken.add(spec.id)
        specs[spec.id] = spec
    return list(specs.values()), problems


def _spec(kind: str, entry: Any) -> Spec:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str) or not _ID.fullmatch(entry["id"]):
        raise InvalidInput(f"a {kind} without a proper id: {str(entry)[:80]}")
    argv, environ, drain = entry.get("argv"), entry.get("environ", {}), entry.get("drain_seconds", DRAIN_SECONDS)
    if not (isinstance(argv, list) and argv and all(isinstance(word, str) for word in argv)):
        raise InvalidInput(f"{entry['id']}: argv must be a list of strings")
    if not (isinstance(environ, dict) and all(isinstance(value, str) for value in environ.values())):
        raise InvalidInput(f"{entry['id']}: environ must hold strings")
    if not isinstance(drain, int | float) or not 0 <= drain <= 3600:
        raise InvalidInput(f"{entry['id']}: drain_seconds must be between 0 and 3600")
    for name in ("cwd", "status", "fork", "group"):
        if not isinstance(entry.get(name), str | None):
            raise InvalidInput(f"{entry['id']}: {name} must be text")
    idle = entry.get("idle_seconds")
    if not (idle is None or (isinstance(idle, int | float) and idle > 0)):
        raise InvalidInput(f"{entry['id']}: idle_seconds must be above 0")
    return Spec(
        entry["id"],
        kind,
        tuple(argv),
        environ,
        entry.get("cwd"),
        entry.get("status"),
        float(drain),
        on_demand=entry.get("on_demand") is True,
        idle_seconds=idle,
        fork=entry.get("fork"),
        group=entry.get("group"),
    )


def read_budgets(raw: bytes) -> dict[str, float]:
    """The memory in MB that each group of servers may take, as ``processes.json`` says; what is unfit is left out."""
    try:
        budgets = json.loads(raw).get("budgets", {})
        return {str(name): float(megabytes) for name, megabytes in budgets.items() if megabytes > 0}
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of ``pid``; None when it is gone or a zombie. Source: proc(5), field 22."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def kill_group(pid: int) -> None:
    """Everything in the process group that ``pid`` leads, or led."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def adopt_orphans() -> None:
    """Make this process the parent of every orphan below it: so a server that a forkserver made becomes its child."""
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def reap_strangers(own: set[int]) -> None:
    """Collect the orphans that have ended, jobs among them, up to the next of ``own`` that has: those are not ours."""
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in own:
            os.waitpid(ended.si_pid, 0)


class Adopted:
    """A process that a forkserver made and left to this one: what `Child` uses of ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def send_signal(self, number: int) -> None:
        """Signal it; its pid is held until it is waited for."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def adopt(spec: Spec, log: Path) -> Adopted | None:
    """Have the spec's forkserver make the process, and take it over; None when it cannot, and then nothing runs.

    The new process says its pid when it has become a child of this one, and goes on when it is told to: of a start that
    took too long here nothing is left.
    """
    request = {
        "argv": spec.argv,
        "environ": dict(spec.environ),
        "cwd": spec.cwd,
        "log": str(log),
        "parent": os.getpid(),
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(ADOPT_SECONDS)
        try:
            asking.connect(spec.fork or "")
            asking.sendall(json.dumps({"serve": request}).encode() + b"\n")
            pid = int(json.loads(asking.recv(4096))["pid"])
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises when it is no child of ours
            asking.sendall(b"go\n")
        except (OSError, ValueError, LookupError, TypeError):
            return None
    return Adopted(pid)


def _launch(spec: Spec, log: Path) -> "subprocess.Popen[bytes]":
    """Start a program. Raises ``OSError`` and the like."""
    supervisor = os.getpid()

    def before_exec() -> None:
        # A supervisor that died before prctl took hold would leave the child without its signal: look again.
        if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0 or os.getppid() != supervisor:
            os._exit(127)

    with log.open("ab") as output:
        return subprocess.Popen(
            spec.argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(spec.environ),
            cwd=spec.cwd,
            pass_fds=spec.fds,
            process_group=0,
            umask=0o077,
            preexec_fn=before_exec,  # noqa: PLW1509 - this process has one thread
        )


class Child:
    """One process of the tree, over all its lives. ``spec`` is what is wanted: None means that it should go."""

    def __init__(self, spec: Spec) -> None:
        self.id = spec.id
        self.kind = spec.kind
        self.spec: Spec | None = spec
        self.process: subprocess.Popen[bytes] | Adopted | None = None
        self.running: Spec | None = None
        self.restarts = 0
        self.last_exit: dict[str, Any] | None = None
        self.started_at: float | None = None
        self.start_time: int | None = None
        self.born = 0.0
        self.quick_deaths = 0
        self.start_due: float | None = None if spec.on_demand else time.monotonic()  # None: not by itself
        self.kill_due: float | None = None
        self.asked_at: float | None = None  # when somebody last asked for it
        self.again = False  # it was asked for while it was stopping
        self.forked = False
        self.refused = 0  # attempts in a row that a forkserver did not answer
        self.not_before = 0.0  # an on-demand process that keeps dying is asked for in vain until then

    @property
    def state(self) -> str:
        """``running``, ``stopping``, ``waiting`` for its next start, ``asleep`` until asked for, ``ended`` for good."""
        if self.process:
            return "running" if self.kill_due is None else "stopping"
        if self.start_due is None:
            return "asleep" if self.spec and self.spec.on_demand else "ended"
        return "waiting"

    def describe(self) -> dict[str, Any]:
        """The child's entry in supervisor.json."""
        return {
            "id": self.id,
            "kind": self.kind,
            "pid": self.process.pid if self.process else None,
            "start_time": self.start_time if self.process else None,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
            "state": self.state,
            "started_at": self.started_at,
            "forked": self.forked,
        }

    def start(self, log: Path, now: float) -> bool:
        """Start what is wanted; False while its forkserver does not answer and is to be asked again.

        A program that cannot be started counts as one that died at once.
        """
        assert self.spec is not None
        began = time.time()
        _rotate(log)
        adopted = adopt(self.spec, log) if self.spec.fork else None
        if self.spec.fork and adopted is None and self.refused < ADOPT_TRIES:
            self.refused += 1
            return False
        self.refused = 0
        self.running, self.born, self.start_due, self.asked_at = self.spec, now, None, None
        self.started_at, self.forked = began, adopted is not None
        try:
            self.process = adopted or _launch(self.spec, log)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._ended({"code": 127, "signal": None, "at": time.time(), "error": str(error)}, now)
            return True
        self.start_time = start_time(self.process.pid)
        return True

    def ask(self, now: float) -> None:
        """Somebody needs it: start it unless it runs; one that is stopping comes back."""
        self.asked_at = now
        if self.process:
            self.again = self.kill_due is not None
        elif self.start_due is None:
            self.start_due = max(now, self.not_before)

    def forget_request(self) -> None:
        """Nobody waits for it any more."""
        if self.process is None and self.spec and self.spec.on_demand:
            self.start_due = self.asked_at = None

    def stop(self, now: float, drain_seconds: float | None = None, *, again: bool = False) -> None:
        """Ask it to finish; `kill_due` says until when it may take. ``again``: it starts anew when it has ended."""
        self.again = again
        if self.process and self.running:
            allowed = self.running.drain_seconds
            allowed = allowed if drain_seconds is None else min(allowed, drain_seconds)
            if self.kill_due is None:
                self.process.send_signal(signal.SIGTERM)
                self.kill_due = now + allowed
            self.kill_due = min(self.kill_due, now + allowed)

    def kill_when_due(self, now: float) -> None:
        """Kill it, and what it started in its group, when it has not finished in time."""
        if self.process and self.kill_due is not None and now >= self.kill_due:
            kill_group(self.process.pid)
            self.kill_due = now + 1.0

    def want(self, spec: Spec | None, now: float) -> None:
        """What should run under this id from now on; a new program does not wait for the old one's backoff."""
        changed = spec is not None and (self.running is None or spec.launch() != self.running.launch())
        kept_up = self.spec is not None and self.spec.on_demand and spec is not None and not spec.on_demand
        self.spec = spec
        if kept_up and self.process is None and self.start_due is None:
            self.start_due = now  # it slept, and is to run all the time from now on
        if changed and self.process is None and spec is not None and not spec.on_demand:
            self.quick_deaths, self.start_due = 0, now

    def is_as_wanted(self) -> bool:
        """Whether the running process is the one that should run."""
        return self.spec is not None and self.running is not None and self.spec.launch() == self.running.launch()

    def reap(self, now: float) -> bool:
        """Whether it has ended by now. What it left in its group is killed while its pid is still held."""
        if not self.process:
            return False
        if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return False
        kill_group(self.process.pid)
        code = self.process.wait()
        self.process = None
        self._ended(
            {"code": code if code >= 0 else None, "signal": -code if code < 0 else None, "at": time.time()}, now
        )
        return True

    def _ended(self, how: dict[str, Any], now: float) -> None:
        asked, self.kill_due = self.kill_due is not None, None
        self.last_exit = how
        kind = KINDS[self.kind]
        on_demand = self.spec is not None and self.spec.on_demand
        again, self.again = self.again, False
        if asked:
            self.quick_deaths, self.start_due = 0, None if on_demand and not again else now
        elif how["code"] == 0 and (on_demand or not kind.again_after_success):
            self.start_due = None
        else:
            quick = how["code"] == 127 or now - self.born < QUICK_SECONDS or not self._was_ready(how)
            self.quick_deaths = self.quick_deaths + 1 if quick else 0
            self.not_before = now + backoff_seconds(kind, self.quick_deaths)
            self.start_due = None if on_demand else self.not_before
            self.restarts += 1

    def _was_ready(self, how: dict[str, Any]) -> bool:
        """A model server that never came to serve died quickly, however long loading took."""
        return self.is_ready(how["at"])

    def is_ready(self, by: float | None = None) -> bool:
        """Whether the process that runs, or ran last, came to serve (before ``by``); all but model servers did."""
        if not (self.running and self.running.status):
            return True
        try:
            status = json.loads(Path(self.running.status).read_bytes())
            in_time = status["at"] >= self.started_at and (by is None or status["at"] <= by)
            return bool(status["state"] == "ready" and in_time)
        except (OSError, ValueError, LookupError, TypeError):
            return False


def _rotate(log: Path) -> None:
    """Before a start: a log that has grown big is set aside by rename."""
    with suppress(OSError):  # a full disk must not take the tree down
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))


def cut_log(log: Path) -> None:
    """While its process runs: keep the newest part of a log that has grown big, and go on with an empty one."""
    try:
        size = log.stat().st_size
        if size <= MAX_LOG_BYTES:
            return
        with log.open("rb") as source, log.with_name(f"{log.name}.1").open("wb") as kept:
            source.seek(size - MAX_LOG_BYTES)
            while part := source.read(1 << 20):
                kept.write(part)
        os.truncate(log, 0)
    except OSError:
        return  # a full disk must not take the tree down
