"""Project trees and model files unpacked below the data directory: made once, shared by all that need them, and removed
a day after nothing did.

They are copies: the blob store makes them again whenever they are asked for. A folder's time of modification says when
it was last asked for, or found needed.
"""

import logging
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from loopline.control import blobs, processes
from loopline.control.context import Context
from loopline.domain.states import TERMINAL
from loopline.errors import Conflict
from loopline.store.db import Row, Tx
from loopline.store.schema import compilations, endpoints, jobs, rollouts, servables, variants, versions

log = logging.getLogger(__name__)

Group = Literal["trees", "models"]
GROUPS: tuple[Group, ...] = ("trees", "models")
KEPT_SECONDS = 86_400.0  # that a folder stays after nothing needed it
FRESH_SECONDS = 3_600.0  # before anybody asks again whether a folder is needed
WAYS_BACK = 5  # of each endpoint, the variants that traffic moved to or from last
ROLLOUTS = 200  # of each endpoint that are asked for them
AT_ONCE = 200  # folders that go in one look
_LOCK = threading.Lock()  # a folder is either still asked for, or taken away


def folder(ctx: Context, group: Group, digest: str, kind: str, name: str = "") -> Path:
    """A read-only copy of a blob, which stays for as long as it is needed, and at least a day.

    ``kind``: ``folder``, or ``file``, which is in the folder that is given under its own ``name``. Every digest was
    verified on the way out of the store; raises what ``BlobStore.materialise`` does.
    """
    place = ctx.settings.dir / group / digest
    target = place if kind == "folder" else place / Path(name).name
    with _LOCK:
        _touch(ctx, place)
        there = target.exists()
    if not there:
        place.parent.mkdir(mode=0o700, exist_ok=True)
        with suppress(Conflict):  # another thread was quicker; both wrote the same files
            ctx.blobs.materialise(digest, kind, target)
        _touch(ctx, place)
    return place


def _touch(ctx: Context, path: Path) -> None:
    now = ctx.clock.now()
    with suppress(FileNotFoundError):
        os.utime(path, (now, now))


def prune(ctx: Context) -> int:
    """Tick: remove the folders that nothing has needed for a day, the oldest first; says how many.

    Needed is what a server that is wanted serves from, what a job that is not over was given, and what the last
    variants of an endpoint, to which a rollback may lead, would serve from.
    """
    now = ctx.clock.now()
    old = sorted(_older(ctx, now - FRESH_SECONDS))
    if not old:
        return 0
    with ctx.db.read() as tx:
        needed = set(_needed(ctx, tx))
    removed = 0
    for at, path in old:
        if path.name in needed:
            _touch(ctx, path)
        elif at <= now - KEPT_SECONDS and removed < AT_ONCE:
            removed += _remove(path, now - KEPT_SECONDS)
    if removed:
        log.info("%d unpacked folders that nothing needed for a day are removed", removed)
    return removed


def _older(ctx: Context, before: float) -> Iterator[tuple[float, Path]]:
    """(Time, path) of folders nobody asked for since then, and of what a killed process left beside them."""
    for group in GROUPS:
        with suppress(FileNotFoundError):
            for path in (ctx.settings.dir / group).iterdir():
                with suppress(FileNotFoundError):
                    at = path.stat().st_mtime
                    if at <= before:
                        yield at, path


def _remove(path: Path, before: float) -> bool:
    """Take a folder away unless somebody has asked for it since."""
    gone = path.with_name(f".{secrets.token_hex(8)}.gone")
    with _LOCK:
        try:
            if path.stat().st_mtime > before:
                return False
            path.rename(gone)
        except FileNotFoundError:
            return False
    shutil.rmtree(gone, ignore_errors=True)
    return True


def _needed(ctx: Context, tx: Tx) -> Iterator[str]:
    """The digest of every folder that is needed, among others."""
    for text in processes.specs(ctx, tx):
        yield from blobs.digests(text)
    for row in tx.rows(sa.select(jobs.c.spec).where(jobs.c.status.not_in(TERMINAL["job"]))):
        yield from blobs.digests(repr(row))
    for endpoint in tx.rows(sa.select(endpoints.c.name).where(endpoints.c.status != "Deleted")):
        for row in _served_from(tx, _ways_back(tx, endpoint["name"])):
            yield from blobs.digests(repr(row))


def _ways_back(tx: Tx, endpoint: str) -> list[str]:
    """The ids of the variants that an endpoint's traffic moved to or from last."""
    c = rollouts.c
    query = (
        sa.select(c.variant, c.predecessor).where(c.endpoint == endpoint).order_by(c.created_at.desc()).limit(ROLLOUTS)
    )
    found: dict[str, None] = {}
    for row in tx.execute(query):
        found.update(dict.fromkeys(filter(None, row)))
        if len(found) >= WAYS_BACK:
            break
    return list(found)[:WAYS_BACK]


def _served_from(tx: Tx, ids: list[str]) -> Iterator[Row]:
    """The records that name what variants serve from: versions and servables, and what versions were compiled to."""
    there = tx.rows(sa.select(variants.c.version, variants.c.servable).where(variants.c.id.in_(ids)))
    known = tx.rows(sa.select(versions).where(versions.c.id.in_({row["version"] for row in there} - {None})))
    yield from known
    origins = {row["id"] for row in known} | {(row["copied_from"] or {}).get("version") for row in known}
    runs = {row["servable"] for row in (*there, *known)}
    yield from tx.rows(sa.select(servables).where(servables.c.id.in_(runs - {None})))
    yield from tx.rows(sa.select(compilations.c.artifact).where(compilations.c.version.in_(origins - {None})))
