"""Going back: a rollout is turned round, or an endpoint put on the version that it served before.

Weights, statuses, approval, alias and snapshot commit together; the version that is left becomes Rejected with the
reason, and its predecessor needs no second approval.
"""

import time
from typing import Any

import sqlalchemy as sa

from loopline.control import aliases, endpoints, fleets, processes, registry, snapshots, variants
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
    with ctx.db.read() as tx:
        before = records.get(tx, "variant", row["predecessor"]) if row["predecessor"] else None
    whole = _whole_again(ctx, before, int((row["plan"] or {}).get("servers_before") or 0))
    with ctx.db.transaction(durable=True) as tx:
        coming = variants.arriving(tx, row)
        if row["plan"]["shares"]:
            variants.shift(tx, row, 0.0)
        for variant in coming:
            if variant["shadow"]:
                records.set(tx, "variant", variant["id"], actor=actor, shadow=None)
        if before is not None and whole is not None:
            records.set(tx, "variant", before["id"], actor=SYSTEM.name, server=whole)
            tx.after_commit.append(lambda: processes.write(ctx))
        for identifier in {variant["version"] for variant in coming} - {None} - _stay(tx, row):
            version = records.get(tx, "version", identifier)
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
            trigger={**(row["trigger"] or {}), "turned_back_by": actor},
            **snapshot,
        )
        queue.ask(tx, "rollout.advance", row["id"])
    return int(snapshot["snapshot"])


def _stay(tx: Tx, row: Row) -> set[str]:
    """The versions that serve again once a rollout has gone back."""
    before = (row["plan"] or {}).get("before") or ()
    return {version for each in before if (version := records.get(tx, "variant", each)["version"])}


def _whole_again(ctx: Context, before: Row | None, count: int) -> list[dict[str, Any]] | None:
    """The predecessor's servers with those that a rolling replacement has taken from it; None if it has them all.

    They start beside the ones that are there, which take the traffic at once: waiting for them would leave it where it
    goes wrong.
    """
    if before is None or len(fleets.staying(before)) >= count:
        return None
    try:
        return fleets.grown(ctx, before, count)
    except (LooplineError, OSError):
        return None  # what is left of it serves


def rollback(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    reason: str = "rolled back by a person",
    to: int | None = None,
) -> dict[str, Any]:
    """Put an endpoint back on the version it served before, and return when every gateway has switched.

    A rollout that is going on is turned back. The version left behind becomes Rejected with the reason; the one that
    serves again needs no approval. After a rollback the next one has to say how far it goes: ``to``, the number of a
    version that served earlier. ``seconds`` in the answer is the time until the last gateway had switched.
    """
    began = time.monotonic()
    number, row = begin(ctx, actor.name, endpoint, reason, to)
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


def begin(ctx: Context, actor: str, endpoint: str, reason: str, to: int | None = None) -> tuple[int | None, Row]:
    """Begin to go back; gives the snapshot's number (None: servers must start first) and the rollout.

    Of several that are asked for at once one goes back, by one version; the others raise ``Conflict``.
    """
    with ctx.db.read() as tx:
        endpoints.endpoint_row(tx, endpoint)
        active = endpoints.active_rollout(tx, endpoint)
        seen = endpoints.serving(tx, endpoint)
    if active is not None and _can_turn(active):
        _check_destination(active, seen, to)
        return turn_back(ctx, active, reason, active["decisions"], actor), active
    with ctx.db.transaction(durable=True) as tx:
        _refuse_active(endpoints.active_rollout(tx, endpoint))
        current = endpoints.serving(tx, endpoint)
        if current is not None and (seen is None or current["id"] != seen["id"]):
            raise Conflict(f"{endpoint} has moved to {current['name']} meanwhile; ask again to go back further")
        before = _before(tx, endpoint, current, to)
        if current is None or before is None:
            raise Conflict(_nothing_before(endpoint, to))
        if to is None:
            _refuse_second(tx, endpoint, before)
        row = _record_rollback(tx, endpoint, current, before, actor, reason)
        if before["status"] in (VariantStatus.WARM, VariantStatus.READY):
            whole = _whole_again(ctx, before, int(before["instances"]))
            return _switch_back(ctx, tx, row, before, whole, actor), row
        variants.start_again(tx, before, actor)
        queue.ask(tx, "rollout.advance", row["id"])
        return None, row


def _nothing_before(endpoint: str, to: int | None) -> str:
    if to is None:
        return f"{endpoint} has served one version only; there is none to go back to"
    return f"{endpoint} has not served version {to} before this one; to move on to it: loopline release {endpoint} {to}"


def _check_destination(active: Row, seen: Row | None, to: int | None) -> None:
    if to is not None and (seen is None or seen["number"] != to):
        text = f"the rollout {active['id']} is going on, and goes back to what served before it"
        raise Conflict(f"{text}; leave --to out, and go back further afterwards")


def _refuse_second(tx: Tx, endpoint: str, before: Row) -> None:
    """Raise when the last thing that happened was a rollback that somebody asked for: it may be the same wish again."""
    query = sa.select(rollouts).where(rollouts.c.endpoint == endpoint, rollouts.c.ended_at.is_not(None))
    last = tx.row(query.order_by(rollouts.c.ended_at.desc()).limit(1))
    if last is None:
        return
    asked = (last["trigger"] or {}).get("turned_back_by", SYSTEM.name) != SYSTEM.name
    if last["kind"] == "rollback" or (last["status"] == RolloutStatus.ROLLED_BACK and asked):
        ago = tx.now - last["ended_at"]
        raise Conflict(
            f"{endpoint} went back {ago:.0f} s ago already; to go back further, to {before['model']} version "
            f"{before['number']}: loopline rollback {endpoint} --to {before['number']}"
        )


def _can_turn(active: Row) -> bool:
    """Whether a rollout can be turned round. A rollback is the way back itself; weights by hand have moved already."""
    if active["kind"] in ("rollback", "weights"):
        return False
    if active["status"] in (RolloutStatus.STARTING, RolloutStatus.TESTING):
        return True
    return active["status"] in (RolloutStatus.SHIFTING, RolloutStatus.BAKING) and active["predecessor"] is not None


def _refuse_active(active: Row | None) -> None:
    if active is None:
        return
    if active["kind"] == "rollback" or active["status"] == RolloutStatus.ROLLING_BACK:
        raise Conflict(f"the rollout {active['id']} is going back already")
    raise Conflict(f"the rollout {active['id']} is {active['status']}; it moves no traffic yet: try again in a moment")


def _before(tx: Tx, endpoint: str, current: Row | None, to: int | None) -> Row | None:
    """The variant that served before the current one, or earlier still with this version, from finished rollouts."""
    if current is None:
        return None
    query = sa.select(rollouts).where(
        rollouts.c.endpoint == endpoint,
        rollouts.c.status == RolloutStatus.SUCCEEDED,
        rollouts.c.kind.in_(("release", "weights")),
    )
    wanted = current["id"]
    for row in tx.rows(query.order_by(rollouts.c.ended_at.desc())):
        if row["variant"] == wanted and row["predecessor"]:
            before = records.get(tx, "variant", row["predecessor"])
            version = records.find(tx, "version", id=before["version"]) if before["version"] else None
            gone = before["version"] is not None and version is None
            rejected = version is not None and version["status"] == VersionStatus.REJECTED
            if not rejected and not gone and to in (None, before["number"]):
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
        plan={
            "shares": [100.0],
            "servers": max(int(before["instances"]), 1),
            "before": variants.weights(tx, endpoint),
            "model": before["model"],
            "number": before["number"],
        },
        step=0,
        decisions=[],
        trigger={"kind": "rollback", "reason": reason},
        reason=reason,
        by=actor,
    )


def _switch_back(ctx: Context, tx: Tx, row: Row, before: Row, whole: list[dict[str, Any]] | None, actor: str) -> int:
    """All of a rollback in one transaction: statuses, weights, approval, alias and snapshot."""
    records.move(tx, "rollout", row["id"], RolloutStatus.STARTING, actor=actor)
    if before["status"] != VariantStatus.READY:
        records.move(tx, "variant", before["id"], VariantStatus.READY, actor=actor, warm_until=None)
    if whole is not None:
        records.set(tx, "variant", before["id"], actor=SYSTEM.name, server=whole)
    variants.shift(tx, row, 100.0)
    leave(tx, records.get(tx, "variant", row["predecessor"]), actor, row["reason"])
    if before["model"]:
        alias = aliases.CHAMPION
        aliases.set_alias_in(tx, before["model"], alias, before["number"], actor=actor, reason=row["reason"])
    snapshot = variants.snapshot(ctx, tx, row)
    records.move(tx, "rollout", row["id"], RolloutStatus.SHIFTING, actor=actor, **snapshot)
    queue.ask(tx, "rollout.advance", row["id"])
    tx.after_commit.append(lambda: processes.write(ctx))
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
