"""The process tree with small processes in every part, for the tests of this folder."""

import array
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopline.children import start_time
from loopline.listening import bind

FAKE = Path(__file__).with_name("fake_process.py")
SOURCE = Path(bind.__code__.co_filename).parents[1]
# Runs the supervisor with a table of small processes; argv: data directory, port, {id: extra options}
MAIN = """
import json, sys
from loopline.children import Spec
from loopline.config import load
from loopline.errors import LooplineError
from loopline.supervisor import run
FAKE, JOURNAL, DIR, PORT, EXTRA, DRAIN = sys.argv[1:]
EXTRA = json.loads(EXTRA)
def table(settings, fd, port):
    def one(name, kind, *options, fds=()):
        argv = (sys.executable, "-S", "-E", FAKE, name, "--journal", JOURNAL, *options, *EXTRA.get(name, []))
        return Spec(name, kind, argv, {}, fds=fds, drain_seconds=float(DRAIN))
    return [
        one("control", "control", "--socket", str(settings.run_dir / "control.sock")),
        one("gateway-0", "gateway", "--listen-fd", str(fd), fds=(fd,)),
        one("monitor", "monitor"),
    ]
try:
    sys.exit(run(
        load(dir=DIR, port=int(PORT)), programs=table,
        on_ready=lambda host, port: print("ready", host, port, flush=True),
        say=lambda line: print("say", line, flush=True)))
except LooplineError as error:
    sys.exit(error.message)
"""


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what}")


class Tree:
    """A supervisor process on a data directory of its own."""

    def __init__(self, folder: Path) -> None:
        self.dir = folder / "data"
        self.run = self.dir / "run"
        self.journal = folder / "journal"
        self.journal.touch()
        self.process: subprocess.Popen[str] | None = None
        self.servers: dict[str, dict[str, Any]] = {}
        self.forkservers: dict[str, dict[str, Any]] = {}

    def start(self, port: int = 0, ready: bool = True, drain: float = 10.0, **extra: list[str]) -> "Tree":
        extra = {name.replace("_", "-"): options for name, options in extra.items()}
        argv = [sys.executable, "-c", MAIN, FAKE, self.journal, self.dir, port, json.dumps(extra), drain]
        self.process = subprocess.Popen(
            [str(word) for word in argv],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if ready:
            assert self.process.stdout
            line = self.process.stdout.readline()
            assert line.startswith("ready 127.0.0.1 "), (line, self.process.stderr and self.process.stderr.read())
            self.port = int(line.split()[2])
        return self

    def state(self) -> dict[str, Any]:
        return json.loads((self.run / "supervisor.json").read_bytes())

    def child(self, name: str) -> dict[str, Any]:
        return next((child for child in self.state()["children"] if child["id"] == name), {})

    def events(self, event: str | None = None, name: str | None = None) -> list[tuple[float, str, str, int]]:
        rows = [line.split() for line in self.journal.read_text().splitlines()]
        parsed = [(float(at), what, who, int(pid)) for at, what, who, pid in rows]
        return [row for row in parsed if event in (None, row[1]) and name in (None, row[2])]

    def entry(self, name: str, *options: str, **more: Any) -> dict[str, Any]:
        argv = [sys.executable, "-S", "-E", str(FAKE), name, "--journal", str(self.journal), *options]
        return {"id": name, "argv": argv, "environ": {}, "cwd": "/", "socket": "", "status": None, **more}

    def want(self, *servers: dict[str, Any], forkservers: tuple[dict[str, Any], ...] = (), tell: bool = True) -> None:
        draft = self.dir / "processes.new"
        draft.write_text(json.dumps({"servers": servers, "forkservers": forkservers}))
        draft.replace(self.dir / "processes.json")
        if tell:
            self.tell({"kind": "processes"})

    def tell(self, message: dict[str, Any]) -> None:
        """Send it, and wait until the supervisor has read it: what is done afterwards comes later for it, too."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(json.dumps(message).encode(), str(self.run / "supervisor.sock"))
            wait_for(lambda: not unread(sender))

    def wake(self, name: str) -> int:
        """The pid of a server on demand once it runs; asked for again and again, as gateways do: see Demand."""
        asked_at = -1.0

        def runs() -> int | None:
            nonlocal asked_at
            child = self.child(name)
            if child.get("state") == "running":
                return int(child["pid"])
            if time.monotonic() - asked_at > 0.5:
                asked_at = time.monotonic()
                self.tell({"kind": "start", "id": name})
            return None

        return int(wait_for(runs))

    def running(self, name: str, but: int | None = None) -> int:
        """The pid of `name` once it runs as another process than `but`."""
        return wait_for(lambda: (c := self.child(name)).get("state") == "running" and c["pid"] != but and c["pid"])

    def ask(self) -> int:
        """The pid of the gateway that answers a new connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return int(connection.recv(4096).rpartition(b"\n")[2])

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        self.process.send_signal(number)
        return self.process.wait(60)

    def pids(self) -> set[int]:
        return {row[3] for row in self.events("started") + self.events("spawned")}


def unread(sender: socket.socket) -> int:
    """How much of what a Unix socket sent nobody has read yet. Source: unix(7), tty_ioctl(4), TIOCOUTQ."""
    found = array.array("i", [0])
    fcntl.ioctl(sender, termios.TIOCOUTQ, found)
    return found[0]


def gone(*pids: int) -> bool:
    return all(start_time(pid) is None for pid in pids)


@pytest.fixture
def tree() -> Iterator[Tree]:
    folder = Path(tempfile.mkdtemp(prefix="loopline-", dir="/tmp"))  # a Unix socket's path has to be short
    tree = Tree(folder)
    try:
        yield tree
    finally:
        if tree.process and tree.process.poll() is None:
            tree.stop()
        try:
            wait_for(lambda: gone(*tree.pids()), 30)
        finally:
            for pid in tree.pids():
                if start_time(pid) is not None:
                    os.kill(pid, signal.SIGKILL)
            if tree.process:
                tree.process.communicate()
            shutil.rmtree(folder)
