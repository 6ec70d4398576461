"""The registry: models, their versions, approval and lineage.

A version's approval is a decision with a name, a time, a comment and the evidence as it stood; the gate's mode is a
property of the model. Nothing here deploys: the approval is an event, and the rollout reacts to it.
"""

from typing import Any

import sqlalchemy as sa

from loopline.control import events, verification
from loopline.control import lineage as lineage_
from loopline.control.context import SYSTEM, Context
from loopline.domain import access, names
from loopline.domain.access import Actor, Permission
from loopline.domain.gates import Policy
from loopline.domain.states import CompilationStatus, VersionStatus
from loopline.errors import Conflict, Forbidden, GateRefused, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import (
    aliases,
    compilations,
    evaluations,
    models,
    users,
    variants,
    versions,
)

GATE_MODES = ("enforce", "advisory", "off")
APPROVED_AGAIN = "approved_again"  # the event of an approval that changed no status


# -- models -----------------------------------------------------------------------------------------------------------


def ensure_model(
    tx: Tx,
    *,
    name: str,
    actor: str,
    project: str | None = None,
    gate_mode: str = "enforce",
    gate: dict[str, Any] | None = None,
    approval: dict[str, Any] | None = None,
    description: str = "",
) -> Row:
    """Create a registered model, or bring it to these settings; one that belongs to another project is refused."""
    names.check_name(name, "a model")
    if gate_mode not in GATE_MODES:
        raise InvalidInput(f"{gate_mode!r} is not a gate mode; modes: {', '.join(GATE_MODES)}")
    settings: dict[str, Any] = {"gate_mode": gate_mode, "gate": gate, "approval": approval, "description": description}
    row = records.find(tx, "model", name=name)
    if row is None:
        return records.create(
            tx, "model", actor=actor, name=name, project=project, last_version=0, created_by=actor, **settings
        )
    if project is not None and row["project"] not in (None, project):
        raise Conflict(f"the model {name!r} belongs to the project {row['project']!r}; choose another name")
    changed: dict[str, Any] = {key: value for key, value in settings.items() if row[key] != value}
    if project is not None and row["project"] is None:
        changed["project"] = project
    if changed:
        records.set(tx, "model", row["id"], actor=actor, **changed)
    return {**row, **changed}


def create_model(
    ctx: Context, actor: Actor, *, name: str, gate_mode: str = "enforce", description: str = ""
) -> dict[str, Any]:
    """Create a registered model by hand; projects create theirs when they are applied."""
    with ctx.db.transaction() as tx:
        if records.find(tx, "model", name=name) is not None:
            raise Conflict(f"there is a model {name!r} already")
        return ensure_model(tx, name=name, actor=actor.name, gate_mode=gate_mode, description=description)


MODEL_ORDERS = {"name": models.c.name, "created": models.c.created_at}


def list_models(
    ctx: Context,
    actor: Actor,
    *,
    project: str | None = None,
    contains: str | None = None,
    start: float | None = None,
    end: float | None = None,
    order: str = "name",
    limit: int = 1000,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Registered models with their newest version's number and their aliases.

    ``contains``: a part of the name, in any case. ``start``, ``end``: when they were created. ``order``: ``name`` or
    ``created``, with ``-`` before it the other way round.
    """
    column = MODEL_ORDERS.get(order.removeprefix("-"))
    if column is None:
        raise InvalidInput(f"order: {order!r} is none; orders: {', '.join(MODEL_ORDERS)}, and each with '-' before it")
    query = _created_between(sa.select(models), models, start, end)
    if project is not None:
        query = query.where(models.c.project == project)
    if contains is not None:
        query = query.where(sa.func.lower(models.c.name).contains(contains.lower(), autoescape=True))
    down = order.startswith("-")
    query = query.order_by(column.desc() if down else column, models.c.id.desc() if down else models.c.id)
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit + 1).offset(offset))
        for row in rows:
            row["aliases"] = aliases_of(tx, row["name"])
    return events.page(rows, limit, offset)


def _created_between(query: sa.Select[Any], table: sa.Table, start: float | None, end: float | None) -> sa.Select[Any]:
    """Rows of a table created from ``start`` on and before ``end``."""
    if start is not None:
        query = query.where(table.c.created_at >= start)
    return query if end is None else query.where(table.c.created_at < end)


def show_model(ctx: Context, actor: Actor, *, model: str) -> dict[str, Any]:
    """A registered model with its aliases."""
    with ctx.db.read() as tx:
        row = model_row(tx, model)
        row["aliases"] = aliases_of(tx, model)
    return row


def set_gate_mode(
    ctx: Context, actor: Actor, *, model: str, mode: str, reason: str, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Change whether the gate of a model is enforced, advisory or off; audited with the reason.

    ``settings``: what the gate asks, as in ``[gate]`` of loop.toml, in place of what it asked; ``test`` may be an
    object (s3://BUCKET/KEY). The next push of the model's project sets what its loop.toml says.
    """
    if mode not in GATE_MODES:
        raise InvalidInput(f"{mode!r} is not a gate mode; modes: {', '.join(GATE_MODES)}")
    changed: dict[str, Any] = {"gate_mode": mode}
    if settings is not None:
        Policy.from_dict(settings)
        changed["gate"] = settings
    with ctx.db.transaction(durable=True) as tx:
        row = model_row(tx, model)
        records.set(tx, "model", row["id"], actor=actor.name, reason=reason, **changed)
        return model_row(tx, model)


def model_row(tx: Tx, name: str) -> Row:
    """The model of this name; raises ``NotFound``."""
    row = records.find(tx, "model", name=name)
    if row is None:
        known = [each["name"] for each in tx.rows(sa.select(models.c.name))]
        raise NotFound(f"there is no model {name!r}{names.meant(name, known)}")
    return row


# -- versions ---------------------------------------------------------------------------------------------------------


def register(tx: Tx, *, model: str, actor: str, **values: Any) -> Row:
    """Add the next version of a model. The same (execution, step) gives the same version again, and no second one."""
    row = model_row(tx, model)
    if values.get("execution"):
        again = records.find(tx, "version", execution=values["execution"], step=values["step"])
        if again is not None:
            return again
    number = int(row["last_version"]) + 1
    tx.execute(models.update().where(models.c.id == row["id"]).values(last_version=number))
    return records.create(
        tx, "version", actor=actor, reason=None, model=model, number=number, requested_by=actor, **values
    )


def version_row(tx: Tx, model: str, number: int) -> Row:
    """A version of a model; raises ``NotFound`` saying which there are."""
    row = records.find(tx, "version", model=model, number=number)
    if row is None:
        newest = model_row(tx, model)["last_version"]
        has = f"its versions are 1 to {newest}" if newest else "it has no version yet"
        raise NotFound(f"the model {model!r} has no version {number}; {has}")
    return row


def list_versions(
    ctx: Context,
    actor: Actor,
    *,
    model: str | None = None,
    status: str | None = None,
    contains: str | None = None,
    start: float | None = None,
    end: float | None = None,
    order: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Versions, of one model or of all, newest first, or by one of their metrics (``accuracy`` ascending,
    ``-accuracy``), or by ``created`` (oldest first) or ``name`` and number (``-name``).

    ``contains``: a part of the model's name, in any case. ``start``, ``end``: when they were registered.
    """
    query = _created_between(sa.select(versions), versions, start, end)
    if model is not None:
        query = query.where(versions.c.model == model)
    if contains is not None:
        query = query.where(sa.func.lower(versions.c.model).contains(contains.lower(), autoescape=True))
    if status is not None:
        query = query.where(versions.c.status == status)
    query = query.order_by(*_version_order(order, model))
    offset = events.cursor_offset(cursor)
    with ctx.db.read() as tx:
        if model is not None:
            model_row(tx, model)
        rows = tx.rows(query.limit(limit + 1).offset(offset))
        verification.add(tx, rows)
        named = {name: aliases_of(tx, name) for name in {row["model"] for row in rows}}
    for row in rows:
        _shorten(row, named[row["model"]])
    return events.page(rows, limit, offset)


def _version_order(order: str | None, model: str | None) -> tuple[sa.ColumnElement[Any], ...]:
    newest = versions.c.created_at if model is None else versions.c.number
    if order in (None, "-created"):
        return newest.desc(), versions.c.id.desc()
    if order == "created":
        return newest, versions.c.id
    if order in ("name", "-name"):
        columns = (versions.c.model, versions.c.number)
        return columns if order == "name" else tuple(column.desc() for column in columns)
    value = versions.c.metrics[order.lstrip("-")].as_float()
    return value.desc() if order.startswith("-") else value, newest.desc()


def show_version(ctx: Context, actor: Actor, *, model: str, number: int) -> dict[str, Any]:
    """A version with its evaluation, its compilation, its aliases and the decisions on it."""
    with ctx.db.read() as tx:
        row = version_row(tx, model, number)
        query = sa.select(evaluations).where(evaluations.c.version == row["id"]).order_by(evaluations.c.created_at)
        row["evaluations"] = tx.rows(query)
        verification.add(tx, [row])
        row["compilation"] = compilation_of(tx, row)
        named = aliases_of(tx, model)
        history = events.list_(ctx, actor, noun="version", record=row["id"], limit=100)["items"]
    _shorten(row, named)
    row["history"] = [
        {key: event[key] for key in ("at", "actor", "kind", "before", "after", "reason")} for event in reversed(history)
    ]
    return row


def compilation_of(tx: Tx, version: Row, *, judged: bool = False) -> Row | None:
    """The newest compilation of a version; of a copy, also those of the original. ``judged``: the newest of which a
    comparison has said whether its form may serve, which holds until the next one has."""
    known = [version["id"], *([version["copied_from"]["version"]] if version["copied_from"] else [])]
    query = sa.select(compilations).where(compilations.c.version.in_(known))
    if judged:
        query = query.where(compilations.c.status.in_((CompilationStatus.PASSED, CompilationStatus.REFUSED)))
    return tx.row(query.order_by(compilations.c.created_at.desc(), compilations.c.id.desc()).limit(1))


def _shorten(row: Row, named: dict[str, int]) -> None:
    row["aliases"] = sorted(name for name, number in named.items() if number == row["number"])
    for large in ("baseline", "warmup"):
        row[large] = row[large] is not None


# -- approval ---------------------------------------------------------------------------------------------------------


def approve(
    ctx: Context,
    actor: Actor,
    *,
    model: str,
    number: int,
    comment: str = "",
    force: bool = False,
    reason: str = "",
    unverified: bool = False,
    again: bool = False,
) -> dict[str, Any]:
    """Approve a version. ``force`` passes a gate that refuses; it needs a ``reason`` and is audited as such.

    ``unverified``: approve although no evaluation has passed. An enforced gate lets the version work once one has.
    ``again``: a version that is Approved already is approved once more, and the endpoints that follow its model take
    it again; without this it is refused, so that of several approvals at once one counts.
    """
    if force:
        require_force(actor, reason)
    with ctx.db.transaction(durable=True) as tx:
        row = version_row(tx, model, number)
        comment = comment or reason
        return approve_in(
            tx, row, actor, comment=comment, force=force, reason=reason, unverified=unverified, again=again
        )


def approve_in(
    tx: Tx,
    row: Row,
    actor: Actor,
    *,
    comment: str,
    force: bool = False,
    reason: str = "",
    policy: str | None = None,
    unverified: bool = False,
    again: bool = False,
) -> Row:
    """The rules of approval, for whoever approves: a person, a policy, or a pipeline's parameter."""
    access.require(actor, Permission.APPROVE)
    settings = model_row(tx, row["model"])
    approval = settings["approval"] or {}
    if approval.get("four_eyes") and policy is None and actor.name == row["requested_by"]:
        raise Forbidden(
            f"{actor.name} asked for version {row['number']} and so may not approve it: "
            f"the approval policy of {row['model']} wants two people"
        )
    problem = None if unverified else gate_problem(tx, row, settings)
    if problem and not force:
        raise GateRefused(problem)
    if problem:
        records.note(
            tx, "version", row["id"], "forced", actor=actor.name, reason=reason, problem=problem, model=row["model"]
        )
    decision: dict[str, Any] = {
        "decided_by": actor.name,
        "decided_at": tx.now,
        "comment": comment or None,
        "policy": policy,
        "evidence": evidence(tx, row, forced=bool(problem)),
    }
    if again and row["status"] == VersionStatus.APPROVED:
        records.set(tx, "version", row["id"], actor=actor.name, reason=comment or None, **decision)
        records.note(tx, "version", row["id"], APPROVED_AGAIN, actor=actor.name, reason=comment or None)
        return {**row, **decision}
    return records.move(
        tx, "version", row["id"], VersionStatus.APPROVED, actor=actor.name, reason=comment or None, **decision
    )


def require_force(actor: Actor, reason: str) -> None:
    """Only an approver passes a gate by force, and says why."""
    access.require(actor, Permission.APPROVE)
    if not reason.strip():
        raise InvalidInput("--force needs --reason: it is written into the audit log")


def undeployable(tx: Tx, row: Row) -> str | None:
    """Why a version may not work where the gate is enforced: it is not Approved, or was approved unverified and has
    not passed since; None when it may."""
    if model_row(tx, row["model"])["gate_mode"] != "enforce":
        return None
    return _unapproved(row) or _unproven(tx, row)


def doubt(tx: Tx, row: Row) -> str | None:
    """What an advisory gate says of a version that is to work; None when nothing speaks against it."""
    if model_row(tx, row["model"])["gate_mode"] != "advisory":
        return None
    return _unapproved(row) or verification.concern(tx, row)


def _unapproved(row: Row) -> str | None:
    model, number = row["model"], row["number"]
    if row["status"] == VersionStatus.APPROVED:
        return None
    return f"{model} version {number} is {row['status']}, not Approved; run: loopline approve {model} {number}"


def _unproven(tx: Tx, row: Row) -> str | None:
    shown = row["evidence"] or {}
    return verification.concern(tx, row) if shown.get("unverified") and not shown.get("forced") else None


def check_deployable(tx: Tx, row: Row, actor: Actor, *, force: bool, reason: str) -> None:
    """Refuse to let a version work that ``undeployable`` speaks of, unless by force with a reason, which is noted.

    What an advisory gate says against it is noted as a warning.
    """
    problem = undeployable(tx, row)
    if problem is None:
        warning = doubt(tx, row)
        if warning:
            records.note(tx, "version", row["id"], "warned", actor=actor.name, reason=warning, model=row["model"])
        return
    if not force:
        raise GateRefused(problem)
    require_force(actor, reason)
    records.note(tx, "version", row["id"], "forced", actor=actor.name, reason=reason, problem=problem)


def gate_problem(tx: Tx, row: Row, settings: Row | None = None) -> str | None:
    """Why the gate stops a version, with the command that mends it; None when it does not or is not enforced."""
    settings = settings or model_row(tx, row["model"])
    return verification.concern(tx, row) if settings["gate_mode"] == "enforce" else None


def evidence(tx: Tx, row: Row, *, forced: bool = False) -> dict[str, Any]:
    """What was known about a version at this moment."""
    facts = lineage_.facts(tx, row)
    return {
        "at": tx.now,
        "forced": forced,
        **verification.standing(tx, row),
        "metrics": row["metrics"],
        "artifact": (row["artifact"] or {}).get("sha256"),
        **{key: facts[key] for key in ("commit", "data", "environment", "run")},
    }


def reject(ctx: Context, actor: Actor, *, model: str, number: int, comment: str) -> dict[str, Any]:
    """Reject a version, saying why. ``serving``: the endpoints that it serves, which go on: only a rollback or a
    release moves traffic."""
    with ctx.db.transaction(durable=True) as tx:
        row = version_row(tx, model, number)
        query = sa.select(variants.c.endpoint).where(variants.c.version == row["id"], variants.c.weight > 0)
        serving = [str(each["endpoint"]) for each in tx.rows(query.order_by(variants.c.endpoint))]
        return {**reject_in(tx, row, actor=actor.name, comment=comment), "serving": serving}


def reject_in(tx: Tx, row: Row, *, actor: str, comment: str, policy: str | None = None) -> Row:
    """Reject a version on behalf of a person or a policy; one that is rejected already stays as it is."""
    if row["status"] == VersionStatus.REJECTED:
        return row
    return records.move(
        tx,
        "version",
        row["id"],
        VersionStatus.REJECTED,
        actor=actor,
        reason=comment,
        decided_by=actor,
        decided_at=tx.now,
        comment=comment,
        policy=policy,
        evidence=evidence(tx, row),
    )


def actor_named(tx: Tx, name: str) -> Actor:
    """The user of this name with their role, as a use case that acts on their behalf needs it."""
    if name == SYSTEM.name:
        return SYSTEM
    row = tx.row(sa.select(users).where(users.c.name == name))
    return Actor(name=name, role="viewer" if row is None else row["role"])


def aliases_of(tx: Tx, model: str) -> dict[str, int]:
    """The aliases of a model, each with the number of its version."""
    return {row["name"]: row["number"] for row in tx.rows(sa.select(aliases).where(aliases.c.model == model))}


# -- lineage ----------------------------------------------------------------------------------------------------------


def lineage(ctx: Context, actor: Actor, *, model: str, number: int) -> dict[str, Any]:
    """Where a version comes from: run, execution, commit, data digests, parameters, environment."""
    with ctx.db.read() as tx:
        return lineage_.facts(tx, version_row(tx, model, number))
