"""Objects: bytes under a key in a bucket, with every version where the bucket keeps them.

The bytes are a blob; a row is a version of a key. An object appears whole or not at all: its bytes are stored and
checked first, and one transaction makes it the current one.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import sqlalchemy as sa

from loopline.control import buckets
from loopline.control.context import Context
from loopline.domain import listings
from loopline.domain import objects as rules
from loopline.domain.access import Actor
from loopline.domain.checksums import Checking
from loopline.domain.listings import Page, Position
from loopline.domain.objects import Conditions
from loopline.errors import InvalidInput, LooplineError, NotFound, PreconditionFailed, TooLarge
from loopline.store import folders, records
from loopline.store.blobs import Blob
from loopline.store.db import Prepared, Row, Tx
from loopline.store.schema import objects as table

MAX_PUT_BYTES = 5 << 30  # of one request; larger ones come in parts
PAGE = 1000
CHUNK_BYTES = 1 << 20
UNCONDITIONAL = Conditions()

_CURRENT = Prepared(
    sa.select(table).where(
        table.c.bucket == sa.bindparam("bucket"), table.c.key == sa.bindparam("key"), table.c.current.is_(True)
    )
)
_NOT_CURRENT = Prepared(table.update().where(table.c.id == sa.bindparam("row")).values(current=False))


# -- reading ----------------------------------------------------------------------------------------------------------


def find(tx: Tx, bucket: str, key: str, version: str | None = None) -> Row:
    """The current version of a key, or the named one.

    Raises ``NotFound`` whose details say what is ``missing`` (bucket, object or version), and the ``marker`` (a version
    id) when what was found says that the key is deleted.
    """
    if version is None:
        row = tx.fetch_one(_CURRENT, bucket=bucket, key=key)
    else:
        c = table.c
        row = tx.row(sa.select(table).where(c.bucket == bucket, c.key == key, c.version == version))
    if row is None:
        buckets.find(tx, bucket)
        if version is not None:
            raise NotFound(f"there is no version {version[:80]!r} of {rules.join_uri(bucket, key)}", missing="version")
        raise NotFound(f"there is no object {rules.join_uri(bucket, key)}", missing="object")
    if row["marker"]:
        raise NotFound(
            f"{rules.join_uri(bucket, key)} was deleted",
            missing="object",
            marker=row["version"],
            marked_at=row["created_at"],
        )
    return row


def show(ctx: Context, actor: Actor, *, bucket: str, key: str, version: str | None = None) -> dict[str, Any]:
    """What is known of an object: size, digest, entity tag, type, metadata, checksums."""
    with ctx.db.read() as tx:
        return find(tx, bucket, key, version)


def open_(ctx: Context, bucket: str, key: str, version: str | None = None) -> tuple[Row, BinaryIO]:
    """An object and a seekable reader of its bytes, which are verified as they are read."""
    with ctx.db.read() as tx:
        row = find(tx, bucket, key, version)
    return row, ctx.blobs.open(row["digest"])


def content(ctx: Context, actor: Actor, *, bucket: str, key: str, version: str | None = None) -> dict[str, Any]:
    """An object whose bytes are sent."""
    return show(ctx, actor, bucket=bucket, key=key, version=version)


def chunks(ctx: Context, digest: str, first: int = 0, length: int | None = None) -> Iterator[bytes]:
    """The bytes of a range of a blob, piece by piece, verified."""
    with ctx.blobs.open(digest) as reader:
        reader.seek(first)
        while length is None or length > 0:
            piece = reader.read(CHUNK_BYTES if length is None else min(CHUNK_BYTES, length))
            if not piece:
                return
            yield piece
            length = None if length is None else length - len(piece)


def list_prefix(ctx: Context, bucket: str, prefix: str = "") -> Iterator[Row]:
    """Every object whose key begins with ``prefix``, in the order of keys; raises ``NotFound`` without the bucket."""
    position: Position | None = listings.start(prefix, "", None)
    while position is not None:
        with ctx.db.read() as tx:
            buckets.find(tx, bucket)
            rows = _rows(tx, bucket, prefix, position, PAGE, current=True)
        yield from rows
        position = Position(rows[-1]["key"], False) if len(rows) == PAGE else None


def folder(ctx: Context, bucket: str, prefix: str) -> Blob:
    """What is below ``prefix`` as a folder: a blob that jobs get as files.

    The object that ``prefix`` names exactly, and those whose key ends with ``/``, are not in it.

    Raises ``InvalidInput`` for keys that cannot be files of one folder (``a/../b``, ``a`` beside ``a/b``).
    """
    below = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    entries = [
        folders.Entry(row["key"][len(below) :], row["size_bytes"], row["digest"], mode_x=False)
        for row in list_prefix(ctx, bucket, below)
        if not row["key"].endswith("/")
    ]
    return folders.put_manifest(ctx.blobs, entries)


def page(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    prefix: str = "",
    delimiter: str = "",
    after: str | None = None,
    limit: int = PAGE,
) -> Page:
    """One page of a bucket's objects: what follows the entry ``after``."""
    position = listings.start(prefix, delimiter, after)
    return _page(ctx, bucket, prefix, delimiter, position, limit, current=True)


def page_versions(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    prefix: str = "",
    delimiter: str = "",
    after: str | None = None,
    after_version: str | None = None,
    limit: int = PAGE,
) -> Page:
    """One page of all versions and deletion marks: what follows the entry ``after``, or this version of it."""
    below: int | None = None
    if after is not None and after_version:
        with ctx.db.read() as tx:
            c = table.c
            query = sa.select(c.number).where(c.bucket == bucket, c.key == after, c.version == after_version)
            row = tx.row(query)
            below = None if row is None else row["number"]
    position = listings.start(prefix, delimiter, after, below)
    return _page(ctx, bucket, prefix, delimiter, position, limit, current=False)


def list_(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    prefix: str = "",
    delimiter: str = "",
    limit: int = 50,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Objects by key. ``delimiter``: keys that share what comes before it are one entry of ``prefixes``."""
    found = page(ctx, actor, bucket=bucket, prefix=prefix, delimiter=delimiter, after=cursor, limit=limit)
    return {"items": found.rows, "prefixes": found.prefixes, "next": found.last}


def _page(
    ctx: Context, bucket: str, prefix: str, delimiter: str, position: Position | None, limit: int, *, current: bool
) -> Page:
    with ctx.db.read() as tx:
        buckets.find(tx, bucket)

        def fetch(at: Position, count: int) -> list[Row]:
            return _rows(tx, bucket, prefix, at, min(count, PAGE + 1), current=current)

        return listings.page(fetch, position, prefix=prefix, delimiter=delimiter, limit=min(limit, PAGE))


def _rows(tx: Tx, bucket: str, prefix: str, at: Position, count: int, *, current: bool) -> list[Row]:
    c = table.c
    query = sa.select(table).where(c.bucket == bucket)
    if current:
        query = query.where(c.current.is_(True), c.marker.is_(False))
    query = query.where(c.key >= at.key if at.inclusive else c.key > at.key)
    if at.below is not None:
        query = query.where(sa.or_(c.key > at.key, c.number < at.below))
    end = rules.following(prefix) if prefix else None
    if end is not None:
        query = query.where(c.key < end)
    return tx.rows(query.order_by(c.key, c.number.desc()).limit(count))


# -- writing ----------------------------------------------------------------------------------------------------------


def put(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    key: str,
    data: Iterable[bytes],
    content_type: str | None = None,
    headers: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    wanted: Conditions = UNCONDITIONAL,
    checking: Checking | None = None,
    source: dict[str, Any] | None = None,
    max_bytes: int = MAX_PUT_BYTES,
) -> Row:
    """Store bytes under a key, as a new version where the bucket keeps versions; gives the row.

    Nothing is kept when ``data`` raises, a checksum of ``checking`` does not match, or ``wanted`` is not met when the
    bytes are there. ``headers``: those that are given back with the object (``cache-control`` and the like).
    ``source``: how the object came to be; of the kind ``job`` it starts no trigger.
    """
    rules.check_key(key)
    described = describe(content_type=content_type, headers=headers, metadata=metadata, tags=tags)
    check_place(ctx, bucket, key, wanted)
    checking = checking or Checking()
    blob = ctx.blobs.put_stream(checking.through(data), max_bytes)
    values = {
        **described,
        "digest": blob.digest,
        "size_bytes": blob.size_bytes,
        "etag": checking.md5,
        "checksums": {**checking.found, "type": "FULL_OBJECT"} if checking.found else None,
        "source": source or {"kind": "put"},
    }
    with ctx.db.transaction(durable=True) as tx:
        return put_in(tx, actor=actor.name, bucket=bucket, key=key, wanted=wanted, values=values)


def describe(
    *,
    content_type: str | None = None,
    headers: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What is kept of an object beside its bytes, checked; raises ``InvalidInput``."""
    return {
        "content_type": content_type or "binary/octet-stream",
        "headers": headers or None,
        "metadata": rules.check_metadata(metadata) if metadata else None,
        "tags": rules.check_tags(tags) if tags else None,
    }


def check_place(ctx: Context, bucket: str, key: str, wanted: Conditions = UNCONDITIONAL) -> None:
    """Raise before any bytes are read when there is no such bucket, or ``wanted`` is not met already."""
    with ctx.db.read() as tx:
        buckets.find(tx, bucket)
        if wanted.any:
            _check_wanted(tx, bucket, key, wanted)


def _check_wanted(tx: Tx, bucket: str, key: str, wanted: Conditions) -> None:
    row = tx.fetch_one(_CURRENT, bucket=bucket, key=key)
    rules.check_write(wanted, None if row is None or row["marker"] else row["etag"])


def put_in(
    tx: Tx, *, actor: str, bucket: str, key: str, values: dict[str, Any], wanted: Conditions = UNCONDITIONAL
) -> Row:
    """Make bytes that are stored the current version of a key. ``values``: of the row, as ``put`` fills them.

    A bucket that keeps no versions loses the one before.
    """
    kept = buckets.find(tx, bucket)["versioning"]
    if wanted.any:
        _check_wanted(tx, bucket, key, wanted)
    before = tx.fetch_one(_CURRENT, bucket=bucket, key=key)
    if before is not None:
        tx.change(_NOT_CURRENT, row=before["id"])
    if kept != "Enabled":
        _drop_unversioned(tx, actor, bucket, key, before, reason="overwritten")
    identifier = tx.new_id("ob")
    return records.create(
        tx,
        "object",
        actor=actor,
        id=identifier,
        bucket=bucket,
        key=key,
        number=1 if before is None else before["number"] + 1,
        version=identifier if kept == "Enabled" else rules.UNVERSIONED,
        current=True,
        by=actor,
        **{"marker": False, "size_bytes": 0, **values},
    )


def _drop_unversioned(tx: Tx, actor: str, bucket: str, key: str, before: Row | None, *, reason: str) -> None:
    """Remove the version that was put while the bucket kept none; ``before``: the current one."""
    row = before
    if before is not None and before["version"] != rules.UNVERSIONED:
        c = table.c
        found = sa.select(c.id).where(c.bucket == bucket, c.key == key, c.version == rules.UNVERSIONED)
        row = tx.row(found)
    if row is not None:
        records.delete(tx, "object", row["id"], actor=actor, reason=reason)


def put_blob(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    key: str,
    digest: str,
    content_type: str | None = None,
    source: dict[str, Any] | None = None,
) -> Row:
    """Put bytes that are stored as a blob already; they are read once, for the entity tag."""
    rules.check_key(key)
    values = blob_values(ctx, digest, content_type=content_type, source=source)
    with ctx.db.transaction(durable=True) as tx:
        return put_in(tx, actor=actor.name, bucket=bucket, key=key, values=values)


def blob_values(
    ctx: Context, digest: str, *, content_type: str | None = None, source: dict[str, Any] | None = None
) -> dict[str, Any]:
    """For ``put_in``: the values of an object whose bytes are this blob's."""
    md5, size = hashlib.md5(usedforsecurity=False), 0
    for chunk in ctx.blobs.chunks(digest):
        md5.update(chunk)
        size += len(chunk)
    described = describe(content_type=content_type)
    return {**described, "digest": digest, "size_bytes": size, "etag": md5.hexdigest(), "source": source or {}}


def put_folder(
    ctx: Context, actor: Actor, *, bucket: str, prefix: str, digest: str, source: dict[str, Any] | None = None
) -> list[Row]:
    """Put every file of a stored folder below ``prefix``, all of them in one transaction."""
    below = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
    files = folders.read_manifest(ctx.blobs, digest)
    made = [(rules.check_key(below + entry.path), blob_values(ctx, entry.sha256, source=source)) for entry in files]
    with ctx.db.transaction(durable=True) as tx:
        return [put_in(tx, actor=actor.name, bucket=bucket, key=key, values=values) for key, values in made]


def upload(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    key: str,
    stream: Iterator[bytes],
    content_type: str | None = None,
    only_if_absent: bool = False,
) -> dict[str, Any]:
    """Store a request's body under a key; with ``only_if_absent`` only where there is no object yet."""
    wanted = Conditions(none_match="*") if only_if_absent else UNCONDITIONAL
    return put(ctx, actor, bucket=bucket, key=key, data=stream, content_type=content_type, wanted=wanted)


def copy(
    ctx: Context,
    actor: Actor,
    *,
    source: tuple[str, str, str | None],
    bucket: str,
    key: str,
    replace: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
    source_wanted: Conditions = UNCONDITIONAL,
    wanted: Conditions = UNCONDITIONAL,
) -> tuple[Row, Row]:
    """Put what another object holds, without moving bytes; gives the new row and the one it came from.

    ``source``: bucket, key and version (None: the current). ``replace``: as ``describe`` takes it, in place of the
    source's description. ``tags``: in place of the source's.
    """
    rules.check_key(key)
    described = None if replace is None else describe(**replace)
    if tags:
        rules.check_tags(tags)
    with ctx.db.transaction(durable=True) as tx:
        row = find(tx, *source)
        rules.check_source(source_wanted, row["etag"], row["created_at"])
        if row["size_bytes"] > MAX_PUT_BYTES:
            raise TooLarge(f"what is larger than {MAX_PUT_BYTES} bytes is copied in parts", limit_bytes=MAX_PUT_BYTES)
        taken = ("content_type", "headers", "metadata", "tags", "digest", "size_bytes", "etag", "checksums", "parts")
        values = {name: row[name] for name in taken}
        if described is not None:
            values.update(described, tags=row["tags"])
        if tags is not None:
            values["tags"] = tags or None
        values["source"] = {"kind": "copy", "object": row["id"]}
        return put_in(tx, actor=actor.name, bucket=bucket, key=key, values=values, wanted=wanted), row


def set_tags(
    ctx: Context, actor: Actor, *, bucket: str, key: str, tags: dict[str, str], version: str | None = None
) -> dict[str, Any]:
    """Replace an object's tags."""
    rules.check_tags(tags)
    with ctx.db.transaction(durable=True) as tx:
        row = find(tx, bucket, key, version)
        records.set(tx, "object", row["id"], actor=actor.name, tags=tags or None)
        return {**row, "tags": tags or None}


# -- deleting ---------------------------------------------------------------------------------------------------------


def delete(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    key: str,
    version: str | None = None,
    wanted: Conditions = UNCONDITIONAL,
) -> dict[str, Any]:
    """Delete a key, or one version of it for good; what is not there is no error.

    Where the bucket keeps versions, the key gets a deletion mark, and its versions stay. Gives {"version", "marker"}:
    what was made or removed.
    """
    with ctx.db.transaction(durable=True) as tx:
        return delete_in(tx, actor=actor.name, bucket=bucket, key=key, version=version, wanted=wanted)


def remove(ctx: Context, actor: Actor, *, bucket: str, key: str, version: str | None = None) -> dict[str, Any]:
    """``delete``, without conditions."""
    return delete(ctx, actor, bucket=bucket, key=key, version=version)


def delete_many(
    ctx: Context, actor: Actor, *, bucket: str, keys: Iterable[tuple[str, str | None, Conditions]]
) -> list[dict[str, Any] | LooplineError]:
    """Delete keys, or versions of them, in one transaction: for each what ``delete`` gives, or why it did not."""
    done: list[dict[str, Any] | LooplineError] = []
    with ctx.db.transaction(durable=True) as tx:
        buckets.find(tx, bucket)
        for key, version, wanted in keys:
            try:
                done.append(delete_in(tx, actor=actor.name, bucket=bucket, key=key, version=version, wanted=wanted))
            except (InvalidInput, NotFound, PreconditionFailed) as error:  # told before anything is changed
                done.append(error)
    return done


def delete_in(
    tx: Tx,
    *,
    actor: str,
    bucket: str,
    key: str,
    version: str | None = None,
    wanted: Conditions = UNCONDITIONAL,
) -> dict[str, Any]:
    """``delete``, in a transaction; what raises has changed nothing."""
    rules.check_key(key)
    kept = buckets.find(tx, bucket)["versioning"]
    if wanted.any:
        _check_wanted(tx, bucket, key, wanted)
    if version is not None:
        return _delete_version(tx, actor, bucket, key, version)
    if kept is None:
        row = tx.fetch_one(_CURRENT, bucket=bucket, key=key)
        if row is not None:
            records.delete(tx, "object", row["id"], actor=actor, bucket=bucket, key=key)
        return {"version": None, "marker": False}
    values = {"marker": True, "source": {"kind": "delete"}}
    made = put_in(tx, actor=actor, bucket=bucket, key=key, values=values)
    return {"version": made["version"], "marker": True}


def _delete_version(tx: Tx, actor: str, bucket: str, key: str, version: str) -> dict[str, Any]:
    c = table.c
    row = tx.row(sa.select(table).where(c.bucket == bucket, c.key == key, c.version == version))
    if row is None:
        return {"version": version, "marker": False}
    records.delete(tx, "object", row["id"], actor=actor, bucket=bucket, key=key, version=version)
    if row["current"]:
        rest = sa.select(c.id).where(c.bucket == bucket, c.key == key).order_by(c.number.desc()).limit(1)
        newest = tx.row(rest)
        if newest is not None:
            tx.execute(table.update().where(c.id == newest["id"]).values(current=True))
    return {"version": version, "marker": row["marker"]}
