"""One turn of the loop at a time, broken at a chosen moment, and what has to be true when it has come to its end."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import projects
import reader
from installation import PATIENCE, Installation, Refused, alive, state, until

WELL_ANSWERS = 6  # of two connections: each has been answered again
VICTIMS = ("supervisor", "control", "gateway", "server", "forkserver", "shim", "job", "monitor")
HIT_SECONDS = 12.0 * PATIENCE
END_SECONDS = 40.0  # how long a loop that is too slow is waited for, so that the next one starts clean
SEEN_SECONDS = 1.3  # an attempt is seen to run when control looks, once a second
STOPPED = 0.5 * PATIENCE  # how long a stopped process may take to show it

_PUSHES = """(SELECT p.id FROM pushes p WHERE p.delivery = :delivery
              OR p.id IN (SELECT push FROM retrainings WHERE delivery = :asked))"""
_OF_LOOP = f"(SELECT e.id FROM executions e WHERE e.push IN {_PUSHES})"
_VERSIONS = f"(SELECT v.id FROM versions v WHERE v.execution IN {_OF_LOOP})"
_STEPS = f"(SELECT s.id FROM steps s WHERE s.execution IN {_OF_LOOP})"
# The records of a loop, noun by noun.
RECORDS = {
    "push": f"SELECT id, status FROM pushes WHERE id IN {_PUSHES}",
    "execution": f"SELECT id, status FROM executions WHERE id IN {_OF_LOOP}",
    "step": f"SELECT id, status FROM steps WHERE execution IN {_OF_LOOP}",
    "job": f"""SELECT id, status FROM jobs WHERE owner_id IN {_STEPS}
               OR owner_id IN {_PUSHES}
               OR owner_id IN (SELECT id FROM evaluations WHERE version IN {_VERSIONS})""",
    "evaluation": f"SELECT id, status FROM evaluations WHERE version IN {_VERSIONS}",
    "rollout": f"""SELECT r.id, r.status FROM rollouts r JOIN variants v ON v.id = r.variant
                   WHERE v.version IN {_VERSIONS} AND r.kind = 'release'""",
    "retraining": "SELECT id, status FROM retrainings WHERE delivery = :asked",
}
RECORDS["attempt"] = f"SELECT id, status FROM attempts WHERE job IN (SELECT id FROM ({RECORDS['job']}))"
_STEP_ATTEMPTS = f"SELECT a.id FROM attempts a JOIN jobs j ON j.id = a.job WHERE j.owner_id IN {_STEPS} AND a.status = "


class Moment(NamedTuple):
    """When to strike: the scenario that leads there, and the query that finds rows while it lasts."""

    name: str
    scenario: str
    query: str
    own_job: bool  # whether a job of the loop itself runs then; otherwise a companion's is there to be killed
    lasts: float = 0.0  # seconds that it lasts at least: a strike may come that much later


def _at(noun: str, status: str, scenario: str, *, own_job: bool = False, lasts: float = 0.0) -> Moment:
    query = f"SELECT id FROM ({RECORDS[noun]}) WHERE status = '{status}'"
    return Moment(f"{noun}.{status}", scenario, query, own_job, lasts)


MOMENTS = (
    _at("push", "Received", "train"),
    _at("push", "Preparing", "train", lasts=0.6),
    _at("push", "Checking", "train", own_job=True, lasts=0.25),
    _at("push", "Compiling", "train", own_job=True),
    _at("job", "Pending", "full", lasts=0.4),
    Moment("attempt.Starting", "train", f"{_STEP_ATTEMPTS} 'Starting'", True),
    Moment("attempt.Running", "train", f"{_STEP_ATTEMPTS} 'Running'", True, 0.1),
    _at("execution", "Stopping", "stop", own_job=True, lasts=0.2),
    _at("evaluation", "Scoring", "train", own_job=True),
    _at("rollout", "Pending", "release"),
    _at("rollout", "Starting", "release", lasts=0.3),
    _at("rollout", "Shifting", "release"),
    _at("rollout", "Baking", "release", lasts=0.8),
    _at("rollout", "RollingBack", "back", lasts=0.8),
    _at("retraining", "Pending", "retrain"),
    _at("retraining", "Collecting", "retrain"),
    _at("retraining", "Training", "retrain", own_job=True, lasts=0.3),
)


class Strike(NamedTuple):
    """What was hit: the process, and every status that the loop's records had at that moment."""

    pid: int
    statuses: frozenset[str]
    at: float


class Outcome(NamedTuple):
    """What became of one loop."""

    strike: Strike | None
    seconds: float
    problems: list[str]
    outages: dict[str, int]


class Client:
    """The background client, in a process of its own."""

    def __init__(self, there: Installation, endpoint: str) -> None:
        self.path = there.folder / "answers.jsonl"
        self._at = 0
        argv = [sys.executable, str(Path(__file__).with_name("asking.py")), "--port", str(there.port)]
        argv += ["--key", there.key, "--endpoint", endpoint, "--out", str(self.path)]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)

    def new_answers(self) -> list[dict[str, Any]]:
        """What has been answered since the last look."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def is_well(self, since: float) -> bool:
        """Whether the last answers, all of them later than ``since``, were good: the outage is over."""
        lines = self.path.read_bytes().splitlines()[-WELL_ANSWERS:]
        last = [json.loads(line) for line in lines if line.endswith(b"}")]
        return len(last) == WELL_ANSWERS and all(one["status"] == 200 and one["at"] > since for one in last)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(60)


class Turn:
    """One loop under way in an installation."""

    def __init__(self, there: Installation, name: str) -> None:
        self.there = there
        self.keys = {"delivery": name, "asked": f"person:boxes:{name}"}
        self.began = time.monotonic()
        self.since = time.time()
        self.companions: list[str] = []
        self.db = reader.open_database(there.folder)
        self._threads: list[threading.Thread] = []
        self.problems: list[str] = []

    # -- looking

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query about this loop's records."""
        return [dict(row) for row in self.db.execute(sql, self.keys)]

    def one(self, noun: str) -> dict[str, Any] | None:
        """The loop's newest record of a noun."""
        found = self.ask(f"SELECT id, status FROM ({RECORDS[noun]}) ORDER BY id DESC LIMIT 1")
        return found[0] if found else None

    def status(self, noun: str) -> str | None:
        """The status of the loop's newest record of a noun."""
        found = self.one(noun)
        return None if found is None else str(found["status"])

    def statuses(self) -> frozenset[str]:
        """Every status that records of this loop have now, as ``noun.Status``."""
        return frozenset(f"{noun}.{row['status']}" for noun, sql in RECORDS.items() for row in self.ask(sql))

    def version(self) -> dict[str, Any] | None:
        """The version that this loop registered."""
        found = self.ask(f"SELECT * FROM versions WHERE id IN {_VERSIONS}")
        return found[0] if found else None

    # -- acting

    def act(self, method: str, path: str, body: dict[str, Any] | None = None, *, once: bool = False) -> None:
        """A request beside the watching. One that was done already before it was repeated is refused, and that is well:
        what has to come of it is judged at the end."""

        def send() -> None:
            try:
                self.there.call(method, path, body or {}, seconds=0.0 if once else 30.0)
            except Refused as refusal:
                if refusal.status != 409:
                    self.problems.append(f"{method} {path}: {refusal}")
            except TimeoutError as late:
                if not once:
                    self.problems.append(str(late))

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        self._threads.append(thread)

    def push(self, files: dict[str, str], hold: float) -> None:
        """Push the project; the delivery key makes the request safe to repeat."""
        tree = self.there.upload(files)
        body = {"tree": tree, "parameters": {"hold": hold}, "cache": False, "delivery": self.keys["delivery"]}
        self.act("POST", "/api/pushes", body)

    def companion(self, hold: float) -> None:
        """Start a job of another project and wait until it runs."""
        name = f"{self.keys['delivery']}-companion-{len(self.companions)}"
        self.companions.append(name)
        tree = self.there.upload(projects.companion())
        body = {"tree": tree, "parameters": {"hold": hold}, "cache": False, "delivery": name}
        self.there.call("POST", "/api/pushes", body)
        until(lambda: self._companion_attempts(name), 10, "the companion's job runs")

    def _companion_attempts(self, name: str) -> list[str]:
        sql = """SELECT a.id FROM attempts a JOIN jobs j ON j.id = a.job JOIN steps s ON s.id = j.owner_id
                 JOIN executions e ON e.id = s.execution WHERE e.delivery = ? AND a.status IN ('Starting', 'Running')"""
        found = [row["id"] for row in self.db.execute(sql, (name,))]
        return [attempt for attempt in found if self.there.attempt_pid(attempt, "group")]

    def close(self) -> None:
        """Wait for what was asked for, and let go of the database."""
        for thread in self._threads:
            thread.join(35 * PATIENCE)
        self.db.close()

    # -- striking

    def target(self, victim: str) -> int | None:
        """The process to kill, if it lives: of several model servers the newest, of jobs the loop's own."""
        if victim not in ("shim", "job"):
            found = self.there.pids(victim)
            return found[-1] if found else None
        own = [row["id"] for row in self.ask(RECORDS["attempt"]) if row["status"] in ("Starting", "Running")]
        for attempt in [*own, *(each for name in self.companions for each in self._companion_attempts(name))]:
            pid = self.there.attempt_pid(attempt, "claim" if victim == "shim" else "group")
            if pid is not None:
                return pid
        return None

    def strike(self, moment: Moment, victim: str, jitter: float) -> Strike | None:
        """Kill the victim while the moment lasts: control is stopped for as long as it takes to be sure of that.

        None when the moment could not be met within its time.
        """
        end = time.monotonic() + HIT_SECONDS
        while time.monotonic() < end:
            if not self.ask(moment.query):
                if self.status("rollout") in ("Succeeded", "RolledBack", "Failed"):
                    return None
                time.sleep(0.0005)
                continue
            if jitter > 0:
                time.sleep(jitter)
                jitter = 0.0
            found = self._strike_now(moment, victim)
            if found is not None:
                return found
        return None

    def _strike_now(self, moment: Moment, victim: str) -> Strike | None:
        control = next(iter(self.there.pids("control")), None)
        if control is None:
            return None
        with suppress(ProcessLookupError):
            os.kill(control, signal.SIGSTOP)
        try:
            stop_by = time.monotonic() + STOPPED
            while state(control) != "T" and time.monotonic() < stop_by:
                time.sleep(0.0002)
            if state(control) != "T" or not self.ask(moment.query):
                return None
            pid = self.target(victim)
            if pid is None or not alive(pid):
                return None
            statuses = self.statuses()
            os.kill(pid, signal.SIGKILL)
            return Strike(pid, statuses, time.time())
        finally:
            with suppress(ProcessLookupError):
                os.kill(control, signal.SIGCONT)


# -- scenarios: each leads to its moments, and says when the loop has come to its end ---------------------------------


def begin_train(turn: Turn, moment: Moment, victim: str, rng: random.Random) -> None:
    """Push, train, judge, approve by policy, release."""
    if victim in ("shim", "job") and not moment.own_job:
        turn.companion(1.0)
    # A package that nobody has installed yet makes the environment take its time.
    needed = turn.there.wheel(f"fresh{rng.getrandbits(40)}") if moment.name == "push.Preparing" else ""
    files = projects.boxes(strategy="all-at-once", requirements=needed)
    turn.push(files, SEEN_SECONDS if moment.name == "attempt.Running" else 0.0)


def begin_full(turn: Turn, moment: Moment, victim: str, rng: random.Random) -> None:
    """As above, while every slot for jobs is taken, so that one has to wait."""
    for _ in range(2):
        turn.companion(1.5)
    turn.push(projects.boxes(strategy="all-at-once"), 0.0)


def begin_release(turn: Turn, moment: Moment, victim: str, rng: random.Random) -> None:
    """Approved by a person, then a canary."""
    turn.push(projects.boxes(approval="manual"), 0.0)
    until(lambda: turn.status("execution") == "Succeeded", 15, "the execution succeeded before its release")
    if victim in ("shim", "job"):
        turn.companion(3.0)
    _approve(turn)


def _approve(turn: Turn) -> None:
    version = turn.version()
    assert version is not None
    turn.act("POST", f"/api/models/boxes/versions/{version['number']}/approve", {"comment": "good"})


def begin_stop(turn: Turn, moment: Moment, victim: str, rng: random.Random) -> None:
    """A person stops the execution while it trains."""
    turn.push(projects.boxes(strategy="all-at-once"), 2.0)

    def training() -> bool:
        own = turn.ask(f"{_STEP_ATTEMPTS} 'Running'")
        return any(turn.there.attempt_pid(row["id"], "group") for row in own)

    until(training, 10, "a step runs")
    time.sleep(0.1)  # its handler for SIGTERM is in place by then
    execution = turn.one("execution")
    assert execution is not None
    turn.act("POST", f"/api/executions/{execution['id']}/stop", {"reason": "to see it stop"})


def begin_back(turn: Turn, moment: Moment, victim: str, rng: random.Random) -> None:
    """A person turns a canary back."""
    turn.push(projects.boxes(bake=6.0), 0.0)
    until(lambda: turn.status("rollout") == "Starting", 15, "the rollout has begun")
    if victim in ("shim", "job"):
        turn.companion(2.5)
    until(lambda: turn.status("rollout") == "Baking", 10, "the canary bakes")
    turn.act("POST", "/api/endpoints/boxes/rollback", {"reason": "to see it go back"}, once=True)


def begin_retrain(turn: Turn, moment: Moment, victim: str, rng: random.Random) -> None:
    """A label arrives for a captured row, and a person asks for a retraining of what was pushed last."""
    _push_first(turn)
    _label(turn)
    if victim in ("shim", "job") and not moment.own_job:
        turn.companion(1.5)
    turn.began = time.monotonic()
    turn.act("POST", "/api/retrainings", {"project": "boxes", "delivery": turn.keys["delivery"]})


def _push_first(turn: Turn) -> None:
    """A retraining runs the endpoint's latest push again, with that one's approval and rollout."""
    first = Turn(turn.there, f"{turn.keys['delivery']}-before")
    try:
        first.push(projects.boxes(strategy="all-at-once", check_seconds=None), 0.0)
        until(lambda: first.status("rollout") == "Succeeded", 20, "the push before the retraining is live")
    finally:
        first.close()


def _label(turn: Turn) -> None:
    join = f"row-{turn.keys['delivery']}"
    turn.there.predict({"size": 2.5}, join)
    items = [{"join_id": join, "label": "large"}]
    turn.there.call("POST", "/api/endpoints/boxes/labels", {"items": items})
    turn.keys["join"] = join
    until(
        lambda: turn.ask("SELECT 1 FROM labels WHERE join_id = :join AND joined_at IS NOT NULL"),
        10,
        "the label was joined",
    )


BEGIN: dict[str, Callable[[Turn, Moment, str, random.Random], None]] = {
    "train": begin_train,
    "full": begin_full,
    "release": begin_release,
    "stop": begin_stop,
    "back": begin_back,
    "retrain": begin_retrain,
}


def follow_up(turn: Turn, scenario: str) -> None:
    """What a person does when the first half is over."""
    if scenario == "stop":
        execution = turn.one("execution")
        assert execution is not None
        until(lambda: turn.status("execution") not in ("Running", "Stopping"), 15, "the execution has stopped")
        if turn.status("execution") != "Stopped":
            turn.problems.append(f"the execution that was stopped is {turn.status('execution')}")
        turn.act("POST", f"/api/executions/{execution['id']}/retry")
        until(lambda: turn.status("execution") in ("Running", "Succeeded"), 10, "the execution is tried again")


def ended(turn: Turn, scenario: str) -> list[str]:
    """What is missing of the loop's proper end; empty when it is there."""
    if scenario == "retrain":
        row = turn.ask("SELECT status, reason, id FROM retrainings WHERE delivery = :asked")
        if not row or row[0]["status"] != "Succeeded":
            return [f"the retraining is {row[0] if row else 'not there'}"]
    wanted = {"push": "Started", "execution": "Succeeded", "rollout": "Succeeded"}
    if scenario == "back":
        wanted["rollout"] = "RolledBack"
    found = [f"the {noun} is {turn.status(noun)}" for noun, status in wanted.items() if turn.status(noun) != status]
    for name in turn.companions:
        rows = list(turn.db.execute("SELECT status, reason FROM executions WHERE delivery = ?", (name,)))
        if not rows or rows[0]["status"] != "Succeeded":
            found.append(f"the companion is {dict(rows[0]) if rows else 'not there'}")
    version = turn.version()
    if version is None:
        return [*found, "there is no version"]
    served = turn.ask("SELECT number FROM variants WHERE endpoint = 'boxes' AND weight = 100")
    serves = bool(served) and served[0]["number"] == version["number"]
    if serves == (scenario == "back"):
        found.append(f"version {version['number']} {'serves' if serves else 'does not serve'}: {served}")
    decided = "Rejected" if scenario == "back" else "Approved"
    if version["status"] != decided:
        found.append(f"version {version['number']} is {version['status']}")
    return found


def reasons(turn: Turn) -> str:
    """Why the loop's records are as they are, for a report."""
    told = []
    for noun, table in (("push", "pushes"), ("execution", "executions"), ("rollout", "rollouts")):
        with suppress(sqlite3.Error):
            rows = turn.ask(f"SELECT status, reason FROM {table} WHERE id IN (SELECT id FROM ({RECORDS[noun]}))")
            told += [f"{noun} {row['status']}: {row['reason']}" for row in rows if row["reason"]]
    return "; ".join(told)[:600]


def run(there: Installation, moment: Moment, victim: str, name: str, rng: random.Random) -> Outcome:
    """One loop, broken once. A loop that is not through in time is waited for a little longer, and reported."""
    turn = Turn(there, name)
    strike: Strike | None = None
    try:
        BEGIN[moment.scenario](turn, moment, victim, rng)
        strike = turn.strike(moment, victim, rng.uniform(0.0, moment.lasts))
        if strike is not None and victim == "supervisor":
            there.restart()
        follow_up(turn, moment.scenario)

        def over() -> bool:
            return not reader.unfinished(turn.db) and not ended(turn, moment.scenario)

        until(over, END_SECONDS, "the loop has come to its end", 0.01)
    except (TimeoutError, RuntimeError, Refused) as late:
        left = [*reader.unfinished(turn.db), *ended(turn, moment.scenario)]
        turn.problems.append(f"{late}: {'; '.join(left)}; {reasons(turn)}")
    finally:
        seconds = time.monotonic() - turn.began
        turn.close()
    return Outcome(strike, seconds, turn.problems, {})
