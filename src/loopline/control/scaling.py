"""Scaling: the number of a variant's servers follows its load, within the limits of its endpoint.

The load is read from the counters of the monitor; ``domain.scaling`` decides. A server that is added takes requests
when it is ready; one that is taken away is in no gateway's snapshot any more before it is stopped, and finishes what it
has.

A rollout comes first: while one is going on no server is taken away, for the shares are about to change, and while it
replaces server by server none is added. What is released gets as many servers as what it replaces.
"""

import math
from collections import Counter
from typing import Any

import sqlalchemy as sa

from loopline.control import endpoints, fleets, monitoring, processes, snapshots
from loopline.control.context import SYSTEM, Context
from loopline.domain import loopfile, scaling
from loopline.domain.access import Actor
from loopline.domain.states import EndpointStatus, VariantStatus
from loopline.errors import InvalidInput, LooplineError
from loopline.store import metrics, records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoints as endpoints_table
from loopline.store.schema import variants

START_SECONDS = 120.0  # a server that is not ready by then is given up
COUNTED_AFTER_SECONDS = 1  # a second is counted by then


def scale(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    min: int | None = None,
    max: int | None = None,
    target_in_flight: float | None = None,
    target_latency_ms: float | None = None,
    target_per_minute: float | None = None,
    scale_out_cooldown_seconds: float | None = None,
    scale_in_cooldown_seconds: float | None = None,
    idle_seconds: float | None = None,
    cold_start_seconds: float | None = None,
    off: bool = False,
    given: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Set keys of an endpoint's ``[scaling]`` and leave the others; ``off``: the number of servers stays as it is.

    A project's next push sets what its loop.toml says. ``given``: what its author wrote, kept as it is.
    """
    changes = {
        "min": min,
        "max": max,
        "target_in_flight": target_in_flight,
        "target_latency_ms": target_latency_ms,
        "target_per_minute": target_per_minute,
        "scale_out_cooldown_seconds": scale_out_cooldown_seconds,
        "scale_in_cooldown_seconds": scale_in_cooldown_seconds,
        "idle_seconds": idle_seconds,
        "cold_start_seconds": cold_start_seconds,
    }
    with ctx.db.transaction() as tx:
        row = endpoints.endpoint_row(tx, endpoint)
        settings = {key: value for key, value in (row["settings"] or {}).items() if key != "scaling"}
        if settings.get("multi_model"):
            raise InvalidInput(f"{endpoint} serves many models: they start on demand, within its memory")
        if not off:
            changed = {key: value for key, value in changes.items() if value is not None}
            before = (row["settings"] or {}).get("scaling") or {}
            table = {key: value for key, value in {**before, **changed}.items() if value is not None}
            loopfile.check_endpoint(endpoint, endpoint, {"scaling": table})
            settings["scaling"] = table
        if given is not None:
            settings["scaling_given"] = given
        records.set(tx, "endpoint", row["id"], actor=actor.name, settings=settings)
        snapshots.write(ctx, tx, actor=actor.name, reason=f"scaling of {endpoint} changed")
        return {**row, "settings": settings}


def adjust(ctx: Context) -> None:
    """Tick: bring each variant that takes requests one move nearer to what its load asks for."""
    with ctx.db.read() as tx:
        rows = tx.rows(sa.select(endpoints_table).where(endpoints_table.c.status != EndpointStatus.DELETED))
        followed = [row for row in rows if not (row["settings"] or {}).get("multi_model")]
        work = [(row, variant) for row in followed for variant in _variants(tx, row)]
    for endpoint, variant in work:
        settings = {**(endpoint["settings"] or {}), "name": endpoint["name"]}
        policy = scaling.policy_from(settings)
        if _retune(ctx, variant, settings) or policy is None:
            continue
        if policy.min == 0 and (variant["status"] == VariantStatus.STARTING or len(variant["server"]) > 1):
            processes.tell(ctx, {"kind": "start", "id": variant["server"][0]["id"]})
        if variant["status"] == VariantStatus.READY and variant["weight"] > 0:
            _move(ctx, endpoint["name"], variant, policy)


def _variants(tx: Tx, endpoint: Row) -> list[Row]:
    query = sa.select(variants).where(
        variants.c.endpoint == endpoint["name"],
        variants.c.status.in_((VariantStatus.STARTING, VariantStatus.READY, VariantStatus.WARM)),
    )
    return [row for row in tx.rows(query.order_by(variants.c.name)) if row["server"]]


def _retune(ctx: Context, variant: Row, settings: dict[str, Any]) -> bool:
    """Let the first server run on demand, or always, as the settings say now; whether that changed."""
    entries = [
        {**entry, "process": {**_plain(entry["process"]), **processes.demand(settings, place)}}
        for place, entry in enumerate(variant["server"])
    ]
    if entries == variant["server"]:
        return False
    with ctx.db.transaction() as tx:
        if records.get(tx, "variant", variant["id"])["server"] == variant["server"]:
            records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=entries)
            snapshots.write(ctx, tx, actor=SYSTEM.name, reason=f"scaling of {variant['endpoint']}/{variant['name']}")
            tx.after_commit.append(lambda: processes.write(ctx))
    return True


def _plain(process: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in process.items() if key not in ("on_demand", "idle_seconds", "group")}


def _move(ctx: Context, endpoint: str, variant: Row, policy: scaling.Policy) -> None:
    """One change at a time: who joins is let in, who leaves let go, before the load is looked at again."""
    with ctx.db.read() as tx:
        rollout = endpoints.active_rollout(tx, endpoint)
        newest = snapshots.latest(tx)
    if any(entry.get("joining") for entry in variant["server"]):
        _let_in(ctx, variant)
    elif any(entry.get("leaving") for entry in variant["server"]):
        if rollout is None and newest is not None and snapshots.acknowledged(ctx, newest["number"]):
            with ctx.db.transaction() as tx:
                if fleets.let_go(tx, records.get(tx, "variant", variant["id"])):
                    tx.after_commit.append(lambda: processes.write(ctx))
    elif rollout is None or rollout["strategy"] != "rolling":
        _decide(ctx, endpoint, variant, policy, shrinking=rollout is None)


def _decide(ctx: Context, endpoint: str, variant: Row, policy: scaling.Policy, *, shrinking: bool) -> None:
    now = ctx.clock.now()
    changed_at = ctx.cache.setdefault(f"scaled {variant['id']}", now - policy.scale_out_cooldown_seconds)
    servers = len(variant["server"])
    with ctx.db.read() as tx:
        load = _load(tx, endpoint, variant["name"], policy, now)
    decision = scaling.decide(policy, servers, load, now - changed_at)
    if decision.verdict == "stay" or (decision.verdict == "in" and not shrinking):
        return
    ctx.cache[f"scaled {variant['id']}"] = now
    if decision.verdict == "out":
        _add(ctx, variant, decision)
        return
    with ctx.db.transaction() as tx:
        current = records.get(tx, "variant", variant["id"])
        if current["server"] != variant["server"]:
            return
        fleets.shrink(tx, current, decision.servers)
        records.set(tx, "variant", variant["id"], actor=SYSTEM.name, instances=decision.servers)
        _note(tx, variant, decision)
        what = f"{endpoint}/{variant['name']}: {servers} servers become {decision.servers}"
        snapshots.write(ctx, tx, actor=SYSTEM.name, reason=what)


def _load(tx: Tx, endpoint: str, variant: str, policy: scaling.Policy, now: float) -> scaling.Load:
    end = math.floor(now) - COUNTED_AFTER_SECONDS
    start = end - max(scaling.WINDOW_SECONDS, math.ceil(policy.scale_in_cooldown_seconds))
    busy, counts = dict.fromkeys(range(start, end), 0.0), dict.fromkeys(range(start, end), 0.0)
    requests, buckets = 0, Counter[str]()
    for row in metrics.traffic(tx, endpoint, variant, start, end, period_seconds=1):
        busy[row.at] += monitoring.histogram_of(row.latency).total / 1e6
        counts[row.at] += row.count
        if row.at >= end - scaling.WINDOW_SECONDS:
            requests += row.count
            buckets.update(row.latency)
    p95 = monitoring.histogram_of(buckets).percentile(95)
    slowest = None if p95 is None else p95 / 1000
    return scaling.load_from(list(busy.values()), requests, slowest, list(counts.values()))


def _add(ctx: Context, variant: Row, decision: scaling.Decision) -> None:
    known = {entry["id"] for entry in variant["server"]}
    try:
        grown = fleets.grown(ctx, variant, decision.servers)
    except (LooplineError, OSError) as error:
        _give_up(ctx, variant, set(), f"{type(error).__name__}: {error}")
        return
    entries = [entry if entry["id"] in known else {**entry, "joining": ctx.clock.now()} for entry in grown]
    with ctx.db.transaction() as tx:
        if records.get(tx, "variant", variant["id"])["server"] == variant["server"]:
            records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=entries, instances=len(entries))
            _note(tx, variant, decision)
            tx.after_commit.append(lambda: processes.write(ctx))


def _let_in(ctx: Context, variant: Row) -> None:
    """Servers that were added take requests from the next snapshot on, once all of them are ready."""
    joining = [entry for entry in variant["server"] if entry.get("joining")]
    said = {entry["id"]: processes.server_state(entry) for entry in joining}
    failed = next((state for state in said.values() if state["state"] == "failed"), None)
    late = ctx.clock.now() - max(entry["joining"] for entry in joining) > START_SECONDS
    if failed is not None or late:
        reason = failed.get("error") if failed else f"not ready within {START_SECONDS:g} s"
        _give_up(ctx, variant, set(said), str(reason))
    elif all(state["state"] == "ready" for state in said.values()):
        entries = [{key: value for key, value in entry.items() if key != "joining"} for entry in variant["server"]]
        with ctx.db.transaction() as tx:
            if records.get(tx, "variant", variant["id"])["server"] == variant["server"]:
                records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=entries)
                what = f"{variant['endpoint']}/{variant['name']}: {len(entries)} servers"
                snapshots.write(ctx, tx, actor=SYSTEM.name, reason=what)


def _give_up(ctx: Context, variant: Row, gone: set[str], reason: str) -> None:
    """What was to be added does not start: go on with the others, and try again after the cool-down."""
    ctx.cache[f"scaled {variant['id']}"] = ctx.clock.now()
    with ctx.db.transaction() as tx:
        entries = [entry for entry in records.get(tx, "variant", variant["id"])["server"] if entry["id"] not in gone]
        records.set(tx, "variant", variant["id"], actor=SYSTEM.name, server=entries, instances=len(entries))
        records.note(tx, "variant", variant["id"], "scaling_failed", actor=SYSTEM.name, reason=reason)
        tx.after_commit.append(lambda: processes.write(ctx))


def _note(tx: Tx, variant: Row, decision: scaling.Decision) -> None:
    data = {"endpoint": variant["endpoint"], "name": variant["name"], "to": decision.servers, **decision.figures}
    records.note(tx, "variant", variant["id"], "scaled", actor=SYSTEM.name, reason=decision.reason, **data)
