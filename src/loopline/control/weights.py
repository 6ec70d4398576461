"""Weights by hand: which share of an endpoint's traffic each of its running variants gets.

The change is a rollout of its own kind, so that the list of rollouts is the whole history of an endpoint's traffic, and
a rollback finds its way. The alias ``champion`` follows the variant with the largest weight.
"""

import math
import time
from contextlib import suppress
from typing import Any

from loopline.control import endpoints, processes, registry, release_tests, shadows, shifts, snapshots, variants
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.domain.states import RolloutStatus, VariantStatus
from loopline.errors import Conflict, GateRefused, InvalidInput, NotFound, Timeout
from loopline.store import queue, records
from loopline.store.db import Row, Tx

WAIT_SECONDS = 5.0
LOOK_SECONDS = 0.002
MAX_WEIGHT = 1e6


def set_weights(
    ctx: Context, actor: Actor, *, endpoint: str, weights: dict[str, float], reason: str = ""
) -> dict[str, Any]:
    """Give each named variant its weight and every other one none, and return when every gateway has switched.

    Weights are relative: they need not add up to 100. Only variants that run (Ready or Warm) can have one, and of those
    that stand by only what has passed the endpoint's tests. Raises ``Conflict`` while a rollout is going on,
    ``GateRefused`` for a version that may not take traffic.
    """
    _check(weights)
    with ctx.db.transaction(durable=True) as tx:
        row = endpoints.endpoint_row(tx, endpoint)
        active = endpoints.active_rollout(tx, endpoint)
        if active is not None:
            raise Conflict(f"the rollout {active['id']} of {endpoint} is going on; wait for it or roll it back")
        rows = _named(tx, row, weights)
        rollout = _record(ctx, tx, row, rows, weights, actor.name, reason)
    for name, before in rows.items():
        if before["shadow"] is not None and weights.get(name):
            shadows.finish(ctx, before)
    _await(ctx, rollout["snapshot"])
    with suppress(Conflict):  # the engine was quicker
        shifts.advance(ctx, rollout["id"])
    with ctx.db.read() as tx:
        now = [row for row in variants.of_endpoint(tx, endpoint) if row["weight"] > 0]
    total = sum(row["weight"] for row in now)
    return {
        "endpoint": endpoint,
        "rollout": rollout["id"],
        "snapshot": rollout["snapshot"],
        "items": [
            {key: row[key] for key in ("name", "model", "number", "weight")} | {"share": row["weight"] / total}
            for row in sorted(now, key=lambda row: -row["weight"])
        ],
        "next": None,
    }


def _check(weights: dict[str, float]) -> None:
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MAX_WEIGHT:
            raise InvalidInput(f"the weight of {name} is a number from 0 to {MAX_WEIGHT:g}, unlike {weight!r}")
    if not any(weights.values()):
        raise InvalidInput("at least one variant needs a weight above 0; to take an endpoint away: endpoints delete")


def _named(tx: Tx, endpoint: Row, weights: dict[str, float]) -> dict[str, Row]:
    """The endpoint's variants by name; raises for a name that cannot have its weight."""
    rows = {row["name"]: row for row in variants.of_endpoint(tx, endpoint["name"])}
    running = [name for name, row in rows.items() if row["status"] in (VariantStatus.READY, VariantStatus.WARM)]
    for name, weight in weights.items():
        row = rows.get(name)
        if row is None:
            known = ", ".join(running) or "none"
            raise NotFound(f"the endpoint {endpoint['name']!r} has no variant {name!r}; running: {known}")
        if weight > 0 and name not in running:
            start = f"loopline release {endpoint['name']} {row['number']} --no-traffic"
            raise Conflict(f"the variant {name} is {row['status']} and cannot answer; start it: {start}")
        if weight > 0 and row["weight"] == 0 and row["version"]:
            problem = registry.undeployable(tx, records.get(tx, "version", row["version"]))
            if problem is None and row["status"] == VariantStatus.READY:  # a warm one had traffic before
                problem = release_tests.unproven(tx, row)
            if problem:
                raise GateRefused(problem)
    return rows


def _record(
    ctx: Context, tx: Tx, endpoint: Row, rows: dict[str, Row], weights: dict[str, float], actor: str, reason: str
) -> Row:
    """The weights, what becomes of the variants, and the record of it, with the snapshot that says so."""
    before = variants.weights(tx, endpoint["name"])
    serving = endpoints.serving(tx, endpoint["name"])
    most = max(weights.values())
    leaders = [rows[name] for name, weight in weights.items() if math.isclose(weight, most)]
    stays = serving is not None and any(row["id"] == serving["id"] for row in leaders)
    winner = serving if stays and serving is not None else leaders[0]
    told = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
    rollout = records.create(
        tx,
        "rollout",
        actor=actor,
        endpoint=endpoint["name"],
        kind="weights",
        strategy="by-hand",
        variant=winner["id"],
        predecessor=None if serving is None or serving["id"] == winner["id"] else serving["id"],
        plan={
            "shares": [100 * most / sum(weights.values())],
            "weights": weights,
            "before": before,
            "model": winner["model"],
            "number": winner["number"],
        },
        step=0,
        decisions=[],
        trigger={"kind": "person", **({"reason": reason} if reason else {})},
        by=actor,
    )
    for name, row in rows.items():
        weight = float(weights.get(name, 0.0))
        if weight > 0 and row["status"] == VariantStatus.WARM:
            records.move(tx, "variant", row["id"], VariantStatus.READY, actor=actor, warm_until=None)
        shadow = None if weight > 0 else row["shadow"]
        if (row["weight"], row["shadow"]) != (weight, shadow):
            records.set(tx, "variant", row["id"], actor=actor, weight=weight, shadow=shadow)
    records.move(tx, "rollout", rollout["id"], RolloutStatus.STARTING, actor=actor)
    snapshot = variants.snapshot(ctx, tx, rollout)
    queue.ask(tx, "rollout.advance", rollout["id"])
    why = f"{reason} ({told})" if reason else told
    return records.move(tx, "rollout", rollout["id"], RolloutStatus.SHIFTING, actor=actor, reason=why, **snapshot)


def stop(ctx: Context, actor: Actor, *, endpoint: str, variant: str) -> dict[str, Any]:
    """End a variant that takes no traffic: a shadow, one that stands by, one that is kept warm."""
    with ctx.db.transaction() as tx:
        endpoints.endpoint_row(tx, endpoint)
        row = records.find(tx, "variant", endpoint=endpoint, name=variant)
        if row is None:
            raise NotFound(f"the endpoint {endpoint!r} has no variant {variant!r}")
        active = endpoints.active_rollout(tx, endpoint)
        if active is not None and row["id"] in (active["variant"], active["predecessor"]):
            raise Conflict(f"{variant} is part of the rollout {active['id']}; wait for it or roll it back")
        if row["weight"] > 0:
            raise Conflict(f"{variant} takes traffic of {endpoint}; take it away first: loopline endpoints traffic")
        if row["status"] == VariantStatus.STOPPED:
            return row
        stopped = records.move(
            tx, "variant", row["id"], VariantStatus.STOPPED, actor=actor.name, shadow=None, reason="stopped by hand"
        )
        if row["shadow"] is not None:
            tx.after_commit.append(lambda: shadows.finish(ctx, row))
        number = snapshots.write(ctx, tx, actor=actor.name, reason=f"{endpoint}/{variant} stopped")
    _await(ctx, number)
    processes.write(ctx)
    return stopped


def _await(ctx: Context, number: int) -> None:
    began = time.monotonic()
    while not snapshots.acknowledged(ctx, number):
        if time.monotonic() - began > WAIT_SECONDS:
            raise Timeout(f"traffic snapshot {number} is written, but not every gateway has switched to it yet")
        time.sleep(LOOK_SECONDS)
