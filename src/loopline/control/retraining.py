"""Retrainings: from a cause to new data to an execution, and what came of it.

A retraining is Pending until it is allowed, Collecting while captured rows with labels become a version of the training
data, Training while its execution runs, then Succeeded or Failed with the reason. Each status commits together with
what it stands for, so that a crash in between repeats work and never starts a second execution.
"""

from typing import Any

import sqlalchemy as sa

from loopline.control import endpoints, events, pushes, retrain_data
from loopline.control.context import SYSTEM, Context
from loopline.domain import alarms as rules
from loopline.domain import projects as loops
from loopline.domain import states
from loopline.domain.access import Actor
from loopline.domain.projects import Loop
from loopline.domain.states import ExecutionStatus, PushStatus, RetrainingStatus
from loopline.errors import Conflict, LooplineError, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import executions, retrainings

TASK = "retraining.advance"
PERSON = "person"
LABELS_WAIT_SECONDS = 5.0
LABELS_LOOK_SECONDS = 0.25


# -- asked for by a person --------------------------------------------------------------------------------------------


def start(
    ctx: Context,
    actor: Actor,
    *,
    project: str,
    endpoint: str | None = None,
    reason: str | None = None,
    delivery: str | None = None,
) -> dict[str, Any]:
    """Retrain a project's model now; a person is not held up by cool-down and budget, but it counts against them.

    ``endpoint``: whose captured rows and branch are meant; the project's own unless given. The same ``delivery`` twice
    is one retraining. Raises ``Conflict`` while another of the same endpoint is under way.
    """
    with ctx.db.transaction() as tx:
        loop = _loop(tx, project)
        endpoint = endpoint or (loop.endpoint.name if loop.endpoint else None)
        if endpoint is not None:
            known = records.find(tx, "endpoint", name=endpoint)
            if known is None or known["project"] != project:
                raise NotFound(f"the project {project} has no endpoint {endpoint!r}")
        again = records.find(tx, "retraining", delivery=f"{PERSON}:{project}:{delivery}") if delivery else None
        if again is not None:
            return again
        running = [row for row in _earlier(tx, project, endpoint) if not _over(row)]
        if running:
            raise Conflict(f"the retraining {running[0]['id']} is still {running[0]['status']}; wait for its end")
        identifier = tx.new_id("re")
        row = records.create(
            tx,
            "retraining",
            id=identifier,
            actor=actor.name,
            reason=reason,
            project=project,
            endpoint=endpoint,
            cause={"kind": PERSON, "by": actor.name, "reason": reason},
            delivery=f"{PERSON}:{project}:{delivery or identifier}",
            asset=loop.retrain.asset or None,
            by=actor.name,
        )
        queue.ask(tx, TASK, identifier)
    return row


def _loop(tx: Tx, project: str) -> Loop:
    row = records.find(tx, "project", name=project)
    if row is None or not row["loop"]:
        raise NotFound(f"there is no project {project!r}; push it first")
    return loops.from_dict(row["loop"])


def _over(row: Row) -> bool:
    return states.is_terminal("retraining", row["status"])


def _earlier(tx: Tx, project: str, endpoint: str | None, before: Row | None = None) -> list[Row]:
    """The retrainings of an endpoint, newest first; only those that were asked for before ``before`` when given."""
    c = retrainings.c
    query = sa.select(retrainings).where(c.project == project, c.endpoint == endpoint)
    if before is not None:
        at, identifier = before["created_at"], before["id"]
        query = query.where(sa.or_(c.created_at < at, sa.and_(c.created_at == at, c.id < identifier)))
    return tx.rows(query.order_by(c.created_at.desc(), c.id.desc()).limit(1000))


# -- moving on --------------------------------------------------------------------------------------------------------


def advance(ctx: Context, retraining_id: str) -> float | None:
    """Task: move a retraining on until its execution has been asked for; safe at any time."""
    try:
        if _allow(ctx, retraining_id) == RetrainingStatus.COLLECTING:
            if _waits_for_labels(ctx, retraining_id):
                return LABELS_LOOK_SECONDS
            _collect(ctx, retraining_id)
    except LooplineError as error:
        with ctx.db.transaction() as tx:
            _fail(tx, retraining_id, error.message)
    return None


def _waits_for_labels(ctx: Context, retraining_id: str) -> bool:
    """Whether labels that were sent just before are still being joined: nobody would understand that they are missing.
    Those whose requests are not known, or not yet, are waited for a few seconds only."""
    with ctx.db.read() as tx:
        row = records.get(tx, "retraining", retraining_id)
        return ctx.clock.now() - row["created_at"] < LABELS_WAIT_SECONDS and retrain_data.labels_are_coming(tx, row)


def _fail(tx: Tx, retraining_id: str, reason: str) -> None:
    row = records.get(tx, "retraining", retraining_id)
    if not _over(row):
        status = RetrainingStatus.FAILED
        records.move(tx, "retraining", row["id"], status, actor=SYSTEM.name, reason=reason, ended_at=tx.now)


def _allow(ctx: Context, retraining_id: str) -> str:
    """Check a Pending retraining once more and let it begin; gives the status it then has."""
    with ctx.db.transaction() as tx:
        row = records.get(tx, "retraining", retraining_id)
        if row["status"] != RetrainingStatus.PENDING:
            return str(row["status"])
        loop = _loop(tx, row["project"])
        _check(tx, row, loop)
        if loop.retrain.captured and loop.retrain.asset and row["endpoint"]:
            moved = records.move(tx, "retraining", row["id"], RetrainingStatus.COLLECTING, actor=SYSTEM.name)
            return str(moved["status"])
        return _train(tx, row, loop, asset=None)


def _check(tx: Tx, row: Row, loop: Loop) -> None:
    """Raise ``Conflict`` when this retraining may not begin.

    Judged as of the moment it was asked for, against those asked for before it, so that of two that came together the
    same one begins whoever looks first. One that ended without an execution spent nothing.
    """
    earlier = _earlier(tx, row["project"], row["endpoint"], row)
    running = [each for each in earlier if not _over(each)]
    if running:
        raise Conflict(f"the retraining {running[0]['id']} was still {running[0]['status']}")
    if (row["cause"] or {}).get("kind") == PERSON:
        return
    retrain = loop.retrain
    if not retrain.enabled:
        raise Conflict("retraining is off: [retrain] enabled = true in loop.toml switches it on")
    allowed, why = rules.may_act(
        [each["created_at"] for each in earlier if each["push"]],
        row["created_at"],
        cooldown_seconds=retrain.cooldown_seconds,
        budget=retrain.budget,
        budget_window_seconds=retrain.budget_window_seconds,
    )
    if not allowed:
        raise Conflict(why)


def _collect(ctx: Context, retraining_id: str) -> None:
    """Build the new version of the training data, outside any transaction; then add it and start training at once."""
    with ctx.db.read() as tx:
        row = records.get(tx, "retraining", retraining_id)
        loop = _loop(tx, row["project"])
        what = retrain_data.plan(ctx, tx, row, loop)
    made = retrain_data.collect(ctx, what)
    with ctx.db.transaction() as tx:
        row = records.get(tx, "retraining", retraining_id)
        if row["status"] == RetrainingStatus.COLLECTING:
            _train(tx, row, loop, asset=retrain_data.put(tx, row, what, made))


def _train(tx: Tx, row: Row, loop: Loop, *, asset: str | None) -> str:
    """Ask for the execution. The cause goes with it, so that it can be told wherever the execution is shown."""
    cause = row["cause"] or {}
    name = f":{cause['alarm']}" if cause.get("alarm") else ""
    trigger = {"kind": "retraining", "id": row["id"], "cause": cause, "why": f"{cause.get('kind', 'asked')}{name}"}
    delivery = f"retraining:{row['id']}"
    parameters = loop.retrain.parameters
    source = _source_push(tx, row["endpoint"])
    if source is None:
        push = pushes.again_in(
            tx, row["project"], by=row["by"], trigger=trigger, parameters=parameters, delivery=delivery
        )
    else:
        push = pushes.receive_in(
            tx,
            project=row["project"],
            tree=source["tree"],
            by=row["by"],
            source="retraining",
            branch=source["branch"],
            commit=source["commit"],
            dirty=source["dirty"],
            trigger=trigger,
            options={"parameters": parameters, "cache": True, "checks": False},
            delivery=delivery,
        )
    moved = records.move(
        tx,
        "retraining",
        row["id"],
        RetrainingStatus.TRAINING,
        actor=SYSTEM.name,
        push=push["id"],
        asset=asset or row["asset"],
    )
    return str(moved["status"])


def _source_push(tx: Tx, endpoint: str | None) -> Row | None:
    """The push that made the version which serves: code that was released and taken back is not trained from.

    Before anything serves, the newest push that moved the endpoint, so that a branch is retrained from that branch.
    """
    if endpoint is None:
        return None
    variant = endpoints.serving(tx, endpoint)
    version = None if variant is None or not variant["version"] else records.find(tx, "version", id=variant["version"])
    query = sa.select(executions.c.push)
    if version is not None and version["execution"]:
        query = query.where(executions.c.id == version["execution"])
    else:
        query = query.where(executions.c.targets["endpoint"].as_string() == endpoint)
    row = tx.row(query.order_by(executions.c.created_at.desc(), executions.c.id.desc()).limit(1))
    return None if row is None else records.find(tx, "push", id=row["push"])


# -- what became of it ------------------------------------------------------------------------------------------------


def react(ctx: Context, tx: Tx, event: Row) -> None:
    """Reaction: a retraining that was created is begun; one whose push or execution has ended, ends with it."""
    noun, kind = event["noun"], event["kind"]
    if noun == "retraining" and kind == "created":
        queue.ask(tx, TASK, event["record"])
    elif kind == "moved" and noun in ("push", "execution") and states.is_terminal(noun, event["after"]):
        push = event["record"] if noun == "push" else records.get(tx, "execution", event["record"])["push"]
        row = None if push is None else records.find(tx, "retraining", push=push)
        if row is not None and not _over(row):
            _follow(tx, row)


def _follow(tx: Tx, row: Row) -> None:
    """Take over what became of the push and of its execution."""
    push = records.get(tx, "push", row["push"])
    if push["status"] in (PushStatus.REJECTED, PushStatus.IGNORED):
        _fail(tx, row["id"], f"the push {push['id']} was {push['status']}: {push['reason']}")
        return
    if not push["execution"]:
        return
    if row["execution"] is None:
        records.set(tx, "retraining", row["id"], actor=SYSTEM.name, execution=push["execution"])
    execution = records.get(tx, "execution", push["execution"])
    if not states.is_terminal("execution", execution["status"]):
        return
    if execution["status"] == ExecutionStatus.SUCCEEDED:
        reason = _unused(row, execution)
        status = RetrainingStatus.SUCCEEDED
        records.move(tx, "retraining", row["id"], status, actor=SYSTEM.name, reason=reason, ended_at=tx.now)
    else:
        detail = execution["reason"] or "it was stopped"
        _fail(tx, row["id"], f"the execution {execution['id']} {execution['status']}: {detail}")


def _unused(row: Row, execution: Row) -> str | None:
    """A pipeline that names another version of the data has not seen the new one; that is worth saying."""
    if ":" not in (row["asset"] or ""):
        return None
    used = {f"{each['name']}:{each['version']}" for each in execution["assets"] or ()}
    if row["asset"] in used:
        return None
    return f"the pipeline did not read {row['asset']}; it read: {', '.join(sorted(used)) or 'no data asset'}"


# -- reading ----------------------------------------------------------------------------------------------------------


def list_(
    ctx: Context,
    actor: Actor,
    *,
    project: str | None = None,
    endpoint: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Retrainings, newest first."""
    query = sa.select(retrainings).order_by(retrainings.c.created_at.desc(), retrainings.c.id.desc())
    for column, value in ((retrainings.c.project, project), (retrainings.c.endpoint, endpoint)):
        if value is not None:
            query = query.where(column == value)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page(rows, limit, offset)


def show(ctx: Context, actor: Actor, *, retraining: str) -> dict[str, Any]:
    """A retraining: its cause, the data it made, its execution, and what came of it and why."""
    with ctx.db.read() as tx:
        return records.get(tx, "retraining", retraining)
