"""Jobs as processes of this machine: each attempt is a folder, and a detached shim that owns it.

Everything that is said about an attempt is read from its folder, so a restarted control knows what the last one knew.
"""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import loopline
from loopline.compute import Exit, JobError, JobSpec, LogChunk, Reason, Status
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.runtime import folder as files
from loopline.runtime import processes

PACKAGE = str(Path(loopline.__file__).parent.resolve())
RUNTIME = Path(PACKAGE) / "runtime"
NAME = re.compile(r"[A-Za-z0-9_]{1,128}", re.ASCII)
MAX_LOG_CHUNK_BYTES = 4 * 1024 * 1024
FORK_SECONDS = 2.0
LAUNCH_LOG_BYTES = 2000


def needs_own_interpreter(environ: dict[str, str]) -> bool:
    """Whether the environment holds what an interpreter or its libraries read only while they start."""
    free = {"PYTHONPATH", "PYTHONUNBUFFERED"}
    return any(
        (name.startswith(("PYTHON", "LD_", "MALLOC_")) and name not in free) or name.endswith("_NUM_THREADS")
        for name in environ
    )


def _times(path: Path, begin: int, end: int) -> tuple[tuple[int, float], ...]:
    """What the shim noted of a part of the log; nothing where it noted nothing."""
    found: list[tuple[int, float]] = []
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return ()
    for line in lines:
        place, _, when = line.partition(" ")
        if not (place.isdecimal() and when.replace(".", "", 1).isdecimal()):
            continue  # a line that is being written
        if int(place) <= begin:
            found.clear()
        elif int(place) >= end:
            break
        found.append((int(place), float(when)))
    return tuple(found)


class SubprocessBackend:
    """The ComputeBackend of one machine.

    ``attempts_dir`` holds a folder per attempt, ``run_dir`` the sockets (``fork/<name>.sock``), ``importpath_dir`` the
    folder from which jobs import loopline. An attempt that no shim has claimed ``claim_seconds`` after it was handed
    over is lost.
    """

    def __init__(
        self,
        attempts_dir: Path,
        run_dir: Path,
        *,
        importpath_dir: Path | None = None,
        wake: Path | None = None,
        runtime: Path = RUNTIME,
        python: str = sys.executable,
        claim_seconds: float = 10.0,
    ) -> None:
        self.attempts_dir = attempts_dir.absolute()
        self.run_dir = run_dir.absolute()
        self.importpath = (importpath_dir or self.attempts_dir.parent / "importpath").absolute()
        self.wake = wake or self.run_dir / "wake.sock"
        self.runtime = runtime
        self.python = python
        self.claim_seconds = claim_seconds
        self._lock = threading.Lock()
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._forked: dict[str, tuple[int, int]] = {}  # shims of forkservers: pid and start time
        self.attempts_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        prepare_importpath(self.importpath)

    def submit(self, spec: JobSpec) -> None:
        """Write the attempt's spec and start its shim, from the warm forkserver if it answers."""
        folder = self._path(spec.attempt)
        written = self._written(spec, folder)
        folder.mkdir(exist_ok=True, mode=0o700)
        with self._lock:
            present = files.read_json(str(folder), files.SPEC)
            if present is not None and present != written:
                raise Conflict(f"attempt {spec.attempt} was submitted before, with another spec")
            if (folder / files.CLAIM).exists() or (folder / files.EXIT).exists() or spec.attempt in self._started:
                return
            if not spec.workdir:
                Path(written["workdir"]).mkdir(exist_ok=True, mode=0o700)
            if present is None:
                files.write_json(str(folder), files.SPEC, written)
            self._start(spec, folder, written)

    def poll(self, attempt: str) -> Status:
        """Read where the attempt stands; of a lost one, whatever is left is killed first."""
        folder = self._known(attempt)
        self._collect(attempt, folder)
        status = self._read(attempt, folder)
        if status.state == "lost":
            status = self.reap(attempt)
        if status.state in ("exited", "lost"):
            self._forked.pop(attempt, None)
        return status

    def reap(self, attempt: str) -> Status:
        """Kill what is left of an attempt whose shim is gone, and make sure that no late shim begins it."""
        folder = self._known(attempt)
        status = self._read(attempt, folder)
        if status.state != "lost":
            return status
        if files.claim(str(folder), os.getpid(), 0, processes.boot_id()):
            return status
        processes.kill_marked(attempt, self._group(folder))
        again = self._read(attempt, folder)
        return again if again.state in ("running", "exited") else status

    def stop(self, attempt: str, grace_seconds: float = 5.0) -> None:
        """Leave the stop request for the shim; an attempt that nobody has claimed ends here and now."""
        folder = self._known(attempt)
        if self._read(attempt, folder).state in ("exited", "lost"):
            return
        files.write_json(str(folder), files.STOP, {"grace_seconds": grace_seconds, "at": time.time()})
        self._refuse(folder, "stopped", files.failure("Stopped", "it was stopped before it began"))

    def logs(self, attempt: str, offset: int = 0, limit: int = 65536) -> LogChunk:
        """Read the log from an offset; asking for the state first, so that ``end`` is never said too early."""
        folder = self._known(attempt)
        if offset < 0 or limit < 1:
            raise InvalidInput("offset must not be negative, limit must be at least 1")
        ended = self._read(attempt, folder).state in ("exited", "lost")
        try:
            with (folder / files.LOG).open("rb") as file:
                file.seek(offset)
                data = file.read(min(limit, MAX_LOG_CHUNK_BYTES))
                more = bool(file.read(1))
        except FileNotFoundError:
            data, more = b"", False
        times = _times(folder / files.LOG_TIMES, offset, offset + len(data))
        return LogChunk(offset, offset + len(data), data, ended and not more, times)

    def recover(self) -> list[Status]:
        """Every attempt on disk with its state, oldest first; what is lost is reaped on the way."""
        found = [path for path in self.attempts_dir.iterdir() if NAME.fullmatch(path.name)]
        specs = [path for path in found if (path / files.SPEC).is_file()]
        return [self.poll(path.name) for path in sorted(specs, key=lambda path: (path / files.SPEC).stat().st_mtime)]

    def _path(self, attempt: str) -> Path:
        if not NAME.fullmatch(attempt):
            raise InvalidInput("an attempt's name is made of letters, digits and underscores, at most 128")
        return self.attempts_dir / attempt

    def _known(self, attempt: str) -> Path:
        folder = self._path(attempt)
        if not (folder / files.SPEC).is_file():
            raise NotFound(f"attempt {attempt} was never submitted here")
        return folder

    def _written(self, spec: JobSpec, folder: Path) -> dict[str, Any]:
        """The content of spec.json, which the shim reads."""
        sandbox = {
            "read": [*spec.sandbox.read, str(self.importpath), PACKAGE],
            "write": list(spec.sandbox.write),
            "network": spec.sandbox.network,
        }
        paths = [str(self.importpath), *filter(None, [spec.environ.get("PYTHONPATH", "")])]
        return {
            "attempt": spec.attempt,
            "token": spec.token,
            "kind": spec.kind,
            "python": spec.python or self.python,
            "argv": list(spec.argv),
            "call": json.loads(json.dumps(dict(spec.call))),
            "workdir": spec.workdir or str(folder / "work"),
            "environ": {**spec.environ, "PYTHONPATH": ":".join(paths)},
            "limits": {name: value for name, value in asdict(spec.limits).items() if value is not None},
            "sandbox": sandbox,
            "wake": str(self.wake),
            **({"hidden": list(spec.hidden)} if spec.hidden else {}),
        }

    def _start(self, spec: JobSpec, folder: Path, written: dict[str, Any]) -> None:
        warm = spec.warm if spec.kind == "command" or not needs_own_interpreter(dict(spec.environ)) else None
        if warm is not None and self._fork(warm, folder):
            return
        # A command needs no packages in its shim. Every other kind runs in the interpreter that the shim runs in.
        flags = ["-I", "-S"] if spec.kind == "command" else ["-I"]
        python = self.python if spec.kind == "command" else written["python"]
        if not os.access(written["python"], os.X_OK):
            error = files.failure("LaunchError", f"there is no interpreter at {written['python']}: build it again")
            self._refuse(folder, "launch", error)
            return
        environ = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", processes.MARK: spec.attempt}
        with os.fdopen(os.open(folder / files.LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "wb") as log:
            try:
                self._started[spec.attempt] = subprocess.Popen(
                    [python, *flags, str(self.runtime / "shim.py"), str(folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    env=environ,
                    start_new_session=True,
                )
            except OSError as failure:
                self._refuse(folder, "launch", files.failure("LaunchError", f"{python}: {failure.strerror}"))

    def _fork(self, name: str, folder: Path) -> bool:
        """Ask the forkserver for a shim. An answer that does not come is no harm: two shims cannot both claim."""
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise InvalidInput("a forkserver's name is made of letters, digits, - and _")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.settimeout(FORK_SECONDS)
                client.connect(str(self.run_dir / "fork" / f"{name}.sock"))
                client.sendall(json.dumps({"folder": str(folder)}).encode() + b"\n")
                answer = json.loads(client.recv(4096))
                if "pid" not in answer:
                    return False
                self._forked[folder.name] = answer["pid"], processes.start_time(answer["pid"])
                return True
        except (OSError, ValueError, TypeError):
            return False

    def _collect(self, attempt: str, folder: Path) -> None:
        """Reap a shim that this process started; one that ended before its claim never ran, and that is an end too."""
        with self._lock:
            process = self._started.get(attempt)
            if process is None or process.poll() is None:
                return
            del self._started[attempt]
        if (folder / files.CLAIM).exists():
            return
        with (folder / files.LOG).open("rb") as log:
            tail = log.read(LAUNCH_LOG_BYTES).decode(errors="replace").strip()
        message = f"the interpreter ended with status {process.returncode} before the job began. {tail}".strip()
        self._refuse(folder, "launch", files.failure("LaunchError", message))

    def _refuse(self, folder: Path, reason: str, error: dict[str, Any]) -> bool:
        """End an attempt that nobody has claimed, by claiming it; False when a shim has it."""
        if not files.claim(str(folder), os.getpid(), 0, processes.boot_id()):
            return False
        now = time.time()
        token = (files.read_json(str(folder), files.SPEC) or {}).get("token")
        outcome = files.describe(reason=reason, token=token, started_at=now, ended_at=now, error=error)
        files.write_json(str(folder), files.EXIT, outcome)
        self._wake(folder.name)
        return True

    def _wake(self, attempt: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(json.dumps({"kind": "attempt", "id": attempt}).encode(), str(self.wake))
        except OSError:
            return

    def _read(self, attempt: str, folder: Path) -> Status:
        """The state from the files alone. `exit` is read again after the shim was found dead: it may just have come."""
        ended = read_exit(folder)
        if ended is not None:
            return Status(attempt, "exited", ended)
        claim = files.read_json(str(folder), files.CLAIM)
        if claim is None and (folder / files.CLAIM).exists():
            claim = files.read_json(str(folder), files.CLAIM) or {"boot_id": processes.boot_id()}
        if claim is None:
            if self._shim_is_gone(attempt) and not (folder / files.CLAIM).exists():
                return Status(attempt, "lost", detail="its shim ended with the forkserver before it claimed it")
            age = time.time() - (folder / files.SPEC).stat().st_mtime
            if age <= self.claim_seconds:
                return Status(attempt, "unclaimed")
            return Status(attempt, "lost", detail=f"no shim claimed it within {self.claim_seconds:g} s")
        if claim.get("boot_id") != processes.boot_id():
            return Status(attempt, "lost", detail="the machine was started anew")
        if processes.alive(_number(claim, "pid"), _number(claim, "start_time")):
            return Status(attempt, "running")
        ended = read_exit(folder)
        if ended is not None:
            return Status(attempt, "exited", ended)
        unreadable = (folder / files.EXIT).exists()
        detail = "how it ended cannot be read" if unreadable else "its shim died without saying how the job ended"
        return Status(attempt, "lost", detail=detail)

    def _shim_is_gone(self, attempt: str) -> bool:
        """Whether a shim that a forkserver gave us has ended. One that claims does so before it ends."""
        forked = self._forked.get(attempt)
        return forked is not None and not processes.alive(*forked)

    def _group(self, folder: Path) -> tuple[int, int] | None:
        """The job's process, if it ran under this boot."""
        claim = files.read_json(str(folder), files.CLAIM)
        group = files.read_json(str(folder), files.GROUP)
        if group is None or claim is None or claim.get("boot_id") != processes.boot_id():
            return None
        pid, started = _number(group, "pid"), _number(group, "start_time")
        return (pid, started) if pid > 0 and started > 0 else None


def _number(value: dict[str, Any], name: str) -> int:
    found = value.get(name)
    return found if isinstance(found, int) else -1


def read_exit(folder: Path) -> Exit | None:
    """How the attempt in a folder ended; None when that is not known, or written for another token than the spec's."""
    value = files.read_exit(str(folder))
    spec = files.read_json(str(folder), files.SPEC)
    if value is None or spec is None or value.get("token") != spec.get("token"):
        return None
    error = value["error"]
    return Exit(
        reason=cast(Reason, value["reason"]),
        code=value["code"],
        signal=value["signal"],
        error=None if error is None else _error(error),
        started_at=float(value["started_at"]),
        ended_at=float(value["ended_at"]),
        cpu_seconds=float(value["cpu_seconds"]),
        max_rss_bytes=int(value["max_rss_bytes"]),
        token=int(value["token"]),
        layers=tuple(str(layer) for layer in value.get("layers") or ()),
    )


def _error(value: dict[str, Any]) -> JobError:
    line = value.get("line")
    return JobError(
        type=str(value.get("type", "Error")),
        message=str(value.get("message", "")),
        traceback=None if value.get("traceback") is None else str(value["traceback"]),
        file=None if value.get("file") is None else str(value["file"]),
        line=line if isinstance(line, int) else None,
    )


def prepare_importpath(path: Path) -> Path:
    """Make the folder from which jobs import loopline: one link to the package, and nothing else."""
    package = Path(PACKAGE)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    link = path / "loopline"
    if not link.is_symlink() or link.readlink() != package:
        temporary = path / f".loopline.{os.getpid()}.{threading.get_ident()}"
        temporary.symlink_to(package)
        temporary.replace(link)
    return path
