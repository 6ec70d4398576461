"""Firings: triggers that are due start exactly one push each, whatever crashes or comes late in between."""

import logging
from typing import Any

import sqlalchemy as sa

from loopline.control import pushes, triggers
from loopline.control.context import SYSTEM, Context
from loopline.domain import triggers as rules
from loopline.domain.access import Actor
from loopline.domain.objects import join_uri
from loopline.errors import Conflict, LooplineError
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import assets
from loopline.store.schema import triggers as table

log = logging.getLogger(__name__)


def cron(ctx: Context) -> int:
    """Tick: start a push for each cron trigger whose time has come; gives how many.

    The push, its delivery key and the trigger's next time commit together, so that a time starts one push however
    often it is looked at. Times that passed while nobody looked start one push together; the rest is noted as missed.
    """
    with ctx.db.read() as tx:
        ready = (table.c.kind == "cron", table.c.enabled, table.c.next_at <= tx.now)
        waiting = [row["id"] for row in tx.rows(sa.select(table.c.id).where(*ready).order_by(table.c.next_at))]
    started = 0
    for identifier in waiting:
        with ctx.db.transaction() as tx:
            row = records.find(tx, "trigger", id=identifier)
            if row is not None and row["enabled"] and row["next_at"] is not None and row["next_at"] <= tx.now:
                started += _cron_in(tx, row)
    return started


def _cron_in(tx: Tx, row: Row) -> bool:
    due = rules.due(row["settings"]["cron"], row["next_at"], tx.now)
    if due.missed:
        reason = f"{due.missed} scheduled times passed while nobody looked; they start one run together"
        facts = {"missed": due.missed, "missed_from_at": due.missed_from_at, "scheduled_at": due.scheduled_at}
        records.note(tx, "trigger", row["id"], "missed", actor=SYSTEM.name, reason=reason, name=row["name"], **facts)
    key = f"{due.scheduled_at:.0f}"
    push = _push(tx, row, f"cron:{row['id']}:{key}", {"kind": "cron", "scheduled_at": due.scheduled_at})
    records.set(tx, "trigger", row["id"], actor=SYSTEM.name, next_at=due.next_at, last=key)
    return push is not None


def react(ctx: Context, tx: Tx, event: Row) -> None:
    """Reaction: ``every`` new versions of a watched data asset, or new objects in a watched bucket, start one push.

    What the platform itself brings does not count: versions that come with a push, or from captured traffic for a
    retraining, and objects that jobs write. Counting them would let a project start itself again and again.
    """
    if event["noun"] not in ("asset", "object") or event["kind"] != "created":
        return
    asset = event["data"] or {}
    if (asset.get("source") or {}).get("kind") in rules.OWN_SOURCES:
        return
    if event["noun"] == "object":
        _object_came(tx, asset, event)
        return
    watching = (table.c.kind == "data", table.c.enabled, table.c.project == asset["project"])
    for row in tx.rows(sa.select(table).where(*watching).order_by(table.c.name)):
        if row["settings"]["asset"] == asset["name"]:
            _data_in(tx, row, asset)


def _data_in(tx: Tx, row: Row, asset: dict[str, Any]) -> None:
    version = int(asset["version"])
    c = assets.c
    since = sa.select(c.source).where(c.project == row["project"], c.name == asset["name"])
    since = since.where(c.version > int(row["last"] or 0), c.version <= version)
    counted = sum((each["source"] or {}).get("kind") not in rules.OWN_SOURCES for each in tx.rows(since))
    if counted < row["settings"]["every"]:
        return
    trigger = {"kind": "data", "asset": f"{asset['name']}:{version}", "versions": counted}
    _push(tx, row, f"data:{row['id']}:{asset['name']}:{version}", trigger)
    records.set(tx, "trigger", row["id"], actor=SYSTEM.name, last=str(version))


def _object_came(tx: Tx, made: dict[str, Any], event: Row) -> None:
    """Each event counts once, because a reaction's position moves with what it does."""
    if made["marker"]:
        return
    watching = (table.c.kind == "object", table.c.enabled, table.c.created_at <= event["at"])
    for row in tx.rows(sa.select(table).where(*watching).order_by(table.c.name)):
        if not rules.watches(row["settings"], made["bucket"], made["key"]):
            continue
        count = int(row["last"] or 0) + 1
        if count >= row["settings"]["every"]:
            trigger = {"kind": "object", "object": join_uri(made["bucket"], made["key"]), "version": made["version"]}
            _push(tx, row, f"object:{row['id']}:{event['number']}", {**trigger, "objects": count})
            count = 0
        if str(count) != row["last"]:
            records.set(tx, "trigger", row["id"], actor=SYSTEM.name, last=str(count))


def _push(tx: Tx, row: Row, delivery: str, trigger: dict[str, Any]) -> Row | None:
    """The push that a trigger starts; one that cannot be started is noted, and holds nothing else up."""
    trigger = {**trigger, "trigger": row["id"], "name": row["name"]}
    parameters = row["settings"].get("parameters") or {}
    try:
        return pushes.again_in(
            tx, row["project"], by=SYSTEM.name, trigger=trigger, parameters=parameters, delivery=delivery
        )
    except LooplineError as error:
        log.warning("the trigger %s starts nothing: %s", row["name"], error.message)
        records.note(tx, "trigger", row["id"], "failed", actor=SYSTEM.name, reason=error.message, name=row["name"])
        return None


def fire(
    ctx: Context,
    actor: Actor,
    *,
    trigger: str,
    parameters: dict[str, Any] | None = None,
    delivery: str | None = None,
) -> dict[str, Any]:
    """Start a trigger's push now; ``parameters`` override the trigger's. The same ``delivery`` twice starts one push.

    Raises ``Conflict`` for a trigger that is switched off.
    """
    with ctx.db.transaction() as tx:
        row = triggers.find(tx, trigger)
        if not row["enabled"]:
            raise Conflict(f"the trigger {row['name']} is switched off; enable it first")
        return pushes.again_in(
            tx,
            row["project"],
            by=actor.name,
            trigger={"kind": "api", "by": actor.name, "trigger": row["id"], "name": row["name"]},
            parameters={**(row["settings"].get("parameters") or {}), **(parameters or {})},
            delivery=f"fire:{row['id']}:{delivery}" if delivery else None,
        )
