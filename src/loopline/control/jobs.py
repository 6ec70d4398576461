"""Jobs and their attempts: user's work on compute.

A job belongs to a record (a step, a push, an evaluation) whose use case submits it and is told, in the transaction that
records the result, when it has ended. Starting an attempt: commit its row, then hand it to the backend; recovery reads
the attempt's files before it acts. A result commits only while the attempt is still the job's own.
"""

import json
import logging
import signal
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.compute import LogChunk
from loopline.control import exits, launches, outputs, tracking
from loopline.control.context import SYSTEM, Context
from loopline.domain import states
from loopline.domain.access import Actor
from loopline.domain.states import AttemptStatus, JobStatus
from loopline.errors import Conflict, LooplineError, NotFound, Unavailable
from loopline.store import queue, records
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import attempts, jobs

log_ = logging.getLogger(__name__)

MAX_LOST = 5  # attempts of one job that may vanish with their host before the job fails
ENDED_EARLY = frozenset({"stopped", "timeout"})  # a program that was told to end has had time to save what it has
UNSENT_SECONDS = 15.0  # an attempt that is recorded and was not handed over by then never will be


def submit(
    ctx: Context,
    tx: Tx,
    *,
    owner: str,
    owner_id: str,
    name: str,
    kind: str,
    spec: dict[str, Any],
    actor: str,
    max_tries: int = 1,
    backoff_seconds: float = 0.0,
    retry: dict[str, Any] | None = None,
) -> Row:
    """Record a job; it starts after the commit when a slot is free, else when one is.

    ``spec``: see ``launches.spec_of``; ``retry``: a ``domain.pipelines.Retry``.
    """
    job = records.create(
        tx,
        "job",
        actor=actor,
        owner=owner,
        owner_id=owner_id,
        name=name,
        kind=kind,
        spec=spec,
        tries=0,
        max_tries=max_tries,
        backoff_seconds=backoff_seconds,
        retry=retry,
    )
    _fill_last(ctx, tx)
    return job


def start_ready(ctx: Context, _key: str = "all") -> float | None:
    """Start pending jobs while slots are free; returns seconds until one that waits for a time may start."""
    with ctx.db.read() as tx:
        query = sa.select(sa.func.min(sa.func.coalesce(jobs.c.not_before, 0.0))).where(
            jobs.c.status == JobStatus.PENDING
        )
        first = tx.execute(query).scalar_one()
    if first is None:
        return None
    if first <= ctx.clock.now():
        with ctx.db.transaction() as tx:
            _fill(ctx, tx)
        return None
    return float(max(0.01, first - ctx.clock.now()))


def _fill_last(ctx: Context, tx: Tx) -> None:
    """Fill free slots when the transaction has said all: once, however many jobs it adds."""
    tx.before_commit["jobs"] = partial(_fill, ctx, tx)


def _fill(ctx: Context, tx: Tx) -> None:
    """Create an attempt for each job that may start now; they are handed to the backend after the commit."""
    busy = tx.fetch_one(_BUSY, host=ctx.host)
    free = ctx.settings.max_jobs - int(busy["count"] if busy else 0)
    if free <= 0:
        return
    for job in tx.fetch(_READY, now=tx.now, most=free):
        attempt = _begin(ctx, tx, job)
        tx.after_commit.append(partial(_launch, ctx, attempt, job))


_BUSY = Prepared(
    sa.select(sa.func.count().label("count")).where(
        attempts.c.host == sa.bindparam("host"),
        sa.or_(attempts.c.status == AttemptStatus.STARTING, attempts.c.status == AttemptStatus.RUNNING),
    )
)
_READY = Prepared(
    sa.select(jobs)
    .where(
        jobs.c.status == JobStatus.PENDING,
        sa.or_(jobs.c.not_before.is_(None), jobs.c.not_before <= sa.bindparam("now")),
    )
    .order_by(jobs.c.created_at, jobs.c.id)
    .limit(sa.bindparam("most", type_=sa.Integer))
)
_ATTEMPTS = Prepared(
    sa.select(sa.func.count().label("count")).select_from(attempts).where(attempts.c.job == sa.bindparam("job"))
)


def _begin(ctx: Context, tx: Tx, job: Row) -> Row:
    before = tx.fetch_one(_ATTEMPTS, job=job["id"])
    number = int(before["count"] if before else 0) + 1
    attempt = records.create(
        tx, "attempt", actor=SYSTEM.name, job=job["id"], number=number, token=number, host=ctx.host
    )
    values: dict[str, Any] = {"not_before": None}
    if job["started_at"] is None:
        values["started_at"] = tx.now
    records.move(tx, "job", job["id"], JobStatus.RUNNING, actor=SYSTEM.name, known=job, **values)
    return attempt


def _launch(ctx: Context, attempt: Row, job: Row) -> None:
    """Hand an attempt to the backend. When its inputs cannot be laid out, the attempt fails with the reason."""
    try:
        ctx.compute.submit(launches.spec_of(ctx, attempt, job))
    except (LooplineError, OSError) as error:
        exit_ = {
            "code": None,
            "signal": None,
            "reason": "launch",
            "error": {"type": type(error).__name__, "message": str(error)},
        }
        _finish(ctx, attempt["id"], exit_, {}, [])


# -- collecting -------------------------------------------------------------------------------------------------------


def collect(ctx: Context, attempt_id: str) -> bool:
    """Look at an attempt and record what became of it; says whether it is over. Safe to call at any time, twice too."""
    with ctx.db.read() as tx:
        row = records.find(tx, "attempt", id=attempt_id)
    if row is None or states.is_terminal("attempt", row["status"]):
        return True
    try:
        state = ctx.compute.poll(attempt_id)
    except NotFound:  # committed, but never handed over: the process that was about to is gone
        if ctx.clock.now() - row["created_at"] > UNSENT_SECONDS:
            _lose(ctx, attempt_id)
        return False
    if state.state == "running":
        _note_running(ctx, row)
        return False
    if state.state == "unclaimed":
        return False
    if state.exit is None:
        _lose(ctx, attempt_id)
        return True
    _record(ctx, row, exits.storable(asdict(state.exit)))
    return True


def _record(ctx: Context, row: Row, exit_: dict[str, Any]) -> None:
    """Take what an attempt left, and record its end; what one job left must not hold up the others."""
    folder = ctx.settings.dir / "attempts" / row["id"]
    results: dict[str, Any] = {}
    artifacts: list[dict[str, Any]] = []
    with ctx.db.read() as tx:
        kind = records.get(tx, "job", row["job"])["kind"]
    try:
        if exit_.get("reason") == "ok" or (kind == "script" and exit_.get("reason") in ENDED_EARLY):
            results = outputs.take(ctx, folder, needed=kind != "command" and exit_.get("reason") == "ok")
        artifacts = outputs.take_artifacts(ctx, folder)
    except (LooplineError, OSError, ValueError) as error:
        results = {}
        if exit_.get("reason") == "ok":
            exit_.update(reason="error", error=exits.storable({"type": type(error).__name__, "message": str(error)}))
    try:
        _finish(ctx, row["id"], exit_, results, artifacts)
    except (sa.exc.OperationalError, Unavailable):
        raise  # the database's trouble, not the job's: tried again
    except Exception as error:
        log_.exception("what the attempt %s left cannot be recorded", row["id"])
        message = f"what it left cannot be recorded: {type(error).__name__}"
        exit_.update(reason="error", error={"type": "LooplineError", "message": message})
        (folder / "events").unlink(missing_ok=True)
        _finish(ctx, row["id"], exit_, {}, [])


def _note_running(ctx: Context, row: Row) -> None:
    if row["status"] == AttemptStatus.STARTING:
        with ctx.db.transaction() as tx:
            current = records.get(tx, "attempt", row["id"])
            if current["status"] == AttemptStatus.STARTING:
                records.move(tx, "attempt", row["id"], AttemptStatus.RUNNING, actor=SYSTEM.name)
    tracking.ingest(ctx, row)


def _finish(
    ctx: Context, attempt_id: str, exit_: dict[str, Any], results: dict[str, Any], artifacts: list[dict[str, Any]]
) -> None:
    """Record an attempt's end once; the job ends, or waits for its next try, in the same transaction."""
    with ctx.db.transaction() as tx:
        attempt = records.get(tx, "attempt", attempt_id)
        if states.is_terminal("attempt", attempt["status"]):
            return
        job = records.get(tx, "job", attempt["job"])
        status = _attempt_status(exit_)
        tracking.ingest_in(ctx, tx, attempt, job, artifacts)
        ended: dict[str, Any] = {"reason": exits.reason(exit_), "exit": exit_, "ended_at": tx.now}
        records.move(tx, "attempt", attempt_id, status, actor=SYSTEM.name, known=attempt, **ended)
        launches.over(ctx, tx, attempt_id, job)
        if states.is_terminal("job", job["status"]):
            return
        job = _settle(tx, job, status, exit_, results)
        if states.is_terminal("job", job["status"]):
            ctx.job_owners[job["owner"]](ctx, tx, job)
        _fill_last(ctx, tx)
        ctx.cache.setdefault("ended_attempts", []).append(attempt_id)


def _attempt_status(exit_: dict[str, Any]) -> AttemptStatus:
    if exit_.get("reason") == "ok":
        return AttemptStatus.SUCCEEDED
    if exit_.get("reason") == "error" and exit_.get("signal") == signal.SIGKILL:
        return AttemptStatus.LOST  # nothing of ours killed it: that says as little about the work as a dead host
    return AttemptStatus.STOPPED if exit_.get("reason") == "stopped" else AttemptStatus.FAILED


def _settle(tx: Tx, job: Row, status: AttemptStatus, exit_: dict[str, Any], results: dict[str, Any]) -> Row:
    reason = exits.reason(exit_)
    if status == AttemptStatus.SUCCEEDED:
        done: dict[str, Any] = {"result": results, "ended_at": tx.now}
        return records.move(tx, "job", job["id"], JobStatus.SUCCEEDED, actor=SYSTEM.name, known=job, **done)
    if status == AttemptStatus.LOST:
        return _settle_lost(tx, job, reason)
    result = {"error": exit_.get("error"), "exit": {k: exit_.get(k) for k in ("code", "signal", "reason")}}
    if results:
        result["outputs"] = results
    if status == AttemptStatus.STOPPED and job["status"] == JobStatus.STOPPING:
        ended: dict[str, Any] = {"reason": reason, "result": result, "ended_at": tx.now}
        return records.move(tx, "job", job["id"], JobStatus.STOPPED, actor=SYSTEM.name, **ended)
    tries = job["tries"] + 1
    delay = exits.delay(job, tries, exit_, tx.now) if job["status"] == JobStatus.RUNNING else None
    if delay is not None:
        text = f"try {tries} of {job['max_tries']} failed: {reason}; the next one starts in {delay:g} s"
        queue.ask(tx, "jobs.start", "all", tx.now + delay)
        return records.move(
            tx,
            "job",
            job["id"],
            JobStatus.PENDING,
            actor=SYSTEM.name,
            reason=text,
            tries=tries,
            not_before=tx.now + delay,
        )
    to = JobStatus.STOPPED if job["status"] == JobStatus.STOPPING else JobStatus.FAILED
    return records.move(
        tx, "job", job["id"], to, actor=SYSTEM.name, reason=reason, tries=tries, result=result, ended_at=tx.now
    )


def _lose(ctx: Context, attempt_id: str) -> None:
    """An attempt vanished with its host or shim: the job goes back to the queue, which is not a try of its own."""
    with ctx.db.transaction() as tx:
        attempt = records.get(tx, "attempt", attempt_id)
        if states.is_terminal("attempt", attempt["status"]):
            return
        reason = "its process is gone without a result"
        records.move(tx, "attempt", attempt_id, AttemptStatus.LOST, actor=SYSTEM.name, reason=reason, ended_at=tx.now)
        job = records.get(tx, "job", attempt["job"])
        launches.over(ctx, tx, attempt_id, job)
        if states.is_terminal("job", job["status"]):
            return
        job = _settle_lost(tx, job, reason)
        if states.is_terminal("job", job["status"]):
            ctx.job_owners[job["owner"]](ctx, tx, job)
        _fill_last(ctx, tx)


def _settle_lost(tx: Tx, job: Row, reason: str) -> Row:
    """A job whose attempt vanished: it waits for its next start, unless that has happened too often."""
    gone = (attempts.c.job == job["id"], attempts.c.status == AttemptStatus.LOST)
    lost = int(tx.execute(sa.select(sa.func.count()).where(*gone)).scalar_one())
    values: dict[str, Any] = {"reason": reason, "ended_at": tx.now}
    if job["status"] == JobStatus.STOPPING:
        return records.move(tx, "job", job["id"], JobStatus.STOPPED, actor=SYSTEM.name, **values)
    if lost >= MAX_LOST:
        values["reason"] = f"{lost} attempts vanished without a result; the last one: {reason}"
        return records.move(tx, "job", job["id"], JobStatus.FAILED, actor=SYSTEM.name, **values)
    return records.move(tx, "job", job["id"], JobStatus.PENDING, actor=SYSTEM.name, reason=reason)


def tidy(ctx: Context) -> None:
    """Tick: remove what ended attempts no longer need; their logs stay."""
    ended: list[str] = ctx.cache.setdefault("ended_attempts", [])
    while ended:
        outputs.clear(ctx.settings.dir / "attempts" / ended.pop())


def watch(ctx: Context) -> None:
    """Tick: look at every attempt of this host that is not over, whatever wake-ups were missed."""
    with ctx.db.read() as tx:
        query = sa.select(attempts.c.id).where(
            attempts.c.host == ctx.host, attempts.c.status.in_((AttemptStatus.STARTING, AttemptStatus.RUNNING))
        )
        found = [row["id"] for row in tx.rows(query)]
    for attempt_id in found:
        collect(ctx, attempt_id)
    start_ready(ctx)


def recover(ctx: Context) -> None:
    """At start: attempts of this host that were recorded but never begun. Nobody else can be about to begin them.

    One that is handed over twice is run once, since shims claim their folder; one that was not even laid out whole is
    lost, and its job starts anew.
    """
    with ctx.db.read() as tx:
        live = (AttemptStatus.STARTING, AttemptStatus.RUNNING)
        query = sa.select(attempts).where(attempts.c.host == ctx.host, attempts.c.status.in_(live))
        found = [(attempt, records.get(tx, "job", attempt["job"])) for attempt in tx.rows(query)]
    for attempt, job in found:
        try:
            if ctx.compute.poll(attempt["id"]).state == "unclaimed":
                ctx.compute.submit(launches.spec_of(ctx, attempt, job))
        except NotFound:
            _lose(ctx, attempt["id"])
        except (LooplineError, OSError) as error:
            log_.warning("attempt %s was not handed over again: %s", attempt["id"], error)  # `watch` will lose it


# -- stopping and reading ---------------------------------------------------------------------------------------------


def stop(ctx: Context, tx: Tx, job_id: str, *, actor: str, reason: str) -> Row:
    """Ask a job to stop; its process group is stopped after the commit. A job that waits is over at once."""
    job = records.get(tx, "job", job_id)
    if states.is_terminal("job", job["status"]) or job["status"] == JobStatus.STOPPING:
        return job
    if job["status"] == JobStatus.PENDING:
        return records.move(tx, "job", job_id, JobStatus.STOPPED, actor=actor, reason=reason, ended_at=tx.now)
    job = records.move(tx, "job", job_id, JobStatus.STOPPING, actor=actor, reason=reason)
    queue.ask(tx, "jobs.stop", job_id)
    return job


def stop_attempts(ctx: Context, job_id: str) -> float | None:
    """Task: tell the backend to stop what a job still runs; comes back until it is over."""
    with ctx.db.read() as tx:
        query = sa.select(attempts).where(
            attempts.c.job == job_id, attempts.c.status.in_((AttemptStatus.STARTING, AttemptStatus.RUNNING))
        )
        live = tx.rows(query)
        limits = (records.get(tx, "job", job_id)["spec"] or {}).get("limits") or {}
    for row in live:
        ctx.compute.stop(row["id"], limits.get("grace_seconds", launches.GRACE_SECONDS))
        collect(ctx, row["id"])
    return 1.0 if live else None


def log(ctx: Context, actor: Actor, *, job: str, offset: int = 0, limit: int = 65536) -> dict[str, Any]:
    """A piece of the newest attempt's log from a byte offset; ask again from ``next_offset`` until ``end``.

    ``times``: [place in the text, when what begins there came], to a tenth of a second.
    """
    with ctx.db.read() as tx:
        row = records.get(tx, "job", job)
        query = sa.select(attempts).where(attempts.c.job == job).order_by(attempts.c.number.desc()).limit(1)
        attempt = tx.row(query)
    if attempt is None:
        return {
            "job": job,
            "status": row["status"],
            "text": "",
            "offset": 0,
            "next_offset": 0,
            "times": [],
            "end": False,
        }
    try:
        chunk = ctx.compute.logs(attempt["id"], max(0, offset), min(max(4, limit), 1 << 20))
    except NotFound:  # its log is gone with its time, or it was never handed over
        chunk = LogChunk(offset, offset, b"", end=True)
    over = states.is_terminal("job", row["status"])
    text, following, times = chunk.decoded(last=over)
    return {
        "job": job,
        "attempt": attempt["id"],
        "status": row["status"],
        "text": text,
        "offset": chunk.offset,
        "next_offset": following,
        "times": times,
        "end": over and not chunk.data,
    }


def tail(ctx: Context, tx: Tx, job_id: str, limit: int) -> str:
    """The end of the newest attempt's log, from a line's beginning."""
    query = sa.select(attempts.c.id).where(attempts.c.job == job_id).order_by(attempts.c.number.desc()).limit(1)
    attempt = tx.row(query)
    path: Path | None = None if attempt is None else ctx.settings.dir / "attempts" / attempt["id"] / "log"
    if path is None or not path.exists():
        return ""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - limit))
        text = file.read(limit).decode("utf-8", "replace")
    return (text.partition("\n")[2] if size > limit else text).strip()


def show(ctx: Context, actor: Actor, *, job: str) -> dict[str, Any]:
    """A job with its attempts."""
    with ctx.db.read() as tx:
        row = records.get(tx, "job", job)
        query = sa.select(attempts).where(attempts.c.job == job).order_by(attempts.c.number)
        row["attempts"] = tx.rows(query)
    row["spec"] = {k: v for k, v in row["spec"].items() if k != "environ"}
    return row


def list_(
    ctx: Context, actor: Actor, *, owner: str | None = None, owner_id: str | None = None, limit: int = 50
) -> dict[str, Any]:
    """Jobs, newest first."""
    query = sa.select(jobs).order_by(jobs.c.created_at.desc()).limit(limit)
    if owner is not None:
        query = query.where(jobs.c.owner == owner)
    if owner_id is not None:
        query = query.where(jobs.c.owner_id == owner_id)
    with ctx.db.read() as tx:
        rows = tx.rows(query)
    return {"items": [{k: v for k, v in row.items() if k not in ("spec", "result")} for row in rows], "next": None}


def stop_job(ctx: Context, actor: Actor, *, job: str, reason: str = "stopped by a person") -> dict[str, Any]:
    """Stop a job; a step's job is stopped through its execution instead."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.find(tx, "job", id=job)
        if row is None:
            raise NotFound(f"there is no job {job!r}")
        if row["owner"] == "step":
            raise Conflict("this job is a step of an execution; stop the execution")
        return stop(ctx, tx, job, actor=actor.name, reason=reason)


def reason_of(result: Any) -> str:
    """The error of a failed job's result as one line of JSON, for those who pass it on."""
    return json.dumps((result or {}).get("error"), ensure_ascii=False)
