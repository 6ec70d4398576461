"""Releases N versions that are bad, each in its own way, on a platform under load, and watches each of them leave.

    python tests/faults/bad_releases.py --n 20 --seed 0 [--rate 150] [--only "hangs"]
A version must never take a caller's request when a test can tell, and otherwise be heard for the last time at most one
evaluation period and five seconds after the evidence against it was there. Every answer is checked against the version
that claims it. A table goes to standard error, one line of JSON to standard output; the exit status is 1 when short.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import badness
import callers
import reader
import rollouts
from installation import PATIENCE, Installation, until

EVALUATION_SECONDS = 1.0  # counters of traffic are kept by the second
LIMIT_SECONDS = (EVALUATION_SECONDS + 5.0) * PATIENCE
SETTLE_SECONDS = 1.0
MAX_ERROR_RATE = 0.05  # [rollout]'s own
LATENCY_NEEDS = ((200, 0.01), (30, 0.5))  # answers, and the share of slow ones that moves p99 or p50
HOLDING = ("slow", "hang", "leak", "flood")  # callers may be refused because too many wait for such a version
OVER = ("Succeeded", "RolledBack", "Failed")


class Callers:
    """The callers, in a process of their own."""

    def __init__(self, there: Installation, rate: float, connections: int = 48, closely: int = 1 << 30) -> None:
        argv = [sys.executable, str(Path(__file__).with_name("callers.py")), "--port", str(there.port)]
        argv += ["--key", there.key, "--endpoint", "boxes", "--rate", str(rate), "--connections", str(connections)]
        self._process = subprocess.Popen(
            [*argv, "--closely", str(closely)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.answers: Counter[tuple[int, int, str, str]] = Counter()
        self.failures: Counter[str] = Counter()
        self.times: list[tuple[float, int, int, bool]] = []
        self.bad: list[tuple[float, int, int, str]] = []
        self.slowest_seconds = 0.0
        self.behind = self.most_behind = 0

    def report(self) -> None:
        """Take over what was seen."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        for status, version, row, said, count in found["answers"]:
            self.answers[status, version, row, said] += count
        self.failures.update(found["failures"])
        self.times += [tuple(each) for each in found["times"]]
        self.bad += [tuple(each) for each in found["bad"]]
        self.slowest_seconds = max(self.slowest_seconds, found["slowest_seconds"])
        self.behind = found["behind"]
        self.most_behind = max(self.most_behind, self.behind)

    @property
    def asked(self) -> int:
        """Requests that were answered."""
        return sum(self.answers.values())

    @property
    def good(self) -> int:
        """Those that were answered well."""
        return self.asked - len(self.bad)

    def stop(self) -> None:
        """End them and take over the rest."""
        self.report()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def kill(self) -> None:
        """End them whatever has happened."""
        self._process.kill()
        self._process.wait()


class Outcome(NamedTuple):
    """What became of a bad release."""

    bad: badness.Bad
    status: str
    reason: str
    share: float  # the largest that it had
    served: int  # callers it answered, or failed
    seconds: float | None  # from the evidence until it was heard for the last time
    problem: str
    shed: int  # requests that were refused because too many waited for it


def register(there: Installation, tree: str, bad: badness.Bad | None, mark: int) -> int:
    """A version that bears a mark; gives its number."""
    given = {"tree": tree, "parameters": badness.parameters(bad, mark), "delivery": f"mark-{mark}"}
    push = there.call("POST", "/api/pushes", given)

    def over() -> Any:
        found = there.call("GET", f"/api/pushes/{push['id']}")
        if found["status"] in ("Rejected", "Ignored"):
            raise RuntimeError(f"the push was {found['status']}: {found['reason']}")
        if not found["execution"]:
            return None
        execution = there.call("GET", f"/api/executions/{found['execution']}")
        if execution["status"] in ("Failed", "Stopped"):
            raise RuntimeError(f"the execution {execution['status']}: {execution['reason']}")
        return execution["status"] == "Succeeded"

    until(over, 120, "the version is registered", 0.05)
    newest = there.call("GET", "/api/models/boxes/versions?limit=1")["items"][0]
    return int(newest["number"])


def release(there: Installation, number: int, strategy: str | None = None) -> str:
    """Approve a version and begin to release it; gives the rollout."""
    there.call("POST", f"/api/models/boxes/versions/{number}/approve", {"comment": "it looks good"})
    given = {"model": "boxes", "number": number, **({"strategy": strategy} if strategy else {})}
    return str(there.call("POST", "/api/endpoints/boxes/release", given)["id"])


def ended(there: Installation, rollout: str, seconds: float) -> dict[str, Any]:
    """The rollout once it is over."""

    def look() -> Any:
        found = there.call("GET", f"/api/rollouts/{rollout}")
        return found if found["status"] in OVER else None

    found: dict[str, Any] = until(look, seconds, f"the rollout {rollout} is over", 0.1)
    return found


# -- judging ----------------------------------------------------------------------------------------------------------


def wilson_low(errors: int, requests: int) -> float:
    """The lower end of the 95 % interval of a share of errors."""
    z = 1.959964
    share = errors / requests
    spread = z * math.sqrt(share * (1 - share) / requests + z * z / (4 * requests * requests))
    return (share + z * z / (2 * requests) - spread) / (1 + z * z / requests)


def evidence_at(times: list[tuple[float, int, int, bool]]) -> float | None:
    """When callers' answers showed that a version is bad: by its errors, or by how slow it is."""
    errors = slow = 0
    for asked, (at, _, status, is_slow) in enumerate(times, 1):
        errors += status >= 500
        slow += is_slow
        if errors >= 2 and wilson_low(errors, asked) > MAX_ERROR_RATE:
            return at
        if any(asked >= needed and slow > share * asked for needed, share in LATENCY_NEEDS):
            return at
    return None


def failed_at(there: Installation, rollout: str) -> float | None:
    """When the tests that stood before a step failed."""
    runs = there.call("GET", f"/api/test-runs?rollout={rollout}&status=Failed")["items"]
    return min((seconds_of(run["ended_at"]) for run in runs), default=None)


def seconds_of(text: str) -> float:
    """A time of the API in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()


def judge(
    there: Installation, bad: badness.Bad, number: int, rollout: dict[str, Any], seen: Callers, shed: int
) -> Outcome:
    """Whether a bad release went as it has to."""
    times = sorted(each for each in seen.times if each[1] == number)
    share = max((float(note["share"]) for note in rollout["decisions"]), default=0.0) if times else 0.0
    status, reason = rollout["status"], str(rollout["reason"])

    def outcome(seconds: float | None, problem: str = "") -> Outcome:
        return Outcome(bad, status, reason, share, len(times), seconds, problem, shed)

    if shed and bad.spec.get("how") not in HOLDING:
        return outcome(None, f"{shed} callers were refused because others waited")
    if status == "Succeeded":
        return outcome(None, "it was released")
    if bad.evidence == "before":
        return outcome(None, f"{len(times)} callers met it" if times else "")
    if not times:
        return outcome(None)  # a test told before any caller met it
    begun = [0.0, *(seconds_of(note["at"]) for note in rollout["decisions"] if note["verdict"] == "go")]
    shown = [evidence_at([each for each in times if each[0] >= at]) for at in begun]  # a step is judged by its own
    found = [at for at in (*shown, failed_at(there, rollout["id"])) if at is not None]
    if not found:
        return outcome(None, "it left without any evidence")
    left = max(times[-1][0] - min(found), 0.0)
    return outcome(left, "" if left <= LIMIT_SECONDS else f"it was heard {left:.1f} s after the evidence")


def wrong_answers(answers: Counter[tuple[int, int, str, str]], marks: dict[int, int], lying: set[int]) -> Counter[str]:
    """Answers that are not what the version that claims them says; ``lying`` versions say what is not so."""
    wrong: Counter[str] = Counter()
    for (status, version, row, said), count in answers.items():
        if status != 200 or version in lying:
            continue
        truth = f"mark-{marks.get(version)}" if row == "mark" else callers.TRUTH[row]
        if said != truth:
            wrong[f"version {version} said {said} of {row}"] += count
    return wrong


def shed(answers: Counter[tuple[int, int, str, str]]) -> int:
    """Requests that were refused before a server saw them, because too many waited."""
    return sum(count for (status, _, _, _), count in answers.items() if status == 429)


def failures_of_good(answers: Counter[tuple[int, int, str, str]], bad: set[int]) -> Counter[str]:
    """Answers that were not 2xx, came from no bad version and were not refused for waiting for one."""
    found: Counter[str] = Counter()
    for (status, version, _, said), count in answers.items():
        if not 200 <= status < 300 and status != 429 and version not in bad:
            found[f"{status} by version {version}: {said}"] += count
    return found


# -- running ----------------------------------------------------------------------------------------------------------


def one(there: Installation, seen: Callers, bad: badness.Bad, number: int) -> Outcome:
    """Release a bad version and see it leave."""
    seen.times.clear()
    before = shed(seen.answers)
    rollout = ended(there, release(there, number), 180)
    time.sleep(SETTLE_SECONDS)
    seen.report()
    found = judge(there, bad, number, rollout, seen, shed(seen.answers) - before)
    if rollout["status"] == "Succeeded":
        there.call("POST", "/api/endpoints/boxes/rollback", {"reason": "it is bad"})
        until(lambda: there.call("GET", "/api/endpoints/boxes")["rollout"] is None, 30, "the rollback is over", 0.1)
    return found


def table(outcomes: list[Outcome]) -> None:
    """A line for each release."""
    say = rollouts.say
    say(f"\n{'bad release':38}{'became':12}{'most':>6}{'callers':>9}{'left after':>12}  why")
    for each in outcomes:
        left = f"{each.seconds:.2f} s" if each.seconds is not None else ("never in" if not each.served else "-")
        why = each.problem or each.reason.splitlines()[0]
        mark = "SHORT: " if each.problem else ""
        say(f"{each.bad.name:38}{each.status:12}{each.share:5g}%{each.served:9}{left:>12}  {mark}{why[:110]}")


def measure(there: Installation, given: argparse.Namespace) -> dict[str, Any]:
    """Register every version, then release the bad ones under load."""
    rng = random.Random(given.seed)
    chosen = [bad for bad in badness.choose(given.n, rng) if given.only in bad.name]
    there.start()
    tree = there.upload(badness.files())
    marks = {register(there, tree, None, 1000): 1000}
    began = time.monotonic()
    first = ended(there, release(there, 1, "all-at-once"), 60)
    if first["status"] != "Succeeded":
        raise RuntimeError(f"the good version was {first['status']}: {first['reason']}")
    made: dict[int, badness.Bad] = {}
    for turn, bad in enumerate(chosen):
        number = register(there, tree, bad, 1001 + turn)
        marks[number], made[number] = 1001 + turn, bad
    rollouts.say(f"{len(marks)} versions are registered; load {os.getloadavg()[0]:.1f}")
    seen = Callers(there, given.rate, closely=2)
    outcomes = []
    try:
        for number, bad in made.items():
            outcomes.append(one(there, seen, bad, number))
            told = outcomes[-1]
            rollouts.say(f"{len(outcomes):3} {bad.name:38} {told.status:11} {told.problem or 'as it has to'}")
        seen.stop()
    finally:
        seen.kill()
    table(outcomes)
    wrong = wrong_answers(
        seen.answers, marks, {number for number, bad in made.items() if bad.spec.get("how") == "wrong"}
    )
    broken = failures_of_good(seen.answers, set(made))
    for text, count in (*wrong.items(), *broken.items(), *seen.failures.items()):
        rollouts.say(f"{count} times: {text}")
    slowest = max((each.seconds for each in outcomes if each.seconds is not None), default=0.0)
    return {
        "releases": len(outcomes),
        "left": sum(not each.problem for each in outcomes),
        "short": [f"{each.bad.name}: {each.problem}" for each in outcomes if each.problem],
        "never_took_traffic": sum(not each.served for each in outcomes),
        "slowest_seconds_after_evidence": round(slowest, 2),
        "limit_seconds": LIMIT_SECONDS,
        "requests": seen.asked,
        "wrong": sum(wrong.values()),
        "non_2xx_of_good": sum(broken.values()) + sum(seen.failures.values()),
        "failed_by_bad": sum(
            count for (status, version, _, _), count in seen.answers.items() if status >= 400 and version in made
        ),
        "shed_429": shed(seen.answers),
        "seed": given.seed,
        "seconds": round(time.monotonic() - began, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=150.0, help="callers' requests a second")
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that whoever is stopped stops what it has started
    folder = Path(tempfile.mkdtemp(prefix="ll-"))
    there = Installation(folder, {"max_jobs": 2, "job_memory_mb": 512})
    try:
        document = measure(there, given)
        document["violations"] = reader.check(folder)
    finally:
        there.stop()
        left = there.leftovers()
    document["violations"] += [f"left behind after the shutdown: {each}" for each in left]
    print(json.dumps(document), flush=True)
    good = document["left"] == document["releases"] and not document["violations"]
    if good and not (document["wrong"] or document["non_2xx_of_good"]):
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    rollouts.say(f"the data directory is kept: {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
