"""The event log for readers: everything that happened, in order, and pages of lists."""

from collections.abc import Callable
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.errors import InvalidInput
from loopline.store.db import Prepared, Row, Tx
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
    if not (cursor.isdecimal() and len(cursor) < 19):  # more does not fit into the database's numbers
        raise InvalidInput(f"{cursor!r} is not a cursor that a list gave")
    return int(cursor)


class Log:
    """The event log as one round of consumers reads it: a stretch that several of them want is read once."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._read: dict[int, list[Row]] = {}

    def after(self, position: int) -> list[Row]:
        """The next events, at most ``BATCH``."""
        if position not in self._read:
            with self._ctx.db.read() as tx:
                self._read[position] = tx.fetch(_AFTER, position=position)
        return self._read[position]


def consume(
    ctx: Context,
    name: str,
    react: Callable[[Context, Tx, Row], None],
    nouns: frozenset[str] | None = None,
    log: Log | None = None,
) -> int:
    """Give one consumer every event of its nouns that it has not had, moving its position in the same transaction.

    Returns how many. A consumer that is new begins at the first event. ``log``: the round's, where there are others.
    """
    log = log or Log(ctx)
    positions: dict[str, _Position] = ctx.cache.setdefault("consumers", {})
    total = 0
    while True:
        if name not in positions:
            with ctx.db.read() as tx:
                positions[name] = _stored(tx, name)
        known = positions[name]
        rows = log.after(known.seen)
        if not rows:
            return total
        reached = rows[-1]["number"]
        wanted = [row for row in rows if nouns is None or row["noun"] in nouns]
        if not wanted and reached - known.stored < UNMOVED:
            positions[name] = _Position(known.stored, reached)
        elif _deliver(ctx, name, react, known.stored, reached, wanted):
            positions[name] = _Position(reached, reached)
            total += len(wanted)
        else:
            del positions[name]  # somebody else has moved this consumer: look anew


class _Position(NamedTuple):
    """How far a consumer has come: as the database says, and the last event that was looked at."""

    stored: int
    seen: int


def _deliver(
    ctx: Context,
    name: str,
    react: Callable[[Context, Tx, Row], None],
    stored: int,
    reached: int,
    wanted: list[Row],
) -> bool:
    """React to one stretch of the log; False when the consumer's position is not where it was thought to be."""
    with ctx.db.transaction() as tx:
        if _stored(tx, name).stored != stored:
            return False
        for event in wanted:
            react(ctx, tx, event)
        tx.upsert(consumers, [{"name": name, "position": reached}], ("name",), ("position",))
    return True


def _stored(tx: Tx, name: str) -> _Position:
    row = tx.fetch_one(_POSITION, name=name)
    number = 0 if row is None else int(row["position"])
    return _Position(number, number)


_AFTER = Prepared(
    sa.select(events).where(events.c.number > sa.bindparam("position")).order_by(events.c.number).limit(BATCH)
)
_POSITION = Prepared(sa.select(consumers.c.position).where(consumers.c.name == sa.bindparam("name")))
