"""Scripts: jobs of programs that know a container's folders, files and variables.

One that is started alone is an execution of a pipeline with one step, so that stopping, logs, lineage and what happens
when something dies are the same as everywhere.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import events, executions, jobs, pushes, staging
from loopline.control.context import Context
from loopline.domain import names, scripts, states
from loopline.domain.access import Actor
from loopline.domain.pipelines import PipelineSpec, ScriptStep, parse_spec
from loopline.domain.states import JobStatus, StepStatus
from loopline.domain.values import Value
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.metrics import last_values
from loopline.store.schema import executions as executions_table
from loopline.store.schema import jobs as jobs_table
from loopline.store.schema import scripts as table
from loopline.store.schema import steps

PROJECT = "jobs"  # of executions that belong to no project's pipeline
ORDERS = {
    "created": table.c.created_at,
    "name": table.c.name,
    "status": steps.c.status,
    "ended": sa.func.coalesce(steps.c.ended_at, 1e12),  # what is not over comes last
}


# -- starting ---------------------------------------------------------------------------------------------------------


def submit(
    ctx: Context, actor: Actor, *, name: str, settings: dict[str, Any], given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Start a program. ``settings``: as of ``domain.scripts.Script``; ``given``: what its author wrote, kept with it.
    ``warnings`` of the job: what its author may not expect.

    Raises ``InvalidInput`` for what is not valid, ``Conflict`` when there is such a job of that name.
    """
    names.check_name(name, "a job")
    script = scripts.parse_script({**settings, "name": name})
    step = ScriptStep(
        name=name,
        settings=Value(value=msgspec.to_builtins(script)),
        given=None if given is None else Value(value=given),
    )
    spec = parse_spec(msgspec.to_builtins(PipelineSpec(version=1, name=name, steps=(step,))))
    with ctx.db.transaction(durable=True) as tx:
        if records.find(tx, "script", contract=script.contract, name=name) is not None:
            raise Conflict(f"there is a {script.contract} job {name!r} already", existing="script")
        executions.begin(
            ctx,
            tx,
            project=PROJECT,
            pipeline=pushes.keep(tx, PROJECT, spec, actor=actor.name),
            parameters={},
            trigger={"kind": "api", "by": actor.name, "role": actor.role},
            actor=actor.name,
        )
        row = records.find(tx, "script", contract=script.contract, name=name)
        if row is None:
            raise InvalidInput(f"the job {name!r} could not be begun")
        warnings = staging.warnings(ctx, tx, script, actor.role)
        records.set(tx, "script", row["id"], actor=actor.name, warnings=warnings)
        return {**row, "warnings": warnings}


# -- looking ----------------------------------------------------------------------------------------------------------


def find(tx: Tx, contract: str, name: str) -> Row:
    """The job of that name; raises ``NotFound``."""
    row = records.find(tx, "script", contract=contract, name=name)
    if row is None:
        raise NotFound(f"there is no {contract} job {name!r}", missing="script")
    return row


def show(ctx: Context, actor: Actor, *, contract: str, name: str) -> dict[str, Any]:
    """A job: what was asked for, how it stands (see ``_standing``), what came of it."""
    with ctx.db.read() as tx:
        row = tx.row(_query().where(table.c.contract == contract, table.c.name == name))
    if row is None:
        raise NotFound(f"there is no {contract} job {name!r}", missing="script")
    return _standing(row)


def list_(
    ctx: Context,
    actor: Actor,
    *,
    contract: str | None = None,
    status: list[str] | None = None,
    contains: str | None = None,
    created_from: float | None = None,
    created_to: float | None = None,
    changed_from: float | None = None,
    changed_to: float | None = None,
    order: str = "created",
    descending: bool = True,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Jobs in the order of ``created``, ``name``, ``status`` or ``ended``; those of the statuses, names and times that
    are given.

    A job changes when it begins and when it ends.
    """
    if order not in ORDERS:
        raise InvalidInput(f"{order!r} is no order; orders: {', '.join(ORDERS)}")
    query, c = _query(), table.c
    changed = sa.func.coalesce(steps.c.ended_at, steps.c.started_at, c.created_at)
    wanted = [
        contract is not None and c.contract == contract,
        status is not None and steps.c.status.in_(status),
        contains is not None and c.name.contains(contains, autoescape=True),
        created_from is not None and c.created_at >= created_from,
        created_to is not None and c.created_at <= created_to,
        changed_from is not None and changed >= changed_from,
        changed_to is not None and changed <= changed_to,
    ]
    query = query.where(*(condition for condition in wanted if condition is not False))
    by = ORDERS[order]
    query = query.order_by(by.desc() if descending else by, c.id.desc() if descending else c.id)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page([_standing(row) for row in rows], limit, offset)


def _query() -> sa.Select[Any]:
    return (
        sa.select(
            table,
            steps.c.status,
            steps.c.name.label("step_name"),
            steps.c.reason,
            steps.c.started_at,
            steps.c.ended_at,
            steps.c.run,
            steps.c.job,
            executions_table.c.status.label("execution_status"),
            jobs_table.c.status.label("job_status"),
            jobs_table.c.result.label("job_result"),
            jobs_table.c.started_at.label("job_started_at"),
            jobs_table.c.ended_at.label("job_ended_at"),
        )
        .join(steps, steps.c.id == table.c.step)
        .join(executions_table, executions_table.c.id == table.c.execution)
        .outerjoin(jobs_table, jobs_table.c.id == steps.c.job)
    )


def _standing(row: Row) -> Row:
    """With ``phase``: Preparing, Waiting (for a slot), Running, Stopping, Publishing, or the status of what is over;
    ``ended_by``: what ended the program (ok, error, timeout, memory, ...), once that is known."""
    job, result = row.pop("job_status"), row.pop("job_result")
    over = row["status"] not in (StepStatus.PENDING, StepStatus.RUNNING)
    phase = row["status"] if over else "Preparing"
    if job is not None and not over:
        phase = "Publishing" if states.is_terminal("job", job) else {JobStatus.PENDING: "Waiting"}.get(job, job)
    how = None
    if job is not None and states.is_terminal("job", job):
        how = "ok" if job == JobStatus.SUCCEEDED else ((result or {}).get("exit") or {}).get("reason")
    return {**row, "phase": phase, "ended_by": how}


def metrics(ctx: Context, actor: Actor, *, contract: str, name: str) -> list[dict[str, Any]]:
    """The last value of each metric that the program's definitions read: {"name", "value", "at"}."""
    with ctx.db.read() as tx:
        row = find(tx, contract, name)
        step = records.get(tx, "step", row["step"])
        known = last_values(tx, step["run"])
    wanted = [metric["name"] for metric in row["definition"].get("metrics") or ()]
    return [
        {"name": key, "value": known[key].value, "at": known[key].at} for key in dict.fromkeys(wanted) if key in known
    ]


# -- stopping and reading ---------------------------------------------------------------------------------------------


def stop(ctx: Context, actor: Actor, *, contract: str, name: str, reason: str = "stopped on request") -> dict[str, Any]:
    """Stop a job: SIGTERM, and SIGKILL two minutes later. Raises ``Conflict`` when it is over.

    What waits for it in a pipeline is not done; one that was started alone is an execution, which is stopped as such.
    """
    with ctx.db.read() as tx:
        row = find(tx, contract, name)
        alone = records.get(tx, "execution", row["execution"])["project"] == PROJECT
    if alone:
        return executions.stop(ctx, actor, execution=row["execution"], reason=reason)
    with ctx.db.transaction(durable=True) as tx:
        step = records.get(tx, "step", row["step"])
        if states.is_terminal("step", step["status"]):
            raise Conflict(f"the job {name!r} is {step['status']} already")
        if step["job"] is None:
            ended: dict[str, Any] = {"reason": reason, "ended_at": tx.now}
            records.move(tx, "step", step["id"], StepStatus.STOPPED, actor=actor.name, **ended)
            executions.advance_in(ctx, tx, row["execution"])
        else:
            job = jobs.stop(ctx, tx, step["job"], actor=actor.name, reason=reason)
            if states.is_terminal("job", job["status"]):
                executions.job_ended(ctx, tx, job)
    return row


def delete(ctx: Context, actor: Actor, *, contract: str, name: str) -> dict[str, Any]:
    """Take a job that is over out of the list, so that another may have its name; its execution, its run and what it
    left stay. Raises ``Conflict`` while it goes on."""
    with ctx.db.transaction() as tx:
        row = find(tx, contract, name)
        step = records.get(tx, "step", row["step"])
        if not states.is_terminal("step", step["status"]):
            raise Conflict(f"the job {name!r} is {step['status']}: stop it first")
        records.delete(tx, "script", row["id"], actor=actor.name)
    return {"contract": contract, "name": name}


def log(ctx: Context, actor: Actor, *, contract: str, name: str, offset: int = 0, limit: int = 65536) -> dict[str, Any]:
    """A piece of what a program has printed, from a byte offset; see ``jobs.log``. ``began_at``: when it began."""
    with ctx.db.read() as tx:
        row = find(tx, contract, name)
        step = records.get(tx, "step", row["step"])
        job = records.get(tx, "job", step["job"]) if step["job"] else None
    if job is None:
        over = states.is_terminal("step", step["status"])
        return {"job": None, "text": "", "offset": 0, "next_offset": 0, "times": [], "end": over, "began_at": None}
    found = jobs.log(ctx, actor, job=job["id"], offset=offset, limit=limit)
    return {**found, "began_at": job["started_at"]}
