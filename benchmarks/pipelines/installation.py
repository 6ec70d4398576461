"""An installation of loopline to measure: started as people start it, spoken to over its public port."""

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

ENDED = ("Succeeded", "Failed", "Stopped")
LOOPLINE = str(Path(sys.executable).parent / "loopline")
POLL_SECONDS = 0.01
# While steps run the client looks less often, for each look takes processor time from them; loopline's own client looks
# every 0.1 s at most. What is measured is longer by half of this on average.
FOLLOW_SECONDS = 0.05

LOOP_TOML = '[project]\nname = "{name}"\n[model]\nname = "{name}"\n[gate]\nmode = "off"\n'
PREDICT = "def load(model_dir):\n    return None\n\n\ndef predict(model, batch):\n    return [0 for _ in batch]\n"
CHAIN = """from loopline import pipeline, step


@step
def first(n: int):
    return n


@step
def noop(x):
    return x + 1


@pipeline
def training(n: int = 0):
    x = first(n)
    for _ in range(99):
        x = noop(x)
"""
DIAMOND = """from loopline import pipeline, step


@step
def a(n: int):
    return n


@step
def b(x):
    return x


@step
def c(x):
    return x


@step
def d(x, y):
    return x + y


@pipeline
def training(n: int = 0):
    x = a(n)
    d(b(x), c(x))
"""


def project(name: str, pipeline: str) -> dict[str, str]:
    """The files of a project whose steps do nothing."""
    return {
        "loop.toml": LOOP_TOML.format(name=name),
        "pipeline.py": pipeline,
        "predict.py": PREDICT,
        "requirements.txt": "",
    }


class Client:
    """One client, one connection, one request after the other."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "", parts.port)
        self._headers = dict(headers)
        self.open()

    def open(self) -> None:
        """Connect, again after the server has closed a connection that was idle."""
        self._connection = http.client.HTTPConnection(*self._address, timeout=120)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(
        self, method: str, path: str, body: Any = None, raw: bytes | None = None, parse: bool = True
    ) -> dict[str, Any]:
        """A request and its JSON answer; raises ``RuntimeError`` for an error."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        kind = "application/json" if raw is None else "application/octet-stream"
        self._connection.request(method, path, data, {**self._headers, "content-type": kind})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500]!r}")
        found: dict[str, Any] = json.loads(text) if parse else {}
        return found


class Installation:
    """``loopline up`` on a data directory, until ``stop``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ = {**os.environ, "LOOPLINE_DIR": str(folder)}
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [LOOPLINE, "up", "--dir", str(folder), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environ,
        )
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if match := re.search(r"up at (http://\S+)", line):
                break
        else:
            raise RuntimeError(f"loopline does not come up: {''.join(said)}")
        self.ready_seconds = time.perf_counter() - began
        stored = json.loads((folder / "client.json").read_text())
        self.url = match[1]
        self.client = Client(self.url, {"authorization": f"Bearer {stored['key']}"})

    def stop(self) -> None:
        """End every process of it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    # -- pipelines

    def upload(self, files: Mapping[str, str]) -> str:
        """Upload a project's tree; gives its digest."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
        return str(self.client.send("POST", "/api/trees", raw=buffer.getvalue())["tree"])

    def run(self, tree: str, parameters: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        """Run a tree's pipeline: seconds from the request until this client sees the end, and the execution."""
        began = time.perf_counter()
        push = self.client.send("POST", "/api/pushes", {"tree": tree, "parameters": parameters})
        while push["status"] not in ("Started", "Rejected", "Ignored"):
            time.sleep(POLL_SECONDS)
            push = self.client.send("GET", f"/api/pushes/{push['id']}")
        if push["status"] != "Started":
            raise RuntimeError(f"the push was {push['status']}: {push['reason']}")
        project = urlencode({"project": push["project"], "limit": 1})
        while True:
            newest = self.client.send("GET", f"/api/executions?{project}")["items"][0]
            if newest["status"] in ENDED:
                break
            time.sleep(FOLLOW_SECONDS)
        seconds = time.perf_counter() - began
        found = self.client.send("GET", f"/api/executions/{push['execution']}")
        if found["status"] != "Succeeded":
            raise RuntimeError(f"the execution {found['id']} is {found['status']}: {found['reason']}")
        return seconds, found

    def run_command(self, folder: Path, *parameters: str) -> float:
        """Seconds of ``loopline run --wait`` in a project's folder, from the start of the process to its end."""
        given = [word for parameter in parameters for word in ("-p", parameter)]
        began = time.perf_counter()
        subprocess.run(
            [LOOPLINE, "run", "--wait", "-C", str(folder), *given],
            check=True,
            capture_output=True,
            env=self.environ,
        )
        return time.perf_counter() - began


def process_ids(folder: Path) -> dict[str, int]:
    """The processes of a running installation by their names, the supervisor's too."""
    for place in (folder / "run", *Path("/tmp").glob(f"loopline-{os.getuid()}-*")):
        state = place / "supervisor.json"
        if state.exists():
            told = json.loads(state.read_text())
            if any(str(folder) in " ".join(_words(child["pid"])) for child in told["children"] if child["pid"]):
                return {"supervisor": told["pid"]} | {c["id"]: c["pid"] for c in told["children"] if c["pid"]}
    raise RuntimeError(f"no supervisor of {folder} says what it runs")


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def seconds_between(execution: Mapping[str, Any]) -> float:
    """How long an execution took, by the platform's own times."""
    from datetime import datetime

    start, end = (datetime.fromisoformat(execution[key].replace("Z", "+00:00")) for key in ("started_at", "ended_at"))
    return (end - start).total_seconds()
