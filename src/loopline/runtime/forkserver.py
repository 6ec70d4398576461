"""The forkserver of one environment: imports its third-party packages once, then forks a shim for each request.

``python -I forkserver.py --socket PATH [--preload a,b] [--idle SECONDS] [--serve]``. One request is one line of JSON on
a Unix stream socket, ``{"folder": path}``, ``{"serve": {...}}`` (see ``launch.become_server``) or ``{"status": true}``;
the answer is one line, and the connection closes.
It forks only while it has one single thread, keeps nothing of its starter's environment, and goes when idle.
"""

# Pathlib would cost every job milliseconds to import.
# ruff: noqa: PTH100, PTH104, PTH110, PTH108, PTH116, PTH117, PTH120, PTH208

import os
import sys

if not __package__:  # entered by path: see shim.py
    __package__ = "loopline_runtime"
    _package = type(sys)(__package__)
    _package.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules[__package__] = _package

import argparse
import contextlib
import gc
import json
import random  # noqa: F401 - for the jobs, which reseed it
import select
import signal
import socket
import stat
import struct
import tempfile  # noqa: F401 - for the jobs
import time
import traceback  # noqa: F401 - for the jobs, which explain their failures with it
from importlib import import_module
from typing import Any

from . import folder as files
from . import launch, processes, shim

MAX_REQUEST_BYTES = 65536
CLIENT_SECONDS = 1.0
# The next shim is forked when the last one has ended, or this long after a request: not while a short job needs the
# processor.
PREPARE_SECONDS = 0.03
SPARES = 2  # of a chain of short jobs, one begins while the next one's processes are made
# The room that a job's mark needs in the environment of this process: see processes.overwrite_environ.
ROOM_VARIABLE = "LOOPLINE_ROOM"
ROOM = "0" * 256


def threads() -> int:
    """How many threads this process has, those of C libraries included."""
    return len(os.listdir("/proc/self/task"))


def preload(names: list[str]) -> dict[str, str]:
    """Import packages; returns what went wrong, by name. A package that cannot be imported stops nothing."""
    failed: dict[str, str] = {}
    for name in names:
        try:
            import_module(name)
        except BaseException as failure:  # noqa: BLE001 - a broken package must not take the forkserver along
            failed[name] = f"{type(failure).__name__}: {failure}"[:500]
    return failed


def shed_threads() -> None:
    """Fork once for nothing: libraries like OpenBLAS end their idle threads at a fork and start them on demand."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


class ForkServer:
    """Answers one request after the other; the children it forks are shims, which outlive it."""

    def __init__(self, path: str, idle_seconds: float, status: dict[str, Any]) -> None:
        self.path = path
        self.idle_seconds = idle_seconds
        self.status = status
        self.listener = listen(path)
        self.inode = os.stat(path).st_ino
        self.wake, self.wake_end = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self.wake_end, False)
        self.stopping = False
        self.spares: list[tuple[int, int]] = []  # pids of shims without an attempt, oldest first, and their pipes

    def serve(self) -> None:
        """Answer until nobody has asked for ``idle_seconds``, or SIGTERM comes."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._stop)
        signal.set_wakeup_fd(self.wake_end, warn_on_full_buffer=False)
        poller = select.poll()
        poller.register(self.listener, select.POLLIN)
        poller.register(self.wake, select.POLLIN)
        asked_at = time.monotonic()
        prepare_at: float | None = asked_at
        while not self.stopping:
            now = time.monotonic()
            if prepare_at is not None and now >= prepare_at:
                self.prepare()
                prepare_at = None
            left = self.idle_seconds - (now - asked_at)
            if left <= 0:
                break
            for descriptor, _ in poller.poll(1000 * (left if prepare_at is None else prepare_at - now)):
                if descriptor == self.listener.fileno():
                    self._accept()
                    asked_at = time.monotonic()
                    prepare_at = asked_at + PREPARE_SECONDS
                else:
                    self._reap()
                    prepare_at = 0.0
        self.close()

    def _stop(self, *_: object) -> None:
        self.stopping = True

    def close(self) -> None:
        """Take the socket away, unless a successor has put its own there."""
        self.listener.close()
        try:
            if os.stat(self.path).st_ino == self.inode:
                os.unlink(self.path)
        except OSError:
            return

    def _reap(self) -> None:
        """Collect dead children. A spare shim that somebody ended is no spare any more."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                for spare in [spare for spare in self.spares if spare[0] == pid]:
                    os.close(spare[1])
                    self.spares.remove(spare)

    def _accept(self) -> None:
        try:
            client, _ = self.listener.accept()
        except OSError:
            return
        with client:
            client.settimeout(CLIENT_SECONDS)
            try:
                answer = self._answer(client)
                if answer is not None:
                    client.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                return

    def _answer(self, client: socket.socket) -> dict[str, Any] | None:
        request = read_request(client)
        if request is None:
            return {"refused": "a request is one line of JSON"}
        if request.get("status"):
            return {**self.status, "threads": threads()}
        if isinstance(request.get("serve"), dict):
            return self._fork_server(client, request["serve"])
        folder = request.get("folder")
        problem = unfit(folder)
        if problem:
            return {"refused": problem}
        return self._fork(str(folder))

    def _fork(self, folder: str) -> dict[str, Any]:
        self._reap()
        while self.spares:
            pid, pipe = self.spares.pop(0)
            try:
                os.write(pipe, folder.encode())
            except OSError:
                os.close(pipe)  # somebody ended the spare one: fork another
            else:
                os.close(pipe)
                return {"pid": pid}
        problem = many_threads()
        if problem:
            return {"refused": problem}
        try:
            pid = os.fork()
        except OSError as failure:
            return {"refused": f"fork: {failure.strerror}"}
        if pid == 0:
            self._forget()
            shim.run_and_leave(folder)
        return {"pid": pid}

    def _fork_server(self, client: socket.socket, request: dict[str, Any]) -> dict[str, Any] | None:
        """Fork a model server as an orphan: whoever adopts our orphans gets it, and it answers the client itself."""
        problem = many_threads()
        if problem:
            return {"refused": problem}
        try:
            pid = os.fork()
        except OSError as failure:
            return {"refused": f"fork: {failure.strerror}"}
        if pid == 0:
            self._forget()
            if os.fork():
                os._exit(0)
            launch.become_server(client, request)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        return None

    def prepare(self) -> None:
        """Fork shims and their jobs ahead of the next requests: with large packages loaded, forks cost the most."""
        while len(self.spares) < SPARES and not many_threads():
            if not self._add_spare():
                return

    def _add_spare(self) -> bool:
        waiting, pipe = os.pipe()
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            self._forget()
            shim.wait_and_leave(waiting, me)
        os.close(waiting)
        if pid > 0:
            self.spares.append((pid, pipe))
        else:
            os.close(pipe)
        return pid > 0

    def _forget(self) -> None:
        """In a child: nothing of the forkserver's signal handling."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def many_threads() -> str | None:
    """Why forking is not safe, or None; threads that go by themselves at a fork are made to go."""
    count = threads()
    if count > 1:
        shed_threads()
        count = threads()
    return f"{count} threads exist, and a fork would copy only one of them" if count > 1 else None


def read_request(client: socket.socket) -> dict[str, Any] | None:
    """One line of JSON from a client of the same user; None when it is anything else."""
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if user not in (os.getuid(), 0):
        return None
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_REQUEST_BYTES:
        part = client.recv(MAX_REQUEST_BYTES)
        if not part:
            break
        data += part
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def unfit(folder: object) -> str | None:
    """Why a folder is no attempt's, or None."""
    if not isinstance(folder, str) or not os.path.isabs(folder):
        return "the folder has to be an absolute path"
    try:
        found = os.stat(f"{folder}/{files.SPEC}", follow_symlinks=False)
    except (OSError, ValueError):
        return f"there is no {files.SPEC} in the folder"
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.getuid():
        return f"{files.SPEC} is not a file of this user"
    return None


def listen(path: str) -> socket.socket:
    """A listening socket, readable and writable by this user only; it appears under its name when it listens."""
    temporary = f"{path}.{os.getpid()}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(temporary)
        listener.listen(128)
        os.rename(temporary, path)
    finally:
        os.umask(before)
    return listener


def shed_environment() -> None:
    """Start over with an environment that holds nothing but room for the mark; parent and descriptors stay."""
    if os.environ.get(ROOM_VARIABLE) == ROOM:
        os.environ.clear()
        return
    bare = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", ROOM_VARIABLE: ROOM}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], bare)  # noqa: S606


def main() -> int:
    """Preload, say on standard output what came of it, and serve."""
    shed_environment()
    parser = argparse.ArgumentParser(prog="forkserver")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--preload", default="")
    parser.add_argument("--idle", type=float, default=900.0)
    parser.add_argument("--serve", action="store_true", help="have what a model server needs ready, too")
    options = parser.parse_args()
    began = time.monotonic()
    names = [name for name in options.preload.split(",") if name]
    failed = preload(names)
    if os.path.exists(f"{launch.HERE}/job.py"):
        import_module(".job", __package__).prepare()  # what every step needs
    if options.serve:
        import_module(f"{__package__}.serve")
    if threads() > 1:
        shed_threads()
    gc.collect()
    gc.freeze()
    processes.gather_pages()
    gc.disable()
    seconds = round(time.monotonic() - began, 3)
    status = {"pid": os.getpid(), "preloaded": [n for n in names if n not in failed], "failed": failed}
    server = ForkServer(options.socket, options.idle, {**status, "seconds": seconds})
    sys.stdout.write(json.dumps({**server.status, "threads": threads()}) + "\n")
    sys.stdout.flush()
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
