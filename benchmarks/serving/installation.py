"""loopline's side: an installation started as people start it, a project pushed to it, its model released."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from load import BenchError, Load, pinned, wait_until_quiet
from servers import ask, check, end_everything, instances

from loopline import config

LOOPLINE = str(Path(sys.executable).parent / "loopline")
NAME = "scoring"
RELEASE_SECONDS = 240.0

LOOP_TOML = """[project]
name = "{name}"
[model]
name = "{name}"
handler = "{handler}"
[gate]
mode = "off"
[approval]
policy = "auto"
[endpoint]
name = "{name}"
capture = {capture}
auth = {auth}
[rollout]
strategy = "all-at-once"
bake_seconds = 0
[monitor]
window_seconds = 60
every_seconds = 5
"""
PIPELINE = '''import json
from pathlib import Path

from loopline import log_baseline, pipeline, register, step

HERE = Path(__file__).parent


@step
def fit():
    """The model that every server of the benchmark answers with, and what its training table looked like."""
    told = json.loads((HERE / "rows.json").read_text())
    log_baseline(told["training"], feature_names=told["names"], score=told["answers"])
    return HERE / "model"


@pipeline
def training():
    register(fit())


if __name__ == "__main__":
    training.run()
'''
PREDICT = """import os

import scoring

INPUT = "numpy"


def load(model_dir):
    os.environ[scoring.MODEL] = model_dir
    return scoring.load()


def predict(score, batch):
    return score(batch)
"""
REQUIREMENTS = {
    "logistic": ("scikit-learn", "numpy", "joblib"),
    "boosting": ("scikit-learn", "numpy", "joblib"),
    "network": ("onnxruntime", "numpy"),
}
HANDLERS = {"logistic": "joblib", "boosting": "joblib", "network": "onnx"}


def settings(capture: bool, auth: bool) -> dict[str, str]:
    """The endpoint's settings."""
    return {"capture": "1.0" if capture else "0.0", "auth": "true" if auth else "false"}


def score_of(answer: Any) -> float:
    """The score in an answer of any of the handlers."""
    found = answer["predictions"][0]
    if isinstance(found, dict):
        found = found["probabilities"]["1"]
    return float(found[0] if isinstance(found, list) else found)


class Installation:
    """``loopline up`` on the server's core with one released model, until ``stop``. With ``own_code`` the project's
    predict.py answers, else the handler that loopline has for such a model file."""

    def __init__(
        self, model: Path, rows: dict[str, Any], pins: dict[str, str], work: Path, *, own_code: bool = False
    ) -> None:
        self._model, self._rows = model, rows
        self._handler = "predict" if own_code else HANDLERS[model.name]
        self.folder, self._project = work / "data", work / "project"
        for folder in (self.folder, self._project):
            shutil.rmtree(folder, ignore_errors=True)
        self._environ = {
            **os.environ,
            "LOOPLINE_DIR": str(self.folder),
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
        }
        self._log = work / "loopline.log"
        self._write_project(pins)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.up()
            self._release()
            key = self._run("keys", "create", "--role", "invoker", "--endpoint", NAME).split()[-1]
            self.load = Load(
                f"{self.url}/endpoints/{NAME}/invocations",
                instances(rows),
                {"Authorization": f"Bearer {key}"},
                leaves_work=True,
                parts=self.processes,
            )
            self._await_answers()
            check(self.load, score_of, json.loads((model / "scores.json").read_text()))
        except BaseException:
            self.stop()
            raise

    def _write_project(self, pins: dict[str, str]) -> None:
        (self._project / "model").mkdir(parents=True)
        for file in (*self._model.glob("model.*"),):
            shutil.copy(file, self._project / "model" / file.name)
        shutil.copy(Path(__file__).parent / "peers" / "scoring.py", self._project / "scoring.py")
        wanted = REQUIREMENTS[self._model.name]
        answers = json.loads((self._model / "training-scores.json").read_text())
        if self._handler == "joblib":
            answers = [int(score > 0.5) for score in answers]  # it answers labels, and scores beside them
        files = {
            "loop.toml": LOOP_TOML.format(name=NAME, handler=self._handler, **settings(True, True)),
            "pipeline.py": PIPELINE,
            **({"predict.py": PREDICT} if self._handler == "predict" else {}),
            "requirements.txt": "".join(f"{name}=={pins[name]}\n" for name in wanted),
            "rows.json": json.dumps({**self._rows, "answers": answers}),
        }
        for name, text in files.items():
            (self._project / name).write_text(text)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([LOOPLINE, *arguments], check=False, capture_output=True, text=True, env=self._environ)
        if done.returncode:
            raise BenchError(f"loopline {' '.join(arguments)}: {(done.stdout + done.stderr).strip()[-800:]}")
        return done.stdout

    # -- the processes

    def up(self) -> float:
        """Start; gives the seconds until it says that it is up."""
        began = time.perf_counter()
        with self._log.open("ab") as log:
            log.truncate(0)
            port = ["--port", self.url.rpartition(":")[2]] if hasattr(self, "url") else ["--port", "0"]
            self._process = subprocess.Popen(
                pinned([LOOPLINE, "up", "--dir", str(self.folder), *port]), stdout=log, stderr=log, env=self._environ
            )
        while not (match := re.search(r"up at (http://\S+)", self._log.read_text(errors="replace"))):
            if self._process.poll() is not None or time.perf_counter() - began > 60:
                raise BenchError(f"loopline does not come up: {self._log.read_text(errors='replace')[-800:]}")
            time.sleep(0.01)
        self.url = match[1].replace("localhost", "127.0.0.1")
        return time.perf_counter() - began

    def cold_start(self) -> float:
        """Stop everything and start it again: seconds until a prediction is answered."""
        self._down()
        began = time.perf_counter()
        self.up()
        self._await_answers()
        seconds = time.perf_counter() - began
        wait_until_quiet()
        return seconds

    def _await_answers(self) -> None:
        deadline = time.monotonic() + RELEASE_SECONDS
        while True:
            try:
                ask(self.load, 0)
                return
            except (OSError, ValueError) as error:
                if time.monotonic() > deadline:
                    raise BenchError(f"the endpoint does not answer: {error}") from None
                time.sleep(0.02)

    def _down(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(60)

    def stop(self) -> None:
        """End every process of it."""
        self._down()
        end_everything()

    # -- what is measured

    def _release(self) -> None:
        self._run("run", "--wait", "-C", str(self._project))
        deadline = time.monotonic() + RELEASE_SECONDS
        while '"share"' not in self._run("live", "--endpoint", NAME, "--json"):
            if time.monotonic() > deadline:
                raise BenchError(f"nothing was released: {self._run('rollouts', 'list')}")
            time.sleep(0.2)

    def set(self, *, capture: bool, auth: bool) -> None:
        """Change the endpoint's settings, as a user changes them."""
        (self._project / "loop.toml").write_text(
            LOOP_TOML.format(name=NAME, handler=self._handler, **settings(capture, auth))
        )
        self._run("apply", "-C", str(self._project))
        wait_until_quiet()

    def watch(self, on: bool) -> None:
        """Let the monitor work (counters, drift), or keep it from doing anything at all."""
        pid = self.processes().get("monitor")
        if pid is None:
            raise BenchError(f"the monitor does not run; see {self.folder / 'logs' / 'monitor.log'}")
        os.kill(pid, signal.SIGCONT if on else signal.SIGSTOP)

    def processes(self) -> dict[str, int]:
        """{name: pid} of the processes of the platform itself; the rest are model servers and forkservers."""
        run_dir = config.load({}, dir=str(self.folder)).run_dir
        state = json.loads((run_dir / "supervisor.json").read_text())
        own = ("control", "gateway", "monitor")
        children = {child["id"]: int(child["pid"]) for child in state["children"] if child["pid"]}
        return {
            "supervisor": int(state["pid"]),
            **{name: pid for name, pid in children.items() if name.startswith(own)},
        }

    def check_counted(self, requests: int) -> None:
        """Raises unless the platform counted at least so many requests: what is fast must not be what is lost."""
        deadline = time.monotonic() + 10
        while (
            counted := json.loads(self._run("endpoints", "traffic", NAME, "--json"))["total"]["requests"]
        ) < requests:
            if time.monotonic() > deadline:
                raise BenchError(f"the platform counted {counted} of {requests} requests")
            time.sleep(0.2)

    def watched_rows(self) -> int:
        """How many rows the newest drift report counted; 0 when there is none."""
        items = json.loads(self._run("endpoints", "drift", NAME, "--json"))["items"]
        return int(items[0]["body"]["rows"]) if items else 0
