"""Rollouts: the acts of moving an endpoint's traffic to a version, as they begin and as people see them.

How one goes on once it has begun is in ``shifts``, and how traffic goes back in ``rollbacks``.
"""

from typing import Any

import sqlalchemy as sa

from loopline.control import endpoints, fleets, monitoring, registry, rollbacks, variants
from loopline.control.context import SYSTEM, Context
from loopline.domain import loopfile, scaling, states
from loopline.domain import rollouts as rules
from loopline.domain.access import Actor
from loopline.domain.states import EndpointStatus, EvaluationStatus, VersionStatus
from loopline.errors import Conflict, GateRefused, InvalidInput, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoints as endpoints_table
from loopline.store.schema import rollouts, versions

SHADOW_PERCENT = 100.0  # of the requests, unless somebody says otherwise


# -- beginning --------------------------------------------------------------------------------------------------------


def release(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    model: str | None = None,
    number: int | None = None,
    strategy: str | None = None,
    settings: dict[str, Any] | None = None,
    variant: str | None = None,
    share: float | None = None,
    force: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Begin to move an endpoint's traffic to a version (default: the newest Approved one of its model).

    ``settings``: keys of ``[rollout]`` for this time. The strategies ``standby`` and ``shadow`` start the version and
    move no traffic; a shadow gets copies of ``share`` percent of the requests. ``variant``: a name for the version
    behind this endpoint. A version that is not Approved is refused unless ``force``, which an approver may use with a
    ``reason``.
    """
    loopfile.check_endpoint(endpoint, endpoint, {"rollout": settings or {}})
    with ctx.db.transaction(durable=True) as tx:
        row = endpoints.endpoint_row(tx, endpoint)
        _check_one_model(row)
        name = model or row["model"]
        if name is None:
            raise InvalidInput(f"the endpoint {endpoint} follows no model; say which: model and number")
        version = registry.version_row(tx, name, number) if number else newest_approved(tx, name)
        registry.check_deployable(tx, version, actor, force=force, reason=reason)
        trigger = {"kind": "person", "reason": reason} if reason else {"kind": "person"}
        return begin(
            ctx,
            tx,
            row,
            version,
            actor=actor.name,
            trigger=trigger,
            strategy=strategy,
            settings=settings,
            variant=variant,
            share=share,
        )


def newest_approved(tx: Tx, model: str) -> Row:
    """The newest Approved version of a model; raises ``NotFound``, also where there is no such model."""
    query = sa.select(versions).where(versions.c.model == model, versions.c.status == VersionStatus.APPROVED)
    row = tx.row(query.order_by(versions.c.number.desc()).limit(1))
    if row is None:
        registry.model_row(tx, model)
        raise NotFound(f"the model {model!r} has no Approved version")
    return row


def begin(
    ctx: Context,
    tx: Tx,
    endpoint: Row,
    version: Row,
    *,
    actor: str,
    trigger: dict[str, Any],
    strategy: str | None = None,
    settings: dict[str, Any] | None = None,
    variant: str | None = None,
    share: float | None = None,
) -> Row:
    """Record a rollout; the engine moves it on. One at a time for each endpoint.

    ``settings`` are keys of ``[rollout]`` for this time; ``variant`` names the version's variant; ``share`` is the
    percentage of requests that a shadow gets a copy of.
    """
    active = endpoints.active_rollout(tx, endpoint["name"])
    if active is not None:
        raise Conflict(f"the rollout {active['id']} of {endpoint['name']} is going on; wait for it or roll it back")
    if endpoint["model"] is not None and endpoint["model"] != version["model"]:
        raise InvalidInput(f"{endpoint['name']} follows {endpoint['model']}, not {version['model']}")
    _check_one_model(endpoint)
    stored = endpoint["settings"] or {}
    table = {**(stored.get("rollout") or {}), **(settings or {})}
    chosen = strategy or table.get("strategy", "canary")
    idle = chosen in rules.IDLE
    before = endpoints.serving(tx, endpoint["name"])
    _check_there(endpoint, version, before, chosen, variants.weights(tx, endpoint["name"]))
    row = variants.ensure(tx, endpoint, version, actor, variant)
    servers = _servers(stored, before, chosen)
    shares = rules.plan(chosen, table, first=before is None, servers=servers)
    weights = variants.weights(tx, endpoint["name"])
    if row["id"] in weights and chosen != "rolling":  # a part of the traffic is its own already
        now = 100 * weights[row["id"]] / sum(weights.values())
        shares = [each for each in shares if each > now or each == 100]
    plan = {
        **{key: value for key, value in table.items() if key not in ("steps", "strategy")},
        "shares": shares,
        "servers": servers,
        "servers_before": len(fleets.staying(before)) if before else 0,
        "before": {} if idle else weights,
        "comparison": stored.get("comparison") or {},
        "copy_percent": _copied(share, chosen),
        "model": version["model"],
        "number": version["number"],
    }
    warning = registry.doubt(tx, version)
    if warning is not None:
        plan["warnings"] = [warning]
    rollout = records.create(
        tx,
        "rollout",
        actor=actor,
        endpoint=endpoint["name"],
        kind=chosen if idle else "release",
        strategy=chosen,
        variant=row["id"],
        predecessor=None if before is None or idle else before["id"],
        plan=plan,
        step=0,
        decisions=[],
        trigger=trigger,
        by=actor,
    )
    if endpoint["status"] == EndpointStatus.FAILED:
        records.move(tx, "endpoint", endpoint["id"], EndpointStatus.CREATING, actor=actor)
    queue.ask(tx, "rollout.advance", rollout["id"])
    return rollout


def _check_one_model(endpoint: Row) -> None:
    if (endpoint["settings"] or {}).get("multi_model"):
        name = endpoint["name"]
        raise Conflict(f"{name} serves many models; add one: loopline endpoints add-model {name} MODEL")


def _check_there(endpoint: Row, version: Row, before: Row | None, strategy: str, weights: dict[str, float]) -> None:
    """Raise ``Conflict`` when there is nothing to do, or nothing to do it with."""
    name, what = endpoint["name"], f"{version['model']} version {version['number']}"
    if before is None and strategy == "shadow":
        raise Conflict(f"nothing serves {name}, so that there are no requests to copy")
    if before is not None and before["version"] == version["id"] and (len(weights) == 1 or strategy in rules.IDLE):
        raise Conflict(f"{name} serves {what} already")


def _servers(settings: dict[str, Any], before: Row | None, strategy: str) -> int:
    """How many servers the new version gets: as many as it replaces, where they replace one another."""
    policy = scaling.policy_from(settings)
    wanted = int(settings.get("instances", 1)) if policy is None else policy.least
    if before is None or (policy is None and strategy not in ("rolling", "blue-green")):
        return wanted
    return max(wanted, len(fleets.staying(before)))


def _copied(share: float | None, strategy: str) -> float | None:
    if strategy != "shadow":
        if share is not None:
            raise InvalidInput("share: only a shadow gets copies; steps of traffic stand in [rollout]")
        return None
    if share is not None and not 0 < share <= 100:
        raise InvalidInput(f"share: a percentage above 0 and at most 100, unlike {share:g}")
    return SHADOW_PERCENT if share is None else float(share)


def react(ctx: Context, tx: Tx, event: Row) -> None:
    """Reaction: an approval, or a gate that passes what was approved before it, releases the version wherever an
    endpoint follows its model."""
    if event["noun"] == "evaluation":
        version = _passed_late(tx, event)
    elif event["after"] == VersionStatus.APPROVED or event["kind"] == registry.APPROVED_AGAIN:
        version = records.find(tx, "version", id=event["record"])
    else:
        return
    if version is None:
        return
    for row in tx.rows(sa.select(endpoints_table).where(endpoints_table.c.model == version["model"])):
        if endpoints.followed(row) is None or row["status"] == EndpointStatus.DELETED:
            continue
        if event["noun"] == "version" or _approved_last(tx, row, version):
            queue.ask(tx, "rollout.request", f"{row['name']} {version['id']}")


def _passed_late(tx: Tx, event: Row) -> Row | None:
    """The version that passed the gate now and was approved, unverified, before."""
    if event["after"] != EvaluationStatus.PASSED:
        return None
    evaluation = records.find(tx, "evaluation", id=event["record"])
    version = evaluation and records.find(tx, "version", id=evaluation["version"])
    if version is None or version["status"] != VersionStatus.APPROVED:
        return None
    return version if (version["evidence"] or {}).get("unverified") else None


def _approved_last(tx: Tx, endpoint: Row, version: Row) -> bool:
    """Whether what serves was approved before this version."""
    served = _version_of(tx, endpoints.serving(tx, endpoint["name"]))
    return served is None or (served["decided_at"] or 0.0) < (version["decided_at"] or 0.0)


def _version_of(tx: Tx, variant: Row | None) -> Row | None:
    return records.find(tx, "version", id=variant["version"]) if variant is not None and variant["version"] else None


def request(ctx: Context, key: str) -> float | None:
    """Task: release an approved version on an endpoint, as soon as no other rollout is going on there.

    What a gate refuses is noted at the version. Where what serves was Rejected and this version served before, it goes
    back as a rollback does: at once, and without a bake.
    """
    name, version_id = key.split(" ")
    with ctx.db.transaction() as tx:
        version = records.find(tx, "version", id=version_id)
        endpoint = records.find(tx, "endpoint", name=name)
        if version is None or endpoint is None or endpoint["status"] == EndpointStatus.DELETED:
            return None
        if version["status"] != VersionStatus.APPROVED or endpoint["model"] != version["model"]:
            return None
        active = endpoints.active_rollout(tx, name)
        before = endpoints.serving(tx, name)
        if active is None and before is not None and before["version"] == version_id:
            return None
        if not _is_rejected(tx, active, before):
            if active is not None:
                return 1.0
            _begin_approved(ctx, tx, endpoint, version)
            return None
    return _go_back(ctx, endpoint, version, active)


def _is_rejected(tx: Tx, active: Row | None, before: Row | None) -> bool:
    """Whether the traffic goes to a version that somebody has rejected."""
    target = before if active is None else records.find(tx, "variant", id=active["variant"])
    row = _version_of(tx, target)
    return row is not None and row["status"] == VersionStatus.REJECTED


def _begin_approved(ctx: Context, tx: Tx, endpoint: Row, version: Row) -> None:
    actor = version["decided_by"] or SYSTEM.name
    try:
        registry.check_deployable(tx, version, SYSTEM, force=False, reason="")
    except GateRefused as error:
        named = {"endpoint": endpoint["name"], "model": version["model"]}
        records.note(tx, "version", version["id"], "release_refused", actor=actor, reason=error.message, **named)
        return
    trigger = {"kind": "approval", "by": version["decided_by"], "policy": version["policy"]}
    begin(ctx, tx, endpoint, version, actor=actor, trigger=trigger)


def _go_back(ctx: Context, endpoint: Row, version: Row, active: Row | None) -> float | None:
    """From a version that was rejected to this one, by a rollback where it has served before."""
    reason = f"{version['model']} version {version['number']} was approved again"
    try:
        rollbacks.begin(ctx, version["decided_by"] or SYSTEM.name, endpoint["name"], reason, version["number"])
    except Conflict:
        if active is not None:
            return 1.0  # it goes back already, or cannot now: the next look is at what has become of it
        with ctx.db.transaction() as tx:
            if endpoints.active_rollout(tx, endpoint["name"]) is not None:
                return 1.0
            _begin_approved(ctx, tx, endpoint, version)
    return None


# -- reading ----------------------------------------------------------------------------------------------------------


def list_(ctx: Context, actor: Actor, *, endpoint: str | None = None, limit: int = 50) -> dict[str, Any]:
    """Rollouts, newest first."""
    query = sa.select(rollouts).order_by(rollouts.c.created_at.desc()).limit(limit)
    if endpoint is not None:
        query = query.where(rollouts.c.endpoint == endpoint)
    with ctx.db.read() as tx:
        if endpoint is not None:
            monitoring.endpoint_row(tx, endpoint)
        return {"items": tx.rows(query), "next": None}


def show(ctx: Context, actor: Actor, *, rollout: str) -> dict[str, Any]:
    """A rollout with the figures that decided each of its steps."""
    with ctx.db.read() as tx:
        return records.get(tx, "rollout", rollout)


def recover(ctx: Context) -> None:
    """At start: every rollout that is not over goes on."""
    with ctx.db.transaction() as tx:
        query = sa.select(rollouts.c.id).where(rollouts.c.status.not_in(list(states.TERMINAL["rollout"])))
        for row in tx.rows(query):
            queue.ask(tx, "rollout.advance", row["id"])
