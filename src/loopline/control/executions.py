"""Executions of pipelines: started, moved on as their steps end, stopped and tried again.

``advance_in`` is the engine's whole decision: a pure look at the steps (``domain.decisions.decide``), then each step
that may start is taken from the cache, decided on the spot, or handed on as a job, all in one transaction.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa

from loopline.control import events, jobs, registrations, specs, tracking
from loopline.control.context import SYSTEM, Context
from loopline.domain import calls, decisions, states
from loopline.domain.access import Actor
from loopline.domain.pipelines import ConditionStep, FailStep, JobStep, Output, RegisterStep
from loopline.domain.states import ExecutionStatus, JobStatus, RunStatus, StepStatus
from loopline.errors import Conflict, LooplineError, NotFound
from loopline.store import queue, records
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import cache, executions, runs, steps


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
) -> Row:
    """Create an execution with its steps and its run, and move it on. ``parameters`` are checked already.

    Of a project its pipeline runs with a push's files in an environment; of no project (``project`` = "") the steps
    bring what they need themselves.
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
    view = _View(ctx, tx, execution)
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
                moved = _start_step(view, name) or moved
        if not moved:
            return


class _View:
    """An execution as one decision sees it."""

    def __init__(self, ctx: Context, tx: Tx, execution: Row) -> None:
        self.ctx, self.tx, self.execution = ctx, tx, execution
        self.index = specs.index_of(ctx, tx, execution)
        self.rows = {row["name"]: row for row in tx.fetch(_STEPS, execution=execution["id"])}
        self.statuses = {name: row["status"] for name, row in self.rows.items()}
        self.running = sum(1 for row in self.rows.values() if row["status"] == StepStatus.RUNNING)
        self.outputs = _Outputs(tx, execution["id"], self.statuses)
        self.results = {
            name: bool(self.outputs[name]["result"].value)
            for name, step in self.index.steps.items()
            if isinstance(step, ConditionStep) and name in self.outputs
        }
        self._shared: dict[str, Any] = {}

    def shared(self, key: str, make: Any) -> Any:
        """Something that several steps of one decision need, read once."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def move(self, name: str, status: StepStatus, **values: Any) -> Row:
        known = self.rows[name]
        row = records.move(self.tx, "step", known["id"], status, actor=SYSTEM.name, known=known, **values)
        self.rows[name] = row
        self.statuses[name] = row["status"]
        return row

    def end(self, name: str, status: StepStatus, **values: Any) -> None:
        if status == StepStatus.SKIPPED:
            self.move(name, status, **values)
            return
        values.setdefault("started_at", self.rows[name]["started_at"] or self.tx.now)
        self.move(name, status, ended_at=self.tx.now, **values)

    def succeed(self, name: str, given: dict[str, Any], **values: Any) -> None:
        self.end(name, StepStatus.SUCCEEDED, outputs=given, **values)
        self.outputs.keep(name, given)
        if isinstance(self.index.steps[name], ConditionStep):
            self.results[name] = bool(given["result"]["value"])


class _Outputs(Mapping[str, Mapping[str, Output]]):
    """What the steps that succeeded gave. Of many steps a decision needs few: each is read when it is asked for."""

    def __init__(self, tx: Tx, execution: str, statuses: Mapping[str, str]) -> None:
        self._tx, self._execution, self._statuses = tx, execution, statuses
        self._read: dict[str, dict[str, Output]] = {}

    def keep(self, name: str, given: dict[str, Any]) -> None:
        """Of a step that has just succeeded."""
        self._read[name] = {key: specs.as_output(value) for key, value in given.items()}

    def __getitem__(self, name: str) -> dict[str, Output]:
        if name not in self._read:
            if name not in self:
                raise KeyError(name)
            row = self._tx.fetch_one(_GIVEN, execution=self._execution, name=name)
            self.keep(name, (row or {}).get("outputs") or {})
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return self._statuses.get(str(name)) == StepStatus.SUCCEEDED

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._statuses if name in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)


_STEPS = Prepared(  # what a decision looks at; there may be thousands of steps
    sa.select(
        *(steps.c[name] for name in ("id", "name", "status", "run", "reason", "started_at")),
    ).where(steps.c.execution == sa.bindparam("execution"))
)
_GIVEN = Prepared(
    sa.select(steps.c.outputs).where(
        steps.c.execution == sa.bindparam("execution"), steps.c.name == sa.bindparam("name")
    )
)
_CACHED = Prepared(sa.select(cache).where(cache.c.key == sa.bindparam("key")))
_SET_JOB = Prepared(
    steps.update().where(steps.c.id == sa.bindparam("step")).values(job=sa.bindparam("new_job", type_=sa.String))
)


def _start_step(view: _View, name: str) -> bool:
    """Start one step; True when its end is known already, so that others may follow at once."""
    step = view.index.steps[name]
    try:
        if isinstance(step, ConditionStep):
            holds = calls.evaluate_condition(step.condition, view.execution["parameters"], view.outputs)
            view.succeed(name, {"result": specs.json_output(holds)})
            return True
        if isinstance(step, FailStep):
            parts = [str(calls.resolve_value(p, view.execution["parameters"], view.outputs)) for p in step.message]
            view.end(name, StepStatus.FAILED, reason=" ".join(parts))
            return True
        if isinstance(step, RegisterStep):
            view.move(name, StepStatus.RUNNING, started_at=view.tx.now)
            registrations.begin(view.ctx, view.tx, view.execution, view.rows[name], step, view.outputs)
            return False
        return _start_job(view, name, step)
    except LooplineError as error:
        view.end(name, StepStatus.FAILED, reason=error.message)
        return True


def _start_job(view: _View, name: str, step: JobStep) -> bool:
    if view.running >= view.execution["max_parallel"] and not step.cache:
        return False
    ctx, tx, execution = view.ctx, view.tx, view.execution
    context = view.shared("context", lambda: specs.StepContext(ctx, tx, execution, view.index))
    arguments = calls.resolve_arguments(step, execution["parameters"], view.outputs, context.assets)
    key = calls.cache_key(view.index.spec, step, context.code_digest(step), context.environment["key"], arguments)
    if step.cache and execution["cache"]:
        hit = tx.fetch_one(_CACHED, key=key)
        if hit is not None:
            view.succeed(name, hit["outputs"], cached_from=hit["execution"], cache_key=key)
            return True
    if view.running >= execution["max_parallel"]:
        return False
    view.running += 1
    row = view.move(name, StepStatus.RUNNING, started_at=tx.now, cache_key=key)
    job = jobs.submit(
        ctx,
        tx,
        owner="step",
        owner_id=row["id"],
        name=name,
        kind="step",
        spec=context.job_spec(step, arguments),
        actor=SYSTEM.name,
        max_tries=step.retries + 1,
        backoff_seconds=step.backoff_seconds,
    )
    tx.change(_SET_JOB, step=row["id"], new_job=job["id"])
    view.rows[name]["job"] = job["id"]
    return False


def _end(tx: Tx, execution: Row, status: ExecutionStatus, view: _View) -> None:
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
    if job["status"] == JobStatus.SUCCEEDED:
        given = job["result"] or {}
        done: dict[str, Any] = {"outputs": given, "ended_at": tx.now}
        records.move(tx, "step", row["id"], StepStatus.SUCCEEDED, actor=SYSTEM.name, known=row, **done)
        if row["cache_key"]:
            entry = {
                "key": row["cache_key"],
                "execution": row["execution"],
                "step": row["name"],
                "outputs": given,
                "created_at": tx.now,
            }
            tx.upsert(cache, [entry], ("key",), ("execution", "step", "outputs", "created_at"))
    else:
        stopped = job["status"] == JobStatus.STOPPED
        status = StepStatus.STOPPED if stopped else StepStatus.FAILED
        records.move(tx, "step", row["id"], status, actor=SYSTEM.name, reason=job["reason"], ended_at=tx.now)
    advance_in(ctx, tx, row["execution"])


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
    status: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Executions, newest first."""
    query = sa.select(executions).order_by(executions.c.created_at.desc(), executions.c.id.desc())
    if project is not None:
        query = query.where(executions.c.project == project)
    if status is not None:
        query = query.where(executions.c.status == status)
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
    for row in rows:
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
            origin = records.find(tx, "step", execution=row["cached_from"], name=entry["step"]) if entry else None
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
            else:
                registrations.stop(ctx, tx, step, actor=actor.name)
        advance_in(ctx, tx, execution)
        return records.get(tx, "execution", execution)


def retry(ctx: Context, actor: Actor, *, execution: str) -> dict[str, Any]:
    """Start again from what failed: steps that succeeded keep their results, the others wait once more."""
    with ctx.db.transaction(durable=True) as tx:
        row = records.get(tx, "execution", execution)
        if row["status"] not in (ExecutionStatus.FAILED, ExecutionStatus.STOPPED):
            raise Conflict(f"the execution is {row['status']}; only one that failed or was stopped is tried again")
        records.move(
            tx, "execution", execution, ExecutionStatus.RUNNING, actor=actor.name, reason="tried again", ended_at=None
        )
        again = (StepStatus.FAILED, StepStatus.SKIPPED, StepStatus.STOPPED)
        for step in tx.rows(sa.select(steps).where(steps.c.execution == execution, steps.c.status.in_(again))):
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
