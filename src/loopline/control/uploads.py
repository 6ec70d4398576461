"""Uploads: an object that comes in parts, in any order, over any time.

Parts are files in a folder of the upload's own (``DIR/uploads/ID``, named by ids made here) until the upload is
completed: then they become one blob, and the folder goes.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control import buckets, objects
from loopline.control.context import SYSTEM, Context
from loopline.domain import checksums, listings
from loopline.domain import objects as rules
from loopline.domain.access import Actor
from loopline.domain.checksums import Checking
from loopline.domain.listings import Page, Position
from loopline.domain.objects import Conditions
from loopline.domain.states import UploadStatus
from loopline.errors import Corrupt, InvalidInput, NotFound, TooLarge
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import objects as objects_table
from loopline.store.schema import upload_parts, uploads

CHUNK_BYTES = 1 << 20
KEPT_SECONDS = 86400.0  # a client that heard no answer may complete again
COMPOSITE, FULL = "COMPOSITE", "FULL_OBJECT"


@dataclass(frozen=True)
class Part:
    """A part as the client names it when it completes an upload; ``checksums`` in base 64 by algorithm."""

    number: int
    etag: str
    checksums: dict[str, str] = field(default_factory=dict)


def begin(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    key: str,
    described: dict[str, Any],
    algorithm: str | None = None,
    whole: bool | None = None,
) -> Row:
    """Begin an upload. ``described``: as ``objects.describe`` gives it.

    ``algorithm``: each part has this checksum, and so has the object: of the ``whole``, or of the parts' checksums.
    """
    rules.check_key(key)
    if algorithm == "CRC64NVME" and whole is False:
        raise InvalidInput("CRC64NVME is a checksum of the whole object", kind="checksum_type")
    if algorithm in ("SHA1", "SHA256") and whole:
        raise InvalidInput(f"{algorithm} of parts cannot be joined to that of the whole", kind="checksum_type")
    kind = None if algorithm is None else FULL if whole or algorithm == "CRC64NVME" else COMPOSITE
    options = {**described, "algorithm": algorithm, "type": kind}
    with ctx.db.transaction(durable=True) as tx:
        buckets.find(tx, bucket)
        return records.create(
            tx, "upload", actor=actor.name, bucket=bucket, key=key, options=options, by=actor.name, changed_at=tx.now
        )


def find(tx: Tx, bucket: str, key: str, upload: str) -> Row:
    """The upload of this id into this key; raises ``NotFound``."""
    row = records.find(tx, "upload", id=upload)
    if row is None or (row["bucket"], row["key"]) != (bucket, key) or row["status"] == UploadStatus.ABORTED:
        buckets.find(tx, bucket)
        raise NotFound("there is no such upload: it was completed or aborted, or never begun", missing="upload")
    return row


def _open(tx: Tx, bucket: str, key: str, upload: str) -> Row:
    row = find(tx, bucket, key, upload)
    if row["status"] != UploadStatus.OPEN:
        raise NotFound("the upload is completed", missing="upload")
    return row


def show(ctx: Context, actor: Actor, *, bucket: str, key: str, upload: str) -> Row:
    """An upload that parts may be put into."""
    with ctx.db.read() as tx:
        return _open(tx, bucket, key, upload)


# -- parts ------------------------------------------------------------------------------------------------------------


def put_part(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    key: str,
    upload: str,
    number: int,
    data: Iterable[bytes],
    checking: Checking | None = None,
) -> Row:
    """Store one part, in place of the one that had its number; nothing is kept when ``data`` raises."""
    if not 1 <= number <= rules.MAX_PARTS:
        raise InvalidInput(f"parts have the numbers 1 to {rules.MAX_PARTS}, not {number}", kind="part_number")
    row = show(ctx, actor, bucket=bucket, key=key, upload=upload)
    checking = checking or Checking()
    folder = _folder(ctx, row["id"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = ctx.ids.new("pt")
    try:
        _write(folder / file, checking.through(data))
        part = {
            "upload": row["id"],
            "number": number,
            "file": file,
            "size_bytes": checking.size_bytes,
            "md5": checking.md5,
            "checksums": checking.found or None,
            "created_at": ctx.clock.now(),
        }
        with ctx.db.transaction(durable=True) as tx:
            _open(tx, bucket, key, upload)
            before = _parts(tx, row["id"], number).get(number)
            changed = tuple(name for name in part if name not in ("upload", "number"))
            tx.upsert(upload_parts, [part], ("upload", "number"), changed)
    except BaseException:
        (folder / file).unlink(missing_ok=True)
        raise
    if before is not None:
        (folder / before["file"]).unlink(missing_ok=True)
    return part


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a new file to the disk, at most a part's bytes."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if size > rules.MAX_PART_BYTES:
                raise TooLarge(f"a part has at most {rules.MAX_PART_BYTES} bytes", limit_bytes=rules.MAX_PART_BYTES)
            file.write(chunk)
        file.flush()
        os.fdatasync(file.fileno())


def _parts(tx: Tx, upload: str, number: int | None = None) -> dict[int, Row]:
    query = sa.select(upload_parts).where(upload_parts.c.upload == upload).order_by(upload_parts.c.number)
    if number is not None:
        query = query.where(upload_parts.c.number == number)
    return {row["number"]: row for row in tx.rows(query)}


def _folder(ctx: Context, upload: str) -> Path:
    folder: Path = ctx.settings.dir / "uploads" / upload
    return folder


def list_parts(
    ctx: Context, actor: Actor, *, bucket: str, key: str, upload: str, after: int = 0, limit: int = 1000
) -> tuple[Row, list[Row], bool]:
    """An open upload, a page of its parts by number, and whether more follow."""
    with ctx.db.read() as tx:
        row = _open(tx, bucket, key, upload)
        c = upload_parts.c
        query = sa.select(upload_parts).where(c.upload == row["id"], c.number > after).order_by(c.number)
        rows = tx.rows(query.limit(limit + 1))
    return row, rows[:limit], len(rows) > limit


def page(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    prefix: str = "",
    delimiter: str = "",
    after: str | None = None,
    after_upload: str | None = None,
    limit: int = 1000,
) -> Page:
    """One page of a bucket's open uploads by key, then by when they began."""
    c = uploads.c
    with ctx.db.read() as tx:
        buckets.find(tx, bucket)
        query = sa.select(uploads).where(c.bucket == bucket, c.status == UploadStatus.OPEN).order_by(c.key, c.id)
        end = rules.following(prefix) if prefix else None
        query = query if end is None else query.where(c.key < end)
        if after is not None:
            same = sa.and_(c.key == after, c.id > (after_upload or "~"))  # ids are ASCII letters: none comes after ~
            query = query.where(sa.or_(c.key > after, same))
        rows = tx.rows(query)
    numbered = [{**row, "number": -place} for place, row in enumerate(rows)]

    def fetch(at: Position, count: int) -> list[Row]:
        found = (row for row in numbered if row["key"] > at.key or (at.inclusive and row["key"] == at.key))
        return [row for row in found if at.below is None or row["number"] < at.below or row["key"] > at.key][:count]

    position = listings.start(prefix, delimiter, after, 1 if after_upload is not None else None)
    return listings.page(fetch, position, prefix=prefix, delimiter=delimiter, limit=limit)


# -- the end of an upload ---------------------------------------------------------------------------------------------


def complete(
    ctx: Context,
    actor: Actor,
    *,
    bucket: str,
    key: str,
    upload: str,
    parts: Sequence[Part],
    expected: dict[str, str] | None = None,
    size_bytes: int | None = None,
    wanted: Conditions = objects.UNCONDITIONAL,
) -> Row:
    """Make one object of the named parts; completing again gives the same object.

    ``expected``: the object's checksum by algorithm, as the client knows it; ``size_bytes``: its size. Raises
    ``InvalidInput`` whose details say the ``kind`` (part, part_order, part_size, mismatch).
    """
    with ctx.db.read() as tx:
        row = find(tx, bucket, key, upload)
        stored = _parts(tx, row["id"])
    if row["status"] == UploadStatus.COMPLETED:
        with ctx.db.read() as tx:
            return _version(tx, row)
    objects.check_place(ctx, bucket, key, wanted)
    chosen = _choose(stored, parts)
    options = dict(row["options"])
    algorithm, kind = options.pop("algorithm"), options.pop("type")
    composite = _composite(algorithm, chosen, expected or {}) if algorithm and kind == COMPOSITE else None
    size = sum(part["size_bytes"] for part in chosen)
    if size_bytes not in (None, size):
        raise InvalidInput(f"the parts are {size} bytes, not {size_bytes} as was said", kind="size")
    checking = Checking({} if composite else expected, wanted=(algorithm,) if algorithm and kind == FULL else ())
    try:
        blob = ctx.blobs.put_stream(checking.through(_joined(_folder(ctx, row["id"]), chosen)), rules.MAX_OBJECT_BYTES)
    except FileNotFoundError:  # the same upload was completed, or aborted, meanwhile
        with ctx.db.read() as tx:
            return _version(tx, find(tx, bucket, key, upload))
    values = {
        **options,
        "digest": blob.digest,
        "size_bytes": blob.size_bytes,
        "etag": rules.etag_of_parts([part["md5"] for part in chosen]),
        "checksums": composite or ({**checking.found, "type": FULL} if checking.found else None),
        "parts": [{"size_bytes": part["size_bytes"], "checksums": part["checksums"]} for part in chosen],
        "source": {"kind": "upload", "upload": row["id"]},
    }
    with ctx.db.transaction(durable=True) as tx:
        if find(tx, bucket, key, upload)["status"] == UploadStatus.OPEN:
            made = objects.put_in(tx, actor=actor.name, bucket=bucket, key=key, values=values, wanted=wanted)
            end = {"object": made["id"], "changed_at": tx.now}
            records.move(tx, "upload", row["id"], UploadStatus.COMPLETED, actor=actor.name, **end)
            tx.execute(upload_parts.delete().where(upload_parts.c.upload == row["id"]))
        else:
            made = _version(tx, find(tx, bucket, key, upload))
    shutil.rmtree(_folder(ctx, row["id"]), ignore_errors=True)
    return made


def _version(tx: Tx, row: Row) -> Row:
    """What a completed upload became; raises ``NotFound`` when it is gone."""
    found = tx.row(sa.select(objects_table).where(objects_table.c.id == row["object"]))
    if found is None:
        raise NotFound(
            "the parts of the upload, or the object that it became, are not there any more", missing="upload"
        )
    return found


def _choose(stored: dict[int, Row], parts: Sequence[Part]) -> list[Row]:
    """The stored parts that the client names; raises ``InvalidInput``."""
    if not parts:
        raise InvalidInput("an upload is completed with at least one part", kind="no_parts")
    numbers = [part.number for part in parts]
    if any(after <= before for before, after in itertools.pairwise(numbers)):
        raise InvalidInput("the parts must be listed by their numbers, each once", kind="part_order")
    chosen = []
    for part in parts:
        row = stored.get(part.number)
        if row is None or row["md5"] != part.etag.strip('"'):
            raise InvalidInput(f"there is no part {part.number} with that entity tag", kind="part", part=part.number)
        for name, value in part.checksums.items():
            if (row["checksums"] or {}).get(name, value) != value:
                raise InvalidInput(f"part {part.number} has another {name}", kind="part", part=part.number)
        chosen.append(row)
    for row in chosen[:-1]:
        if row["size_bytes"] < rules.MIN_PART_BYTES:
            raise InvalidInput(
                f"part {row['number']} has {row['size_bytes']} bytes; only the last one may have less than "
                f"{rules.MIN_PART_BYTES}",
                kind="part_size",
                part=row["number"],
            )
    return chosen


def _joined(folder: Path, chosen: Sequence[Row]) -> Iterator[bytes]:
    """The bytes of the parts in order; raises ``Corrupt`` for a file that is not what was stored."""
    for part in chosen:
        md5 = hashlib.md5(usedforsecurity=False)
        with (folder / part["file"]).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                md5.update(chunk)
                yield chunk
        if md5.hexdigest() != part["md5"]:
            raise Corrupt(f"part {part['number']} of an upload is not as it was stored; put it again")


def _composite(algorithm: str, chosen: Sequence[Row], expected: dict[str, str]) -> dict[str, str]:
    """The checksum of the parts' checksums; raises ``InvalidInput`` when the client knows another."""
    of_parts = [(part["checksums"] or {}).get(algorithm) for part in chosen]
    if None in of_parts:
        raise InvalidInput(f"the upload was begun with {algorithm}, and a part came without", kind="part")
    value = checksums.composite(algorithm, [each for each in of_parts if each is not None])
    said = expected.get(algorithm, value)
    if said not in (value, value.partition("-")[0]):
        raise InvalidInput(f"the {algorithm} of the parts' is {value}, not {said}", kind="mismatch")
    return {algorithm: value, "type": COMPOSITE}


def abort(ctx: Context, actor: Actor, *, bucket: str, key: str, upload: str) -> Row:
    """End an upload; its parts are gone."""
    with ctx.db.transaction(durable=True) as tx:
        row = _open(tx, bucket, key, upload)
        records.move(tx, "upload", row["id"], UploadStatus.ABORTED, actor=actor.name, changed_at=tx.now)
        tx.execute(upload_parts.delete().where(upload_parts.c.upload == row["id"]))
    shutil.rmtree(_folder(ctx, row["id"]), ignore_errors=True)
    return row


def prune(ctx: Context) -> int:
    """Tick: forget uploads that ended a day ago; gives how many.

    The folders of uploads that are not open go, and so does what writes of blobs left that a dead process cut short.
    """
    c = uploads.c
    folder = ctx.settings.dir / "uploads"
    there = list(folder.iterdir()) if folder.is_dir() else []  # first: who has a folder has a record already
    with ctx.db.transaction() as tx:
        over = sa.select(c.id).where(c.status != UploadStatus.OPEN, c.changed_at < tx.now - KEPT_SECONDS)
        ended = tx.rows(over.limit(1000))
        for row in ended:
            records.delete(tx, "upload", row["id"], actor=SYSTEM.name, reason="it ended a day ago")
        opened = {row["id"] for row in tx.rows(sa.select(c.id).where(c.status == UploadStatus.OPEN))}
    for left in there:
        if left.name not in opened:
            shutil.rmtree(left, ignore_errors=True)
    ctx.blobs.sweep(ctx.clock.now() - KEPT_SECONDS)
    return len(ended)
