"""Many real scikit-learn models behind one endpoint with a memory limit: every answer is checked against the model's
own, the memory of all servers is sampled, and hot models are timed alone and while others load.

    python tests/faults/multimodel.py --models 200 --memory-mb 700 [--seconds 20]
A table goes to standard error, one line of JSON to standard output; the exit status says whether all is well.
"""

import argparse
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import joblib
import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from loopline.config import run_dir_for
from loopline.control import registry
from loopline.domain.states import EnvironmentStatus
from loopline.store import records
from loopline.testing.live import Platform
from loopline.testing.world import World

ENDPOINT = "many"
FEATURES = 6
PRELOAD = ["joblib", "sklearn.ensemble", "sklearn.linear_model", "sklearn.pipeline", "sklearn.preprocessing"]
HOT = 4
SAMPLE_SECONDS = 0.1
SIGNATURE = {"features": [{"name": f"x{number}", "type": "number"} for number in range(FEATURES)]}


class Known:
    """A model, and what it says about its rows."""

    def __init__(self, name: str, body: bytes, predictions: list[dict[str, Any]]) -> None:
        self.name, self.body, self.predictions = name, body, predictions


def train(seed: int, path: Path) -> Known:
    """Train one small model, no two alike, and write it down with its answers to three rows."""
    generator = np.random.default_rng(seed)
    table = generator.normal(size=(200, FEATURES))
    labels = (table @ generator.normal(size=FEATURES) + generator.normal(size=200) > 0).astype(int) + 2 * seed
    kinds = (
        LogisticRegression(),
        DecisionTreeClassifier(max_depth=6, random_state=seed),
        RandomForestClassifier(n_estimators=10, max_depth=6, random_state=seed),
    )
    model = make_pipeline(StandardScaler(), kinds[seed % len(kinds)]).fit(table, labels)
    joblib.dump(model, path)
    rows = generator.normal(size=(3, FEATURES))
    chances = model.predict_proba(rows).tolist()
    names = [str(label) for label in model.classes_]
    said = [
        {"prediction": int(label), "probabilities": dict(zip(names, row, strict=True))}
        for label, row in zip(model.predict(rows), chances, strict=True)
    ]
    instances = [{f"x{place}": value for place, value in enumerate(row)} for row in rows.tolist()]
    return Known(f"model-{seed:04d}", json.dumps({"instances": instances}).encode(), said)


def install(folder: Path, count: int) -> list[Known]:
    """An installation whose registry holds the models, in an environment that is this interpreter's."""
    world = World(folder)
    known = []
    try:
        with world.ctx.db.transaction() as tx:
            environment = records.create(
                tx, "environment", actor="admin", key="5" * 64, requirements="scikit-learn", preload=PRELOAD
            )["id"]
            records.move(tx, "environment", environment, EnvironmentStatus.READY, actor="admin", python=sys.executable)
        for seed in range(count):
            path = folder / "model.joblib"
            known.append(train(seed, path))
            blob = world.ctx.blobs.put_file(path)
            artifact = {
                "format": "joblib",
                "kind": "file",
                "name": "model.joblib",
                "sha256": blob.digest,
                "size_bytes": blob.size_bytes,
                "executable": True,
                "trust": "produced",
                "sealed": world.ctx.signer.sign(blob.digest),
            }
            registry.create_model(world.ctx, world.actor, name=known[-1].name, gate_mode="off")
            with world.ctx.db.transaction() as tx:
                registry.register(
                    tx,
                    model=known[-1].name,
                    actor="admin",
                    artifact=artifact,
                    handler="joblib",
                    environment=environment,
                    signature=SIGNATURE,
                    metrics={},
                    metadata={},
                )
            registry.approve(world.ctx, world.actor, model=known[-1].name, number=1)
    finally:
        world.close()
    return known


class Client:
    """One connection that stays open; ``ask`` gives (seconds, problem or None)."""

    def __init__(self, platform: Platform, key: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(platform.url).netloc, timeout=120)
        self.headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    def ask(self, known: Known) -> tuple[float, str | None]:
        began = time.perf_counter()
        headers = {**self.headers, "x-loopline-model": known.name}
        self.connection.request("POST", f"/endpoints/{ENDPOINT}/invocations", known.body, headers)
        answer = self.connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 200:
            return seconds, f"{known.name}: {answer.status} {body[:200]!r}"
        said = json.loads(body)["predictions"]
        return seconds, None if said == known.predictions else f"{known.name}: {said} instead of {known.predictions}"


class Sampler(threading.Thread):
    """Samples the sum of PSS over the endpoint's servers, in bytes, and how many there are."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(daemon=True)
        self.state = run_dir / "supervisor.json"
        self.sums: list[int] = []
        self.most = 0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(SAMPLE_SECONDS):
            children = json.loads(self.state.read_bytes())["children"]
            pids = [child["pid"] for child in children if child["kind"] == "server" and child["pid"]]
            self.most = max(self.most, len(pids))
            self.sums.append(sum(map(pss, pids)))


def pss(pid: int) -> int:
    """The proportional set size of a process in bytes; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def work(
    platform: Platform, key: str, threads: int, take: Callable[[int], Known | None]
) -> tuple[list[float], list[str]]:
    """Ask by several threads until each has nothing more to take: the seconds of each request, and what went wrong."""
    times: list[float] = []
    problems: list[str] = []

    def one(index: int) -> None:
        client = Client(platform, key)
        while (known := take(index)) is not None:
            seconds, problem = client.ask(known)
            times.append(seconds)
            if problem:
                problems.append(problem)

    workers = [threading.Thread(target=one, args=(index,)) for index in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return times, problems


def queue_of(items: list[Known]) -> Callable[[int], Known | None]:
    """Hands out each once."""
    waiting, lock = list(items), threading.Lock()

    def take(_: int) -> Known | None:
        with lock:
            return waiting.pop() if waiting else None

    return take


def for_seconds(items: list[Known], seconds: float, seed: int) -> Callable[[int], Known | None]:
    """Hands out any of them until the time is over."""
    generator, end = random.Random(seed), time.monotonic() + seconds
    return lambda _: generator.choice(items) if time.monotonic() < end else None


def milliseconds(times: list[float]) -> dict[str, float]:
    """p50, p99 and the most."""
    ordered = sorted(times) or [0.0]
    return {
        "p50_ms": round(1000 * ordered[len(ordered) // 2], 2),
        "p99_ms": round(1000 * ordered[int(len(ordered) * 0.99)], 2),
        "max_ms": round(1000 * ordered[-1], 2),
    }


def plain_starts(platform: Platform, count: int) -> list[float]:
    """Seconds from the start of an interpreter to a ready server, as it is without a forkserver."""
    entries = json.loads((platform.folder / "processes.json").read_text())["servers"][:count]
    found = []
    for place, entry in enumerate(entries):
        status = platform.folder / f"plain-{place}.json"
        argv = list(entry["argv"])
        argv[argv.index("--socket") + 1] = str(platform.folder / f"plain-{place}.sock")
        argv[argv.index("--status") + 1] = str(status)
        began = time.perf_counter()
        process = subprocess.Popen(argv, env=entry["environ"], cwd=entry["cwd"], stdout=subprocess.DEVNULL)
        while not (status.exists() and json.loads(status.read_text() or "{}").get("state") == "ready"):
            if process.poll() is not None:
                raise RuntimeError(f"{argv} ended with {process.returncode}")
            time.sleep(0.002)
        found.append(time.perf_counter() - began)
        process.kill()
        process.wait()
    return found


def measure(folder: Path, models: int, memory_mb: int, seconds: float, plain: int = 3) -> dict[str, Any]:
    """Everything: the figures, and ``problems`` in words. ``plain``: how many starts without a forkserver to time."""
    platform = Platform(folder)
    known = install(folder, models)
    platform.start()
    try:
        settings = {"multi_model": {"memory_mb": memory_mb, "cold_start_seconds": 60}}
        platform.call("POST", "/api/endpoints", {"name": ENDPOINT, "settings": settings})
        began = time.perf_counter()
        platform.call("POST", f"/api/endpoints/{ENDPOINT}/models", {"models": [each.name for each in known]})
        added = time.perf_counter() - began
        key = platform.call("POST", "/api/keys", {"role": "invoker", "endpoints": [ENDPOINT]})["key"]
        sampler = Sampler(run_dir_for(folder))
        sampler.start()
        first, problems = work(platform, key, 1, queue_of(known[:1]))
        cold, wrong = work(platform, key, 8, queue_of(known))
        problems += wrong
        hot_models, others = known[:HOT], known[HOT:]
        work(platform, key, 1, queue_of(hot_models))
        alone, wrong = work(platform, key, 2, for_seconds(hot_models, seconds / 2, 1))
        problems += wrong
        loading: list[Any] = []
        beside = threading.Thread(
            target=lambda: loading.extend(work(platform, key, 2, for_seconds(others, seconds, 2)))
        )
        beside.start()
        busy, wrong = work(platform, key, 2, for_seconds(hot_models, seconds, 3))
        problems += wrong
        beside.join()
        problems += loading[1]
        sampler.over.set()
        sampler.join()
        started = plain_starts(platform, min(plain, models))
    finally:
        platform.stop()
    starts = (folder / "logs" / "supervisor.log").read_text().count(": forked as pid")
    most = max(sampler.sums) / 1e6
    if most > memory_mb:
        problems.append(f"the servers took {most:.0f} MB; the limit is {memory_mb}")
    return {
        "models": models,
        "limit_mb": memory_mb,
        "most_mb": round(most, 1),
        "samples": len(sampler.sums),
        "most_servers": sampler.most,
        "forks": starts,
        "requests": len(first) + len(cold) + len(alone) + len(busy) + len(loading[0]),
        "add_seconds": round(added, 2),
        "first": milliseconds(first),
        "cold": milliseconds(cold),
        "others": milliseconds(loading[0]),
        "hot_alone": milliseconds(alone),
        "hot_while_loading": milliseconds(busy),
        "plain_start": milliseconds(started),
        "problems": problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--memory-mb", type=int, default=700)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--keep", action="store_true", help="leave the installation where it is")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="loopline-many-"))
    try:
        figures = measure(folder / "data", given.models, given.memory_mb, given.seconds)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    for name, value in figures.items():
        if name != "problems":
            sys.stderr.write(f"{name:20} {value}\n")
    for problem in figures["problems"][:20]:
        sys.stderr.write(f"PROBLEM {problem}\n")
    print(json.dumps({**figures, "problems": len(figures["problems"]), "cpus": os.cpu_count()}))
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
