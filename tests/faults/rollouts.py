"""Moves an endpoint from its first version to a fresh one and back, N times, under load, and says what clients saw.

    python tests/faults/rollouts.py --n 50 [--connections 64]
A rollback counts from the command until the API says that every gateway has switched and no client is answered by the
version that was left any more, whichever is later. Progress goes to standard error, one line of JSON to standard
output; the exit status is 1 when p99 exceeds a second or any answer was not 2xx or not of the version that it claims.
"""

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import projects
import reader
from installation import PATIENCE, Installation, until

P99_SECONDS = 1.0 * PATIENCE
SETTLE_SECONDS = 0.3  # after a rollback, before the clients are asked whom they heard last
WARM_SECONDS = 1.0


class Load:
    """The clients, in a process of their own."""

    def __init__(self, there: Installation, connections: int) -> None:
        argv = [sys.executable, str(Path(__file__).with_name("load.py")), "--port", str(there.port)]
        argv += ["--key", there.key, "--endpoint", "boxes", "--connections", str(connections)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.answers: Counter[tuple[int, int, str]] = Counter()
        self.failures: Counter[str] = Counter()
        self.slowest_ms = 0.0

    def report(self) -> dict[int, float]:
        """Take over what was counted; gives the time at which each version answered last."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        for status, version, said, count in found["answers"]:
            self.answers[status, version, said] += count
        self.failures.update(found["failures"])
        self.slowest_ms = max(self.slowest_ms, found["slowest_ms"])
        return {int(version): at for version, at in found["last"].items()}

    def stop(self) -> None:
        """End the clients and take over the rest."""
        self.report()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def register(there: Installation, tree: str, mark: int) -> int:
    """A fresh version, from the training that is cached; gives its number."""
    push = there.call("POST", "/api/pushes", {"tree": tree, "parameters": {"mark": mark}, "delivery": f"mark-{mark}"})

    def execution() -> Any:
        found = there.call("GET", f"/api/pushes/{push['id']}")
        if found["status"] in ("Rejected", "Ignored"):
            raise RuntimeError(f"the push was {found['status']}: {found['reason']}")
        return found["execution"]

    identifier = until(execution, 60, "the push started an execution", 0.05)

    def over() -> Any:
        found = there.call("GET", f"/api/executions/{identifier}")
        if found["status"] in ("Failed", "Stopped"):
            raise RuntimeError(f"the execution {found['status']}: {found['reason']}")
        return found["status"] == "Succeeded"

    until(over, 60, "the execution succeeded", 0.05)
    newest = there.call("GET", "/api/models/boxes/versions?limit=1")["items"][0]
    return int(newest["number"])


def release(there: Installation, number: int, strategy: str, until_status: str) -> None:
    """Approve a version, release it, and wait for a status of its rollout."""
    there.call("POST", f"/api/models/boxes/versions/{number}/approve", {"comment": "round"})
    given: dict[str, Any] = {"model": "boxes", "number": number, "strategy": strategy}
    if until_status == "Baking":
        given["settings"] = {"bake_seconds": 3600}  # it is left by the rollback
    rollout = there.call("POST", "/api/endpoints/boxes/release", given)

    def reached() -> bool:
        found = there.call("GET", f"/api/rollouts/{rollout['id']}")
        if found["status"] in ("RolledBack", "Failed"):
            raise RuntimeError(f"the rollout {found['status']}: {found['reason']}")
        return bool(found["status"] == until_status)

    until(reached, 60, f"the rollout of version {number} is {until_status}", 0.02)


def go_back(there: Installation, load: Load, number: int) -> tuple[float, float]:
    """Roll back; gives the seconds until the API said so, and until the version was heard for the last time."""
    commanded_at, began = time.time(), time.monotonic()
    answer = there.call("POST", "/api/endpoints/boxes/rollback", {"reason": "round"})
    told = time.monotonic() - began
    if answer["serving"]["version"] != 1:
        raise RuntimeError(f"after the rollback version {answer['serving']['version']} serves")
    time.sleep(SETTLE_SECONDS)
    heard = load.report().get(number)
    if heard is None:
        raise RuntimeError(f"no client was ever answered by version {number}")

    def idle() -> bool:
        return bool(there.call("GET", "/api/endpoints/boxes")["rollout"] is None)

    until(idle, 30, "the rollback is over", 0.05)
    return told, max(0.0, heard - commanded_at)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least ``share`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def judge(load: Load, marked: dict[int, int]) -> tuple[int, int, int]:
    """Requests, answers that were not 2xx (connections that failed among them), and wrong answers."""
    requests = sum(load.answers.values())
    bad = sum(count for (status, _, _), count in load.answers.items() if not 200 <= status < 300)
    wrong = sum(
        count
        for (status, version, said), count in load.answers.items()
        if 200 <= status < 300 and said != f"mark-{marked.get(version)}"
    )
    return requests, bad + sum(load.failures.values()), wrong


def measure(there: Installation, given: argparse.Namespace) -> dict[str, Any]:
    """Register the versions, then the rounds under load."""
    there.start()
    tree = there.upload(projects.rounds())
    marked = {register(there, tree, 1000): 1000}
    release(there, 1, "all-at-once", "Succeeded")
    for turn in range(given.n):
        marked[register(there, tree, 1001 + turn)] = 1001 + turn
    say(f"{len(marked)} versions are registered; load {os.getloadavg()[0]:.1f}")
    load = Load(there, given.connections)
    told, left = [], []
    began = time.monotonic()
    try:
        time.sleep(WARM_SECONDS)
        for turn in range(given.n):
            number = 2 + turn
            strategy, status = ("canary", "Baking") if turn % 2 else ("all-at-once", "Succeeded")
            release(there, number, strategy, status)
            until(lambda number=number: number in load.report(), 30, f"version {number} is heard")
            one, other = go_back(there, load, number)
            told.append(one)
            left.append(other)
            text = f"told after {one * 1000:6.1f} ms, last heard after {other * 1000:6.1f} ms"
            say(f"{turn + 1:4} version {number}, {strategy:11} until {status:9}: {text}  load {os.getloadavg()[0]:.1f}")
        seconds = time.monotonic() - began
    finally:
        load.stop()
    requests, bad, wrong = judge(load, marked)
    for failure, count in load.failures.items():
        say(f"{count} times {failure}")
    for (code, version, said), count in load.answers.items():
        if code != 200 or said != f"mark-{marked.get(version)}":
            say(f"{count} answers were {code}, version {version}: {said}")
    took = [max(pair) for pair in zip(told, left, strict=True)]
    return {
        "rounds": given.n,
        "connections": given.connections,
        "rollback_median_seconds": round(statistics.median(took), 4),
        "rollback_p99_seconds": round(percentile(took, 0.99), 4),
        "rollback_max_seconds": round(max(took), 4),
        "told_median_seconds": round(statistics.median(told), 4),
        "last_heard_median_seconds": round(statistics.median(left), 4),
        "last_heard_max_seconds": round(max(left), 4),
        "requests": requests,
        "requests_per_second": round(requests / seconds),
        "slowest_ms": load.slowest_ms,
        "non_2xx": bad,
        "wrong": wrong,
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--connections", type=int, default=64)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever is stopped stops what it has started
    folder = Path(tempfile.mkdtemp(prefix="ll-"))
    there = Installation(folder, {"max_jobs": 2})
    try:
        document = measure(there, given)
        document["violations"] = reader.check(folder)
    finally:
        there.stop()
        left = there.leftovers()
    document["violations"] += [f"left behind after the shutdown: {each}" for each in left]
    print(json.dumps(document), flush=True)
    good = document["rollback_p99_seconds"] <= P99_SECONDS
    if good and not (document["non_2xx"] or document["wrong"] or document["violations"]):
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    say(f"the data directory is kept: {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
