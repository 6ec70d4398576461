"""A gateway process with model servers and, where wanted, a stand-in for control behind real sockets."""

import hashlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from loopline.config import run_dir_for
from loopline.domain.capture import CaptureRecord, iter_records
from loopline.runtime import serve

SRC = Path(serve.__file__).parents[2]
SIGNATURE = {"features": [{"name": "x", "type": "number"}]}


def wait_until(condition: Callable[[], object], seconds: float = 60.0):
    """The first true value of ``condition``; fails the test after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


class Rig:
    """One data directory with what runs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = run_dir_for(folder)
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.processes: dict[str, subprocess.Popen] = {}
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen(512)
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.number = 0
        self.environ = {**os.environ, "PYTHONPATH": str(SRC)}
        self.secret = secrets.token_urlsafe(32)
        self.key = f"lk_abcdefgh_{self.secret}"

    # model servers

    def start_server(self, name: str, code: str, **spec: object) -> str:
        """Start a model server and wait until it listens; the path of its socket."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        (home / "predict.py").write_text(textwrap.dedent(code))
        status, path = home / "status.json", self.run / f"{name}.sock"
        document = {"id": name, "model_dir": str(home), "code_dir": str(home), "signature": SIGNATURE, **spec}
        document.setdefault("sandbox", {"write": [str(home)]})
        (home / "spec.json").write_text(json.dumps(document))
        status.unlink(missing_ok=True)
        command = [sys.executable, "-I", serve.__file__, "--spec", str(home / "spec.json")]
        with (home / "log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "--socket", str(path), "--status", str(status)], stdout=log, stderr=log
            )
        wait_until(lambda: status.exists() and json.loads(status.read_text())["state"] != "loading")
        assert json.loads(status.read_text())["state"] == "ready", (home / "log").read_text()
        return str(path)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    # the snapshot

    def publish(self, *variants: dict, wait: bool = True, **endpoint: object) -> int:
        """Write the next snapshot with the endpoint ``e``; waits until the gateway has switched."""
        fields = {"auth": True, "capture": 1.0, "max_body_bytes": 100_000, "timeout_ms": 20_000, "max_concurrent": 256}
        self.number += 1
        document = {
            "number": self.number,
            "at": time.time(),
            "allowed_hosts": [self.address, "localhost"],
            "endpoints": {"e": {**fields, **endpoint, "variants": list(variants)}},
            "keys": {
                "abcdefgh": self.key_spec(),
                "viewer00": self.key_spec(role="viewer"),
                "scoped00": self.key_spec(endpoints=["other"]),
                "expired0": self.key_spec(expires_at=time.time() - 1),
            },
        }
        self.write_snapshot(json.dumps(document))
        if wait:
            wait_until(lambda: self.state().get("number") == self.number)
        return self.number

    def key_spec(self, **fields: object) -> dict:
        digest = hashlib.sha256(self.secret.encode()).hexdigest()
        return {"sha256": digest, "role": "invoker", "endpoints": ["*"], "expires_at": None, **fields}

    def write_snapshot(self, text: str) -> None:
        temporary = self.folder / "snapshot.tmp"
        temporary.write_text(text)
        temporary.rename(self.folder / "snapshot.json")

    def state(self) -> dict:
        path = self.run / "gateway-0.json"
        return json.loads(path.read_text()) if path.exists() else {}

    # the gateway

    def start_gateway(self, **environ: str) -> subprocess.Popen:
        fd = self.listening.fileno()
        command = [sys.executable, "-m", "loopline.gateway", "--dir", str(self.folder), "--listen-fd", str(fd)]
        environment = {**self.environ, **environ}
        with (self.folder / "gateway.log").open("ab") as log:
            written = log.tell()  # by those before it
            process = subprocess.Popen(command, pass_fds=[fd], env=environment, stdout=log, stderr=log)
        self.processes["gateway"] = process
        wait_until(lambda: b"listening" in (self.folder / "gateway.log").read_bytes()[written:])
        return process

    def gateway_log(self) -> str:
        return (self.folder / "gateway.log").read_text()

    # clients

    def client(self, timeout: float = 60.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address, timeout=timeout)

    def raw(self) -> socket.socket:
        host, port = self.address.split(":")
        return socket.create_connection((host, int(port)), timeout=60)

    def ask(self, body: object, client: http.client.HTTPConnection | None = None, name: str = "e", **headers: str):
        """(status, document, answer) of one invocation."""
        own = client or self.client()
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        sent.update({header.replace("_", "-"): value for header, value in headers.items()})
        own.request("POST", f"/endpoints/{name}/invocations", raw, sent)
        answer = own.getresponse()
        document = json.loads(answer.read())
        if client is None:
            own.close()
        return answer.status, document, answer

    def request_bytes(self, body: object = None, extra: str = "", host: str | None = None) -> bytes:
        raw = json.dumps({"x": 1} if body is None else body).encode()
        return (
            f"POST /endpoints/e/invocations HTTP/1.1\r\nHost: {host or self.address}\r\n"
            f"Authorization: Bearer {self.key}\r\nContent-Length: {len(raw)}\r\n{extra}\r\n"
        ).encode() + raw

    def records(self) -> list[CaptureRecord]:
        """Every record of the spool, segment by segment."""
        found: list[CaptureRecord] = []
        for segment in sorted((self.folder / "spool" / "gateway-0").glob("*.seg")):
            found += iter_records(segment.read_bytes())[0]
        return found

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        self.listening.close()
        if self.run.parent != self.folder:
            shutil.rmtree(self.run, ignore_errors=True)


def variant(name: str, *servers: str, weight: float = 100.0, version: int = 1) -> dict:
    return {"name": name, "version": version, "model": "m", "weight": weight, "servers": list(servers)}


@pytest.fixture
def make_variant():
    return variant


@pytest.fixture
def until():
    return wait_until


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_rig(tmp_path_factory):
    """One gateway with an echo endpoint for all cases of a module: what one case does must not harm the next."""
    made = Rig(tmp_path_factory.mktemp("shared"))
    code = "def load(d): pass\ndef predict(m, batch): return [row[0] for row in batch]"
    made.publish(variant("v1", made.start_server("a", code)), wait=False)
    made.start_gateway()
    yield made
    made.close()
