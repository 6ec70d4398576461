"""Executions of pipelines: started, moved on as their steps end, stopped and tried again.

``advance_in`` is the engine's whole decision: a pure look at the steps (``domain.decisions.decide``), then each step
that may start is taken from the cache, decided on the spot, or handed on as a job, all in one transaction.
"""

from typing import Any

import sqlalchemy as sa

from loopline.control import actions, events, jobs, registrations, selections, specs, staging, tracking
from loopline.control.context import SYSTEM, Context
from loopline.control.steps import View, start
from loopline.domain import decisions, states
from loopline.domain.access import Actor
from loopline.domain.pipelines import ActionStep
from loopline.domain.states import ExecutionStatus, JobStatus, RunStatus, StepStatus
from loopline.errors import Conflict, InvalidInput, LooplineError, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import attempts, cache, executions, runs, scripts, steps

ACTION_SECONDS = 0.25  # between two looks at an action that takes its time


def begin(
    ctx: Context,
    tx: Tx,
    *,
    project: str,
    pipeline: Row,
    parameters: dict[str, Any],
    trigger: dict[str, Any],
    actor: str,
    push: Row | None = None,
    environment: Row | None = None,
    targets: dict[str, Any] | None = None,
    delivery: str | None = None,
    use_cache: bool = True,
    max_parallel: int = 4,
    selection: dict[str, Any] | None = None,
) -> Row:
    """Create an execution with its steps and its run, and move it on. ``parameters`` are checked already.

    Of a project its pipeline runs with a push's files in an environment; of no project (``project`` = "") the steps
    bring what they need themselves. ``selection``: of ``selections.choose``.
    """
    index = specs.index(ctx, pipeline)
    assets = specs.pin_assets(tx, project, index)
    execution = records.create(
        tx,
        "execution",
        actor=actor,
        project=project,
        pipeline=pipeline["name"],
        pipeline_version=pipeline["version"],
        push=push and push["id"],
        environment=environment and environment["id"],
        parameters=parameters,
        targets=targets,
        assets=assets,
        trigger=trigger,
        delivery=delivery,
        cache=use_cache,
        max_parallel=max_parallel,
        selection=selection,
        by=actor,
    )
    run = tracking.start(
        tx,
        project=project,
        experiment=project or pipeline["name"],
        name=f"{pipeline['name']} {execution['id'][-6:]}",
        actor=actor,
        execution=execution["id"],
        parameters=parameters,
        inputs=[{"asset": f"{a['name']}:{a['version']}", "digest": a["sha256"]} for a in assets],
        commit=push and push["commit"],
        dirty=bool(push and push["dirty"]),
        tree=push and push["tree"],
        environment=environment and environment["key"],
        host=ctx.host,
    )
    tx.execute(
        steps.insert(),
        [
            {
                "id": tx.new_id("st"),
                "status": StepStatus.PENDING,
                "execution": execution["id"],
                "name": name,
                "position": position,
                "kind": specs.kind_of(index.steps[name]),
                "run": run["id"],
            }
            for position, name in enumerate(index.order)
        ],
    )
    records.move(tx, "execution", execution["id"], ExecutionStatus.RUNNING, actor=SYSTEM.name, started_at=tx.now)
    selections.apply(tx, execution, index)
    advance_in(ctx, tx, execution["id"])
    return records.get(tx, "execution", execution["id"])


# -- moving on --------------------------------------------------------------------------------------------------------


def advance(ctx: Context, execution_id: str) -> float | None:
    """Task: move an execution on; safe at any time."""
    with ctx.db.transaction() as tx:
        advance_in(ctx, tx, execution_id)
    return None


def advance_in(ctx: Context, tx: Tx, execution_id: str) -> None:
    """Start what may start, skip what never will, and end the execution when nothing is left."""
    execution = records.get(tx, "execution", execution_id)
    if states.is_terminal("execution", execution["status"]) or execution["status"] == ExecutionStatus.PENDING:
        return
    view = View(ctx, tx, execution)
    stopping = execution["status"] == ExecutionStatus.STOPPING
    while True:
        decision = decisions.decide(view.index, view.statuses, view.results)
        for name, reason in decision.skip:
            view.end(name, StepStatus.SKIPPED, reason=reason)
        if decision.status is not None:
            _end(tx, execution, decision.status, view)
            return
        moved = False
        for name in decision.start:
            if stopping:
                view.end(name, StepStatus.STOPPED, reason="the execution was stopped")
                moved = True
            else:
                moved = start(view, name) or moved
        if not moved:
            return


def act(ctx: Context, step_id: str) -> float | None:
    """Task: begin the action of a step, or look at it; comes back until it is over.

    What an action that fails had begun is undone with it.
    """
    try:
        with ctx.db.transaction(durable=True) as tx:
            return _act_in(ctx, tx, step_id)
    except LooplineError as error:
        with ctx.db.transaction() as tx:
            row = records.get(tx, "step", step_id)
            if row["status"] == StepStatus.RUNNING:
                values: dict[str, Any] = {"reason": error.message, "ended_at": tx.now}
                records.move(tx, "step", step_id, StepStatus.FAILED, actor=SYSTEM.name, known=row, **values)
                advance_in(ctx, tx, row["execution"])
    return None


def _act_in(ctx: Context, tx: Tx, step_id: str) -> float | None:
    row = records.get(tx, "step", step_id)
    if row["status"] != StepStatus.RUNNING:
        return None
    execution = records.get(tx, "execution", row["execution"])
    view = View(ctx, tx, execution)
    step = view.index.steps[row["name"]]
    assert isinstance(step, ActionStep)
    begun = (row["outputs"] or {}).get(actions.BEGUN)
    if begun is None:
        arguments = {key: view.resolve(value) for key, value in step.arguments.items()}
        begun = specs.json_output(actions.begin(ctx, tx, execution, row, step.action, arguments))
        records.set(tx, "step", step_id, actor=SYSTEM.name, outputs={actions.BEGUN: begun})
    result = actions.result(ctx, tx, step.action, begun["value"])
    if result is None:
        return ACTION_SECONDS
    values: dict[str, Any] = {"outputs": {"result": specs.json_output(result)}, "ended_at": tx.now}
    records.move(tx, "step", step_id, StepStatus.SUCCEEDED, actor=SYSTEM.name, known=row, **values)
    advance_in(ctx, tx, row["execution"])
    return None


def _end(tx: Tx, execution: Row, status: ExecutionStatus, view: View) -> None:
    if execution["status"] == ExecutionStatus.STOPPING and status == ExecutionStatus.SUCCEEDED:
        status = ExecutionStatus.STOPPED  # its last step ended well before it could be stopped
    if execution["status"] == ExecutionStatus.RUNNING and status == ExecutionStatus.STOPPED:
        status = ExecutionStatus.FAILED
    failed = [row for row in view.rows.values() if row["status"] == StepStatus.FAILED]
    reason = f"{failed[0]['name']}: {failed[0]['reason']}" if failed else None
    records.move(tx, "execution", execution["id"], status, actor=SYSTEM.name, reason=reason, ended_at=tx.now)
    run_status = {
        ExecutionStatus.SUCCEEDED: RunStatus.SUCCEEDED,
        ExecutionStatus.STOPPED: RunStatus.STOPPED,
    }.get(status, RunStatus.FAILED)
    for row in tx.rows(sa.select(runs.c.id).where(runs.c.execution == execution["id"])):
        tracking.end(tx, row["id"], run_status)


def job_ended(ctx: Context, tx: Tx, job: Row) -> None:
    """A step's job has ended: record the step's result, once, and move the execution on."""
    row = records.get(tx, "step", job["owner_id"])
    if states.is_terminal("step", row["status"]) or row["job"] != job["id"]:
        return
    if row["kind"] == "script":
        queue.ask(tx, staging.TASK, row["id"])
        return
    if job["status"] == JobStatus.SUCCEEDED:
        given = job["result"] or {}
        done: dict[str, Any] = {"outputs": given, "ended_at": tx.now}
        records.move(tx, "step", row["id"], StepStatus.SUCCEEDED, actor=SYSTEM.name, known=row, **done)
        if row["cache_key"]:
            _remember(tx, row, row["cache_key"], given)
    else:
        stopped = job["status"] == JobStatus.STOPPED
        status = StepStatus.STOPPED if stopped else StepStatus.FAILED
        records.move(tx, "step", row["id"], status, actor=SYSTEM.name, reason=job["reason"], ended_at=tx.now)
    advance_in(ctx, tx, row["execution"])


def _remember(tx: Tx, row: Row, key: str, given: dict[str, Any]) -> None:
    entry = {
        "key": key,
        "execution": row["execution"],
        "step": row["name"],
        "outputs": given,
        "created_at": tx.now,
    }
    tx.upsert(cache, [entry], ("key",), ("execution", "step", "outputs", "created_at"))


def advance_script(ctx: Context, step_id: str) -> float | None:
    """Task: hand a script step's job on; when its job has ended, end the step, and move the execution on."""
    ending = staging.advance(ctx, step_id)
    if not isinstance(ending, staging.Ending):
        return ending
    with ctx.db.transaction() as tx:
        row = records.get(tx, "step", step_id)
        if states.is_terminal("step", row["status"]):
            return None
        staging.settle_in(tx, row, ending)
        done = {"outputs": ending.given, "cached_from": ending.cached_from, "ended_at": tx.now}
        if ending.key is not None:
            done["cache_key"] = ending.key
            if ending.cached_from is None:
                _remember(tx, row, ending.key, ending.given)
        records.move(tx, "step", step_id, ending.status, actor=SYSTEM.name, known=row, reason=ending.reason, **done)
        advance_in(ctx, tx, row["execution"])
    return None


def check_registration(ctx: Context, step_id: str) -> float | None:
    """Task: end a register step whose version has been judged, and move the execution on."""
    with ctx.db.transaction() as tx:
        row = records.get(tx, "step", step_id)
        outcome = registrations.outcome(tx, row)
        if states.is_terminal("step", row["status"]) or outcome is None:
            return None
        values = {"reason": outcome["reason"], "ended_at": tx.now}
        given = {"version": specs.json_output(outcome["version"])}
        records.move(tx, "step", step_id, StepStatus.SUCCEEDED, actor=SYSTEM.name, outputs=given, **values)
        advance_in(ctx, tx, row["execution"])
    return None


# -- what people do ---------------------------------------------------------------------------------------------------


def list_(
    ctx: Context,
    actor: Actor,
    *,
    project: str | None = None,
    pipeline: str | None = None,
    status: str | None = None,
    created_from: float | None = None,
    created_to: float | None = None,
    ascending: bool = False,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Executions, newest first unless ``ascending``; those that began within the times."""
    c = executions.c
    order = (c.created_at, c.id) if ascending else (c.created_at.desc(), c.id.desc())
    wanted = [
        project is not None and c.project == project,
        pipeline is not None and c.pipeline == pipeline,
        status is not None and c.status == status,
        created_from is not None and c.created_at >= created_from,
        created_to is not None and c.created_at <= created_to,
    ]
    query = sa.select(executions).where(*(each for each in wanted if each is not False)).order_by(*order)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page(rows, limit, offset)


def show(ctx: Context, actor: Actor, *, execution: str) -> dict[str, Any]:
    """An execution with its steps."""
    with ctx.db.read() as tx:
        row = records.get(tx, "execution", execution)
        row["steps"] = _steps(tx, execution)
        found = tx.row(sa.select(runs.c.id).where(runs.c.execution == execution))
        push = records.find(tx, "push", id=row["push"])
    row["run"] = None if found is None else found["id"]
    row["commit"] = None if push is None else push["commit"]
    row["dirty"] = None if push is None else push["dirty"]
    row["branch"] = None if push is None else push["branch"]
    return row


def _steps(tx: Tx, execution: str) -> list[Row]:
    rows = tx.rows(sa.select(steps).where(steps.c.execution == execution).order_by(steps.c.position))
    query = sa.select(attempts.c.job, sa.func.count().label("n")).join(steps, steps.c.job == attempts.c.job)
    tries = {
        row["job"]: row["n"] for row in tx.rows(query.where(steps.c.execution == execution).group_by(attempts.c.job))
    }
    named = {row["step"]: row for row in tx.rows(sa.select(scripts).where(scripts.c.execution == execution))}
    for row in rows:
        row["tries"] = tries.get(row["job"], 0)
        script = named.get(row["id"])
        row["script"] = None if script is None else {"contract": script["contract"], "name": script["name"]}
        start, end = row["started_at"], row["ended_at"]
        row["seconds"] = None if start is None or end is None else round(end - start, 4)
    return rows


def list_steps(ctx: Context, actor: Actor, *, execution: str) -> dict[str, Any]:
    """The steps of an execution in order, with status, duration, outputs and reasons."""
    with ctx.db.read() as tx:
        records.get(tx, "execution", execution)
        return {"items": _steps(tx, execution), "next": None}


def log(
    ctx: Context, actor: Actor, *, execution: str, step: str, offset: int = 0, limit: int = 65536
) -> dict[str, Any]:
    """A piece of a step's log from a byte offset; a cached step shows the log of the step whose result it took."""
    with ctx.db.read() as tx:
        row = records.find(tx, "step", execution=execution, name=step)
        if row is None:
            raise NotFound(f"the execution {execution} has no step {step!r}")
        job = row["job"]
        if job is None and row["cached_from"]:
            entry = tx.row(sa.select(cache).where(cache.c.key == row["cache_key"]))
            named = entry["step"] if entry else step
            origin = records.find(tx, "step", execution=row["cached_from"], name=named)
            job = origin["job"] if origin else None
    if job is None:
        over = states.is_terminal("step", row["status"])
        return {"job": None, "status": row["status"], "text": "", "offset": 0, "next_offset": 0, "end": over}
    return jobs.log(ctx, actor, job=job, offset=offset, limit=limit)


def stop(ctx: Context, actor: Actor, *, execution: str, reason: str = "stopped by a person") -> dict[str, Any]:
    """Stop an execution: running steps get SIGTERM, then SIGKILL; waiting ones never start."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.get(tx, "execution", execution)
        if states.is_terminal("execution", row["status"]):
            raise Conflict(f"the execution is {row['status']} already")
        if row["status"] != ExecutionStatus.STOPPING:
            records.move(tx, "execution", execution, ExecutionStatus.STOPPING, actor=actor.name, reason=reason)
        query = sa.select(steps).where(steps.c.execution == execution, steps.c.status == StepStatus.RUNNING)
        for step in tx.rows(query):
            if step["job"]:
                job = jobs.stop(ctx, tx, step["job"], actor=actor.name, reason=reason)
                if states.is_terminal("job", job["status"]):
                    job_ended(ctx, tx, job)
            elif step["kind"] == "register":
                registrations.stop(ctx, tx, step, actor=actor.name)
            elif step["kind"] == "action":  # what it has begun goes on
                ended: dict[str, Any] = {"reason": "the execution was stopped", "ended_at": tx.now}
                records.move(tx, "step", step["id"], StepStatus.STOPPED, actor=SYSTEM.name, known=step, **ended)
            elif step["kind"] == "script":  # its job is not there yet, and will not be
                ended = {"reason": reason, "ended_at": tx.now}
                records.move(tx, "step", step["id"], StepStatus.STOPPED, actor=actor.name, **ended)
        advance_in(ctx, tx, execution)
        return records.get(tx, "execution", execution)


def update(
    ctx: Context,
    actor: Actor,
    *,
    execution: str,
    title: str | None = None,
    description: str | None = None,
    max_parallel: int | None = None,
) -> dict[str, Any]:
    """Change what people call an execution, what they say of it, and how many of its steps may run at once from now
    on; what is not given stays."""
    if max_parallel is not None and max_parallel < 1:
        raise InvalidInput("max_parallel is at least 1")
    words = {name: text for name, text in (("title", title), ("description", description)) if text is not None}
    with ctx.db.transaction(durable=True) as tx:
        row = records.get(tx, "execution", execution)
        values: dict[str, Any] = {"trigger": {**(row["trigger"] or {}), **words}} if words else {}
        if max_parallel is not None:
            values["max_parallel"] = max_parallel
        if values:
            records.set(tx, "execution", execution, actor=actor.name, **values)
        if max_parallel is not None and not states.is_terminal("execution", row["status"]):
            advance_in(ctx, tx, execution)
        return records.get(tx, "execution", execution)


def retry(
    ctx: Context, actor: Actor, *, execution: str, max_parallel: int | None = None, delivery: str | None = None
) -> dict[str, Any]:
    """Start again from what failed: steps that succeeded keep their results, the others wait once more. The same
    ``delivery`` twice tries once."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.get(tx, "execution", execution)
        if delivery is not None and (row["trigger"] or {}).get("retried") == delivery:
            return row
        if row["status"] not in (ExecutionStatus.FAILED, ExecutionStatus.STOPPED):
            raise Conflict(f"the execution is {row['status']}; only one that failed or was stopped is tried again")
        values: dict[str, Any] = {"ended_at": None, "trigger": {**(row["trigger"] or {}), "retried": delivery}}
        if max_parallel is not None:
            values["max_parallel"] = max(1, max_parallel)
        to = ExecutionStatus.RUNNING
        records.move(tx, "execution", execution, to, actor=actor.name, reason="tried again", **values)
        again = (StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.STOPPED)
        for step in tx.rows(sa.select(steps).where(steps.c.execution == execution, steps.c.status.in_(again))):
            if not selections.runs(row, step["name"]):
                continue
            fresh = {"job": None, "started_at": None, "ended_at": None, "outputs": None}
            records.move(tx, "step", step["id"], StepStatus.PENDING, actor=actor.name, reason="", **fresh)
        for run in tx.rows(sa.select(runs).where(runs.c.execution == execution)):
            if states.is_terminal("run", run["status"]) and run["status"] != RunStatus.SUCCEEDED:
                records.move(tx, "run", run["id"], RunStatus.RUNNING, actor=actor.name, ended_at=None)
        advance_in(ctx, tx, execution)
        return records.get(tx, "execution", execution)


def recover(ctx: Context) -> None:
    """At start: ask for every execution that is not over to be looked at."""
    live = (ExecutionStatus.RUNNING, ExecutionStatus.STOPPING)
    with ctx.db.transaction() as tx:
        for row in tx.rows(sa.select(executions.c.id).where(executions.c.status.in_(live))):
            queue.ask(tx, "execution.advance", row["id"])
