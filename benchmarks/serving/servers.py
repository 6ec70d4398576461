"""The peers and the limits: how each is started at its best setting, what is sent to it, and what it must answer."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from load import BenchError, Load, descendants, pinned, reap

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
VENVS = HERE.parent / ".venvs"
UV = str(Path(sys.executable).parent / "uv")
START_SECONDS = 180.0
TOLERANCE = 1e-5  # between one server's arithmetic and another's, float32 included

Rows = dict[str, Any]


def prepare(name: str) -> Path:
    """The interpreter of an environment, which is made when its requirements are new."""
    requirements, venv = PEERS / f"requirements-{name}.txt", VENVS / f"serving-{name}"
    stamp = venv / ".requirements"
    if not stamp.exists() or stamp.read_bytes() != requirements.read_bytes():
        install = [UV, "pip", "install", "-q", "--python", str(venv / "bin" / "python"), "-r", str(requirements)]
        for command in ([UV, "venv", "-q", "--clear", "-p", sys.executable, str(venv)], install):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise BenchError(f"its packages cannot be installed: {done.stderr.strip()[-500:]}")
        stamp.write_bytes(requirements.read_bytes())
    return venv / "bin" / "python"


def version(name: str) -> str:
    """The pinned version of a package, from the requirements of the same name."""
    lines = (PEERS / f"requirements-{name}.txt").read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Start:
    """One start of a server: what it may use."""

    port: int
    folder: Path  # empty, its own
    model: Path  # the folder that train.py wrote
    python: Path

    def program(self, name: str) -> str:
        """A command of its environment."""
        return str(self.python.parent / name)

    def uvicorn(self, app: str, *options: str) -> list[str]:
        """uvicorn with one process."""
        return [self.program("uvicorn"), app, "--host", "127.0.0.1", "--port", str(self.port), *options]


# -- what goes over the wire ------------------------------------------------------------------------------------------


def instances(rows: Rows) -> list[bytes]:
    """Rows as arrays, one in each request."""
    return [json.dumps({"instances": [row]}, separators=(",", ":")).encode() for row in rows["rows"]]


def fields(rows: Rows) -> list[bytes]:
    """One row by its field names."""
    return [
        json.dumps(dict(zip(rows["names"], row, strict=True)), separators=(",", ":")).encode() for row in rows["rows"]
    ]


def inputs(rows: Rows) -> list[bytes]:
    """MLflow's tensors."""
    return [json.dumps({"inputs": [row]}, separators=(",", ":")).encode() for row in rows["rows"]]


def tensors(rows: Rows) -> list[bytes]:
    """The V2 protocol."""
    return [
        json.dumps(
            {"inputs": [{"name": "x", "shape": [1, len(row)], "datatype": "FP64", "data": row}]}, separators=(",", ":")
        ).encode()
        for row in rows["rows"]
    ]


def first_prediction(answer: Any) -> float:
    """``{"predictions": [score]}``."""
    return float(answer["predictions"][0])


# -- how each is started ----------------------------------------------------------------------------------------------


def _fastapi_seed(start: Start) -> list[str]:
    return start.uvicorn("fastapi_seed:app")


def _fastapi_tuned(start: Start) -> list[str]:
    return start.uvicorn("fastapi_tuned:app", "--loop", "uvloop", "--http", "httptools", "--no-access-log")


def _mlflow(start: Start) -> list[str]:
    saved = start.folder / "model"
    make = [str(start.python), str(PEERS / "mlflow_model.py"), str(saved)]
    environ = {**os.environ, "BENCH_MODEL": str(start.model)}
    done = subprocess.run(make, check=False, capture_output=True, text=True, env=environ)
    if done.returncode:
        raise BenchError(f"the model cannot be saved: {done.stderr.strip()[-500:]}")
    serve = ["models", "serve", "-m", str(saved), "--env-manager", "local", "--workers", "1"]
    return [start.program("mlflow"), *serve, "--host", "127.0.0.1", "--port", str(start.port)]


def _bentoml(start: Start) -> list[str]:
    options = ["--host", "127.0.0.1", "--port", str(start.port), "--working-dir", str(PEERS)]
    return [start.program("bentoml"), "serve", "bentoml_service:Scoring", *options]


def _program(name: str, *options: str) -> Callable[[Start], list[str]]:
    return lambda start: [str(start.python), str(PEERS / name), "--port", str(start.port), *options]


def _mlserver(batch: int) -> Callable[[Start], list[str]]:
    def command(start: Start) -> list[str]:
        settings = {
            "debug": False,
            "host": "127.0.0.1",
            "http_port": start.port,
            "grpc_port": free_port(),
            "metrics_endpoint": None,
            "parallel_workers": 0,
            "gzip_enabled": False,
        }
        model: dict[str, Any] = {"name": "bench", "implementation": "mlserver_model.Model"}
        if batch > 1:
            model |= {"max_batch_size": batch, "max_batch_time": 0.001}
        (start.folder / "settings.json").write_text(json.dumps(settings))
        (start.folder / "model-settings.json").write_text(json.dumps(model))
        return [start.program("mlserver"), "start", str(start.folder)]

    return command


def _ray(start: Start) -> list[str]:
    return [str(start.python), str(PEERS / "ray_app.py"), "--port", str(start.port), "--folder", str(start.folder)]


def _nginx(start: Start) -> list[str]:
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        raise BenchError("nginx is not installed: apt-get install nginx-light")
    text = (PEERS / "nginx.conf").read_text()
    for name, value in (("PORT", str(start.port)), ("FOLDER", str(start.folder))):
        text = text.replace(f"@{name}@", value)
    (start.folder / "nginx.conf").write_text(text)
    return [
        program,
        "-p",
        str(start.folder),
        "-e",
        str(start.folder / "error.log"),
        "-c",
        str(start.folder / "nginx.conf"),
    ]


@dataclass(frozen=True)
class Peer:
    """A server that is measured. ``venv``: whose requirements it has; empty for loopline's own environment."""

    name: str
    label: str
    venv: str
    command: Callable[[Start], list[str]]
    path: str = "/predict"
    bodies: Callable[[Rows], list[bytes]] = instances
    score: Callable[[Any], float] | None = first_prediction  # None: it answers the same to everything
    limit: bool = False
    environ: dict[str, str] = field(default_factory=dict)


PEERS_TABLE = (
    Peer(
        "fastapi-document",
        "FastAPI, a data frame a request",
        "fastapi",
        _fastapi_seed,
        bodies=fields,
        score=lambda answer: float(answer["score"]),
    ),
    Peer("fastapi-tuned", "FastAPI, numpy, orjson, uvloop", "fastapi", _fastapi_tuned),
    Peer(
        "mlflow",
        "MLflow, tensor signature",
        "mlflow",
        _mlflow,
        path="/invocations",
        bodies=inputs,
        environ={"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
    ),
    Peer("bentoml", "BentoML", "bentoml", _bentoml, environ={"BENTOML_DO_NOT_TRACK": "True"}),
    Peer("litserve", "LitServe", "litserve", _program("litserve_server.py")),
    Peer("litserve-batch", "LitServe, batches", "litserve", _program("litserve_server.py", "--batch", "64")),
    Peer(
        "mlserver",
        "MLServer",
        "mlserver",
        _mlserver(1),
        path="/v2/models/bench/infer",
        bodies=tensors,
        score=lambda answer: float(answer["outputs"][0]["data"][0]),
    ),
    Peer(
        "mlserver-batch",
        "MLServer, adaptive batches",
        "mlserver",
        _mlserver(64),
        path="/v2/models/bench/infer",
        bodies=tensors,
        score=lambda answer: float(answer["outputs"][0]["data"][0]),
    ),
    Peer("kserve", "KServe (Python)", "kserve", _program("kserve_server.py"), path="/v1/models/bench:predict"),
    Peer(
        "ray-haproxy",
        "Ray Serve behind HAProxy",
        "ray",
        _ray,
        environ={
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
    Peer("echo", "limit: echo, asyncio + httptools + uvloop", "", _program("echo.py"), score=None, limit=True),
    Peer("nginx", "limit: nginx, a constant", "", _nginx, score=None, limit=True),
)


class Server:
    """A peer that runs, on the server's core, until ``stop``."""

    def __init__(self, peer: Peer, model: Path, rows: Rows, work: Path) -> None:
        folder = work / peer.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        python = prepare(peer.venv) if peer.venv else Path(sys.executable)
        start = Start(free_port(), folder, model, python)
        command = peer.command(start)
        environ = {
            **os.environ,
            **peer.environ,
            "BENCH_MODEL": str(model),
            "PYTHONPATH": str(PEERS),
            "PATH": f"{python.parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        self._log = folder / "server.log"
        self.load = Load(f"http://127.0.0.1:{start.port}{peer.path}", peer.bodies(rows), {})
        began = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                pinned(command), env=environ, cwd=folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._await()
            self.cold_seconds = time.perf_counter() - began
            if peer.score is not None:
                check(self.load, peer.score, json.loads((model / "scores.json").read_text()))
        except BaseException:
            self.stop()
            raise

    def _await(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ask(self.load, 0)
                return
            except (OSError, ValueError):
                pass
            if self._process.poll() is not None:
                raise BenchError(f"it ended while it started: {self._tail()}")
            if time.monotonic() > deadline:
                raise BenchError(f"it did not answer within {START_SECONDS:g} s: {self._tail()}")
            time.sleep(0.02)

    def _tail(self) -> str:
        return " / ".join(self._log.read_text(errors="replace").strip().splitlines()[-4:])[-600:]

    def stop(self) -> None:
        """End it and everything that it started."""
        self.leave()
        end_everything()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing of it runs meanwhile."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)

    def leave(self) -> None:
        """End it, and nothing that runs beside it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)


def end_everything() -> None:
    """Kill what is left below this process: the servers' leftovers, which it has adopted."""
    deadline = time.monotonic() + 10
    while (left := descendants()) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()
        time.sleep(0.05)


def ask(load: Load, number: int) -> Any:
    """One request and its answer; ``OSError`` for anything but a 200."""
    headers = {"content-type": "application/json", **load.headers}
    request = urllib.request.Request(load.url, load.bodies[number], headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise OSError(f"{error.code}: {error.read()[:300]!r}") from None


def check(load: Load, score: Callable[[Any], float], wanted: list[float]) -> None:
    """Every row's score must be the model's own."""
    for number, expected in enumerate(wanted):
        found = score(ask(load, number))
        if abs(found - expected) > TOLERANCE:
            raise BenchError(f"it answers {found} where the model says {expected}")
