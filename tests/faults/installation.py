"""A real installation for fault tests: started as a user would, watched from outside, broken with signals."""

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from loopline.testing.live import free_port

SOURCE = Path(__file__).resolve().parents[2] / "src"
START = "import sys; from loopline.cli import main; main(['up', *sys.argv[1:]])"
START_SECONDS = 30.0
# What has to come within a time has that many times as long: for tests, on a machine that has other things to do.
PATIENCE = float(os.environ.get("FAULTS_PATIENCE", "1"))
MARK = b"LOOPLINE_ATTEMPT="


class Refused(Exception):
    """The server answered with an error that trying again does not mend."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"{status} {body.decode(errors='replace')[:500]}")
        self.status = status


def until(holds: Callable[[], Any], seconds: float, what: str, pause: float = 0.01) -> Any:
    """What ``holds`` gives once it is true; raises ``TimeoutError`` saying what was waited for."""
    seconds *= PATIENCE
    end = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    return state(pid) not in ("", "Z", "X")


def state(pid: int) -> str:
    """The process state letter of proc(5); empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Installation:
    """One data directory, one port, and the supervisor that serves them."""

    def __init__(self, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.key = ""
        self.restarts = 0
        self._settings = dict(settings or {})
        self._supervisor: subprocess.Popen[bytes] | None = None
        self.wheels = folder / "wheels"
        self.wheels.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.said = folder / "said.log"
        lines = [f"{name} = {json.dumps(value)}" for name, value in self._settings.items()]
        (folder / "settings.toml").write_text("\n".join(lines) + "\n")

    @property
    def run_dir(self) -> Path:
        """Where the processes' state is; the harness takes folders whose paths are short enough."""
        return self.folder / "run"

    # -- starting and stopping

    def start(self) -> float:
        """Start the supervisor and wait until the platform serves; gives the seconds it took."""
        began = time.monotonic()
        environ = {**os.environ, "PYTHONPATH": str(SOURCE), "UV_FIND_LINKS": str(self.wheels), "UV_NO_INDEX": "1"}
        argv = [sys.executable, "-c", START, "--dir", str(self.folder), "--port", str(self.port)]
        with self.said.open("ab") as said:
            self._supervisor = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environ)
        until(self._ready, START_SECONDS, "the platform is ready", 0.02)
        if not self.key:
            self.key = self._first_key()
        return time.monotonic() - began

    def _ready(self) -> bool:
        assert self._supervisor is not None
        if self._supervisor.poll() is not None:
            raise RuntimeError(f"the supervisor ended: {self.said.read_text()[-2000:]}")
        try:
            found = json.loads((self.run_dir / "supervisor.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(found["ready"]) and found["pid"] == self._supervisor.pid

    def _first_key(self) -> str:
        def shown() -> str:
            for word in self.said.read_text().split():
                if word.startswith("lk_"):
                    return word
            return ""

        return str(until(shown, 5, "the first key was shown"))

    def restart(self) -> float:
        """Start a supervisor that was killed again, on the same directory."""
        assert self._supervisor is not None
        self._supervisor.wait(60)
        self.restarts += 1
        return self.start()

    def supervisor_gone(self) -> bool:
        """Whether the supervisor has ended."""
        return self._supervisor is None or self._supervisor.poll() is not None

    def stop(self) -> None:
        """Stop the whole tree as Ctrl-C does."""
        if self._supervisor is None:
            return
        with suppress(ProcessLookupError):
            self._supervisor.send_signal(signal.SIGTERM)
        try:
            self._supervisor.wait(60)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()

    # -- processes

    def children(self) -> list[dict[str, Any]]:
        """The supervisor's children that run."""
        try:
            found: list[dict[str, Any]] = json.loads((self.run_dir / "supervisor.json").read_text())["children"]
        except (OSError, ValueError):
            return []
        return [child for child in found if child["pid"] and alive(child["pid"])]

    def pids(self, kind: str) -> list[int]:
        """The processes of a kind, the newest last."""
        if kind == "supervisor":
            return [self._supervisor.pid] if self._supervisor and self._supervisor.poll() is None else []
        found = [child for child in self.children() if child["kind"] == kind and child["state"] == "running"]
        return [child["pid"] for child in sorted(found, key=lambda child: child["started_at"])]

    def attempt_pid(self, attempt: str, which: str) -> int | None:
        """The living shim (``claim``) or job (``group``) of an attempt."""
        try:
            found = json.loads((self.folder / "attempts" / attempt / which).read_text())
        except (OSError, ValueError):
            return None
        pid = int(found["pid"])
        return pid if found.get("start_time") and alive(pid) else None

    def leftovers(self) -> list[str]:
        """Processes that belong to this installation: by their command line, environment or open folder."""
        name = os.fsencode(self.folder)
        attempts = {entry.name.encode() for entry in (self.folder / "attempts").glob("*")}
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                environ = (entry / "environ").read_bytes()
            except OSError:
                continue
            marked = any(part[len(MARK) :] in attempts for part in environ.split(b"\0") if part.startswith(MARK))
            if (name in command or marked) and alive(int(entry.name)):
                found.append(f"{entry.name} {command.replace(bytes(1), b' ').decode(errors='replace')[:160]}")
        return found

    # -- packages

    def wheel(self, name: str) -> str:
        """Make a package that can be installed here; gives the requirement."""
        info = f"{name}-1.0.dist-info"
        files = {
            f"{name}.py": "HERE = True\n",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        lines = [f"{path},," for path in (*files, f"{info}/RECORD")]
        with zipfile.ZipFile(self.wheels / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            for path, text in {**files, f"{info}/RECORD": "\n".join(lines) + "\n"}.items():
                archive.writestr(path, text)
        return f"{name}==1.0\n"

    # -- talking

    def call(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, seconds: float = 20.0) -> Any:
        """One request; while nobody serves it is asked again for ``seconds``, so it has to be safe to repeat."""
        data = raw if raw is not None else (json.dumps(body).encode() if body is not None else None)
        kind = "application/octet-stream" if raw is not None else "application/json"
        headers = {"authorization": f"Bearer {self.key}", "content-type": kind}
        end = time.monotonic() + seconds * PATIENCE
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                text = answer.read()
                connection.close()
                if answer.status < 300:
                    return json.loads(text)
                if answer.status < 500:
                    raise Refused(answer.status, text)
                problem = f"{answer.status} {text[:300]!r}"
            except (OSError, http.client.HTTPException) as error:
                problem = repr(error)
            if time.monotonic() > end:
                raise TimeoutError(f"{method} {path}: {problem}")
            time.sleep(0.05)

    def upload(self, files: Mapping[str, str]) -> str:
        """Store a project's files; gives the tree's digest."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content.encode())
                tar.addfile(entry, io.BytesIO(content.encode()))
        return str(self.call("POST", "/api/trees", raw=buffer.getvalue())["tree"])

    def predict(self, row: Mapping[str, Any], join: str, endpoint: str = "boxes") -> Any:
        """One prediction whose request a label can be joined with."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        headers["x-loopline-inference-id"] = join
        end = time.monotonic() + 10 * PATIENCE
        while True:
            with suppress(OSError, http.client.HTTPException):
                connection.request(
                    "POST", f"/endpoints/{endpoint}/invocations", json.dumps({"instances": [row]}), headers
                )
                answer = connection.getresponse()
                body = json.loads(answer.read())
                if answer.status == 200:
                    connection.close()
                    return body
            connection.close()
            if time.monotonic() > end:
                raise TimeoutError(f"no prediction: {join}")
            time.sleep(0.1)
