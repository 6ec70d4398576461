"""loopline as a demonstration starts and uses it: the same commands that a person would type."""

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from demonstration.screen import WIDTH, DemoFailed, Screen, expect
from loopline.config import run_dir_for
from loopline.sdk.client import Client

Found = TypeVar("Found")

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
READY = re.compile(r"loopline is up at (http://\S+)")
_HIDDEN_LINE = re.compile(r"^…$\n?", re.M)
_OTHERS = ("AWS_", "SAGEMAKER_", "PYTHON")  # what a person's shell says to scripts that are about something else
_TELLING = ("AWS_ENDPOINT_URL", "AWS_REGION")  # of what is exported, what is worth a line and no secret


def until(what: str, look: Callable[[], Found | None], seconds: float, pause: float = POLL_SECONDS) -> Found:
    """What ``look`` finds, once it finds something; raises ``DemoFailed`` when it has not in time."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what}: not within {seconds:g} s")
        time.sleep(pause)
    return found


class Installation:
    """A data directory and the platform on it; ``folder`` holds both, and the project, where commands run."""

    def __init__(self, screen: Screen, folder: Path, project: str) -> None:
        self.screen = screen
        self.folder = folder
        self.data = folder / "data"
        self.project = folder / project
        self.log = folder / "up.log"
        self.url = ""
        self.pid = 0
        self.keys: dict[str, str] = {}  # of people, by name; the administrator's is found by the commands themselves
        self.exported: dict[str, str] = {}  # what a shell exports for scripts
        found = Path(sys.executable).with_name("loopline")
        self._program = [str(found)] if found.exists() else [sys.executable, "-c", _MAIN]

    # -- starting and stopping ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """An empty folder; what an earlier demo left running there is stopped."""
        if (self.folder / "demo.json").exists():
            left = json.loads((self.folder / "demo.json").read_text())
            if _start_time(left["pid"]) == left["start_time"] and not _is_over(left["pid"]):
                self.screen.say(f"the platform of an earlier demo is still up (pid {left['pid']}): stopping it")
                self._stop(left["pid"])
            shutil.rmtree(self.folder)
        expect(not self.folder.exists() or not any(self.folder.iterdir()), f"{self.folder} is not empty; remove it")
        self.folder.mkdir(parents=True, exist_ok=True)

    def up(self, **settings: str) -> float:
        """Start the platform on a free port; gives the seconds until it said that it is up."""
        words = ["up", "--dir", str(self.data), "--port", "0"]
        self.screen.command(["loopline", *words])
        environ = self._environ() | {f"LOOPLINE_{name.upper()}": value for name, value in settings.items()}
        # The packages are in uv's cache already; without a network uv need not ask four times before it looks there.
        environ.setdefault("UV_HTTP_RETRIES", "0")
        began = time.monotonic()
        self.log.touch(mode=0o600)  # the administrator's key is said there once
        with self.log.open("w") as log:
            process = subprocess.Popen(
                [*self._program, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=environ,
                start_new_session=True,
            )
        self.pid = process.pid
        left = {"pid": self.pid, "start_time": _start_time(self.pid)}
        (self.folder / "demo.json").write_text(json.dumps(left))

        def ready() -> re.Match[str] | None:
            said = self.log.read_text()
            expect(process.poll() is None, f"`loopline up` ended: {said.strip()}")
            return READY.search(said)

        self.url = until("`loopline up`", ready, START_SECONDS, 0.01)[1]
        return time.monotonic() - began

    def down(self) -> None:
        """Stop the platform, and see that nothing of it is left."""
        if self.pid:
            self._stop(self.pid)
        self.pid = 0
        until(f"the end of everything in {self.folder}", lambda: not self.processes(), STOP_SECONDS)

    def _stop(self, pid: int) -> None:
        os.kill(pid, signal.SIGTERM)
        until(f"the end of pid {pid}", lambda: _is_over(pid), STOP_SECONDS)

    def processes(self) -> dict[int, str]:
        """{pid: command} of every process of this installation: its folders stand in what it was started with."""
        found = {}
        folders = [os.fsencode(self.data), os.fsencode(run_dir_for(self.data))]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                if any(folder in command for folder in folders) and _state(int(entry.name)) != "Z":
                    found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
        return found

    def memory_mb(self) -> tuple[float, int]:
        """(the summed proportional set size of the platform's processes, their number)."""
        total, count = 0, 0
        for pid in self.processes():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
            count += 1
        return total / 1024, count

    # -- using it -----------------------------------------------------------------------------------------------------

    def _environ(self, who: str | None = None) -> dict[str, str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("LOOPLINE_", "GIT_"))}
        environ |= {"LOOPLINE_DIR": str(self.data), "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}
        environ |= {"TERM": "xterm", "COLUMNS": str(WIDTH)}
        return environ | ({"LOOPLINE_KEY": self.keys[who], "LOOPLINE_URL": self.url} if who else {})

    def loopline(
        self, *words: str, who: str | None = None, ok: Sequence[int] = (0,), lines: int = 8, hide: str = ""
    ) -> str:
        """Run a ``loopline`` command and show it with its output; gives its standard output.

        ``ok``: the exit codes that are expected. ``hide``: text that is shown as …, for keys.
        """
        argv = [*self._program, *words]
        return self._run(["loopline", *words], argv, self._environ(who), who=who, ok=ok, lines=lines, hide=hide)

    def git(self, *words: str, who: str | None = None, lines: int = 8, show: bool = True) -> str:
        """Run git in the project."""
        argv = ["git", *words]
        return self._run(argv, argv, self._environ(who), who=who, lines=lines, show=show)

    def export(self) -> None:
        """Do to the environment of scripts what a person does to a shell's."""
        self.screen.command('eval "$(loopline env)"')
        said = self._run(["loopline", "env"], [*self._program, "env", "--json"], self._environ(), show=False)
        self.exported = json.loads(said)
        self.screen.output("\n".join(f"{name}={value}" for name, value in self.exported.items() if name in _TELLING))

    def script(
        self, python: Path, *words: str, ok: Sequence[int] = (0,), lines: int = 8, show: bool = True, hide: str = ""
    ) -> str:
        """Run a script of the project with a Python of its own, as after ``export``, and show what it prints."""
        expect(self.exported, "scripts run after export()")
        environ = {name: value for name, value in self._environ().items() if not name.startswith(_OTHERS)}
        environ |= self.exported
        shown, argv = ["python", *words], [str(python), *words]
        return self._run(shown, argv, environ, ok=ok, lines=lines, show=show, hide=hide, remarks=False)

    def _run(
        self,
        shown: list[str],
        argv: list[str],
        environ: dict[str, str],
        *,
        who: str | None = None,
        ok: Sequence[int] = (0,),
        lines: int = 8,
        hide: str = "",
        show: bool = True,
        remarks: bool = True,
    ) -> str:
        if show:
            self.screen.command(shown, who)
        cwd = self.project if self.project.exists() else self.folder
        code, output, told = _as_on_a_terminal(argv, cwd, environ)
        said = f"{told}{output}" if remarks or code not in ok else output
        if show:
            self.screen.output(_HIDDEN_LINE.sub("", re.sub(hide, "…", said)) if hide else said, lines)
        expect(code in ok, f"{' '.join(shown)} exited {code}: {said.strip()}")
        return output.strip()

    def client(self, who: str | None = None) -> Client:
        """The REST API, for what the demo waits for."""
        key = self.keys[who] if who else json.loads((self.data / "client.json").read_text())["key"]
        return Client(self.url, key)

    def get(self, *path: str | int, **query: Any) -> dict[str, Any]:
        """Ask as the administrator."""
        return self.client().get(*path, **query)


def _as_on_a_terminal(argv: list[str], cwd: Path, environ: dict[str, str]) -> tuple[int, str, str]:
    """(exit code, output, remarks) of a command, which shows its tables as it would to a person; without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, WIDTH, 0, 0))
    pieces: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the other end is closed: that is how a terminal ends
            while piece := os.read(ours, 65536):
                pieces.append(piece)

    reader = threading.Thread(target=read, daemon=True)
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environ
    ) as process:
        os.close(theirs)
        reader.start()
        assert process.stderr is not None
        remarks = process.stderr.read()
    reader.join()
    os.close(ours)
    output = ANSI.sub("", b"".join(pieces).decode(errors="replace")).replace("\r\n", "\n")
    return process.returncode, output, remarks


_MAIN = "import sys; from loopline.cli import main; sys.exit(main())"


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _start_time(pid: int) -> int | None:
    try:
        return int(_stat(pid)[19])
    except OSError:
        return None


def _state(pid: int) -> str | None:
    try:
        return _stat(pid)[0]
    except OSError:
        return None


def _is_over(pid: int) -> bool:
    return _state(pid) in (None, "Z")
