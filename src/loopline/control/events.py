"""The event log for readers: everything that happened, in order, and pages of lists."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.errors import InvalidInput
from loopline.store.db import Row, Tx
from loopline.store.schema import consumers, events

BATCH = 200


def list_(
    ctx: Context,
    actor: Actor,
    *,
    after: int | None = None,
    noun: str | None = None,
    record: str | None = None,
    limit: int = 50,
) -> dict[str, Any]:
    """Events: those after a number in order, or without one the newest first."""
    query = sa.select(events)
    if noun is not None:
        query = query.where(events.c.noun == noun)
    if record is not None:
        query = query.where(events.c.record == record)
    if after is None:
        query = query.order_by(events.c.number.desc())
    else:
        query = query.where(events.c.number > after).order_by(events.c.number)
    with ctx.db.read() as tx:
        rows = tx.rows(query.limit(limit))
    following = str(rows[-1]["number"]) if rows and after is not None and len(rows) == limit else None
    return {"items": rows, "next": following}


def page(rows: list[Row], limit: int, offset: int) -> dict[str, Any]:
    """A page of ``limit`` rows out of ``limit + 1`` that were read, and the cursor of the next one."""
    return {"items": rows[:limit], "next": str(offset + limit) if len(rows) > limit else None}


def cursor_offset(cursor: str | None) -> int:
    """The offset that a cursor stands for; raises ``InvalidInput`` for one that no list gave."""
    if cursor is None:
        return 0
    if not cursor.isdecimal():
        raise InvalidInput(f"{cursor!r} is not a cursor that a list gave")
    return int(cursor)


def consume(ctx: Context, name: str, react: Callable[[Context, Tx, Row], None]) -> int:
    """Give one consumer every event that it has not had, moving its position in the same transaction.

    Returns how many. A consumer that is new begins at the first event.
    """
    total = 0
    while True:
        with ctx.db.read() as tx:
            position = _position(tx, name)
            if tx.row(sa.select(events.c.number).where(events.c.number > position).limit(1)) is None:
                return total
        with ctx.db.transaction() as tx:
            position = _position(tx, name)
            batch = tx.rows(sa.select(events).where(events.c.number > position).order_by(events.c.number).limit(BATCH))
            for event in batch:
                react(ctx, tx, event)
            if batch:
                values = {"name": name, "position": batch[-1]["number"]}
                tx.upsert(consumers, [values], ("name",), ("position",))
        total += len(batch)
        if len(batch) < BATCH:
            return total


def _position(tx: Tx, name: str) -> int:
    row = tx.row(sa.select(consumers.c.position).where(consumers.c.name == name))
    return 0 if row is None else int(row["position"])
