"""Captures as objects: requests of endpoints that ask for it, copied from the request log to a bucket.

Each gateway's log is read from where the last look ended; the objects and the new place commit together, so that every
record is in exactly one object, whatever ends in between.
"""

from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa

from loopline.control import objects
from loopline.control.context import SYSTEM, Context
from loopline.domain import captured, captureform
from loopline.domain.blueprints import Capture, read_capture
from loopline.domain.capture import CaptureRecord, iter_records
from loopline.domain.objects import split_uri
from loopline.domain.states import EndpointStatus
from loopline.errors import LooplineError
from loopline.store import records
from loopline.store.db import Row, Tx
from loopline.store.schema import endpoints, spools, variants

MAX_BYTES = 256 << 20  # of a log that are read at once: more than a segment and the largest request
LINES = "application/jsonlines"
_SEGMENT, _OFFSET = "segment", "offset"


class Wanted(NamedTuple):
    """An endpoint whose requests are captured since ``since_at``, and what callers know its variants as."""

    endpoint: Row
    capture: Capture
    since_at: float
    called: dict[str, str]


class Place(NamedTuple):
    """How far a gateway's log has been read: the segment by its time in milliseconds, and the bytes of it."""

    segment: int
    offset: int


def settings(capture: dict[str, Any] | None, now: float) -> dict[str, Any] | None:
    """What an endpoint's settings say of its capture."""
    return None if capture is None else {**capture, "since_at": now}


def export(ctx: Context) -> None:
    """Tick: copy what has been captured since the last look."""
    with ctx.db.read() as tx:
        wanted = _wanted(tx)
    if not wanted:
        if ctx.cache.get("captures", True):
            with ctx.db.transaction() as tx:
                tx.execute(spools.delete().where(spools.c.name.startswith(_name(""))))
            ctx.cache["captures"] = False
        return
    ctx.cache["captures"] = True
    for folder in sorted(path for path in (ctx.settings.dir / "spool").glob("gateway-*") if path.is_dir()):
        while _export(ctx, folder, wanted):
            pass


def _wanted(tx: Tx) -> dict[str, Wanted]:
    found = {}
    for row in tx.rows(sa.select(endpoints).where(endpoints.c.status != EndpointStatus.DELETED)):
        kept = dict((row["settings"] or {}).get("capture_to") or {})
        if kept:
            since = float(kept.pop("since_at"))
            named = tx.rows(sa.select(variants.c.name, variants.c.called).where(variants.c.endpoint == row["name"]))
            called = {str(each["name"]): str(each["called"] or each["name"]) for each in named}
            found[row["name"]] = Wanted(row, read_capture(kept), since, called)
    return found


def _export(ctx: Context, folder: Path, wanted: dict[str, Wanted]) -> bool:
    """Copy the next stretch of one gateway's log; whether there may be more."""
    names = captured.segments(entry.name for entry in folder.iterdir())
    with ctx.db.read() as tx:
        place = _place(tx, folder.name)
    if place is None:
        first = captured.candidates(names, min(each.since_at for each in wanted.values()), ctx.clock.now())[:1]
        place = Place(int(first[0][: -len(captured.SUFFIX)]), 0) if first else None
    left = [name for name in names if place is not None and int(name[: -len(captured.SUFFIX)]) >= place.segment]
    if not left or place is None:
        return False
    at = int(left[0][: -len(captured.SUFFIX)])
    offset = place.offset if at == place.segment else 0
    found, size = _read(folder / left[0], offset)
    ends = size == 0 and len(left) > 1
    after = Place(int(left[1][: -len(captured.SUFFIX)]), 0) if ends else Place(at, offset + size)
    if after == place:
        return False
    _keep(ctx, folder.name, Place(at, offset), after, _grouped(found, wanted), wanted)
    return True


def _read(path: Path, offset: int) -> tuple[list[CaptureRecord], int]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return iter_records(file.read(MAX_BYTES))
    except FileNotFoundError:
        return [], 0  # deleted as too old while we looked


Group = tuple[str, str, float]  # endpoint, variant as callers know it, hour


def _grouped(found: list[CaptureRecord], wanted: dict[str, Wanted]) -> dict[Group, list[bytes]]:
    groups: dict[Group, list[bytes]] = {}
    for record in found:
        each = wanted.get(str(record.meta.get("endpoint")))
        at = float(record.meta["at"])
        if each is None or at < each.since_at or not captureform.wants(each.capture, record):
            continue
        variant = str(record.meta.get("variant"))
        group = (each.endpoint["name"], each.called.get(variant, variant), at - at % 3600)
        groups.setdefault(group, []).append(captureform.line(each.capture, record))
    return groups


def _keep(
    ctx: Context,
    folder: str,
    place: Place,
    after: Place,
    groups: dict[Group, list[bytes]],
    wanted: dict[str, Wanted],
) -> None:
    stored = [(group, ctx.blobs.put_bytes(b"".join(lines)).digest) for group, lines in groups.items()]
    made = {
        group: objects.blob_values(ctx, digest, content_type=LINES, source=_source(group)) for group, digest in stored
    }
    where = {"folder": folder, **place._asdict()}
    with ctx.db.transaction() as tx:
        for (endpoint, variant, hour), values in made.items():
            each = wanted[endpoint]
            bucket, prefix = split_uri(each.capture.uri)
            key = captureform.key(prefix, endpoint, variant, hour, where)
            try:
                objects.put_in(tx, actor=SYSTEM.name, bucket=bucket, key=key, values=values)
            except LooplineError as error:
                _note(ctx, tx, each, error)
        rows = [
            {"name": _name(folder, what), "position": position}
            for what, position in ((_SEGMENT, after.segment), (_OFFSET, after.offset))
        ]
        tx.upsert(spools, rows, ("name",), ("position",))


def _source(group: Group) -> dict[str, Any]:
    return {"kind": "capture", "endpoint": group[0], "variant": group[1]}


def _note(ctx: Context, tx: Tx, wanted: Wanted, error: LooplineError) -> None:
    """Say once that captures go nowhere, and why."""
    said = f"capture {wanted.endpoint['id']}"
    if ctx.cache.get(said) != error.message:
        ctx.cache[said] = error.message
        records.note(tx, "endpoint", wanted.endpoint["id"], "capture_failed", actor=SYSTEM.name, reason=error.message)


def _name(folder: str, what: str = "") -> str:
    return f"captures/{folder}/{what}" if folder else "captures/"


def _place(tx: Tx, folder: str) -> Place | None:
    names = {_name(folder, what): what for what in (_SEGMENT, _OFFSET)}
    rows = tx.rows(sa.select(spools).where(spools.c.name.in_(names)))
    found = {names[row["name"]]: int(row["position"]) for row in rows}
    return Place(found[_SEGMENT], found[_OFFSET]) if len(found) == len(names) else None
