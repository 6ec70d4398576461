"""A platform under load at a share of what it can do, while everything that moves traffic goes on in random order.

    python tests/faults/soak.py --minutes 10 --seed 0 [--control-seconds 300] [--share 0.7]
Rollouts, canaries that are turned back, killed model servers, servers added and taken away; then control is stopped
for a while, and a gateway is killed. Every answer is checked against the version that claims it. Nothing but a request
in flight on a killed server may fail. Progress goes to standard error, one line of JSON to standard output; the exit
status is 1 when short.
"""

import argparse
import http.client
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import bad_releases
import badness
import reader
from bad_releases import Callers
from installation import PATIENCE, Installation, until
from rollouts import say

VERSIONS = 6
SERVERS = 2  # of each version at least: one is killed now and then
MOST_SERVERS = 4
MEASURE_SECONDS = 6.0
CONNECTIONS = 48
IN_FLIGHT_SECONDS = 5.0 * PATIENCE  # after a kill, within which an answer may say that its server is gone
GATEWAY_SECONDS = 1.0 * PATIENCE
PROBE_SECONDS = 0.01
KILLED = "the model server ended while it had this request"


class Kill(NamedTuple):
    """A model server that was killed."""

    at: float
    server: str


class Diary:
    """What was done to the platform."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.kills: list[Kill] = []
        self.problems: list[str] = []

    def note(self, what: str) -> None:
        """Count something that was done."""
        self.done[what] += 1
        say(f"  {what}")


def files(servers: int) -> dict[str, str]:
    """The project with so many servers for each version that takes traffic."""
    made = badness.files()
    loop = made["loop.toml"].partition('[[tests]]\nname = "busy"')[0]
    # What is slow here is the load; that slow versions leave is what bad_releases.py shows.
    loop = loop.replace("bake_seconds = 4", "bake_seconds = 2\nmax_latency_ratio = 1000.0").replace(
        "steps = [25, 50]", "steps = [20]"
    )
    loop += f"\n[scaling]\nmin = {servers}\nmax = {servers}\ntarget_in_flight = 100.0\nscale_in_cooldown_seconds = 0\n"
    return {
        **made,
        "loop.toml": loop.replace("deploy_on_approval = false", f"deploy_on_approval = false\ninstances = {SERVERS}"),
    }


# -- moving traffic ---------------------------------------------------------------------------------------------------


class Mover(threading.Thread):
    """Releases one version after the other, and turns some of them back in the middle."""

    def __init__(self, there: Installation, diary: Diary, rng: random.Random, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.there, self.diary, self.rng, self.over = there, diary, rng, over

    def run(self) -> None:
        while not self.over.is_set():
            try:
                self.move(turn_back=self.rng.random() < 0.4)
            except Exception as error:
                self.diary.problems.append(f"moving traffic: {error!r}")
                self.over.wait(2)
            self.over.wait(self.rng.uniform(0.2, 2))

    def move(self, *, turn_back: bool) -> None:
        """One rollout."""
        number = self.choose()
        strategy = "canary" if turn_back or self.rng.random() < 0.6 else "all-at-once"
        given = {"model": "boxes", "number": number, "strategy": strategy}
        rollout = self.there.call("POST", "/api/endpoints/boxes/release", given)["id"]
        if turn_back:

            def baking() -> bool:
                return bool(
                    self.there.call("GET", f"/api/rollouts/{rollout}")["status"] in ("Baking", *bad_releases.OVER)
                )

            until(baking, 60, "the canary takes traffic", 0.1)
            self.there.call("POST", "/api/endpoints/boxes/rollback", {"reason": "soak"})
        found = bad_releases.ended(self.there, rollout, 120)
        until(lambda: self.there.call("GET", "/api/endpoints/boxes")["rollout"] is None, 60, "no rollout goes on", 0.1)
        self.diary.note(f"{strategy} {found['status']}" + (" by hand" if turn_back else ""))
        if found["status"] != "Succeeded" and not turn_back:
            self.diary.problems.append(f"version {number}, {strategy}: {found['status']}: {found['reason']}")

    def choose(self) -> int:
        """A version that does not serve, approved."""
        live = {item["version"] for item in self.there.call("GET", "/api/live")["items"]}
        number = self.rng.choice([each for each in range(1, VERSIONS + 1) if each not in live])
        if self.there.call("GET", f"/api/models/boxes/versions/{number}")["status"] != "Approved":
            self.there.call("POST", f"/api/models/boxes/versions/{number}/approve", {"comment": "soak"})
        return number


class Breaker(threading.Thread):
    """Kills model servers, adds some and takes some away."""

    def __init__(self, there: Installation, diary: Diary, rng: random.Random, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.there, self.diary, self.rng, self.over = there, diary, rng, over
        self.trees = {servers: there.upload(files(servers)) for servers in range(SERVERS, MOST_SERVERS + 1)}
        self.servers = SERVERS

    def run(self) -> None:
        while not self.over.wait(self.rng.uniform(2, 8)):
            try:
                self.kill() if self.rng.random() < 0.6 else self.scale()
            except Exception as error:
                self.diary.problems.append(f"breaking: {error!r}")

    def kill(self) -> None:
        """Kill a server of a version that takes traffic, while another one of it is there to go on."""
        variants = self.there.call("GET", "/api/endpoints/boxes")["variants"]
        ready = {
            server["id"]: sum(other["state"] == "ready" for other in variant["servers"])
            for variant in variants
            if variant["weight"] > 0
            for server in variant["servers"]
            if server["state"] == "ready"
        }
        victims = [child for child in self.there.children() if ready.get(child["id"], 0) >= 2]
        if victims:
            victim = self.rng.choice(victims)
            self.diary.kills.append(Kill(time.time(), victim["id"]))
            os.kill(victim["pid"], signal.SIGKILL)
            self.diary.note("killed a server")

    def scale(self) -> None:
        """Another number of servers."""
        wanted = self.rng.choice([each for each in self.trees if each != self.servers])
        self.there.call("POST", "/api/projects", {"tree": self.trees[wanted]})
        word, self.servers = ("out" if wanted > self.servers else "in"), wanted
        self.diary.note(f"scaled {word}")


# -- judging ----------------------------------------------------------------------------------------------------------


def failures(seen: Callers, kills: list[Kill]) -> tuple[int, Counter[str]]:
    """How many requests failed because their server was killed, and what failed otherwise."""
    excused, found = 0, Counter(seen.failures)
    for at, status, version, said in seen.bad:
        recent = any(0 <= at - kill.at <= IN_FLIGHT_SECONDS for kill in kills)
        if status == 503 and said.startswith(KILLED) and recent:
            excused += 1
        else:
            found[f"{status} by version {version}: {said}"] += 1
    return excused, found


def without_gateway(there: Installation) -> float:
    """Kill the gateway; gives the seconds until predictions are answered again."""
    killed_at = time.monotonic()
    os.kill(there.pids("gateway")[-1], signal.SIGKILL)
    body = json.dumps({"instances": [{"size": 6.0}]})
    headers = {"authorization": f"Bearer {there.key}", "content-type": "application/json"}

    def answers() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", there.port, timeout=5 * PATIENCE)
        try:
            connection.request("POST", "/endpoints/boxes/invocations", body, headers)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    until(answers, 20, "predictions are answered again", PROBE_SECONDS)
    return time.monotonic() - killed_at


# -- running ----------------------------------------------------------------------------------------------------------


def capacity(there: Installation) -> float:
    """Good answers a second that callers with so many connections get, who ask as fast as they are answered."""
    seen = Callers(there, 0.0, CONNECTIONS)
    try:
        time.sleep(1)
        seen.report()
        before, began = seen.good, time.monotonic()
        time.sleep(MEASURE_SECONDS)
        seen.report()
        return (seen.good - before) / (time.monotonic() - began)
    finally:
        seen.kill()


def stir(there: Installation, seen: Callers, diary: Diary, rng: random.Random, seconds: float) -> None:
    """Let everything happen for so long, then let it come to rest."""
    over = threading.Event()
    threads = [kind(there, diary, random.Random(rng.random()), over) for kind in (Mover, Breaker)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(5.0, max(end - time.monotonic(), 0.01)))
        seen.report()
        say(f"{end - time.monotonic():6.0f} s left, {seen.asked} answers, {len(seen.bad)} not 2xx, {seen.behind} late")
    over.set()
    for thread in threads:
        thread.join(150 * PATIENCE)


def without_control(there: Installation, seen: Callers, seconds: float) -> tuple[int, int]:
    """Stop control for so long; gives how many requests were answered meanwhile, and how many of them not well."""
    seen.report()
    asked, bad, lost = seen.asked, len(seen.bad), sum(seen.failures.values())
    control = there.pids("control")[-1]
    os.kill(control, signal.SIGSTOP)
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(5.0, max(end - time.monotonic(), 0.01)))
            seen.report()
            say(f"{end - time.monotonic():6.0f} s left without control, {seen.asked - asked} answers")
    finally:
        os.kill(control, signal.SIGCONT)
    return seen.asked - asked, len(seen.bad) - bad + sum(seen.failures.values()) - lost


def prepare(there: Installation) -> dict[int, int]:
    """Register the versions and let the first one serve; gives their marks."""
    there.start()
    tree = there.upload(files(SERVERS))
    marks = {bad_releases.register(there, tree, None, 1000 + n): 1000 + n for n in range(VERSIONS)}
    first = bad_releases.ended(there, bad_releases.release(there, 1, "all-at-once"), 60)
    if first["status"] != "Succeeded":
        raise RuntimeError(f"the first version was {first['status']}: {first['reason']}")
    return marks


def measure(there: Installation, given: argparse.Namespace) -> dict[str, Any]:
    """The whole of it."""
    marks = prepare(there)
    most = capacity(there)
    rate = given.rate or round(given.share * most)
    say(f"capacity {most:.0f} requests/s, load at {rate:.0f}/s; load average {os.getloadavg()[0]:.1f}")
    diary, rng = Diary(), random.Random(given.seed)
    seen = Callers(there, rate, CONNECTIONS)
    try:
        stir(there, seen, diary, rng, given.minutes * 60)
        seen.report()
        excused, broken = failures(seen, diary.kills)
        asked_alone, bad_alone = without_control(there, seen, given.control_seconds)
        gateway_seconds = without_gateway(there)
        time.sleep(1)
        seen.report()
    finally:
        seen.kill()
    wrong = bad_releases.wrong_answers(seen.answers, marks, set())
    for text in [f"{count} times: {text}" for text, count in (*wrong.items(), *broken.items())] + diary.problems:
        say(text)
    return {
        "minutes": given.minutes,
        "capacity": round(most),
        "rate": rate,
        "requests": seen.asked,
        "wrong": sum(wrong.values()),
        "failed": sum(broken.values()),
        "failures": dict(broken.most_common(5)),
        "in_flight_on_killed_servers": excused,
        "kills": len(diary.kills),
        "done": dict(diary.done),
        "problems": diary.problems,
        "control_stopped_seconds": given.control_seconds,
        "answers_without_control": asked_alone,
        "failed_without_control": bad_alone,
        "gateway_gone_seconds": round(gateway_seconds, 3),
        "most_late": seen.most_behind,
        "slowest_seconds": seen.slowest_seconds,
        "seed": given.seed,
        "load": round(os.getloadavg()[0], 1),
    }


def is_good(document: dict[str, Any]) -> bool:
    """Whether everything held."""
    none = ("wrong", "failed", "failed_without_control", "problems", "violations")
    return document["gateway_gone_seconds"] <= GATEWAY_SECONDS and not any(document[name] for name in none)


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.7, help="of the measured capacity")
    parser.add_argument("--rate", type=float, default=0.0, help="requests/s, in place of a share of the capacity")
    parser.add_argument("--control-seconds", type=float, default=300)
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
    if is_good(document):
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    say(f"the data directory is kept: {folder}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
