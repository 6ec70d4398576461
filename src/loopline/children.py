"""One process of an installation's tree, over all its lives: how it starts, what its end means, where its log goes.

Standard library only. `supervisor.py` decides when; this file knows how.
"""

import ctypes
import json
import os
import re
import signal
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
MAX_LOG_BYTES = 10 * 1000 * 1000

_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PR_SET_PDEATHSIG = 1
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
    """One process that should run. ``status`` is a model server's status file; ``fds`` are passed by number."""

    id: str
    kind: str
    argv: tuple[str, ...]
    environ: Mapping[str, str]
    cwd: str | None = None
    status: str | None = None
    drain_seconds: float = DRAIN_SECONDS
    fds: tuple[int, ...] = ()

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
    for name in ("cwd", "status"):
        if not isinstance(entry.get(name), str | None):
            raise InvalidInput(f"{entry['id']}: {name} must be a path")
    return Spec(entry["id"], kind, tuple(argv), environ, entry.get("cwd"), entry.get("status"), float(drain))


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


class Child:
    """One process of the tree, over all its lives. ``spec`` is what is wanted: None means that it should go."""

    def __init__(self, spec: Spec) -> None:
        self.id = spec.id
        self.kind = spec.kind
        self.spec: Spec | None = spec
        self.process: subprocess.Popen[bytes] | None = None
        self.running: Spec | None = None
        self.restarts = 0
        self.last_exit: dict[str, Any] | None = None
        self.started_at: float | None = None
        self.start_time: int | None = None
        self.born = 0.0
        self.quick_deaths = 0
        self.start_due: float | None = 0.0  # monotonic; None: not by itself
        self.kill_due: float | None = None

    @property
    def state(self) -> str:
        """``running``, ``stopping``, ``waiting`` for its next start, or ``ended`` for good."""
        if self.process:
            return "running" if self.kill_due is None else "stopping"
        return "ended" if self.start_due is None else "waiting"

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
        }

    def start(self, log: Path, now: float) -> None:
        """Start what is wanted. A program that cannot be started counts as one that died at once."""
        assert self.spec is not None
        self.running, self.born, self.start_due = self.spec, now, None
        supervisor = os.getpid()

        def before_exec() -> None:
            # A supervisor that died before prctl took hold would leave the child without its signal: look again.
            if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM) != 0 or os.getppid() != supervisor:
                os._exit(127)

        try:
            _rotate(log)
            with log.open("ab") as output:
                self.process = subprocess.Popen(
                    self.spec.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=dict(self.spec.environ),
                    cwd=self.spec.cwd,
                    pass_fds=self.spec.fds,
                    process_group=0,
                    umask=0o077,
                    preexec_fn=before_exec,  # noqa: PLW1509 - this process has one thread
                )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._ended({"code": 127, "signal": None, "at": time.time(), "error": str(error)}, now)
            return
        self.started_at, self.start_time = time.time(), start_time(self.process.pid)

    def stop(self, now: float) -> None:
        """Ask it to finish; `kill_due` says until when it may take."""
        if self.process and self.kill_due is None and self.running:
            self.kill_due = now + self.running.drain_seconds
            self.process.send_signal(signal.SIGTERM)

    def kill_when_due(self, now: float) -> None:
        """Kill it, and what it started in its group, when it has not finished in time."""
        if self.process and self.kill_due is not None and now >= self.kill_due:
            kill_group(self.process.pid)
            self.kill_due = now + 1.0

    def want(self, spec: Spec | None, now: float) -> None:
        """What should run under this id from now on; a new program does not wait for the old one's backoff."""
        changed = spec is not None and (self.running is None or spec.launch() != self.running.launch())
        self.spec = spec
        if changed and self.process is None:
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
        if asked:
            self.quick_deaths, self.start_due = 0, now
        elif how["code"] == 0 and not kind.again_after_success:
            self.start_due = None
        else:
            quick = how["code"] == 127 or now - self.born < QUICK_SECONDS or not self._was_ready(how)
            self.quick_deaths = self.quick_deaths + 1 if quick else 0
            self.start_due = now + backoff_seconds(kind, self.quick_deaths)
            self.restarts += 1

    def _was_ready(self, how: dict[str, Any]) -> bool:
        """A model server that never came to serve died quickly, however long loading took."""
        if not (self.running and self.running.status):
            return True
        try:
            status = json.loads(Path(self.running.status).read_bytes())
            return bool(status["state"] == "ready" and status["at"] <= how["at"] and status["at"] >= self.started_at)
        except (OSError, ValueError, LookupError, TypeError):
            return False


def _rotate(log: Path) -> None:
    """Before a start: a log that has grown big is set aside by rename."""
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
