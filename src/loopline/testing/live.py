"""A real installation for tests: ``loopline up`` as a person types it, asked over its public port."""

import http.client
import io
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from loopline.config import package_environment, run_dir_for
from loopline.domain.states import is_terminal

Found = TypeVar("Found")

MAIN = "import sys; from loopline.cli import main; main()"
SOURCE = Path(__file__).resolve().parents[2]
START_SECONDS = 120.0


class Answer(NamedTuple):
    """What came back: ``headers`` have lower-case names."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The one JSON error shape; raises ``AssertionError`` when the answer has another."""
        found = self.json["error"]
        assert self.status >= 400, (self.status, self.body)
        assert isinstance(found["code"], str) and found["message"], found
        assert found["request_id"] == self.headers["x-request-id"], (found, self.headers)
        return dict(found)


def until(look: Callable[[], Found | None], what: str, seconds: float = 60.0, pause: float = 0.02) -> Found:
    """What ``look`` finds once it finds something; raises ``TimeoutError`` with ``what``."""
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return found


def free_port() -> int:
    """A free port of this machine that nobody gets by chance: below those that the kernel gives away."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, first if first > 11_000 else 65_536)  # noqa: S311 - no secret
        with socket.socket() as attempt, suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            return port


def processes_that_mention(folder: Path) -> list[str]:
    """The command lines of other processes in which a folder is named."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in command and entry.parent.name != str(os.getpid()):
                found.append(command)
    return found


def write_files(folder: Path, files: Mapping[str, str]) -> Path:
    """Write files below a folder, which is given back."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


def packed(files: Mapping[str, str | bytes], *, compressed: bool = False) -> bytes:
    """A tar of the files, or with ``compressed`` a tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


class Platform:
    """One data directory and the processes that serve it; ``settings`` go into ``settings.toml``."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.url = self.key = ""
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if settings:
            lines = [f"{name} = {json.dumps(value)}\n" for name, value in settings.items()]
            (folder / "settings.toml").write_text("".join(lines))

    def environ(self) -> dict[str, str]:
        """The environment of a command that finds this installation by itself."""
        kept = package_environment()
        return {**kept, "PYTHONPATH": str(SOURCE), "LOOPLINE_DIR": str(self.folder)}

    def start(self) -> None:
        """Start it on a free port, and wait until it serves."""
        said = self.folder.with_suffix(".said")
        argv = [sys.executable, "-c", MAIN, "up", "--dir", str(self.folder), "--port", "0"]
        with said.open("wb") as out:
            self._process = process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self.environ()
            )

        def up() -> bool:
            assert process.poll() is None, said.read_text()
            return "stop: Ctrl-C" in said.read_text()

        until(up, "the platform is up", START_SECONDS)
        known = json.loads((self.folder / "client.json").read_text())
        self.url, self.key = known["url"], known["key"]

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    def process(self, name: str) -> int | None:
        """The process id of a child of the supervisor, by its id or its kind; None while there is none."""
        state = json.loads((run_dir_for(self.folder) / "supervisor.json").read_text())
        found = [child["pid"] for child in state["children"] if name in (child["id"], child["kind"]) and child["pid"]]
        return int(found[0]) if found else None

    def kill(self, name: str) -> None:
        """End a child by SIGKILL; comes back when its successor runs and the platform answers."""
        killed = until(lambda: self.process(name), f"{name} runs")
        os.kill(killed, signal.SIGKILL)
        until(lambda: self.process(name) not in (None, killed), f"another {name} runs")
        until(self._healthy, f"it answers with another {name}")

    def _healthy(self) -> bool:
        try:
            return self.ask("GET", "/api/health").status == 200
        except (OSError, http.client.HTTPException):
            return False

    @property
    def host(self) -> str:
        """``address:port``."""
        return urlsplit(self.url).netloc

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    # -- asking

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request on a connection of its own. ``body``: bytes as they are, anything else as JSON. ``key``: the
        administrator's when empty, none when None."""
        given = {} if key is None else {"authorization": f"Bearer {key or self.key}"}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            given["content-type"] = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        connection = self._connection()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a body may be refused before all of it is read
                connection.request(method, path, data, {**given, **(headers or {})})
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self.url.startswith("https:"):
            return http.client.HTTPConnection(self.host, timeout=120)
        context = ssl.create_default_context(cafile=str(self.folder / "tls" / "ca.pem"))
        return http.client.HTTPSConnection(self.host, timeout=120, context=context)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of a request that succeeds."""
        answer = self.ask(method, path, body)
        assert answer.status < 300, (method, path, answer.status, answer.body)
        return answer.json

    def predict(self, body: Any, endpoint: str = "boxes", **options: Any) -> Answer:
        """One invocation."""
        return self.ask(
            "POST",
            f"/endpoints/{endpoint}/invocations",
            body,
            **{"headers": {"content-type": "application/json"}, **options},
        )

    # -- working

    def upload(self, files: Mapping[str, str | bytes]) -> str:
        """Store a project's files; gives the tree's digest."""
        return str(self.call("POST", "/api/trees", packed(files))["tree"])

    def ended(self, noun: str, record: str, seconds: float = 120.0) -> dict[str, Any]:
        """A push, an execution, a rollout or an evaluation once it is over."""
        path = {"push": "pushes"}.get(noun, f"{noun}s")

        def look() -> dict[str, Any] | None:
            row: dict[str, Any] = self.call("GET", f"/api/{path}/{record}")
            return row if is_terminal(noun, row["status"]) else None

        return until(look, f"the {noun} {record} is over", seconds)

    def run(self, files: Mapping[str, str | bytes], **options: Any) -> dict[str, Any]:
        """The push of a project's files and what became of it: the execution once it is over, or the push that
        started none."""
        push = self.call("POST", "/api/pushes", {"tree": self.upload(files), **options})
        ended = self.ended("push", push["id"])
        return self.ended("execution", ended["execution"]) if ended["status"] == "Started" else ended

    def cli(self, *argv: str, seconds: float = 120.0, **environ: str) -> "subprocess.CompletedProcess[str]":
        """One command, as a person types it beside this installation."""
        return subprocess.run(
            [sys.executable, "-c", MAIN, *argv],
            env={**self.environ(), **environ},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
