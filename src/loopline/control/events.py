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
UNMOVED = 1000  # events that a consumer may pass over before its position is written


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


def consume(
    ctx: Context, name: str, react: Callable[[Context, Tx, Row], None], nouns: frozenset[str] | None = None
) -> int:
    """Give one consumer every event of its nouns that it has not had, moving its position in the same transaction.

    Returns how many. A consumer that is new begins at the first event.
    """
    total = 0
    while True:
        with ctx.db.read() as tx:
            position = max(_position(tx, name), ctx.cache.get(f"seen:{name}", 0))
            newest = tx.execute(sa.select(sa.func.max(events.c.number))).scalar_one() or 0
            waiting = newest > position and tx.row(_after(position, nouns).limit(1)) is not None
        if not waiting and newest - position < UNMOVED:
            ctx.cache[f"seen:{name}"] = max(newest, position)  # nothing for this consumer up to there
            return total
        total += _deliver(ctx, name, react, nouns, newest)


def _deliver(
    ctx: Context, name: str, react: Callable[[Context, Tx, Row], None], nouns: frozenset[str] | None, newest: int
) -> int:
    """One batch; the position moves to its last event, or to ``newest`` when there was none left before that."""
    with ctx.db.transaction() as tx:
        position = _position(tx, name)
        batch = tx.rows(_after(position, nouns).where(events.c.number <= newest).limit(BATCH))
        for event in batch:
            react(ctx, tx, event)
        reached = batch[-1]["number"] if len(batch) == BATCH else max(newest, position)
        tx.upsert(consumers, [{"name": name, "position": reached}], ("name",), ("position",))
    return len(batch)


def _after(position: int, nouns: frozenset[str] | None) -> sa.Select[Any]:
    query = sa.select(events).where(events.c.number > position).order_by(events.c.number)
    return query if nouns is None else query.where(events.c.noun.in_(sorted(nouns)))


def _position(tx: Tx, name: str) -> int:
    row = tx.row(sa.select(consumers.c.position).where(consumers.c.name == name))
    return 0 if row is None else int(row["position"])
