"""Pushes: a commit (or a working tree) reaches the platform; its environment is built, its checks run, its pipeline is
compiled, and an execution starts. A check that fails starts nothing, and the push says which one."""

import shlex
from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import environments, events, executions, jobs, outputs, processes, projects, specs
from loopline.control.context import SYSTEM, Context
from loopline.domain import pipelines, states
from loopline.domain.access import Actor
from loopline.domain.projects import Loop, from_dict
from loopline.domain.states import JobStatus, PushStatus
from loopline.errors import InvalidInput, LooplineError
from loopline.store import folders, queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import pipelines as pipelines_table
from loopline.store.schema import pushes

COMPILE_TIMEOUT_SECONDS = 120
TAIL_BYTES = 4000


def receive_in(
    tx: Tx,
    *,
    project: str,
    tree: str,
    by: str,
    source: str,
    branch: str | None = None,
    commit: str | None = None,
    dirty: bool = False,
    message: str | None = None,
    trigger: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    delivery: str | None = None,
) -> Row:
    """Record a push; the engine moves it on. The same ``delivery`` twice is the same push."""
    if delivery is not None:
        again = records.find(tx, "push", delivery=delivery)
        if again is not None:
            return again
    row = records.create(
        tx,
        "push",
        actor=by,
        project=project,
        branch=branch,
        commit=commit,
        dirty=dirty,
        tree=tree,
        message=message,
        by=by,
        source=source,
        options=options or {},
        trigger=trigger or {"kind": source, "by": by},
        delivery=delivery,
        jobs={},
    )
    queue.ask(tx, "push.advance", row["id"])
    return row


def run(
    ctx: Context,
    actor: Actor,
    *,
    tree: str,
    branch: str | None = None,
    commit: str | None = None,
    dirty: bool = True,
    parameters: dict[str, Any] | None = None,
    cache: bool = True,
    checks: bool = True,
    delivery: str | None = None,
) -> dict[str, Any]:
    """Run a project's pipeline from an uploaded tree; ``parameters`` override the defaults. The same ``delivery`` twice
    starts one execution."""
    loop = projects.read_loop(ctx, tree)
    if projects.targets(loop, branch) is None:
        raise InvalidInput(f"the branch {branch!r} moves nothing; give it an entry in [branches] of loop.toml")
    options = {"parameters": parameters or {}, "cache": cache, "checks": checks}
    with ctx.db.transaction() as tx:
        return receive_in(
            tx,
            project=loop.project.name,
            tree=tree,
            by=actor.name,
            source="run",
            branch=branch,
            commit=commit,
            dirty=dirty,
            options=options,
            delivery=delivery,
        )


def start(
    ctx: Context,
    actor: Actor,
    *,
    project: str,
    parameters: dict[str, Any] | None = None,
    cache: bool = True,
    delivery: str | None = None,
) -> dict[str, Any]:
    """Run a project's pipeline again, from the tree that was applied last."""
    with ctx.db.transaction() as tx:
        return again_in(
            tx,
            project,
            by=actor.name,
            trigger={"kind": "api", "by": actor.name},
            parameters=parameters or {},
            cache=cache,
            delivery=delivery,
        )


def again_in(
    tx: Tx,
    project: str,
    *,
    by: str,
    trigger: dict[str, Any],
    parameters: dict[str, Any],
    cache: bool = True,
    delivery: str | None = None,
) -> Row:
    """A push of the project's applied tree, for triggers and people; its checks have passed before."""
    row = records.find(tx, "project", name=project)
    if row is None or not row["tree"]:
        raise InvalidInput(f"the project {project!r} has not been pushed or applied yet")
    before = _applied_by(tx, row)
    return receive_in(
        tx,
        project=project,
        tree=row["tree"],
        by=by,
        source=str(trigger["kind"]),
        branch=before.get("branch"),
        commit=before.get("commit"),
        dirty=bool(before.get("dirty")),
        trigger=trigger,
        options={"parameters": parameters, "cache": cache, "checks": False},
        delivery=delivery,
    )


def _applied_by(tx: Tx, project: Row) -> Row:
    """The newest push of the applied tree that moves the project's own model; an empty row when there is none.

    Another branch may hold the same files; running it again would move that branch's model.
    """
    loop = from_dict(project["loop"])
    same = sa.select(pushes).where(pushes.c.project == project["name"], pushes.c.tree == project["tree"])
    for row in tx.rows(same.order_by(pushes.c.created_at.desc(), pushes.c.id.desc())):
        moved = projects.targets(loop, row["branch"])
        if moved is not None and moved["model"] == loop.model.name:
            return row
    return {}


# -- moving on --------------------------------------------------------------------------------------------------------


def advance(ctx: Context, push_id: str) -> float | None:
    """Task: move a push one status on."""
    with ctx.db.read() as tx:
        row = records.get(tx, "push", push_id)
    step = {PushStatus.RECEIVED: _accept, PushStatus.PREPARING: _prepare}.get(row["status"])
    if step is None:
        return None
    try:
        step(ctx, row)
    except (LooplineError, OSError) as error:
        with ctx.db.transaction() as tx:
            reject(tx, push_id, getattr(error, "message", str(error)))
        return None
    return None


def reject(tx: Tx, push_id: str, reason: str) -> None:
    """End a push that starts nothing, saying why."""
    row = records.get(tx, "push", push_id)
    if not states.is_terminal("push", row["status"]):
        records.move(tx, "push", push_id, PushStatus.REJECTED, actor=SYSTEM.name, reason=reason, ended_at=tx.now)


def _accept(ctx: Context, row: Row) -> None:
    loop = projects.read_loop(ctx, row["tree"])
    if loop.project.name != row["project"]:
        raise InvalidInput(f"loop.toml is of the project {loop.project.name!r}, not {row['project']!r}")
    moved = projects.targets(loop, row["branch"])
    with ctx.db.transaction() as tx:
        if moved is None:
            reason = f"the branch {row['branch']!r} has no entry in [branches]"
            records.move(tx, "push", row["id"], PushStatus.IGNORED, actor=SYSTEM.name, reason=reason, ended_at=tx.now)
            return
        records.move(tx, "push", row["id"], PushStatus.PREPARING, actor=SYSTEM.name)
        queue.ask(tx, "push.advance", row["id"])


def _prepare(ctx: Context, row: Row) -> None:
    """Build the environment, then run the checks, or compile at once when there are none."""
    loop = projects.read_loop(ctx, row["tree"])
    requirements = _file(ctx, row["tree"], loop.environment.requirements) or ""
    environment = environments.ensure(
        ctx,
        project=row["project"],
        requirements=requirements,
        preload=loop.environment.preload,
        actor=row["by"],
    )
    with ctx.db.transaction() as tx:
        records.set(tx, "push", row["id"], actor=SYSTEM.name, environment=environment["id"])
        current = records.get(tx, "push", row["id"])
        if current["status"] != PushStatus.PREPARING:
            return
        if loop.checks.commands and (row["options"] or {}).get("checks", True):
            records.move(tx, "push", row["id"], PushStatus.CHECKING, actor=SYSTEM.name)
            _next_check(ctx, tx, current | {"environment": environment["id"]}, loop, environment)
        else:
            _compile(ctx, tx, current, loop, environment)


def _file(ctx: Context, tree: str, path: str) -> str | None:
    entry = next((entry for entry in folders.read_manifest(ctx.blobs, tree) if entry.path == path), None)
    return None if entry is None else ctx.blobs.read(entry.sha256).decode("utf-8", "replace")


def _next_check(ctx: Context, tx: Tx, row: Row, loop: Loop, environment: Row) -> bool:
    """Submit the next of the project's checks; False when all have run."""
    done = {name: job for name, job in (row["jobs"] or {}).items() if name.startswith("check")}
    if len(done) >= len(loop.checks.commands):
        return False
    command = loop.checks.commands[len(done)]
    words = shlex.split(command)
    program = str(environment["path"] or "").rstrip("/") + "/bin/"
    argv = [program + words[0], *words[1:]] if words and "/" not in words[0] else words
    if words and words[0] in ("python", "python3"):
        argv = [environment["python"], *words[1:]]
    job = jobs.submit(
        ctx,
        tx,
        owner="push",
        owner_id=row["id"],
        name=command,
        kind="command",
        spec={
            **specs.environment_spec(environment),
            "tree": row["tree"],
            "argv": argv,
            "limits": {"timeout_seconds": loop.checks.timeout_seconds},
        },
        actor=SYSTEM.name,
    )
    found = {**(row["jobs"] or {}), f"check {len(done) + 1}": {"job": job["id"], "command": command}}
    records.set(tx, "push", row["id"], actor=SYSTEM.name, jobs=found)
    return True


def _compile(ctx: Context, tx: Tx, row: Row, loop: Loop, environment: Row) -> None:
    records.move(tx, "push", row["id"], PushStatus.COMPILING, actor=SYSTEM.name)
    job = jobs.submit(
        ctx,
        tx,
        owner="push",
        owner_id=row["id"],
        name=f"compile {loop.pipeline.file}",
        kind="compile",
        spec={
            **specs.environment_spec(environment),
            "tree": row["tree"],
            "limits": {"timeout_seconds": COMPILE_TIMEOUT_SECONDS},
            "call": {"file": loop.pipeline.file, "name": loop.pipeline.name},
        },
        actor=SYSTEM.name,
    )
    current = records.get(tx, "push", row["id"])
    found = {**(current["jobs"] or {}), "compile": {"job": job["id"], "command": job["name"]}}
    records.set(tx, "push", row["id"], actor=SYSTEM.name, jobs=found)


def job_ended(ctx: Context, tx: Tx, job: Row) -> None:
    """A check or the compilation of a push has ended."""
    row = records.get(tx, "push", job["owner_id"])
    if states.is_terminal("push", row["status"]):
        return
    if job["status"] != JobStatus.SUCCEEDED:
        what = "check failed" if job["kind"] == "command" else "pipeline cannot be compiled"
        reject(tx, row["id"], f"{what}: {job['name']}: {job['reason']}{_tail(ctx, tx, job)}")
        return
    try:
        loop = projects.read_loop(ctx, row["tree"])
        environment = records.get(tx, "environment", row["environment"])
        if job["kind"] == "compile":
            _start(ctx, tx, row, loop, environment, job)
        elif not _next_check(ctx, tx, row, loop, environment):
            _compile(ctx, tx, row, loop, environment)
    except LooplineError as error:
        reject(tx, row["id"], error.message)


def _tail(ctx: Context, tx: Tx, job: Row) -> str:
    """The last lines of a failed check's log: which test, which line."""
    if job["kind"] != "command":
        return ""
    text = jobs.tail(ctx, tx, job["id"], TAIL_BYTES)
    return f"\n{text}" if text else ""


def _start(ctx: Context, tx: Tx, row: Row, loop: Loop, environment: Row, job: Row) -> None:
    """Apply the file, keep the compiled pipeline, and start the execution."""
    spec = pipelines.parse_spec(outputs.read_json(ctx, job["result"]["pipeline"]))
    moved = projects.targets(loop, row["branch"])
    if moved is None:
        raise InvalidInput(f"the branch {row['branch']!r} moves nothing")
    project, _ = projects.apply_in(ctx, tx, loop, row["tree"], moved, actor=row["by"])
    projects.put_data(ctx, tx, loop, row["tree"], actor=row["by"])
    if moved["model"] == loop.model.name:
        if project["environment"] != environment["id"]:
            records.set(tx, "project", project["id"], actor=SYSTEM.name, environment=environment["id"])
        tx.after_commit.append(lambda: processes.write(ctx))
    pipeline = keep(tx, row["project"], spec, actor=row["by"])
    options = row["options"] or {}
    defaults = {**loop.pipeline.parameters, **moved["parameters"]}
    parameters = pipelines.resolve_parameters(spec, options.get("parameters") or {}, defaults=defaults)
    execution = executions.begin(
        ctx,
        tx,
        project=row["project"],
        push=row,
        pipeline=pipeline,
        environment=environment,
        parameters=parameters,
        targets=moved,
        trigger=row["trigger"] or {"kind": row["source"]},
        actor=row["by"],
        delivery=row["delivery"],
        use_cache=loop.pipeline.cache and options.get("cache", True),
        max_parallel=loop.pipeline.max_parallel,
    )
    records.move(
        tx, "push", row["id"], PushStatus.STARTED, actor=SYSTEM.name, execution=execution["id"], ended_at=tx.now
    )


def keep(tx: Tx, project: str, spec: pipelines.PipelineSpec, *, actor: str) -> Row:
    """The pipeline's version for this compiled form: the newest when it is equal, else the next."""
    plain = msgspec.to_builtins(spec)
    digest = outputs.digest_of(plain)
    table = pipelines_table
    query = sa.select(table).where(table.c.project == project, table.c.name == spec.name)
    newest = tx.row(query.order_by(table.c.version.desc()).limit(1))
    if newest is not None and newest["digest"] == digest:
        return newest
    version = 1 if newest is None else newest["version"] + 1
    return records.create(
        tx, "pipeline", actor=actor, project=project, name=spec.name, version=version, digest=digest, spec=plain
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def list_(
    ctx: Context, actor: Actor, *, project: str | None = None, limit: int = 50, cursor: str | None = None
) -> dict[str, Any]:
    """Pushes, newest first."""
    query = sa.select(pushes).order_by(pushes.c.created_at.desc(), pushes.c.id.desc())
    if project is not None:
        query = query.where(pushes.c.project == project)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page(rows, limit, offset)


def show(ctx: Context, actor: Actor, *, push: str) -> dict[str, Any]:
    """A push: what became of it and why."""
    with ctx.db.read() as tx:
        return records.get(tx, "push", push)


def recover(ctx: Context) -> None:
    """At start: every push that waits for the platform itself goes on."""
    with ctx.db.transaction() as tx:
        waiting = (PushStatus.RECEIVED, PushStatus.PREPARING)
        for row in tx.rows(sa.select(pushes.c.id).where(pushes.c.status.in_(waiting))):
            queue.ask(tx, "push.advance", row["id"])
