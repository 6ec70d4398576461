"""What callers were warned of: a request was done, and something about it goes otherwise elsewhere, or is not what it
seems. One row for each text about one kind of request, with how often it was said."""

import hashlib
from typing import Any

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.store.db import Tx
from loopline.store.schema import warnings

MAX_TEXT = 2000
KEPT = 5000


def record(ctx: Context, actor: Actor, *, source: str, texts: list[str], request_id: str | None = None) -> None:
    """Keep each text; one that was said before counts once more."""
    with ctx.db.transaction() as tx:
        for text in texts:
            _one(tx, actor, source, text[:MAX_TEXT], request_id)


def _one(tx: Tx, actor: Actor, source: str, text: str, request_id: str | None) -> None:
    digest = hashlib.sha256(f"{source}\n{text}".encode()).hexdigest()
    again = warnings.update().where(warnings.c.digest == digest)
    said = again.values(count=warnings.c.count + 1, last_at=tx.now, by=actor.name, request_id=request_id)
    if tx.execute(said).rowcount:
        return
    tx.execute(
        warnings.insert().values(
            id=tx.new_id("wa"),
            source=source,
            digest=digest,
            text=text,
            by=actor.name,
            request_id=request_id,
            count=1,
            first_at=tx.now,
            last_at=tx.now,
        )
    )
    oldest = sa.select(warnings.c.last_at).order_by(warnings.c.last_at.desc()).offset(KEPT).limit(1).scalar_subquery()
    tx.execute(warnings.delete().where(warnings.c.last_at < oldest))


def list_(ctx: Context, actor: Actor, *, source: str | None = None, limit: int = 50) -> dict[str, Any]:
    """Warnings, the latest first; ``source``: only those whose source begins so, such as ``sagemaker.``"""
    query = sa.select(*(c for c in warnings.c if c.name != "digest")).order_by(warnings.c.last_at.desc())
    if source is not None:
        query = query.where(warnings.c.source.startswith(source, autoescape=True))
    with ctx.db.read() as tx:
        return {"items": tx.rows(query.limit(limit)), "next": None}
