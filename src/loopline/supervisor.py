"""The process tree of an installation: who runs, on which descriptors, and who is started again.

Small on purpose: standard library only, one thread, no database, and it asks nobody before it restarts a process.
It owns the public port and hands it to gateways by descriptor, so a connection made while a gateway is down waits in
the kernel's queue for the next one. What control wants to run stands in ``DIR/processes.json``; what does run stands in
``run/supervisor.json``. Jobs are not its children: they outlive it.
"""

import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from loopline import listening
from loopline.children import (
    DRAIN_SECONDS,
    KINDS,
    Child,
    Spec,
    adopt_orphans,
    cut_log,
    kill_group,
    read_budgets,
    read_processes,
    reap_strangers,
    start_time,
)
from loopline.config import SETTINGS, Settings, package_environment
from loopline.demand import Demand
from loopline.errors import Conflict, Forbidden, InvalidInput
from loopline.replacing import Replacing

POLL_SECONDS = 0.5
PROBE_SECONDS = 0.05
BLOCKED_SECONDS = 0.02  # between two looks at a start that waits for room or for a forkserver
MAX_OPEN_FILES = 65536
TROUBLE = 3  # quick deaths in a row, after which the caller is told

Programs = Callable[[Settings, int, int], list[Spec]]


def programs(settings: Settings, listen_fd: int, port: int) -> list[Spec]:
    """loopline's own processes; ``port`` is the bound one. They load the settings that this process has."""
    environ = {**package_environment(), "PYTHONUNBUFFERED": "1"}
    for setting in SETTINGS[1:]:
        value = getattr(settings, setting.name)
        environ[f"LOOPLINE_{setting.name.upper()}"] = ",".join(value) if isinstance(value, tuple) else str(value)
    environ["LOOPLINE_PORT"] = str(port)

    def own(kind: str, module: str, index: int | None = None) -> Spec:
        argv = [sys.executable, "-m", f"loopline.{module}", *settings.command_line()]
        if index is None:
            return Spec(kind, kind, tuple(argv), environ)
        argv += ["--index", str(index), "--listen-fd", str(listen_fd)]
        return Spec(f"{kind}-{index}", kind, tuple(argv), environ, fds=(listen_fd,))

    gateways = [own("gateway", "gateway", index) for index in range(max(1, settings.gateways))]
    return [own("control", "server"), *gateways, own("monitor", "monitor")]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _write_json(path: Path, value: Any) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(json.dumps(value))
    draft.replace(path)


def _private_folder(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if path.is_symlink() or found.st_uid != os.getuid():
        raise Forbidden(f"{path} belongs to somebody else; loopline keeps its sockets in a folder of its own")
    path.chmod(0o700)


def _take_lock(path: Path) -> int:
    """The lock of the data directory, held until this process ends."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise Conflict(f"loopline already serves {path.parent} (pid {owner})", pid=owner) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


def _clear_leftovers(state: Path) -> None:
    """Wait for the children of a supervisor that was killed: there must never be two controls on one database."""
    try:
        old = json.loads(state.read_bytes())
        if old["boot_id"] != _boot_id():
            return
        alive = {c["pid"]: c["start_time"] for c in old["children"] if c["pid"] and c["start_time"]}
    except (OSError, ValueError, LookupError, TypeError):
        return
    deadline = time.monotonic() + DRAIN_SECONDS
    while alive := {pid: began for pid, began in alive.items() if start_time(pid) == began}:
        if time.monotonic() > deadline:
            for pid in alive:
                kill_group(pid)
        time.sleep(0.02)


class Supervisor:
    """The loop. ``run`` below prepares what it owns."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        programs: Programs,
        on_ready: Callable[[str, int], None] | None,
        say: Callable[[str], None] | None,
    ) -> None:
        self.settings, self.listener = settings, listener
        self.host, self.port = listener.getsockname()[:2]
        self.on_ready, self.say = on_ready, say
        self.logs = settings.dir / "logs"
        self.wanted_file = settings.dir / "processes.json"
        self.state_file = settings.run_dir / "supervisor.json"
        own = programs(settings, listener.fileno(), self.port)
        self.own_ids = [spec.id for spec in own]
        self.children = {spec.id: Child(spec) for spec in own}
        self.probe: listening.Probe | None = self._probe()
        self.started_at = time.time()
        self.seen: tuple[int, int, int] | None = None
        self.described: dict[str, Any] | None = None
        self.problems: list[str] = []
        self.demand = Demand(settings.run_dir)
        self.replacing = Replacing()
        self.stops = 0  # signals received that ask to stop
        self.commands = self._bind_commands()
        self.waker, self.signalled = socket.socketpair()
        for end in (self.waker, self.signalled):
            end.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.commands, selectors.EVENT_READ, self._read_commands)
        self.selector.register(self.signalled, selectors.EVENT_READ, self._drain_signals)

    def _probe(self) -> listening.Probe:
        control = self.settings.run_dir / "control.sock"
        if self.settings.secure:
            return listening.Probe(control, str(self.settings.run_dir / "gateway-0.http.sock"), socket.AF_UNIX)
        return listening.Probe(control, self.listener.getsockname(), int(self.listener.family))

    def _bind_commands(self) -> socket.socket:
        path = self.settings.run_dir / "supervisor.sock"
        path.unlink(missing_ok=True)
        commands = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        commands.bind(str(path))
        commands.setblocking(False)
        return commands

    # -- what arrives

    def _drain_signals(self) -> None:
        with suppress(BlockingIOError):
            while self.signalled.recv(256):
                pass

    def _read_commands(self) -> None:
        with suppress(BlockingIOError):
            while True:
                raw = self.commands.recv(65536)
                with suppress(ValueError, AttributeError, RecursionError):
                    self._command(json.loads(raw))

    def _command(self, message: dict[str, Any]) -> None:
        """``processes``: the file has changed. The others name a server in ``id``: ``start`` what sleeps or has gone
        idle, ``stop`` what runs on demand, ``restart`` it with ``grace_seconds`` at most, or ``replace`` it by another
        process, because it fails whatever it is asked.
        """
        kind, now = message.get("kind"), time.monotonic()
        if kind == "processes":
            self.seen = None
            return
        self._read_wanted()
        child = self.children.get(str(message.get("id")))
        if child is None or child.id in self.own_ids:
            return
        if kind == "start":
            child.ask(now)
        elif kind == "stop" and child.spec and child.spec.on_demand:
            child.stop(now)
            child.forget_request()
        elif kind == "replace":
            self.replacing.ask(child, now)
        elif kind == "restart":
            grace = message.get("grace_seconds")
            child.stop(now, float(grace) if isinstance(grace, int | float) and grace >= 0 else None, again=True)

    def _read_wanted(self) -> None:
        """Take over processes.json when it has changed. While it is missing or broken, what runs goes on."""
        try:
            found = self.wanted_file.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self.seen:
                return
            raw = self.wanted_file.read_bytes()
        except OSError:
            return
        self.seen = stamp
        try:
            specs, problems = read_processes(raw, [*self.own_ids, "supervisor"])
        except InvalidInput as error:
            specs, problems = None, [error.message]
        for problem in problems:
            self._log(f"left out: {problem}")
        if problems != self.problems:
            self.problems, self.described = problems, None
        if specs is not None:
            self.demand.budgets = read_budgets(raw)
            self._want({spec.id: spec for spec in specs})

    def _want(self, specs: dict[str, Spec]) -> None:
        for child in self.children.values():
            if child.id not in self.own_ids:
                child.want(specs.pop(child.id, None), time.monotonic())
        for spec in specs.values():
            self.children[spec.id] = Child(spec)

    # -- what is done about it

    def serve(self) -> None:
        """Until a signal asks to stop."""
        while not self.stops:
            now = time.monotonic()
            self._read_wanted()
            self._reap(now)
            self.demand.look(self.children.values(), now)
            self.replacing.look(self.children, self.logs, now)
            for child in list(self.children.values()):
                self._settle(child, now)
            self._look_ready()
            self._write_state()
            self._wait()

    def _settle(self, child: Child, now: float) -> None:
        """One child's next move: stop what is no longer wanted, start what is, forget what has gone."""
        if child.process:
            if not child.is_as_wanted():
                child.stop(now)
            child.kill_when_due(now)
            cut_log(self._log_of(child))
        elif child.spec is None:
            del self.children[child.id]
        elif self.demand.may_start(child, self.children, now) and child.start(self._log_of(child), now):
            came = f"{'forked' if child.forked else 'started'} as pid {child.process.pid}" if child.process else None
            self._log(f"{child.id}: {came or child.last_exit}")
            self._write_state()  # at once: a successor of this process waits for those whom it finds there

    def _reap(self, now: float) -> None:
        for child in self.children.values():
            if child.reap(now):
                self._log(f"{child.id}: ended {json.dumps(child.last_exit)}")
                if self.probe and self.say and child.id in self.own_ids and child.quick_deaths == TROUBLE:
                    self.say(f"{child.id} ends as soon as it starts; see {self._log_of(child)}")
        known = [*self.children.values(), *self.replacing.children]
        reap_strangers({child.process.pid for child in known if child.process})

    def _look_ready(self) -> None:
        if self.probe and self.probe.look():
            self.probe.close()
            self.probe, self.described = None, None
            self._write_state()
            self._log(f"ready on {self.host}:{self.port}")
            if self.on_ready:
                self.on_ready(self.host, self.port)

    def _wait(self) -> None:
        now = time.monotonic()
        dues = [now + (PROBE_SECONDS if self.probe else POLL_SECONDS)]
        for child in self.children.values():
            if child.process and child.kill_due is not None:
                dues.append(child.kill_due)
            elif not child.process and child.start_due is not None:
                dues.append(max(child.start_due, now + BLOCKED_SECONDS))
        for key, _ in self.selector.select(max(0.0, min(dues) - now)):
            key.data()

    def shut_down(self) -> None:
        """Gateways first, while model servers still answer them; control after what reports to it. Jobs go on.

        A second signal ends the waiting.
        """
        self.listener.close()
        self.children.update({child.id: child for child in self.replacing.children})
        for order in sorted({kind.stop_order for kind in KINDS.values()}):
            group = [child for child in self.children.values() if KINDS[child.kind].stop_order == order]
            for child in group:
                child.stop(time.monotonic())
            while any(child.process for child in group):
                now = time.monotonic()
                for child in group:
                    if self.stops > 1:
                        child.kill_due = min(child.kill_due or now, now)
                    child.kill_when_due(now)
                self._reap(now)
                self._write_state()
                if any(child.process for child in group):
                    self._wait()

    def close(self) -> None:
        """Give everything back; a child that is left (after an error in the loop) is killed."""
        for child in self.children.values():
            if child.process:
                kill_group(child.process.pid)
                child.process.wait()
        if self.probe:
            self.probe.close()
        for end in (self.selector, self.commands, self.waker, self.signalled, self.listener):
            end.close()
        self.state_file.unlink(missing_ok=True)
        (self.settings.run_dir / "supervisor.sock").unlink(missing_ok=True)

    # -- what is told

    def _write_state(self) -> None:
        described = {
            "children": [child.describe() for child in (*self.children.values(), *self.replacing.children)],
            "failing": self.replacing.describe(time.monotonic()),
            "replacements": list(self.replacing.told),
        }
        if described == self.described:
            return
        self.described = described
        state = {
            "pid": os.getpid(),
            "boot_id": _boot_id(),
            "started_at": self.started_at,
            "host": self.host,
            "port": self.port,
            "ready": self.probe is None,
            "problems": self.problems,
            **described,
        }
        try:
            _write_json(self.state_file, state)
        except OSError as error:  # a full disk must not take the tree down
            self.described = None
            self._log(f"supervisor.json: {error}")
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wake:
            wake.setblocking(False)
            wake.sendto(b'{"kind": "supervisor"}', str(self.settings.run_dir / "wake.sock"))

    def _log_of(self, child: Child) -> Path:
        return self.logs / f"{child.id}.log"

    def _log(self, line: str) -> None:
        with suppress(OSError), (self.logs / "supervisor.log").open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}\n")

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handlers that only count; the loop is woken through a descriptor."""

        def on_stop(_number: int, _frame: object) -> None:
            self.stops += 1

        def on_child(_number: int, _frame: object) -> None:
            """The wake-up is all that is needed."""

        stop = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        old = {number: signal.signal(number, on_stop) for number in stop}
        old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, on_child)
        fd = signal.set_wakeup_fd(self.waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(fd)
            for number, handler in old.items():
                signal.signal(number, handler)


def run(
    settings: Settings,
    *,
    programs: Programs = programs,
    on_ready: Callable[[str, int], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> int:
    """Run the tree until SIGTERM, SIGINT or SIGHUP; returns 0 once everything has stopped.

    ``on_ready(host, port)`` is called once, when control and a gateway answer; ``say(line)`` when a process does not
    come up. Call it from the main thread of a process with one thread. Raises ``Conflict`` when the data directory
    is served already or the port is taken, ``Forbidden`` and ``InvalidInput`` where it may not or cannot listen.
    """
    listening.check(settings)
    os.umask(0o077)
    for folder in (settings.dir, settings.run_dir, settings.dir / "logs"):
        _private_folder(folder)
    lock = _take_lock(settings.dir / "lock")
    try:
        _clear_leftovers(settings.run_dir / "supervisor.json")
        _raise_open_files()
        adopt_orphans()
        supervisor = Supervisor(settings, listening.bind(settings.host, settings.port), programs, on_ready, say)
        try:
            with supervisor.signals():
                supervisor.serve()
                supervisor.shut_down()
        finally:
            supervisor.close()
    finally:
        os.close(lock)
    return 0


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
