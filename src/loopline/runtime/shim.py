"""The shim: one small process that owns one attempt, from its claim to its `exit`.

Started by a path (``python -I shim.py FOLDER``) or forked by the forkserver. It forks the job, keeps its log, watches
its limits and the `stop` file, kills everything that descends from it, and says how it ended.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH100, PTH102, PTH110, PTH120

import os
import sys

if not __package__:  # entered by path: make the files beside this one importable under a name nobody else uses
    __package__ = "loopline_runtime"
    _package = type(sys)(__package__)
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[__package__] = _package

import _socket
import errno
import json
import resource
import select
import signal
import time
from typing import Any, NamedTuple, NoReturn

from . import folder as files
from . import launch, processes, sandbox
from .watch import Watch

EXIT_RETRY_SECONDS = 60.0
CHUNK_BYTES = 65536
READS_A_TURN = 64
STARS = b"*****"
STAMP_SECONDS = 0.1  # how near a line's time is known

MESSAGES = {
    "timeout": "it ran longer than its limit of {timeout_seconds} s",
    "cpu": "it used more than its limit of {cpu_seconds} s of processor time",
    "memory": "it used more than its limit of {memory_mb} MB of memory",
    "disk": "it wrote more than its limit of {disk_mb} MB, or the disk is full",
    "stopped": "it was stopped on request",
}


class Log:
    """The job's output on disk: everything up to a cap, then one line that says so, then nothing.

    ``hidden``: what is never written; stars stand for it.
    """

    def __init__(self, path: str, cap_bytes: int | None, hidden: list[bytes]) -> None:
        self._hidden = hidden
        self._held = b""  # the end of what came, while it may be the beginning of something hidden
        self.descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.left = cap_bytes
        self.full_disk = False
        self._cap = cap_bytes
        self._line_open = False
        self._times = -1
        self._stamped_at = 0.0
        self._times_path = f"{os.path.dirname(path)}/{files.LOG_TIMES}"

    def write(self, data: bytes) -> None:
        """Append what the cap allows. A disk that refuses is noted: the job goes on."""
        if self._hidden:
            data = self._whole(self.masked(self._held + data))
        self._append(data)

    def end(self) -> None:
        """Write what was held back: nothing follows."""
        held, self._held = self._held, b""
        if held:
            self._append(held)

    def masked(self, data: bytes) -> bytes:
        """The same with stars."""
        for value in self._hidden:
            data = data.replace(value, STARS)
        return data

    def _whole(self, data: bytes) -> bytes:
        """What can be written now: without an end that may go on to be something hidden."""
        longest = min(len(data), max(map(len, self._hidden)) - 1)
        ends = (n for n in range(longest, 0, -1) if any(value.startswith(data[-n:]) for value in self._hidden))
        kept = len(data) - next(ends, 0)
        self._held = data[kept:]
        return data[:kept]

    def _append(self, data: bytes) -> None:
        if self.left == 0 and self._cap is not None:
            self._cut()
            return
        kept = data if self.left is None else data[: self.left]
        self._put(kept)
        if self.left is not None:
            self.left -= len(kept)
            if len(kept) < len(data):
                self._cut()

    def _cut(self) -> None:
        if self._cap is None:
            return
        lead = "\n" if self._line_open else ""
        self._put(f"{lead}[loopline] the log is cut here at {self._cap / 1048576:g} MB; the job goes on\n".encode())
        self._cap = None
        self.left = 0

    def _put(self, data: bytes) -> None:
        if not data:
            return
        self._line_open = not data.endswith(b"\n")
        self._stamp(time.time())
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self.descriptor, view) :]
        except OSError as failure:
            self.full_disk = self.full_disk or failure.errno in launch.DISK_ERRNOS

    def _stamp(self, now: float) -> None:
        """Note when what is written next came: before it is there, so that a line's time never changes."""
        if now - self._stamped_at < STAMP_SECONDS:
            return
        try:
            if self._times < 0:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._times = os.open(self._times_path, flags, 0o600)
            os.write(self._times, f"{os.fstat(self.descriptor).st_size} {now:.3f}\n".encode())
        except OSError:
            return  # the log itself tells of a disk that is full
        self._stamped_at = now


class Standby(NamedTuple):
    """A forked process that waits to be told which folder's job it is, and the pipes to and from it."""

    pid: int
    go: int
    output: int
    report: int


def stand_by(*, keep_input: bool = False) -> Standby:
    """Become a shim without an attempt: leave whoever started this process, and fork the job-to-be."""
    if os.getpid() != os.getsid(0):
        os.setsid()
    os.closerange(3, 1 << 30)
    os.umask(0o077)
    os.chdir("/")
    nothing = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in (1, 2) if keep_input else (0, 1, 2):
        os.dup2(nothing, number)
    sandbox.adopt_orphans()
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    go_end, go = os.pipe()
    output, output_end = os.pipe()
    report, report_end = os.pipe()
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        launch.become(me, go_end, output_end, report_end)
    for end in (go_end, output_end, report_end):
        os.close(end)
    os.set_blocking(output, False)
    os.set_blocking(report, False)
    return Standby(pid, go, output, report)


def main(folder: str, job: Standby) -> int:
    """Run the attempt of a folder to its end. Returns 0, or 1 when another shim has it.

    Where it returns 1 the process has to end, and its job-to-be ends with it.
    """
    spec = files.read_json(folder, files.SPEC)
    if spec is None:
        return 1
    started_at = time.time()
    if not files.claim(folder, os.getpid(), processes.start_time(os.getpid()), processes.boot_id()):
        return 1
    family = processes.Family(job.pid)
    try:
        outcome = _run(folder, spec, job, family, started_at)
    except Exception as failure:  # noqa: BLE001 - whatever it is, the attempt needs an end
        error = files.failure("ShimError", f"{type(failure).__name__}: {failure}")
        token, now = spec.get("token"), time.time()
        outcome = files.describe(reason="launch", token=token, started_at=started_at, ended_at=now, error=error)
    family.end()
    _finish(folder, outcome)
    _wake(spec)
    return 0


def _prepare(folder: str, spec: dict[str, Any]) -> Log:
    """Open the log, for this process's own troubles too, and make what has to exist before Landlock grants it."""
    cap = (spec.get("limits") or {}).get("log_mb")
    hidden = [str(spec["environ"][name]).encode() for name in spec.get("hidden") or ()]
    log = Log(f"{folder}/{files.LOG}", None if cap is None else int(float(cap) * 1048576), hidden)
    os.dup2(log.descriptor, 2)
    for name in (files.OUTPUTS, files.SCRATCH):
        _make_folder(f"{folder}/{name}")
    for name in (files.EVENTS, files.MANIFEST):
        os.close(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return log


def _make_folder(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return


def _run(
    folder: str, spec: dict[str, Any], job: Standby, family: processes.Family, started_at: float
) -> dict[str, Any]:
    if os.path.exists(f"{folder}/{files.STOP}"):
        error = files.failure("Stopped", "it was stopped before it began")
        now = time.time()
        return files.describe(reason="stopped", token=spec.get("token"), started_at=now, ended_at=now, error=error)
    log = _prepare(folder, spec)
    os.write(job.go, folder.encode())
    os.close(job.go)
    files.write_json(folder, files.GROUP, {"pid": job.pid, "start_time": processes.start_time(job.pid)})
    watch = Watch(folder, spec, family, time.monotonic())
    signal.signal(signal.SIGTERM, lambda *_: watch.request("stopped"))
    _attend(watch, job.output, log)
    family.end()
    _pump(job.output, log, turns=None)
    log.end()
    return _outcome(spec, watch, log, _messages(job.report, log), started_at)


def _attend(watch: Watch, output: int, log: Log) -> None:
    """Keep the log and look after the limits until the job's main process has ended."""
    handle = os.pidfd_open(watch.family.main)
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    poller.register(output, select.POLLIN)
    ended = False
    while not ended and watch.family.status is None:
        for descriptor, _ in poller.poll(watch.wait_ms(time.monotonic())):
            if descriptor == handle:
                ended = True
            elif not _pump(output, log, turns=READS_A_TURN):
                poller.unregister(output)
        if not ended:
            watch.look(time.monotonic())
            while watch.family.status is None and watch.family.reap():
                pass  # orphans of the job that ended before it
    os.close(handle)


def _pump(output: int, log: Log, *, turns: int | None) -> bool:
    """Move what the job has written to its log; False when nobody holds the other end any more."""
    while turns is None or turns > 0:
        try:
            data = os.read(output, CHUNK_BYTES)
        except BlockingIOError:
            return True
        if not data:
            return False
        log.write(data)
        turns = None if turns is None else turns - 1
    return True


def _messages(report: int, log: Log) -> dict[str, Any]:
    """What the job's process told about its set-up and its end."""
    told: dict[str, Any] = {}
    try:
        data = log.masked(os.read(report, CHUNK_BYTES))
    except BlockingIOError:
        return told
    for line in data.splitlines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if isinstance(message, dict):
            told.update(message)
    return told


def _reason(status: int, watch: Watch, log: Log, told: dict[str, Any]) -> str:
    """Why the attempt ended, from what is known for certain down to what the job said itself."""
    if watch.reason is not None:
        return watch.reason
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if ended_by == signal.SIGXCPU or (ended_by == signal.SIGKILL and watch.over_cpu()):
        return "cpu"
    if told.get("stage") == "launch":
        return "launch"
    if status == 0:
        return "ok"
    if (told.get("error") or {}).get("type") == "MemoryError":
        return "memory"
    if ended_by == signal.SIGXFSZ or told.get("errno") in launch.DISK_ERRNOS:
        return "disk"
    if log.full_disk or watch.file_is_full():
        return "disk"
    return "error"


def _outcome(spec: dict[str, Any], watch: Watch, log: Log, told: dict[str, Any], started_at: float) -> dict[str, Any]:
    status = watch.family.status or 0
    reason = _reason(status, watch, log, told)
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    error = told.get("error")
    if not isinstance(error, dict) and reason != "ok":
        limits = {name: f"{value:g}" for name, value in watch.limits.items() if isinstance(value, int | float)}
        message = MESSAGES.get(reason, f"it ended with status {code}" if code is not None else f"signal {ended_by}")
        error = files.failure(reason.capitalize(), message.format_map(_Limits(limits)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return files.describe(
        reason=reason,
        token=spec.get("token"),
        started_at=started_at,
        ended_at=time.time(),
        code=code,
        signal=ended_by,
        error=None if reason == "ok" else error,
        cpu_seconds=round(used.ru_utime + used.ru_stime, 6),
        max_rss_bytes=max(used.ru_maxrss * 1024, watch.peak_bytes),
        layers=told.get("layers") or [],
    )


class _Limits(dict[str, str]):
    """Limits by name; one that was not set reads as such."""

    def __missing__(self, key: str) -> str:
        return "the machine"


def _finish(folder: str, outcome: dict[str, Any]) -> None:
    """Write ``exit``; on a full disk try again for a minute, since an attempt without it is lost."""
    deadline = time.monotonic() + EXIT_RETRY_SECONDS
    while True:
        try:
            files.write_json(folder, files.EXIT, outcome)
        except OSError as failure:
            if failure.errno not in (errno.ENOSPC, errno.EDQUOT) or time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def _wake(spec: dict[str, Any]) -> None:
    """Tell control to look; nobody has to be there."""
    path = spec.get("wake")
    if not path:
        return
    try:
        sender = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK)
        sender.sendto(json.dumps({"kind": "attempt", "id": spec.get("attempt")}).encode(), str(path))
    except OSError:
        return


def run_and_leave(folder: str) -> NoReturn:
    """Be the shim of a folder in a process that is nothing else, and end it."""
    code = 1
    try:
        code = main(folder, stand_by())
    finally:
        os._exit(code)


def wait_and_leave(folder_pipe: int, starter: int) -> NoReturn:
    """Be a shim of whatever folder is named in a pipe; end when the starter closes it or dies before."""
    code = 1
    try:
        sandbox.die_with_parent(starter, signal.SIGKILL)
        os.dup2(folder_pipe, 0)
        job = stand_by(keep_input=True)
        folder = os.read(0, CHUNK_BYTES).decode()
        if folder:
            sandbox.outlive_parent()
            code = main(folder, job)
    finally:
        os._exit(code)


if __name__ == "__main__":
    run_and_leave(os.path.abspath(sys.argv[1]))
