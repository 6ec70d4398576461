"""The peers, each in its own environment of pinned packages, asked to do the same work."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from installation import Client

HERE = Path(__file__).resolve().parent
VENVS = HERE.parent / ".venvs"
UV = str(Path(sys.executable).parent / "uv")
METAFLOW_SHORT, METAFLOW_LONG = 2, 12  # steps; their difference is what a step costs without the start


def prepare(name: str) -> Path:
    """The interpreter of a peer's environment, which is made when its requirements are new."""
    requirements = HERE / f"requirements-{name}.txt"
    venv = VENVS / name
    stamp = venv / ".requirements"
    if not stamp.exists() or stamp.read_bytes() != requirements.read_bytes():
        subprocess.run([UV, "venv", "-q", "--clear", "-p", sys.executable, str(venv)], check=True)
        install = [UV, "pip", "install", "-q", "--python", str(venv / "bin" / "python"), "-r", str(requirements)]
        subprocess.run(install, check=True)
        stamp.write_bytes(requirements.read_bytes())
    return venv / "bin" / "python"


def version(name: str) -> str:
    """The pinned version of a peer."""
    lines = (HERE / f"requirements-{name}.txt").read_text().splitlines()
    return next(line.partition("==")[2].strip(" \\") for line in lines if line.startswith(f"{name}=="))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A peer's server. It is asleep (SIGSTOP) except while it is measured, so that it costs the others nothing."""

    def __init__(self, command: list[str], environ: dict[str, str], url: str, health: str, log: Path) -> None:
        self.url = url
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environ}, stdout=file, stderr=file, start_new_session=True
            )
        self._await(health, log)

    def _await(self, health: str, log: Path) -> None:
        deadline = time.monotonic() + 120
        while True:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.url} does not come up; see {log}:\n{log.read_text()[-2000:]}")
            try:
                Client(self.url, {}).send("GET", health, parse=False)
                return
            except (OSError, RuntimeError):
                time.sleep(0.1)

    def sleep(self) -> None:
        """Stop every process of it."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        os.killpg(self._process.pid, signal.SIGCONT)
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Metaflow:
    """Isolated steps, one process each, with the local datastore."""

    def __init__(self, work: Path) -> None:
        self._python = prepare("metaflow")
        self._work = work
        work.mkdir()
        for steps in (METAFLOW_SHORT, METAFLOW_LONG):
            (work / f"chain{steps}.py").write_text(_metaflow_chain(steps))

    def step_seconds(self) -> float:
        """A step of a chain, without the start and the end of the run."""
        return (self._run(METAFLOW_LONG) - self._run(METAFLOW_SHORT)) / (METAFLOW_LONG - METAFLOW_SHORT)

    def _run(self, steps: int) -> float:
        environ = {
            **os.environ,
            "METAFLOW_DEFAULT_DATASTORE": "local",
            "METAFLOW_DEFAULT_METADATA": "local",
            "METAFLOW_DATASTORE_SYSROOT_LOCAL": str(self._work),
            "METAFLOW_USER": "bench",
            "USERNAME": "bench",
        }
        command = [str(self._python), f"chain{steps}.py", "--quiet", "--no-pylint", "run"]
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=self._work, env=environ)
        return time.perf_counter() - began


def _metaflow_chain(steps: int) -> str:
    names = ["start", *(f"s{number}" for number in range(1, steps - 1)), "end"]
    text = ["from metaflow import FlowSpec, step", "", "", "class Chain(FlowSpec):"]
    for name, following in zip(names, [*names[1:], ""], strict=True):
        body = "self.x = 0" if name == "start" else "self.x += 1"
        text += ["    @step", f"    def {name}(self):", f"        {body}"]
        text += [f"        self.next(self.{following})", ""] if following else [""]
    return "\n".join([*text, "", 'if __name__ == "__main__":', "    Chain()", ""])


class Prefect:
    """Steps that are not isolated (functions of one process), with a server on SQLite."""

    def __init__(self, work: Path) -> None:
        python = prepare("prefect")
        work.mkdir()
        port = free_port()
        self._environ = {
            "PREFECT_HOME": str(work),
            "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            "DO_NOT_TRACK": "1",
        }
        self._command = [str(python), str(HERE / "prefect_chain.py")]
        command = [str(python), "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        self.server = Server(command, self._environ, f"http://127.0.0.1:{port}", "/api/health", work / "server.log")
        self.server.sleep()

    def chain_seconds(self) -> float:
        """A chain of 100 steps, warm, without imports and the start of the process."""
        self.server.wake()
        try:
            environ = {**os.environ, **self._environ}
            done = subprocess.run(self._command, check=True, capture_output=True, text=True, env=environ)
            return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
        finally:
            self.server.sleep()


class MLflow:
    """The tracking server on SQLite with one worker."""

    def __init__(self, work: Path) -> None:
        python = prepare("mlflow")
        work.mkdir()
        port = free_port()
        environ = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "PATH": f"{python.parent}:{os.environ['PATH']}",
        }
        store = ["--backend-store-uri", f"sqlite:///{work}/mlflow.db", "--artifacts-destination", str(work / "files")]
        command = [str(python), "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        url = f"http://127.0.0.1:{port}"
        self.server = Server([*command, *store], environ, url, "/health", work / "server.log")
        self._client = Client(url, {})
        experiment = self._post("experiments/create", {"name": "bench"})["experiment_id"]
        made = self._post("runs/create", {"experiment_id": experiment, "start_time": int(time.time() * 1000)})
        self._run = made["run"]["info"]["run_id"]
        self.server.sleep()

    def _post(self, path: str, body: dict[str, object]) -> dict[str, object]:
        return self._client.send("POST", f"/api/2.0/mlflow/{path}", body)

    def wake(self) -> None:
        """Wake the server; it closes connections that were idle while it slept."""
        self.server.wake()
        self._client.open()

    def log_metric(self, step: int) -> None:
        """One value of one metric."""
        now = int(time.time() * 1000)
        body = {"run_id": self._run, "key": "loss", "value": 1.0 / (step + 1), "timestamp": now, "step": step}
        self._post("runs/log-metric", body)

    def log_batch(self, points: list[dict[str, object]]) -> None:
        """Many values in one request."""
        now = int(time.time() * 1000)
        self._post(
            "runs/log-batch", {"run_id": self._run, "metrics": [{**point, "timestamp": now} for point in points]}
        )
