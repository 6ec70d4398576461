"""Rollouts: traffic moves to a version step by step, judged at each, and goes back by itself when it should.

Weights, statuses and alias commit together with a numbered snapshot; a step counts from the moment at which every live
gateway has acknowledged that number. The predecessor stays warm, which is why the way back takes under a second.
"""

from typing import Any

import sqlalchemy as sa

from loopline.control import (
    artifacts,
    endpoints,
    outputs,
    processes,
    registry,
    rollbacks,
    snapshots,
    traffic,
    variants,
)
from loopline.control.context import SYSTEM, Context
from loopline.domain import rollouts as rules
from loopline.domain import states, warmup
from loopline.domain.access import Actor
from loopline.domain.states import EndpointStatus, RolloutStatus, VariantStatus, VersionStatus
from loopline.errors import Conflict, GateRefused, InvalidInput, LooplineError, NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoints as endpoints_table
from loopline.store.schema import rollouts, versions

POLL_SECONDS = 0.1
ROLLBACK_WAIT_SECONDS = 5.0
DRAIN_SECONDS = 1.0  # between a gateway's switch and the end of a server that it has left


# -- beginning --------------------------------------------------------------------------------------------------------


def release(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    model: str | None = None,
    number: int | None = None,
    strategy: str | None = None,
    force: bool = False,
    reason: str = "",
) -> dict[str, Any]:
    """Begin to move an endpoint's traffic to a version (default: the newest Approved one of its model).

    A version that is not Approved is refused unless ``force``, which an approver may use with a ``reason``.
    """
    with ctx.db.transaction(durable=True) as tx:
        row = endpoints.endpoint_row(tx, endpoint)
        name = model or row["model"]
        if name is None:
            raise InvalidInput(f"the endpoint {endpoint} follows no model; say which: model and number")
        version = registry.version_row(tx, name, number) if number else _newest_approved(tx, name)
        problem = _unreleasable(tx, version)
        if problem and not force:
            raise GateRefused(problem)
        if problem:
            registry.require_force(actor, reason)
            records.note(tx, "version", version["id"], "forced", actor=actor.name, reason=reason, problem=problem)
        trigger = {"kind": "person", "reason": reason} if reason else {"kind": "person"}
        return begin(ctx, tx, row, version, actor=actor.name, strategy=strategy, trigger=trigger)


def _newest_approved(tx: Tx, model: str) -> Row:
    query = sa.select(versions).where(versions.c.model == model, versions.c.status == VersionStatus.APPROVED)
    row = tx.row(query.order_by(versions.c.number.desc()).limit(1))
    if row is None:
        raise NotFound(f"the model {model!r} has no Approved version")
    return row


def _unreleasable(tx: Tx, version: Row) -> str | None:
    if (
        version["status"] != VersionStatus.APPROVED
        and registry.model_row(tx, version["model"])["gate_mode"] == "enforce"
    ):
        what = f"{version['model']} version {version['number']}"
        return (
            f"{what} is {version['status']}, not Approved; run: loopline approve {version['model']} {version['number']}"
        )
    return None


def begin(
    ctx: Context,
    tx: Tx,
    endpoint: Row,
    version: Row,
    *,
    actor: str,
    trigger: dict[str, Any],
    strategy: str | None = None,
) -> Row:
    """Record a rollout; the engine moves it on. One at a time for each endpoint."""
    active = endpoints.active_rollout(tx, endpoint["name"])
    if active is not None:
        raise Conflict(f"the rollout {active['id']} of {endpoint['name']} is going on; wait for it or roll it back")
    if endpoint["model"] is not None and endpoint["model"] != version["model"]:
        raise InvalidInput(f"{endpoint['name']} follows {endpoint['model']}, not {version['model']}")
    before = endpoints.serving(tx, endpoint["name"])
    if before is not None and before["version"] == version["id"]:
        raise Conflict(f"{endpoint['name']} serves {version['model']} version {version['number']} already")
    settings = endpoint["settings"] or {}
    plan = settings.get("rollout") or {}
    chosen = strategy or plan.get("strategy", "canary")
    shares = rules.plan(chosen, plan, first=before is None, servers=int(settings.get("instances", 1)))
    variant = variants.ensure(tx, endpoint, version, actor)
    row = records.create(
        tx,
        "rollout",
        actor=actor,
        endpoint=endpoint["name"],
        kind="release",
        strategy=chosen,
        variant=variant["id"],
        predecessor=None if before is None else before["id"],
        plan={
            "shares": shares,
            **{k: v for k, v in plan.items() if k != "steps"},
            "model": version["model"],
            "number": version["number"],
        },
        step=0,
        decisions=[],
        trigger=trigger,
        by=actor,
    )
    if endpoint["status"] == EndpointStatus.FAILED:
        records.move(tx, "endpoint", endpoint["id"], EndpointStatus.CREATING, actor=actor)
    queue.ask(tx, "rollout.advance", row["id"])
    return row


def react(ctx: Context, tx: Tx, event: Row) -> None:
    """Reaction: an approval releases the version wherever an endpoint follows its model."""
    if event["noun"] != "version" or event["kind"] != "moved" or event["after"] != VersionStatus.APPROVED:
        return
    version = records.find(tx, "version", id=event["record"])
    if version is None:
        return
    for row in tx.rows(sa.select(endpoints_table).where(endpoints_table.c.model == version["model"])):
        if (row["settings"] or {}).get("deploy_on_approval") and row["status"] != EndpointStatus.DELETED:
            queue.ask(tx, "rollout.request", f"{row['name']} {version['id']}")


def request(ctx: Context, key: str) -> float | None:
    """Task: release an approved version on an endpoint, as soon as no other rollout is going on there."""
    name, version_id = key.split(" ")
    with ctx.db.transaction() as tx:
        version = records.get(tx, "version", version_id)
        endpoint = records.find(tx, "endpoint", name=name)
        if endpoint is None or endpoint["status"] == EndpointStatus.DELETED:
            return None
        if version["status"] != VersionStatus.APPROVED or endpoint["model"] != version["model"]:
            return None
        if endpoints.active_rollout(tx, name) is not None:
            return 1.0
        before = endpoints.serving(tx, name)
        if before is not None and before["version"] == version_id:
            return None
        trigger = {"kind": "approval", "by": version["decided_by"], "policy": version["policy"]}
        begin(ctx, tx, endpoint, version, actor=version["decided_by"] or SYSTEM.name, trigger=trigger)
    return None


# -- moving on --------------------------------------------------------------------------------------------------------


def advance(ctx: Context, rollout_id: str) -> float | None:
    """Task: move a rollout one status on, or say when to look again."""
    with ctx.db.read() as tx:
        row = records.get(tx, "rollout", rollout_id)
    step = {
        RolloutStatus.PENDING: _prepare,
        RolloutStatus.STARTING: _await_servers,
        RolloutStatus.SHIFTING: _await_gateways,
        RolloutStatus.BAKING: _bake,
        RolloutStatus.ROLLING_BACK: _await_return,
    }.get(row["status"])
    return None if step is None else step(ctx, row)


def _prepare(ctx: Context, row: Row) -> float | None:
    """Lay out the model and ask the supervisor for its servers."""
    with ctx.db.read() as tx:
        variant = records.get(tx, "variant", row["variant"])
        version = records.get(tx, "version", variant["version"])
        environment = records.get(tx, "environment", version["environment"]) if version["environment"] else None
    entries = variant["server"]
    try:
        if environment is None:
            raise Conflict("the version names no environment to run in")
        if not entries:
            spec = {
                "model_dir": str(artifacts.model_dir(ctx, version)),
                "handler": version["handler"],
                "code_dir": str(outputs.tree_path(ctx, version["tree"])) if version["tree"] else None,
                "signature": version["signature"],
                "warmup": version["warmup"] or warmup.rows(version["signature"], version["baseline"]),
                "limits": {"memory_mb": ctx.settings.job_memory_mb},
            }
            entries = [
                processes.server(ctx, variant["id"], index, spec, environment["python"])
                for index in range(variant["instances"])
            ]
    except (LooplineError, OSError) as error:
        _fail(ctx, row, f"{type(error).__name__}: {error}")
        return None
    with ctx.db.transaction() as tx:
        records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=entries)
        records.move(tx, "rollout", row["id"], RolloutStatus.STARTING, actor=SYSTEM.name, step_at=tx.now)
        endpoints.status_after(tx, endpoints.endpoint_row(tx, row["endpoint"]), SYSTEM.name)
    processes.write(ctx)
    return POLL_SECONDS


def _fail(ctx: Context, row: Row, reason: str) -> None:
    """The new version never took traffic: say why, and stop its servers."""
    with ctx.db.transaction() as tx:
        records.move(tx, "rollout", row["id"], RolloutStatus.FAILED, actor=SYSTEM.name, reason=reason, ended_at=tx.now)
        variant = records.get(tx, "variant", row["variant"])
        if variant["status"] == VariantStatus.STARTING:
            records.move(tx, "variant", variant["id"], VariantStatus.FAILED, actor=SYSTEM.name, reason=reason)
        endpoints.status_after(tx, endpoints.endpoint_row(tx, row["endpoint"]), SYSTEM.name)
    processes.write(ctx)


def _await_servers(ctx: Context, row: Row) -> float | None:
    with ctx.db.read() as tx:
        variant = records.get(tx, "variant", row["variant"])
    found = [processes.server_state(entry) for entry in variant["server"]]
    failed = next((state for state in found if state["state"] == "failed"), None)
    waited = ctx.clock.now() - row["step_at"]
    limit = float((row["plan"] or {}).get("start_timeout_seconds", 120))
    if failed is not None:
        _fail(ctx, row, f"the new version does not start: {failed.get('error')}")
        return None
    if not all(state["state"] == "ready" for state in found):
        if waited > limit:
            _fail(ctx, row, f"the new version was not ready within {limit:g} s")
            return None
        return POLL_SECONDS
    with ctx.db.transaction() as tx:
        if variant["status"] != VariantStatus.READY:
            records.move(tx, "variant", variant["id"], VariantStatus.READY, actor=SYSTEM.name)
        if row["kind"] == "rollback":
            left = records.get(tx, "variant", row["predecessor"])
            rollbacks.leave(tx, left, row["by"], row["reason"])
        variants.shift(ctx, tx, row, row["plan"]["shares"][0])
        records.move(
            tx,
            "rollout",
            row["id"],
            RolloutStatus.SHIFTING,
            actor=SYSTEM.name,
            step=0,
            **variants.snapshot(ctx, tx, row),
        )
    return POLL_SECONDS / 2


def _await_gateways(ctx: Context, row: Row) -> float | None:
    if not snapshots.acknowledged(ctx, row["snapshot"]):
        return POLL_SECONDS / 2
    if row["kind"] == "rollback" or row["predecessor"] is None:
        _succeed(ctx, row)
        return None
    with ctx.db.transaction() as tx:
        snapshots.record_acknowledgements(ctx, tx)
        records.move(tx, "rollout", row["id"], RolloutStatus.BAKING, actor=SYSTEM.name, step_at=tx.now)
    return POLL_SECONDS


def _bake(ctx: Context, row: Row) -> float | None:
    now = ctx.clock.now()
    with ctx.db.read() as tx:
        variant = records.get(tx, "variant", row["variant"])
        predecessor = records.get(tx, "variant", row["predecessor"])
        candidate = traffic.side(tx, row["endpoint"], variant["name"], row["step_at"], now)
        other = traffic.side(tx, row["endpoint"], predecessor["name"], row["step_at"], now)
    decision = rules.judge(rules.rules_from(row["plan"]), candidate, other, now - row["step_at"])
    if decision.verdict == "wait":
        return POLL_SECONDS * 2
    share = row["plan"]["shares"][row["step"]]
    note = {
        "at": now,
        "share": share,
        "verdict": decision.verdict,
        "reason": decision.reason,
        "figures": decision.figures,
    }
    decisions = [*row["decisions"], note]
    if decision.verdict == "back":
        rollbacks.turn_back(ctx, row, f"at {share:g} %: {decision.reason}", decisions)
        return POLL_SECONDS / 2
    if row["step"] + 1 >= len(row["plan"]["shares"]):
        _succeed(ctx, {**row, "decisions": decisions})
        return None
    with ctx.db.transaction() as tx:
        variants.shift(ctx, tx, row, row["plan"]["shares"][row["step"] + 1])
        records.move(
            tx,
            "rollout",
            row["id"],
            RolloutStatus.SHIFTING,
            actor=SYSTEM.name,
            reason=decision.reason,
            step=row["step"] + 1,
            decisions=decisions,
            **variants.snapshot(ctx, tx, row),
        )
    return POLL_SECONDS / 2


def _succeed(ctx: Context, row: Row) -> None:
    with ctx.db.transaction(durable=True) as tx:
        variant = records.get(tx, "variant", row["variant"])
        records.move(
            tx,
            "rollout",
            row["id"],
            RolloutStatus.SUCCEEDED,
            actor=SYSTEM.name,
            reason=row["decisions"][-1]["reason"] if row["decisions"] else None,
            decisions=row["decisions"],
            ended_at=tx.now,
        )
        if variant["model"]:
            registry.set_alias_in(tx, variant["model"], registry.CHAMPION, variant["number"], actor=row["by"])
        endpoint = endpoints.endpoint_row(tx, row["endpoint"])
        keep = float((endpoint["settings"] or {}).get("keep_warm_seconds", 3600))
        if row["predecessor"]:
            before = records.get(tx, "variant", row["predecessor"])
            if before["status"] == VariantStatus.READY:
                records.move(
                    tx, "variant", before["id"], VariantStatus.WARM, actor=SYSTEM.name, warm_until=tx.now + keep
                )
        endpoints.status_after(tx, endpoint, SYSTEM.name)
        tx.after_commit.append(lambda: processes.write(ctx))


def _await_return(ctx: Context, row: Row) -> float | None:
    """When every gateway has left the version, its servers stop."""
    if not snapshots.acknowledged(ctx, row["snapshot"]):
        return POLL_SECONDS / 2
    if ctx.clock.now() - row["step_at"] < DRAIN_SECONDS:
        return DRAIN_SECONDS / 4
    with ctx.db.transaction() as tx:
        variant = records.get(tx, "variant", row["variant"])
        if variant["status"] in (VariantStatus.READY, VariantStatus.WARM):
            records.move(tx, "variant", variant["id"], VariantStatus.STOPPED, actor=SYSTEM.name, reason=row["reason"])
        records.move(
            tx,
            "rollout",
            row["id"],
            RolloutStatus.ROLLED_BACK,
            actor=SYSTEM.name,
            reason=row["reason"],
            ended_at=tx.now,
        )
        endpoints.status_after(tx, endpoints.endpoint_row(tx, row["endpoint"]), SYSTEM.name)
        snapshots.write(ctx, tx, actor=SYSTEM.name, reason=f"rollout {row['id']} is over")
        tx.after_commit.append(lambda: processes.write(ctx))
    return None


# -- reading ----------------------------------------------------------------------------------------------------------


def list_(ctx: Context, actor: Actor, *, endpoint: str | None = None, limit: int = 50) -> dict[str, Any]:
    """Rollouts, newest first."""
    query = sa.select(rollouts).order_by(rollouts.c.created_at.desc()).limit(limit)
    if endpoint is not None:
        query = query.where(rollouts.c.endpoint == endpoint)
    with ctx.db.read() as tx:
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
