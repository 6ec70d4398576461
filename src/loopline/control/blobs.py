"""Bytes of objects that are gone: removed from the disk a day later, where nothing names them any more.

The event log says which objects were deleted or overwritten; it is read once, in order, and the place in it moves when
the bytes are gone, so that a kill on the way repeats and forgets nothing. Bytes that were never an object's stay.
"""

import itertools
import logging
import re
from collections.abc import Iterable

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.store.db import Tx
from loopline.store.schema import audit, consumers, events, metadata

log = logging.getLogger(__name__)

KEPT_SECONDS = 86_400.0
BATCH = 5000  # events that are read at once
BATCHES = 100  # that are looked at in one go
RECORDS = 500  # of one query
NAME = "blobs.free"
_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def free(ctx: Context) -> int:
    """Tick: remove the bytes of objects that went at least a day ago, unless a record names them; says how many blobs.

    What names them may be of any noun: every text of the database but the event log is searched for digests, and
    folders keep their files. The day is for those who read an object's record and have not written their own yet; bytes
    that came anew meanwhile are younger and stay. Raises ``Corrupt``, and removes nothing, when a folder's manifest
    cannot be read.
    """
    before = ctx.clock.now() - KEPT_SECONDS
    with ctx.db.read() as tx:
        begun = tx.execute(sa.select(consumers.c.position).where(consumers.c.name == NAME)).scalar() or 0
        reached, gone = _due(tx, begun, before)
        if reached == begun:
            return 0
        wanted = set(_digests(tx, gone))
        kept = set(_named(tx)) if wanted else set()
    removed = ctx.blobs.collect(kept, before, only=wanted) if wanted else []
    with ctx.db.transaction(durable=True) as tx:
        tx.upsert(consumers, [{"name": NAME, "position": reached}], ("name",), ("position",))
    if removed:
        size = sum(blob.size_bytes for blob in removed)
        log.info("%d blobs of objects that are gone are removed: %d bytes", len(removed), size)
    return len(removed)


def _due(tx: Tx, position: int, before: float) -> tuple[int, list[str]]:
    """How far the log reaches up to the first event that is younger, and the objects that went on the way."""
    c, gone, size = events.c, [], 1  # one event tells most times that there is nothing to do
    for _ in range(BATCHES):
        query = sa.select(c.number, c.at, c.noun, c.record, c.kind).where(c.number > position)
        rows = tx.rows(query.order_by(c.number).limit(size))
        due = list(itertools.takewhile(lambda row: row["at"] <= before, rows))
        gone += [row["record"] for row in due if (row["noun"], row["kind"]) == ("object", "deleted")]
        position = due[-1]["number"] if due else position
        if len(due) < size:
            break
        size = BATCH
    return position, gone


def _digests(tx: Tx, gone: list[str]) -> Iterable[str]:
    """Where the bytes of these objects were."""
    c = events.c
    for start in range(0, len(gone), RECORDS):
        some = gone[start : start + RECORDS]
        query = sa.select(c.data).where(c.noun == "object", c.record.in_(some), c.kind == "created")
        yield from (row["data"]["digest"] for row in tx.rows(query) if (row["data"] or {}).get("digest"))


def _named(tx: Tx) -> Iterable[str]:
    """Everything in the database that looks like a digest, wherever it stands."""
    for table in metadata.sorted_tables:
        columns = [sa.cast(column, sa.Text) for column in table.c if isinstance(column.type, sa.String | sa.JSON)]
        if table in (events, audit) or not columns:
            continue
        found = tx.execute(sa.select(*columns).execution_options(yield_per=1000))
        for row in found:
            for text in row:
                if text is not None and len(text) >= 64:
                    yield from digests(text)


def digests(text: str) -> list[str]:
    """Everything in a text that looks like a digest."""
    return _DIGEST.findall(text)
