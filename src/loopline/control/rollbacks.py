"""Going back: a rollout is turned round, or an endpoint put on the version that it served before.

Weights, statuses, approval, alias and snapshot commit together; the version that is left becomes Rejected with the
reason, and its predecessor needs no second approval.
"""

import time
from typing import Any

import sqlalchemy as sa

from loopline.control import endpoints, registry, snapshots, variants
from loopline.control.context import SYSTEM, Context
from loopline.domain.access import Actor
from loopline.domain.states import RolloutStatus, VariantStatus, VersionStatus
from loopline.errors import Conflict, LooplineError, Timeout
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import rollouts

WAIT_SECONDS = 5.0
LOOK_SECONDS = 0.002  # each look reads a small file per gateway


def turn_back(ctx: Context, row: Row, reason: str, decisions: list[dict[str, Any]], actor: str = SYSTEM.name) -> int:
    """Give the traffic back to the predecessor; version, weights and snapshot commit together."""
    with ctx.db.transaction(durable=True) as tx:
        variant = records.get(tx, "variant", row["variant"])
        variants.shift(ctx, tx, row, 0.0)
        if variant["version"]:
            version = records.get(tx, "version", variant["version"])
            registry.reject_in(tx, version, actor=actor, comment=f"rolled back: {reason}", policy="rollout")
        snapshot = variants.snapshot(ctx, tx, row)
        records.move(
            tx,
            "rollout",
            row["id"],
            RolloutStatus.ROLLING_BACK,
            actor=actor,
            reason=reason,
            decisions=decisions,
            **snapshot,
        )
        queue.ask(tx, "rollout.advance", row["id"])
    return int(snapshot["snapshot"])


def rollback(ctx: Context, actor: Actor, *, endpoint: str, reason: str = "rolled back by a person") -> dict[str, Any]:
    """Put an endpoint back on the version it served before, and return when every gateway has switched.

    A rollout that is going on is turned back. The version left behind becomes Rejected with the reason; the one that
    serves again needs no approval. ``seconds`` in the answer is the time until the last gateway had switched.
    """
    began = time.monotonic()
    number, row = begin(ctx, actor.name, endpoint, reason)
    while number is not None and not snapshots.acknowledged(ctx, number):
        if time.monotonic() - began > WAIT_SECONDS:
            raise Timeout(f"traffic snapshot {number} is written, but not every gateway has switched to it yet")
        time.sleep(LOOK_SECONDS)
    seconds = time.monotonic() - began
    ctx.wake()
    with ctx.db.read() as tx:
        now = endpoints.serving(tx, endpoint)
        return {
            **records.get(tx, "rollout", row["id"]),
            "seconds": round(seconds, 4),
            "serving": None
            if now is None
            else {"variant": now["name"], "model": now["model"], "version": now["number"]},
        }


def begin(ctx: Context, actor: str, endpoint: str, reason: str) -> tuple[int | None, Row]:
    """Begin to go back; gives the snapshot's number (None: servers must start first) and the rollout.

    Of several that are asked for at once one goes back, by one version; the others raise ``Conflict``.
    """
    with ctx.db.read() as tx:
        endpoints.endpoint_row(tx, endpoint)
        active = endpoints.active_rollout(tx, endpoint)
        seen = endpoints.serving(tx, endpoint)
    if active is not None and _can_turn(active):
        return turn_back(ctx, active, reason, active["decisions"], actor), active
    with ctx.db.transaction(durable=True) as tx:
        _refuse_active(endpoints.active_rollout(tx, endpoint))
        current = endpoints.serving(tx, endpoint)
        if current is not None and (seen is None or current["id"] != seen["id"]):
            raise Conflict(f"{endpoint} has moved to {current['name']} meanwhile; ask again to go back further")
        before = _before(tx, endpoint, current)
        if current is None or before is None:
            raise Conflict(f"{endpoint} has served one version only; there is none to go back to")
        row = _record_rollback(tx, endpoint, current, before, actor, reason)
        if before["status"] != VariantStatus.WARM:
            variants.ensure(
                tx, endpoints.endpoint_row(tx, endpoint), records.get(tx, "version", before["version"]), actor
            )
            queue.ask(tx, "rollout.advance", row["id"])
            return None, row
        return _switch_back(ctx, tx, row, current, before, actor, reason), row


def _can_turn(active: Row) -> bool:
    """Whether a rollout has moved traffic that can be given back. A rollback is not turned: it is the way back."""
    moving = active["status"] in (RolloutStatus.SHIFTING, RolloutStatus.BAKING)
    return moving and active["predecessor"] is not None and active["kind"] != "rollback"


def _refuse_active(active: Row | None) -> None:
    if active is None:
        return
    if active["kind"] == "rollback" or active["status"] == RolloutStatus.ROLLING_BACK:
        raise Conflict(f"the rollout {active['id']} is going back already")
    raise Conflict(f"the rollout {active['id']} is {active['status']}; it moves no traffic yet: try again in a moment")


def _before(tx: Tx, endpoint: str, current: Row | None) -> Row | None:
    """The variant that served before the current one, from the endpoint's finished rollouts."""
    if current is None:
        return None
    query = sa.select(rollouts).where(
        rollouts.c.endpoint == endpoint, rollouts.c.status == RolloutStatus.SUCCEEDED, rollouts.c.kind == "release"
    )
    wanted = current["id"]
    for row in tx.rows(query.order_by(rollouts.c.ended_at.desc())):
        if row["variant"] == wanted and row["predecessor"]:
            before = records.get(tx, "variant", row["predecessor"])
            version = records.find(tx, "version", id=before["version"]) if before["version"] else None
            if version is None or version["status"] != VersionStatus.REJECTED:
                return before
            wanted = before["id"]
    return None


def _record_rollback(tx: Tx, endpoint: str, current: Row, before: Row, actor: str, reason: str) -> Row:
    return records.create(
        tx,
        "rollout",
        actor=actor,
        endpoint=endpoint,
        kind="rollback",
        strategy="all-at-once",
        variant=before["id"],
        predecessor=current["id"],
        plan={"shares": [100.0], "model": before["model"], "number": before["number"]},
        step=0,
        decisions=[],
        trigger={"kind": "rollback", "reason": reason},
        reason=reason,
        by=actor,
    )


def _switch_back(ctx: Context, tx: Tx, row: Row, current: Row, before: Row, actor: str, reason: str) -> int:
    """All of a rollback in one transaction: statuses, weights, approval, alias and snapshot."""
    records.move(tx, "rollout", row["id"], RolloutStatus.STARTING, actor=actor)
    records.move(tx, "variant", before["id"], VariantStatus.READY, actor=actor, warm_until=None)
    variants.shift(ctx, tx, row, 100.0)
    leave(tx, current, actor, reason)
    if before["model"]:
        registry.set_alias_in(tx, before["model"], registry.CHAMPION, before["number"], actor=actor, reason=reason)
    snapshot = variants.snapshot(ctx, tx, row)
    records.move(tx, "rollout", row["id"], RolloutStatus.SHIFTING, actor=actor, **snapshot)
    queue.ask(tx, "rollout.advance", row["id"])
    return int(snapshot["snapshot"])


def leave(tx: Tx, variant: Row, actor: str, reason: str) -> None:
    """The version that an endpoint goes back from is Rejected."""
    if variant["version"]:
        version = records.get(tx, "version", variant["version"])
        registry.reject_in(tx, version, actor=actor, comment=f"rolled back: {reason}", policy="rollback")


def by_alarm(ctx: Context, key: str) -> float | None:
    """Task: go back because an alarm asked for it; an endpoint that cannot is noted, not retried."""
    try:
        rollback(ctx, Actor("alarm", "admin"), endpoint=key, reason="an alarm asked for it")
    except LooplineError as error:
        with ctx.db.transaction() as tx:
            row = records.find(tx, "endpoint", name=key)
            if row is not None:
                records.note(tx, "endpoint", row["id"], "rollback_refused", actor="alarm", reason=error.message)
    return None
