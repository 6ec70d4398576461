"""Stored pipelines: compiled pipelines that a client keeps here by name, and starts, without a project.

Each change of what one does is the next version, with the text that it was compiled from; an execution goes on with the
version that it began with.
"""

from typing import Any

import msgspec
import sqlalchemy as sa

from loopline.control import actions, events, executions, outputs, selections, specs
from loopline.control.context import Context
from loopline.domain import pipelines, states
from loopline.domain.access import Actor
from loopline.domain.pipelines import ActionStep, JobStep, PipelineSpec, RegisterStep
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import executions as executions_table
from loopline.store.schema import pipelines as pipelines_table
from loopline.store.schema import stored_pipelines

NO_PROJECT = ""
MAX_PARALLEL = 50  # where nobody says; how many jobs run at once is the installation's own limit
MAX_DEFINITION_BYTES = 10 << 20


# -- keeping ----------------------------------------------------------------------------------------------------------


def create(
    ctx: Context,
    actor: Actor,
    *,
    spec: dict[str, Any],
    definition: str | None = None,
    title: str | None = None,
    description: str | None = None,
    role: str | None = None,
    max_parallel: int | None = None,
    delivery: str | None = None,
) -> dict[str, Any]:
    """Keep a compiled pipeline under its name. ``definition``: the text that it was compiled from. ``role``: whom its
    author wants it to act as, kept and shown. The same ``delivery`` twice creates one; another raises ``Conflict``."""
    checked = _checked(spec, definition, max_parallel)
    with ctx.db.transaction(durable=True) as tx:
        known = records.find(tx, "stored_pipeline", name=checked.name)
        if known is not None:
            if delivery is not None and known["delivery"] == delivery:
                return known
            raise Conflict(f"there is a pipeline {checked.name!r} already")
        return records.create(
            tx,
            "stored_pipeline",
            actor=actor.name,
            name=checked.name,
            version=_keep(tx, checked, definition, actor.name),
            title=title,
            description=description,
            role=role,
            max_parallel=max_parallel,
            delivery=delivery,
            created_by=actor.name,
            changed_by=actor.name,
            changed_at=tx.now,
        )


def update(
    ctx: Context,
    actor: Actor,
    *,
    pipeline: str,
    spec: dict[str, Any] | None = None,
    definition: str | None = None,
    title: str | None = None,
    description: str | None = None,
    role: str | None = None,
    max_parallel: int | None = None,
) -> dict[str, Any]:
    """Change what is given; another ``spec`` is the next version. What runs already goes on as it began."""
    checked = None if spec is None else _checked(spec, definition, max_parallel)
    if checked is not None and checked.name != pipeline:
        raise InvalidInput(f"the compiled pipeline is named {checked.name!r}, not {pipeline!r}")
    with ctx.db.transaction(durable=True) as tx:
        row = row_named(tx, pipeline)
        given = {"title": title, "description": description, "role": role, "max_parallel": max_parallel}
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if checked is not None:
            values["version"] = _keep(tx, checked, definition, actor.name)
        values = {key: value for key, value in values.items() if row[key] != value}
        if values:
            values |= {"changed_by": actor.name, "changed_at": tx.now}
            records.set(tx, "stored_pipeline", row["id"], actor=actor.name, **values)
        return {**row, **values}


def _checked(spec: dict[str, Any], definition: str | None, max_parallel: int | None) -> PipelineSpec:
    """The compiled pipeline, if it can run without a project's files."""
    found = pipelines.parse_spec(spec)
    for step in found.steps:
        if isinstance(step, JobStep | RegisterStep):
            raise InvalidInput(f"the step {step.name!r} needs a project's files: keep its pipeline in a project")
        if isinstance(step, ActionStep):
            actions.check(step)
    if definition is not None and len(definition) > MAX_DEFINITION_BYTES:
        raise InvalidInput(f"a definition has at most {MAX_DEFINITION_BYTES} bytes")
    if max_parallel is not None and max_parallel < 1:
        raise InvalidInput("max_parallel is at least 1")
    return found


def _keep(tx: Tx, spec: PipelineSpec, definition: str | None, actor: str) -> int:
    """The version's number for this content: the newest when it is equal, else the next."""
    plain = msgspec.to_builtins(spec)
    digest = outputs.digest_of([plain, definition])
    table = pipelines_table
    query = sa.select(table.c.version, table.c.digest).where(table.c.project == NO_PROJECT, table.c.name == spec.name)
    newest = tx.row(query.order_by(table.c.version.desc()).limit(1))
    if newest is not None and newest["digest"] == digest:
        return int(newest["version"])
    number = 1 if newest is None else int(newest["version"]) + 1
    values: dict[str, Any] = {"digest": digest, "spec": plain, "definition": definition}
    records.create(tx, "pipeline", actor=actor, project=NO_PROJECT, name=spec.name, version=number, **values)
    return number


def delete(ctx: Context, actor: Actor, *, pipeline: str) -> dict[str, Any]:
    """Forget a stored pipeline; its executions stay. Raises ``Conflict`` while one of them goes on."""
    with ctx.db.transaction(durable=True) as tx:
        row = row_named(tx, pipeline)
        c = executions_table.c
        own = (c.project == NO_PROJECT, c.pipeline == pipeline, c.status.not_in(sorted(states.TERMINAL["execution"])))
        going = tx.row(sa.select(c.id, c.status).where(*own).limit(1))
        if going is not None:
            raise Conflict(f"the execution {going['id']} of {pipeline!r} is {going['status']}; stop it first")
        records.delete(tx, "stored_pipeline", row["id"], actor=actor.name)
        return row


# -- starting ---------------------------------------------------------------------------------------------------------


def start(
    ctx: Context,
    actor: Actor,
    *,
    pipeline: str,
    version: int | None = None,
    parameters: dict[str, Any] | None = None,
    texts: bool = False,
    title: str | None = None,
    description: str | None = None,
    max_parallel: int | None = None,
    steps: list[str] | None = None,
    source: str | None = None,
    cache: bool = True,
    delivery: str | None = None,
) -> dict[str, Any]:
    """Start a stored pipeline, its newest ``version`` unless said.

    ``texts``: parameters that are texts are read as their types. ``steps``: only these run; what they need of others is
    taken from ``source``, an earlier execution (the newest that is over, unless said). The same ``delivery`` twice
    starts one execution.
    """
    if max_parallel is not None and max_parallel < 1:
        raise InvalidInput("max_parallel is at least 1")
    with ctx.db.transaction(durable=True) as tx:
        stored = row_named(tx, pipeline)
        again = None if delivery is None else records.find(tx, "execution", delivery=f"{pipeline}:{delivery}")
        if again is not None:
            return again
        compiled = _version(tx, pipeline, version or stored["version"])
        index = specs.index(ctx, compiled)
        chosen = None
        if steps is not None:
            chosen = selections.choose(tx, index, project=NO_PROJECT, pipeline=pipeline, selected=steps, source=source)
        return executions.begin(
            ctx,
            tx,
            project=NO_PROJECT,
            pipeline=compiled,
            parameters=pipelines.resolve_parameters(index.spec, parameters or {}, from_text=texts),
            trigger={
                "kind": "api",
                "by": actor.name,
                "role": actor.role,
                "title": title,
                "description": description,
            },
            actor=actor.name,
            delivery=None if delivery is None else f"{pipeline}:{delivery}",
            use_cache=cache,
            max_parallel=max_parallel or stored["max_parallel"] or MAX_PARALLEL,
            selection=chosen,
        )


# -- reading ----------------------------------------------------------------------------------------------------------


def row_named(tx: Tx, name: str) -> Row:
    """The stored pipeline of this name; raises ``NotFound``."""
    row = records.find(tx, "stored_pipeline", name=name)
    if row is None:
        raise NotFound(f"there is no stored pipeline {name!r}")
    return row


def _version(tx: Tx, name: str, number: int) -> Row:
    row = records.find(tx, "pipeline", project=NO_PROJECT, name=name, version=number)
    if row is None:
        raise NotFound(f"the pipeline {name!r} has no version {number}")
    return row


ORDERS = {"name": stored_pipelines.c.name, "created": stored_pipelines.c.created_at}


def list_(
    ctx: Context,
    actor: Actor,
    *,
    prefix: str = "",
    created_from: float | None = None,
    created_to: float | None = None,
    order: str = "name",
    descending: bool = False,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Stored pipelines, each with when it last ran: by ``name`` or ``created``."""
    if order not in ORDERS:
        raise InvalidInput(f"{order!r} is no order; orders: {', '.join(ORDERS)}")
    c = executions_table.c
    last = (
        sa.select(sa.func.max(c.created_at))
        .where(c.project == NO_PROJECT, c.pipeline == stored_pipelines.c.name)
        .scalar_subquery()
    )
    offset = events.cursor_offset(cursor)
    own = stored_pipelines.c
    wanted = [own.name.startswith(prefix, autoescape=True)] if prefix else []
    wanted += [own.created_at >= created_from] if created_from is not None else []
    wanted += [own.created_at <= created_to] if created_to is not None else []
    by = ORDERS[order].desc() if descending else ORDERS[order]
    query = sa.select(stored_pipelines, last.label("last_started_at")).where(*wanted).order_by(by, own.name)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
    return events.page(rows, limit, offset)


def show(ctx: Context, actor: Actor, *, pipeline: str, version: int | None = None) -> dict[str, Any]:
    """A stored pipeline with its compiled form and its definition, as of a version (the newest, unless said)."""
    c = executions_table.c
    last = sa.select(sa.func.max(c.created_at).label("at")).where(c.project == NO_PROJECT, c.pipeline == pipeline)
    with ctx.db.read() as tx:
        row = row_named(tx, pipeline)
        found = _version(tx, pipeline, version or row["version"])
        started = tx.row(last)
    kept = {key: found[key] for key in ("version", "spec", "definition")}
    return {**row, **kept, "last_started_at": started and started["at"]}


def of_execution(ctx: Context, actor: Actor, *, execution: str) -> dict[str, Any]:
    """The compiled form and the definition that an execution of a stored pipeline began with."""
    with ctx.db.read() as tx:
        row = records.get(tx, "execution", execution)
        found = _version(tx, row["pipeline"], row["pipeline_version"])
    return {key: found[key] for key in ("name", "version", "spec", "definition", "created_at")}
