"""An independent reader of an installation: opens its database with sqlite3 alone and says what does not hold.

It knows nothing of loopline's code; what it expects is written here once more, in SQL and plain Python.
    python tests/faults/reader.py DIR
"""

import hashlib
import json
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from installation import PATIENCE

TABLES = {
    "execution": "executions",
    "step": "steps",
    "job": "jobs",
    "attempt": "attempts",
    "run": "runs",
    "environment": "environments",
    "push": "pushes",
    "version": "versions",
    "evaluation": "evaluations",
    "endpoint": "endpoints",
    "variant": "variants",
    "rollout": "rollouts",
    "retraining": "retrainings",
}
OPEN = {
    "push": ("Received", "Preparing", "Checking", "Compiling"),
    "execution": ("Pending", "Running", "Stopping"),
    "step": ("Pending", "Running"),
    "job": ("Pending", "Running", "Stopping"),
    "attempt": ("Starting", "Running"),
    "evaluation": ("Pending", "Scoring"),
    "rollout": ("Pending", "Starting", "Shifting", "Baking", "RollingBack"),
    "retraining": ("Pending", "Collecting", "Training"),
}
# What is created and moved on in one transaction: no committed state ever shows the first status.
NEVER_COMMITTED = {"execution": "Pending", "evaluation": "Pending"}
OVERDUE_SECONDS = 3.0 * PATIENCE


def open_database(folder: Path) -> sqlite3.Connection:
    """The installation's database, for reading only."""
    connection = sqlite3.connect(f"file:{folder / 'loopline.db'}?mode=ro", uri=True, timeout=10, isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def rows(db: sqlite3.Connection, sql: str, *values: Any) -> list[dict[str, Any]]:
    """The rows of a query as dictionaries."""
    return [dict(row) for row in db.execute(sql, values)]


def unfinished(db: sqlite3.Connection) -> list[str]:
    """What is still under way, as ``noun id status``."""
    found = []
    for noun, statuses in OPEN.items():
        marks = ",".join("?" * len(statuses))
        sql = f"SELECT id, status FROM {TABLES[noun]} WHERE status IN ({marks})"  # our own names
        found += [f"{noun} {row['id']} {row['status']}" for row in rows(db, sql, *statuses)]
    return found


# -- invariants: each yields what is wrong ----------------------------------------------------------------------------


def versions_are_numbered(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """No version lost: 1..n without a hole, and the model counts n."""
    for model in rows(db, "SELECT name, last_version FROM models"):
        numbers = [row["number"] for row in rows(db, "SELECT number FROM versions WHERE model=?", model["name"])]
        if sorted(numbers) != list(range(1, model["last_version"] + 1)):
            yield f"versions of {model['name']} are {sorted(numbers)}, its counter says {model['last_version']}"


def register_steps_have_one_version(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """No version lost or duplicated: one for each register step that succeeded, none for two."""
    sql = """SELECT s.execution, s.name, count(v.id) AS n FROM steps s LEFT JOIN versions v
             ON v.execution = s.execution AND v.step = s.name
             WHERE s.kind = 'register' AND s.status = 'Succeeded' GROUP BY s.id HAVING n != 1"""
    for row in rows(db, sql):
        yield f"the register step {row['execution']}/{row['name']} has {row['n']} versions"
    sql = "SELECT execution, step, count(*) AS n FROM versions WHERE execution IS NOT NULL GROUP BY 1, 2 HAVING n > 1"
    for row in rows(db, sql):
        yield f"{row['n']} versions of {row['execution']}/{row['step']}"
    if not rows(db, "SELECT 1 FROM steps WHERE kind='register' LIMIT 1") and rows(db, "SELECT 1 FROM versions LIMIT 1"):
        yield "versions exist, and no register step: the reader's idea of steps is out of date"


def decisions_are_whole(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """None half approved: who, when, on what evidence, and the event."""
    for row in rows(db, "SELECT * FROM versions WHERE status IN ('Approved', 'Rejected')"):
        what = f"{row['model']} version {row['number']} is {row['status']}"
        missing = [name for name in ("decided_by", "decided_at", "evidence") if row[name] in (None, "null")]
        if missing:
            yield f"{what} without {', '.join(missing)}"
        sql = "SELECT count(*) AS n FROM events WHERE noun='version' AND record=? AND kind='moved' AND after=?"
        if rows(db, sql, row["id"], row["status"])[0]["n"] < 1:
            yield f"{what} without an event"
    for row in rows(db, "SELECT * FROM versions WHERE status = 'PendingManualApproval' AND decided_at IS NOT NULL"):
        yield f"{row['model']} version {row['number']} waits for approval, but has a decision"


def only_approved_is_released(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """A release rests on an approval that stood when it began, or on a recorded force."""
    sql = """SELECT r.id, v.version, e.number FROM rollouts r JOIN variants v ON v.id = r.variant
             JOIN events e ON e.noun='rollout' AND e.record = r.id AND e.kind='created' WHERE r.kind='release'"""
    for row in rows(db, sql):
        before = rows(
            db,
            """SELECT kind, after FROM events WHERE noun='version' AND record=? AND number < ?
               AND (kind = 'moved' OR kind = 'forced') ORDER BY number DESC LIMIT 1""",
            row["version"],
            row["number"],
        )
        if not before or (before[0]["kind"] == "moved" and before[0]["after"] != "Approved"):
            yield f"the rollout {row['id']} released {row['version']}, which was not Approved: {before}"


def results_are_recorded_once(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """One Succeeded attempt for a Succeeded job and none for another; each Succeeded event once."""
    sql = """SELECT j.id, j.status, sum(a.status = 'Succeeded') AS n FROM jobs j LEFT JOIN attempts a ON a.job = j.id
             GROUP BY j.id HAVING coalesce(n, 0) != (j.status = 'Succeeded')"""
    for row in rows(db, sql):
        yield f"the job {row['id']} is {row['status']} with {row['n']} Succeeded attempts"
    sql = """SELECT noun, record, count(*) AS n FROM events WHERE kind='moved' AND after='Succeeded'
             AND noun IN ('step', 'job', 'attempt', 'execution', 'rollout', 'retraining')
             GROUP BY noun, record HAVING n > 1"""
    for row in rows(db, sql):
        yield f"the {row['noun']} {row['record']} was recorded as Succeeded {row['n']} times"
    for row in rows(db, "SELECT job, number, count(*) AS n FROM attempts GROUP BY job, number HAVING n > 1"):
        yield f"the job {row['job']} has {row['n']} attempts with number {row['number']}"
    sql = (
        """SELECT job, count(*) AS n FROM attempts WHERE status IN ('Starting', 'Running') GROUP BY job HAVING n > 1"""
    )
    for row in rows(db, sql):
        yield f"the job {row['job']} has {row['n']} attempts at the same time"


def events_are_whole(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """Numbers without a hole, in order of time, and each move from the status that the one before it left."""
    found = rows(db, "SELECT count(*) AS n, min(number) AS low, max(number) AS high FROM events")[0]
    if found["n"] and (found["low"] != 1 or found["high"] != found["n"]):
        yield f"{found['n']} events are numbered {found['low']} to {found['high']}"
    last: dict[tuple[str, str], str] = {}
    for event in rows(db, "SELECT * FROM events WHERE kind IN ('created', 'moved') ORDER BY number"):
        key = event["noun"], event["record"]
        if event["kind"] == "moved" and key in last and last[key] != event["before"]:
            yield f"event {event['number']} moves {key} from {event['before']}, which was {last[key]}"
        if event["after"]:
            last[key] = event["after"]
    for noun, table in TABLES.items():
        for row in rows(db, f"SELECT id, status FROM {table}"):
            if last.get((noun, row["id"]), row["status"]) != row["status"]:
                yield f"the {noun} {row['id']} is {row['status']}, its last event says {last[noun, row['id']]}"


def first_statuses_are_never_committed(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """Creation and first move share their transaction, which its one time shows."""
    for noun, status in NEVER_COMMITTED.items():
        for row in rows(db, f"SELECT id FROM {TABLES[noun]} WHERE status = ?", status):
            yield f"the {noun} {row['id']} was committed as {status}"
        sql = """SELECT c.record FROM events c JOIN events m ON m.noun = c.noun AND m.record = c.record
                 AND m.kind = 'moved' AND m.before = ? AND m.at != c.at WHERE c.noun = ? AND c.kind = 'created'"""
        for row in rows(db, sql, status, noun):
            yield f"the {noun} {row['record']} left {status} in another transaction than its own first"


def audit_chain_holds(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """SHA-256 of each event with the digest before it, as the chain's own description says."""
    previous = "0" * 64
    columns = ("number", "at", "actor", "noun", "record", "kind", "before", "after", "reason", "data")
    sql = f"""SELECT {", ".join("e." + name for name in columns)}, a.previous, a.digest FROM audit a
              LEFT JOIN events e ON e.number = a.number ORDER BY a.number"""
    for number, event in enumerate(db.execute(sql), 1):
        fields = {name: event[name] for name in columns}
        if fields["number"] != number or event["previous"] != previous:
            yield f"the audit chain breaks at its link {number}"
            return
        fields["data"] = None if fields["data"] is None else json.loads(fields["data"])
        text = json.dumps({**fields, "previous": previous}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(text.encode()).hexdigest()
        if previous != event["digest"]:
            yield f"event {number} is not what the audit chain holds"
            return


def weights_are_whole(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """An endpoint in service gives away exactly 100 percent, to variants that may serve."""
    sql = """SELECT e.name, sum(v.weight) AS total FROM endpoints e JOIN variants v ON v.endpoint = e.name
             WHERE e.status IN ('InService', 'Updating') GROUP BY e.name HAVING abs(total - 100) > 1e-6"""
    for row in rows(db, sql):
        yield f"the weights of {row['name']} sum to {row['total']}"
    for row in rows(db, "SELECT * FROM variants WHERE weight > 0 AND status NOT IN ('Ready', 'Warm')"):
        yield f"the variant {row['name']} of {row['endpoint']} is {row['status']} with weight {row['weight']}"


def aliases_follow_traffic(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """The champion is what serves, whenever no rollout is going on; aliases point at versions that exist."""
    sql = """SELECT * FROM aliases a WHERE NOT EXISTS
             (SELECT 1 FROM versions v WHERE v.model = a.model AND v.number = a.number)"""
    for row in rows(db, sql):
        yield f"the alias {row['model']}@{row['name']} points at version {row['number']}, which does not exist"
    marks = ",".join("?" * len(OPEN["rollout"]))
    sql = f"""SELECT e.name, e.model, v.number, a.number AS champion FROM endpoints e
              JOIN variants v ON v.endpoint = e.name AND v.weight = 100
              LEFT JOIN aliases a ON a.model = e.model AND a.name = 'champion'
              WHERE e.model IS NOT NULL AND v.number IS NOT a.number AND NOT EXISTS
              (SELECT 1 FROM rollouts r WHERE r.endpoint = e.name AND r.status IN ({marks}))"""
    for row in rows(db, sql, *OPEN["rollout"]):
        yield f"{row['name']} serves version {row['number']}, the champion is {row['champion']}"


def one_rollout_at_a_time(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """Two rollouts of one endpoint never overlap."""
    marks = ",".join("?" * len(OPEN["rollout"]))
    sql = f"SELECT endpoint, count(*) AS n FROM rollouts WHERE status IN ({marks}) GROUP BY 1 HAVING n > 1"
    for row in rows(db, sql, *OPEN["rollout"]):
        yield f"{row['n']} rollouts of {row['endpoint']} are going on"


# -- what may lag for a moment ----------------------------------------------------------------------------------------


def snapshot_is_published(db: sqlite3.Connection, folder: Path) -> Iterator[str]:
    """snapshot.json says what the newest row says."""
    newest = rows(db, "SELECT number, body FROM snapshots ORDER BY number DESC LIMIT 1")
    if not newest:
        return
    document = json.loads((folder / "snapshot.json").read_text())
    body = json.loads(newest[0]["body"])
    if document["number"] != newest[0]["number"]:
        yield f"snapshot.json has number {document['number']}, the newest row {newest[0]['number']}"
    elif document["endpoints"] != body["endpoints"] or document["keys"] != body["keys"]:
        yield f"snapshot.json differs from row {document['number']}"


def queue_moves(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """No task is held past its lease, and none that is due waits for long."""
    now = time.time()
    for row in rows(db, "SELECT * FROM queue"):
        if row["owner"] is not None and row["lease_until"] < now - OVERDUE_SECONDS:
            yield f"the task {row['kind']} {row['key']} is held by {row['owner']} past its lease"
        if row["owner"] is None and row["run_at"] < now - OVERDUE_SECONDS:
            yield f"the task {row['kind']} {row['key']} has been due for {now - row['run_at']:.1f} s: {row['error']}"


def leases_are_of_the_living(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """Whoever holds a task is a process that lives on this host."""
    for row in rows(db, "SELECT kind, key, owner FROM queue WHERE owner IS NOT NULL"):
        pid = row["owner"].split(":")[1].partition(".")[0]
        if not Path("/proc", pid).exists():
            yield f"the task {row['kind']} {row['key']} is held by {row['owner']}, which is dead"


def consumers_keep_up(db: sqlite3.Connection, _: Path) -> Iterator[str]:
    """The audit chain reaches the log's end soon."""
    found = rows(db, "SELECT (SELECT max(number) FROM events) AS e, (SELECT max(number) FROM audit) AS a")[0]
    if (found["e"] or 0) != (found["a"] or 0):
        yield f"the log ends at event {found['e']}, the audit chain at {found['a']}"


Invariant = Callable[[sqlite3.Connection, Path], Iterator[str]]

ALWAYS: tuple[Invariant, ...] = (
    versions_are_numbered,
    register_steps_have_one_version,
    decisions_are_whole,
    only_approved_is_released,
    results_are_recorded_once,
    events_are_whole,
    first_statuses_are_never_committed,
    audit_chain_holds,
    weights_are_whole,
    aliases_follow_traffic,
    one_rollout_at_a_time,
)
SOON: tuple[Invariant, ...] = (snapshot_is_published, queue_moves, leases_are_of_the_living, consumers_keep_up)


def check(folder: Path, patience_seconds: float = 5.0) -> list[str]:
    """Every invariant that does not hold. Those in ``SOON`` may take ``patience_seconds`` to hold."""
    db = open_database(folder)
    try:
        db.execute("BEGIN")  # one consistent view for what must hold in every committed state
        found = [f"{rule.__name__}: {text}" for rule in ALWAYS for text in rule(db, folder)]
        db.execute("COMMIT")
        deadline = time.monotonic() + patience_seconds * PATIENCE
        while True:
            late = [f"{rule.__name__}: {text}" for rule in SOON for text in rule(db, folder)]
            if not late or time.monotonic() > deadline:
                return found + late
            time.sleep(0.05)
    finally:
        db.close()


# -- answers ----------------------------------------------------------------------------------------------------------


def marks(db: sqlite3.Connection, model: str) -> dict[int, int]:
    """The mark that each version of a model was trained with, from its metrics."""
    found = {}
    for row in rows(db, "SELECT number, metrics FROM versions WHERE model = ?", model):
        metrics = json.loads(row["metrics"] or "{}")
        if "mark" in metrics:
            found[row["number"]] = int(metrics["mark"])
    return found


def wrong_answers(answers: list[dict[str, Any]], marked: dict[int, int]) -> list[str]:
    """Answers whose mark is not that of the version which the answer claims."""
    wrong: Counter[str] = Counter()
    for answer in answers:
        if answer["status"] == 200:
            expected = marked.get(answer["version"])
            if answer["mark"] != expected:
                wrong[f"an answer of version {answer['version']} bore {answer['mark']} in place of {expected}"] += 1
    return [f"{text} ({count} times)" for text, count in wrong.items()]


def outages(answers: list[dict[str, Any]]) -> dict[str, int]:
    """How many answers were not 2xx, by status or kind of failure."""
    counted: dict[str, int] = defaultdict(int)
    for answer in answers:
        if answer["status"] != 200:
            counted[str(answer["status"])] += 1
    return dict(counted)


def main() -> int:
    """Print what does not hold in the installation that is named."""
    problems = check(Path(sys.argv[1]))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
