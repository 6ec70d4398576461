"""Endpoints: a name that callers know, the model behind it, and which version serves which share."""

from typing import Any

import sqlalchemy as sa

from loopline.control import monitoring, processes, snapshots, verification
from loopline.control.context import Context
from loopline.domain import loopfile, names, states
from loopline.domain.access import Actor
from loopline.domain.states import EndpointStatus, RolloutStatus, VariantStatus
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoints, rollouts, variants


def ensure(
    ctx: Context,
    tx: Tx,
    *,
    name: str,
    actor: str,
    project: str | None,
    model: str | None,
    settings: dict[str, Any],
) -> Row:
    """Create an endpoint, or bring it to these settings."""
    names.check_name(name, "an endpoint")
    row = records.find(tx, "endpoint", name=name)
    if row is not None and row["status"] != EndpointStatus.DELETED:
        if row["project"] not in (None, project):
            raise Conflict(f"the endpoint {name!r} belongs to the project {row['project']!r}; choose another name")
        wanted: dict[str, Any] = {"project": project, "model": model, "settings": settings}
        changed = {key: value for key, value in wanted.items() if row[key] != value}
        if changed:
            records.set(tx, "endpoint", row["id"], actor=actor, **changed)
            snapshots.write(ctx, tx, actor=actor, reason=f"endpoint {name} changed")
        return {**row, **changed}
    if row is not None:  # the name is free again; its history keeps the old record's events
        records.delete(tx, "endpoint", row["id"], actor=actor)
    row = records.create(
        tx, "endpoint", actor=actor, name=name, project=project, model=model, settings=settings, created_by=actor
    )
    snapshots.write(ctx, tx, actor=actor, reason=f"endpoint {name} created")
    return row


def create(
    ctx: Context, actor: Actor, *, name: str, model: str | None = None, settings: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Create an endpoint by hand; projects create theirs when they are applied. ``settings``: as in ``[endpoint]``,
    with ``rollout`` and ``monitor`` as tables in them."""
    names.check_name(name, "an endpoint")
    loopfile.check_endpoint(name, name, settings or {})
    if model is not None and (settings or {}).get("multi_model"):
        raise InvalidInput("an endpoint with many models follows none: leave model out")
    with ctx.db.transaction() as tx:
        if model is not None and records.find(tx, "model", name=model) is None:
            raise NotFound(f"there is no model {model!r}")
        found = records.find(tx, "endpoint", name=name)
        if found is not None and found["status"] != EndpointStatus.DELETED:
            raise Conflict(f"there is an endpoint {name!r} already")
        return ensure(ctx, tx, name=name, actor=actor.name, project=None, model=model, settings=settings or {})


def follow(ctx: Context, actor: Actor, *, endpoint: str, model: str | None = None) -> dict[str, Any]:
    """Let an endpoint follow a model: it takes each version of it that is approved, from the next approval on.

    Without a model it follows none: only a release or a rollback moves its traffic. One that serves a model's versions
    follows no other. An endpoint that its project's loop.toml declares is as that says again when it is next applied.
    """
    with ctx.db.transaction(durable=True) as tx:
        row = endpoint_row(tx, endpoint)
        stored = row["settings"] or {}
        if stored.get("multi_model"):
            raise InvalidInput(f"{endpoint} serves many models; the models that it follows stand in its settings")
        if model is not None and records.find(tx, "model", name=model) is None:
            raise NotFound(f"there is no model {model!r}")
        if model is not None and row["model"] not in (None, model):
            raise Conflict(f"{endpoint} serves versions of {row['model']}, and so cannot follow {model}")
        changed: dict[str, Any] = {
            "model": model or row["model"],
            "settings": {**stored, "deploy_on_approval": model is not None},
        }
        records.set(tx, "endpoint", row["id"], actor=actor.name, **changed)
        snapshots.write(ctx, tx, actor=actor.name, reason=f"endpoint {endpoint} follows {model or 'nothing'}")
        return {**row, **changed, "follows": model}


def followed(row: Row) -> str | None:
    """The model whose approvals are released on an endpoint; None when it follows none."""
    return row["model"] if (row["settings"] or {}).get("deploy_on_approval") else None


def existing() -> sa.Select[Any]:
    """All endpoints but those that were deleted."""
    return sa.select(endpoints).where(endpoints.c.status != EndpointStatus.DELETED)


def endpoint_row(tx: Tx, name: str) -> Row:
    """The endpoint of this name; raises ``NotFound``."""
    row = records.find(tx, "endpoint", name=name)
    if row is None or row["status"] == EndpointStatus.DELETED:
        known = [each["name"] for each in tx.rows(existing())]
        raise NotFound(f"there is no endpoint {name!r}{names.meant(name, known)}")
    return row


def list_(ctx: Context, actor: Actor, *, project: str | None = None) -> dict[str, Any]:
    """Endpoints with their variants."""
    query = existing().order_by(endpoints.c.name)
    if project is not None:
        query = query.where(endpoints.c.project == project)
    with ctx.db.read() as tx:
        rows = tx.rows(query)
        for row in rows:
            row["variants"] = _variants(ctx, tx, row["name"])
            row["follows"] = followed(row)
    return {"items": rows, "next": None}


def show(ctx: Context, actor: Actor, *, endpoint: str) -> dict[str, Any]:
    """An endpoint with its variants and the rollout that is going on, if any."""
    with ctx.db.read() as tx:
        row = endpoint_row(tx, endpoint)
        row["variants"] = _variants(ctx, tx, endpoint)
        row["rollout"] = active_rollout(tx, endpoint)
        row["follows"] = followed(row)
    return row


def _variants(ctx: Context, tx: Tx, endpoint: str) -> list[dict[str, Any]]:
    running = processes.children(ctx)
    query = sa.select(variants).where(variants.c.endpoint == endpoint, variants.c.status != VariantStatus.STOPPED)
    found = tx.rows(query.order_by(variants.c.weight.desc(), variants.c.number.desc()))
    known = verification.of_ids(tx, [row["version"] for row in found if row["version"]])
    answer = []
    for row in found:
        row["verification"] = known.get(row["version"])
        row["servers"] = [_server(entry, running.get(entry["id"], {})) for entry in row.pop("server") or ()]
        answer.append(row)
    return answer


def _server(entry: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """A server for people; ``failing`` is there while it fails whatever it is asked."""
    shown = {"id": entry["id"], "state": _state(entry, child)}
    return {**shown, "failing": child["failing"]} if child.get("failing") else shown


def _state(entry: dict[str, Any], child: dict[str, Any]) -> Any:
    """What a server last said of itself, unless it is not there to say anything."""
    if entry["process"].get("on_demand") and child.get("state") == "asleep":
        return "asleep"
    return processes.server_state(entry).get("state")


def active_rollout(tx: Tx, endpoint: str) -> Row | None:
    """The rollout of an endpoint that is not over."""
    query = sa.select(rollouts).where(
        rollouts.c.endpoint == endpoint, rollouts.c.status.not_in(list(states.TERMINAL["rollout"]))
    )
    return tx.row(query.order_by(rollouts.c.created_at.desc()).limit(1))


def serving(tx: Tx, endpoint: str) -> Row | None:
    """The variant that has most of an endpoint's traffic; None when nothing serves."""
    query = sa.select(variants).where(variants.c.endpoint == endpoint, variants.c.weight > 0)
    return tx.row(query.order_by(variants.c.weight.desc(), variants.c.created_at).limit(1))


def live(ctx: Context, actor: Actor, *, at: float | None = None, endpoint: str | None = None) -> dict[str, Any]:
    """Which version serves, or at a time (seconds since the epoch) served, which share of each endpoint."""
    if at is not None and at > ctx.clock.now() + 1:
        raise InvalidInput("nobody knows what will be live in the future; leave --at out for now")
    with ctx.db.read() as tx:
        if endpoint is not None:
            monitoring.endpoint_row(tx, endpoint)  # one that is deleted has its history
        items = snapshots.live_at(ctx, tx, at)
    if endpoint is not None:
        items = [item for item in items if item["endpoint"] == endpoint]
    return {"items": items, "next": None, "at": at}


def delete(ctx: Context, actor: Actor, *, endpoint: str) -> dict[str, Any]:
    """Take an endpoint away: callers get 404 from the next snapshot on, then its servers stop."""
    with ctx.db.transaction(durable=True) as tx:
        row = endpoint_row(tx, endpoint)
        rollout = active_rollout(tx, endpoint)
        if rollout is not None:
            raise Conflict(f"the rollout {rollout['id']} is going on; wait for it or roll back first")
        row = records.move(tx, "endpoint", row["id"], EndpointStatus.DELETED, actor=actor.name)
        for variant in tx.rows(sa.select(variants).where(variants.c.endpoint == endpoint)):
            if variant["status"] != VariantStatus.STOPPED:
                records.move(tx, "variant", variant["id"], VariantStatus.STOPPED, actor=actor.name, weight=0.0)
        snapshots.write(ctx, tx, actor=actor.name, reason=f"endpoint {endpoint} deleted")
        tx.after_commit.append(lambda: processes.write(ctx))
    return row


def retire(ctx: Context) -> None:
    """Tick: stop variants whose time as a quick way back is over."""
    with ctx.db.read() as tx:
        query = sa.select(variants).where(
            variants.c.status == VariantStatus.WARM, variants.c.warm_until < ctx.clock.now()
        )
        over = [row for row in tx.rows(query) if not _in_rollout(tx, row)]
    for row in over:
        with ctx.db.transaction() as tx:
            current = records.get(tx, "variant", row["id"])
            if current["status"] == VariantStatus.WARM and not _in_rollout(tx, current):
                records.move(
                    tx, "variant", row["id"], VariantStatus.STOPPED, actor="loopline", reason="kept warm long enough"
                )
                snapshots.write(ctx, tx, actor="loopline", reason=f"{row['endpoint']}/{row['name']} retired")
                tx.after_commit.append(lambda: processes.write(ctx))


def _in_rollout(tx: Tx, variant: Row) -> bool:
    rollout = active_rollout(tx, variant["endpoint"])
    return rollout is not None and variant["id"] in (rollout["variant"], rollout["predecessor"])


def status_after(tx: Tx, endpoint: Row, actor: str) -> None:
    """Bring an endpoint's status to what its variants and rollouts say."""
    rollout = active_rollout(tx, endpoint["name"])
    wanted = EndpointStatus.IN_SERVICE
    if serving(tx, endpoint["name"]) is None:
        wanted = EndpointStatus.CREATING if rollout else EndpointStatus.FAILED
    elif rollout is not None and rollout["status"] != RolloutStatus.PENDING:
        wanted = EndpointStatus.UPDATING
    if endpoint["status"] == wanted:
        return
    if wanted == EndpointStatus.UPDATING and endpoint["status"] != EndpointStatus.IN_SERVICE:
        return
    records.move(tx, "endpoint", endpoint["id"], wanted, actor=actor)
