"""Pipelines, tracking and registry, side by side with Metaflow, Prefect and MLflow in one run.

    python benchmarks/pipelines/run.py [--repeats 5] [--no-idle]

Every figure is a median; loopline and its peers take turns, so that a busy moment hits all of them. Prints one table
and ends with one line of JSON. The exit code is 1 when a target is missed.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import idle
import seed
from figures import Figure, table
from installation import CHAIN, DIAMOND, Installation, project, seconds_between
from peers import Metaflow, MLflow, Prefect, version

STEPS = 100
METRIC_CALLS = 100
BATCH_CALLS = 5
BATCH_POINTS = 1000
SEARCHES = 15
VERSIONS = RUNS = 10_000
PAGE = 100
PEERS = ("metaflow", "prefect", "mlflow")


def figures() -> dict[str, Figure]:
    """What is measured, and what was promised."""
    wanted = (
        Figure("isolated_step_ms", "isolated no-op step", "ms", 10, "Metaflow", 30),
        Figure("cold_4_steps_s", "4 isolated steps from the command line", "s", 0.6),
        Figure("chain_100_s", "chain of 100 isolated steps", "s", 1.5, "Prefect, not isolated", 1),
        Figure("cached_100_s", "100 steps again, all cached", "s", 0.15),
        Figure("log_metric_per_s", "log one metric", "/s", None, "MLflow", 5, more_is_better=True),
        Figure("log_batch_per_s", "log 1,000 metrics a call", "/s", None, "MLflow", 10, more_is_better=True),
        Figure("search_versions_ms", "search 10,000 versions, page of 100", "ms", 5),
        Figure("search_runs_ms", "search 10,000 runs, filter and order", "ms", 50),
        Figure("ready_s", "ready after the start", "s", 3),
        Figure("idle_mb", "memory when idle (PSS)", "MB", 200),
    )
    return {figure.key: figure for figure in wanted}


def note(text: str) -> None:
    """Progress, on stderr."""
    print(f"[{os.getloadavg()[0]:.1f}] {text}", file=sys.stderr, flush=True)


class Side:
    """loopline's side: a running installation with its projects."""

    def __init__(self, work: Path) -> None:
        folder = work / "loopline"
        seed.fill(folder, VERSIONS, RUNS)
        self.installation = Installation(folder)
        self.client = self.installation.client
        while self.client.send("GET", "/api/audit")["waiting"]:
            time.sleep(0.2)  # until what was put in is read by everything that reads the log
        self.chain_tree = self.installation.upload(project("chain", CHAIN))
        self.diamond = work / "diamond"
        self.diamond.mkdir()
        for name, text in project("diamond", DIAMOND).items():
            (self.diamond / name).write_text(text)
        self.run = self.client.send("POST", "/api/runs", {"project": "bench", "name": "bench"})["id"]
        self.number = 0
        self.chain()  # builds the environment and warms its forkserver
        self.cold()

    def parameter(self) -> int:
        """One that no step was called with before: results of one chain must not serve the next."""
        self.number += 1
        return int(time.time()) * 100_000 + self.number * 1000

    def chain(self) -> tuple[float, float, float]:
        """Seconds as the client sees them, as the engine does, and for the same again with every step cached."""
        parameters = {"n": self.parameter()}
        seconds, found = self.installation.run(self.chain_tree, parameters)
        if any(step["cached_from"] for step in found["steps"]) or len(found["steps"]) != STEPS:
            raise RuntimeError("the chain did not run every step")
        again, cached = self.installation.run(self.chain_tree, parameters)
        if not all(step["cached_from"] for step in cached["steps"]):
            raise RuntimeError("the second run was not cached")
        return seconds, seconds_between(found), again

    def cold(self) -> float:
        """Four steps from the command line."""
        return self.installation.run_command(self.diamond, f"n={self.parameter()}")

    def log_metric(self, step: int) -> None:
        """One value of one metric."""
        point = {"key": "loss", "value": 1.0 / (step + 1), "step": step}
        self.client.send("POST", f"/api/runs/{self.run}/metrics", {"points": [point]})

    def log_batch(self, points: list[dict[str, Any]]) -> None:
        """Many values in one request."""
        self.client.send("POST", f"/api/runs/{self.run}/metrics", {"points": points})

    def search_versions(self) -> None:
        """The newest pending ones."""
        path = f"/api/models/{seed.MODEL}/versions?status=PendingManualApproval&limit={PAGE}"
        assert len(self.client.send("GET", path)["items"]) == PAGE

    def search_runs(self) -> None:
        """Those above a metric's value, the best by another first."""
        where = "accuracy%20%3E%200.5"
        path = f"/api/runs?project={seed.PROJECT}&where={where}&order=-loss&limit={PAGE}"
        assert len(self.client.send("GET", path)["items"]) == PAGE


def per_second(call: Callable[[int], None], calls: int, each: int = 1) -> float:
    """How many a second one sequential client gets done."""
    began = time.perf_counter()
    for number in range(calls):
        call(number)
    return calls * each / (time.perf_counter() - began)


def batch(number: int, turn: int) -> list[dict[str, Any]]:
    """1,000 values of 10 metrics; no step comes twice."""
    start = (turn * BATCH_CALLS + number) * (BATCH_POINTS // 10)
    return [{"key": f"m{i % 10}", "value": i * 0.5, "step": start + i // 10} for i in range(BATCH_POINTS)]


def milliseconds(call: Callable[[], None], calls: int) -> list[float]:
    """The duration of each call."""
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        found.append((time.perf_counter() - began) * 1000)
    return found


def measure(all_: dict[str, Figure], work: Path, repeats: int) -> None:
    """Every figure but those of an idle installation."""
    note("starting loopline, and the servers of Prefect and MLflow")
    metaflow, prefect, mlflow = Metaflow(work / "metaflow"), Prefect(work / "prefect"), MLflow(work / "mlflow")
    side = Side(work)
    try:
        for turn in range(repeats):
            note(f"turn {turn + 1} of {repeats}: pipelines")
            seconds, engine, cached = side.chain()
            all_["chain_100_s"].samples.append(seconds)
            all_["isolated_step_ms"].samples.append(1000 * engine / STEPS)
            all_["cached_100_s"].samples.append(cached)
            all_["chain_100_s"].peer_samples.append(prefect.chain_seconds())
            all_["cold_4_steps_s"].samples.append(side.cold())
            all_["isolated_step_ms"].peer_samples.append(1000 * metaflow.step_seconds())
            note(f"turn {turn + 1} of {repeats}: tracking and registry")
            _track(all_, side, mlflow, turn)
            all_["search_versions_ms"].samples += milliseconds(side.search_versions, SEARCHES)
            all_["search_runs_ms"].samples += milliseconds(side.search_runs, SEARCHES)
    finally:
        side.installation.stop()
        prefect.server.stop()
        mlflow.server.stop()


def _track(all_: dict[str, Figure], side: Side, mlflow: MLflow, turn: int) -> None:
    one, many = all_["log_metric_per_s"], all_["log_batch_per_s"]
    one.samples.append(per_second(lambda n: side.log_metric(turn * METRIC_CALLS + n), METRIC_CALLS))
    many.samples.append(per_second(lambda n: side.log_batch(batch(n, turn)), BATCH_CALLS, BATCH_POINTS))
    mlflow.wake()
    try:
        mlflow.log_metric(turn * METRIC_CALLS)  # after its sleep
        one.peer_samples.append(per_second(lambda n: mlflow.log_metric(turn * METRIC_CALLS + n), METRIC_CALLS))
        many.peer_samples.append(per_second(lambda n: mlflow.log_batch(batch(n, turn)), BATCH_CALLS, BATCH_POINTS))
    finally:
        mlflow.server.sleep()


def main() -> int:
    """Measure, print, and say by the exit code whether every target was met."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-idle", action="store_true", help="leave out the minute that idling takes")
    options = parser.parse_args()
    all_ = figures()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        work = Path(place)
        if not options.no_idle:
            for turn in range(2):
                note("an installation without a project, left alone for 30 seconds")
                ready, memory, _ = idle.measure(work / f"idle{turn}", 30.0)
                all_["ready_s"].samples.append(ready)
                all_["idle_mb"].samples.append(sum(memory.values()))
        measure(all_, work, options.repeats)
    found = [figure for figure in all_.values() if figure.samples]
    missed = [text for figure in found for text in figure.missed]
    after = os.getloadavg()
    versions = ", ".join(f"{name} {version(name)}" for name in PEERS)
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}, {versions}")
    print(f"load average {load[0]:.2f} before, {after[0]:.2f} after; medians of {options.repeats} turns\n")
    print(table(found))
    print()
    result = {
        "benchmark": "pipelines",
        "met": not missed,
        "missed": missed,
        "figures": {figure.key: figure.describe() for figure in found},
        "load": {"before": load, "after": after},
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "peers": {name: version(name) for name in PEERS},
    }
    print(json.dumps(result))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
