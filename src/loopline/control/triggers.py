"""Triggers: what starts a project's pipeline without a push. The records; ``control.firings`` starts what is due."""

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain import triggers as rules
from loopline.domain.access import Actor
from loopline.domain.projects import TriggerTable
from loopline.errors import NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import assets, triggers


def apply_triggers(
    ctx: Context, tx: Tx, *, actor: str, project: str, wanted: Iterable[TriggerTable]
) -> list[dict[str, Any]]:
    """Bring a project's triggers to ``[[triggers]]``; gives what changed. The same twice changes nothing.

    A trigger that a person switched off stays off, whatever else of it changes.
    """
    tables = {rules.name_of(project, table): table for table in wanted}
    there = {row["name"]: row for row in tx.rows(sa.select(triggers).where(triggers.c.project == project))}
    changes = []
    for name, table in tables.items():
        change = _apply_one(tx, actor, project, name, table, there.get(name))
        if change:
            changes.append({"noun": "trigger", "name": name, "change": change})
    for name in sorted(there.keys() - tables.keys()):
        records.delete(tx, "trigger", there[name]["id"], actor=actor, reason="no longer in loop.toml")
        changes.append({"noun": "trigger", "name": name, "change": "deleted"})
    return changes


def _apply_one(tx: Tx, actor: str, project: str, name: str, table: TriggerTable, row: Row | None) -> str | None:
    settings = rules.settings_of(table)
    if row is None:
        records.create(
            tx,
            "trigger",
            actor=actor,
            name=name,
            project=project,
            kind=table.kind,
            settings=settings,
            enabled=True,
            **_begin(tx, project, table.kind, settings),
        )
        return "created"
    if row["kind"] == table.kind and row["settings"] == settings:
        return None
    begin = _begin(tx, project, table.kind, settings) if _subject(row["settings"]) != _subject(settings) else {}
    records.set(tx, "trigger", row["id"], actor=actor, kind=table.kind, settings=settings, **begin)
    return "changed"


def _subject(settings: dict[str, Any]) -> tuple[Any, ...]:
    watched = tuple(settings.get(name) for name in ("bucket", "prefix", "suffix"))
    return settings.get("cron"), settings.get("asset"), watched


def _begin(tx: Tx, project: str, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Where a trigger begins to count: what came before it starts nothing."""
    if kind == "cron":
        return {"next_at": rules.next_time(settings["cron"], tx.now), "last": None}
    if kind == "object":
        return {"next_at": None, "last": "0"}  # objects that came since it started something
    newest = sa.select(sa.func.max(assets.c.version))
    version = tx.execute(newest.where(assets.c.project == project, assets.c.name == settings["asset"])).scalar()
    return {"next_at": None, "last": str(version or 0)}


# -- what people do ---------------------------------------------------------------------------------------------------


def find(tx: Tx, trigger: str) -> Row:
    """The trigger with this id or name (``project/name``); raises ``NotFound``."""
    row = records.find(tx, "trigger", id=trigger) or records.find(tx, "trigger", name=trigger)
    if row is None:
        raise NotFound(f"there is no trigger {trigger!r}; `loopline triggers list` shows their ids and names")
    return row


def list_(ctx: Context, actor: Actor, *, project: str | None = None) -> dict[str, Any]:
    """Triggers, by name."""
    query = sa.select(triggers).order_by(triggers.c.name)
    if project is not None:
        query = query.where(triggers.c.project == project)
    with ctx.db.read() as tx:
        return {"items": tx.rows(query), "next": None}


def show(ctx: Context, actor: Actor, *, trigger: str) -> dict[str, Any]:
    """One trigger, by its id or its name ``project/name``."""
    with ctx.db.read() as tx:
        return find(tx, trigger)


def enable(ctx: Context, actor: Actor, *, trigger: str) -> dict[str, Any]:
    """Switch a trigger on again. It counts from now on: what came while it was off starts nothing."""
    with ctx.db.transaction() as tx:
        row = find(tx, trigger)
        if row["enabled"]:
            return row
        begin = _begin(tx, row["project"], row["kind"], row["settings"])
        records.set(tx, "trigger", row["id"], actor=actor.name, reason="switched on", enabled=True, **begin)
        return find(tx, row["id"])


def disable(ctx: Context, actor: Actor, *, trigger: str, reason: str | None = None) -> dict[str, Any]:
    """Switch a trigger off until somebody enables it; applying loop.toml leaves it off."""
    with ctx.db.transaction() as tx:
        row = find(tx, trigger)
        if row["enabled"]:
            records.set(tx, "trigger", row["id"], actor=actor.name, reason=reason or "switched off", enabled=False)
        return find(tx, row["id"])
