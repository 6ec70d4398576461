"""Dashboards: documents of widgets, stored and given back as they are; whoever draws them reads the metrics."""

import json
from typing import Any

import sqlalchemy as sa

from loopline.control import events
from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.access import Actor
from loopline.errors import InvalidInput, NotFound, TooLarge
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import dashboards

MAX_BODY_BYTES = 1 << 20


def put(ctx: Context, actor: Actor, *, name: str, body: str) -> dict[str, Any]:
    """Store a dashboard, in place of the one of this name; ``body`` is the text of a JSON object."""
    names.check_label(name, "a dashboard")
    if len(body.encode()) > MAX_BODY_BYTES:
        raise TooLarge(f"a dashboard's body has at most {MAX_BODY_BYTES} bytes")
    try:
        found = json.loads(body)
    except ValueError as error:
        raise InvalidInput(f"the dashboard's body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidInput("the dashboard's body must be a JSON object")
    with ctx.db.transaction() as tx:
        there = records.find(tx, "dashboard", name=name)
        if there is None:
            return records.create(
                tx, "dashboard", actor=actor.name, name=name, body=body, by=actor.name, changed_at=tx.now
            )
        if there["body"] != body:
            records.set(tx, "dashboard", there["id"], actor=actor.name, body=body, by=actor.name, changed_at=tx.now)
            there = records.get(tx, "dashboard", there["id"])
        return there


def list_(
    ctx: Context, actor: Actor, *, prefix: str | None = None, limit: int = 100, cursor: str | None = None
) -> dict[str, Any]:
    """Dashboards by name, with their size in bytes and without their body."""
    offset = events.cursor_offset(cursor)
    query = sa.select(dashboards).order_by(dashboards.c.name).limit(limit + 1).offset(offset)
    if prefix:
        query = query.where(dashboards.c.name.startswith(prefix, autoescape=True))
    with ctx.db.read() as tx:
        rows = tx.rows(query)
    for row in rows:
        row["size_bytes"] = len(row.pop("body").encode())
    return events.page(rows, limit, offset)


def dashboard_row(tx: Tx, name: str) -> Row:
    """The dashboard of this name; raises ``NotFound``."""
    row = records.find(tx, "dashboard", name=name)
    if row is None:
        raise NotFound(f"there is no dashboard {name!r}")
    return row


def show(ctx: Context, actor: Actor, *, name: str) -> dict[str, Any]:
    """One dashboard with its body."""
    with ctx.db.read() as tx:
        return dashboard_row(tx, name)


def delete(ctx: Context, actor: Actor, *, dashboards: list[str]) -> dict[str, Any]:
    """Remove dashboards: all of those named, or none when one is missing."""
    with ctx.db.transaction() as tx:
        rows = [dashboard_row(tx, name) for name in dict.fromkeys(dashboards)]
        for row in rows:
            records.delete(tx, "dashboard", row["id"], actor=actor.name)
    return {"items": [row["name"] for row in rows], "next": None}
