"""Buckets: where objects are. A bucket keeps every version of an object, or the last one."""

from typing import Any

import sqlalchemy as sa

from loopline.control import object_notices
from loopline.control.context import Context
from loopline.domain import objects as rules
from loopline.domain.access import Actor
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import buckets, objects, uploads

VERSIONING = ("Enabled", "Suspended")


def find(tx: Tx, bucket: str) -> Row:
    """The bucket by its name; raises ``NotFound``."""
    row = records.find(tx, "bucket", name=bucket)
    if row is None:
        raise NotFound(f"there is no bucket {bucket!r}", missing="bucket")
    return row


def create(ctx: Context, actor: Actor, *, bucket: str, region: str | None = None) -> dict[str, Any]:
    """Make an empty bucket. Raises ``Conflict`` when there is one of that name."""
    rules.check_bucket(bucket)
    with ctx.db.transaction(durable=True) as tx:
        if records.find(tx, "bucket", name=bucket) is not None:
            raise Conflict(f"there is a bucket {bucket!r} already", existing="bucket")
        return records.create(tx, "bucket", actor=actor.name, name=bucket, region=region, by=actor.name)


def ensure_in(tx: Tx, *, bucket: str, actor: str) -> Row:
    """The bucket of this name, made when there is none."""
    row = records.find(tx, "bucket", name=rules.check_bucket(bucket))
    return row or records.create(tx, "bucket", actor=actor, name=bucket, by=actor)


def list_(ctx: Context, actor: Actor) -> dict[str, Any]:
    """All buckets, by name."""
    with ctx.db.read() as tx:
        return {"items": tx.rows(sa.select(buckets).order_by(buckets.c.name)), "next": None}


def show(ctx: Context, actor: Actor, *, bucket: str) -> dict[str, Any]:
    """One bucket."""
    with ctx.db.read() as tx:
        return find(tx, bucket)


def delete(ctx: Context, actor: Actor, *, bucket: str) -> dict[str, Any]:
    """Remove an empty bucket. Raises ``Conflict`` while an object, an old version or an open upload is in it."""
    with ctx.db.transaction(durable=True) as tx:
        row = find(tx, bucket)
        if tx.row(sa.select(objects.c.id).where(objects.c.bucket == bucket).limit(1)):
            raise Conflict(f"the bucket {bucket!r} is not empty: old versions and deletion marks count", full="objects")
        opened = sa.select(uploads.c.id).where(uploads.c.bucket == bucket, uploads.c.status == "Open")
        if tx.row(opened.limit(1)):
            raise Conflict(f"an upload into the bucket {bucket!r} is not completed; abort it first", full="uploads")
        object_notices.replace_in(tx, actor=actor.name, bucket=bucket, rules=[])
        records.delete(tx, "bucket", row["id"], actor=actor.name)
    return row


def set_versioning(ctx: Context, actor: Actor, *, bucket: str, versioning: str) -> dict[str, Any]:
    """Keep every version from now on (``Enabled``), or no new ones (``Suspended``); there is no way to neither."""
    if versioning not in VERSIONING:
        raise InvalidInput(f"{versioning!r} is not a way to keep versions; ways: {', '.join(VERSIONING)}")
    return _set(ctx, actor, bucket, versioning=versioning)


def set_tags(ctx: Context, actor: Actor, *, bucket: str, tags: dict[str, str] | None) -> dict[str, Any]:
    """Replace a bucket's tags."""
    return _set(ctx, actor, bucket, tags=tags or None)


def notifications(ctx: Context, actor: Actor, *, bucket: str) -> dict[str, Any]:
    """Which topics are told of a bucket's objects: rules of {"id", "topic", "events", "prefix", "suffix"}."""
    with ctx.db.read() as tx:
        find(tx, bucket)
        return {"items": object_notices.rules_in(tx, bucket), "next": None}


def set_notifications(ctx: Context, actor: Actor, *, bucket: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    """Replace which topics are told of a bucket's objects. ``events`` of a rule: put, copy, upload (in parts), delete,
    mark (a deletion mark); the first three unless given. ``prefix``, ``suffix``: of the keys."""
    with ctx.db.transaction(durable=True) as tx:
        find(tx, bucket)
        object_notices.replace_in(tx, actor=actor.name, bucket=bucket, rules=rules)
        return {"items": object_notices.rules_in(tx, bucket), "next": None}


def _set(ctx: Context, actor: Actor, bucket: str, **values: Any) -> Row:
    with ctx.db.transaction(durable=True) as tx:
        row = find(tx, bucket)
        records.set(tx, "bucket", row["id"], actor=actor.name, **values)
        return find(tx, bucket)
