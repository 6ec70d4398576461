"""Shadows: what a variant that only gets copies of requests would have answered, against what callers got.

The gateways capture both answers under one request id. They are compared window by window, and each window's sums are
kept as a report: the captures themselves go after a time. What is not in a window yet is compared when somebody looks.
"""

import math
from typing import Any

import sqlalchemy as sa

from loopline.control import endpoints, requests
from loopline.control.context import Context
from loopline.domain.access import Actor
from loopline.domain.shadows import Answered, Differences, compare
from loopline.domain.states import VariantStatus
from loopline.errors import NotFound
from loopline.store import queue, records
from loopline.store.db import Row, Tx
from loopline.store.schema import reports, spools, variants

KIND = "shadow"
TASK = "shadow.compare"
EVERY_SECONDS = 30.0
LAG_SECONDS = 10.0  # beyond the endpoint's time limit: the copy's answer comes after the caller's
MAX_WINDOW_SECONDS = 300.0  # what is compared at once after a standstill
DROPPED_STATUS = 429  # noted by a gateway where a copy would have had to wait
_ANSWERED = (200, 600)


def begin(tx: Tx, shadow: Row, copy_percent: float, actor: str) -> None:
    """Let a variant get copies from the next snapshot on, and compare from now on."""
    records.set(tx, "variant", shadow["id"], actor=actor, shadow=copy_percent)
    row = {"name": _spool(shadow), "position": _ms(tx.now)}
    tx.upsert(spools, [row], ("name",), ("position",))
    queue.ask(tx, TASK, shadow["endpoint"])


def compare_windows(ctx: Context, key: str) -> float | None:
    """Task: compare an endpoint's shadows up to now, and again while it has any."""
    with ctx.db.read() as tx:
        row = records.find(tx, "endpoint", name=key)
        shadows = [] if row is None else _shadows(tx, key)
    if row is None or not shadows:
        return None
    end = _ms(ctx.clock.now() - float((row["settings"] or {}).get("timeout_seconds", 30)) - LAG_SECONDS)
    for shadow in shadows:
        with ctx.db.read() as tx:
            start = _position(tx, shadow)
        while start < end:
            until = min(end, start + _ms(MAX_WINDOW_SECONDS))
            _keep(ctx, shadow, start, until)
            start = until
    return EVERY_SECONDS


def finish(ctx: Context, shadow: Row) -> None:
    """Compare what has been answered by now, because a variant is about to be a shadow no more."""
    with ctx.db.read() as tx:
        start = _position(tx, shadow)
    _keep(ctx, shadow, start, _ms(ctx.clock.now()))


def _ms(seconds: float) -> int:
    """Windows begin and end at whole milliseconds, so that none overlap and none is left out."""
    return math.floor(seconds * 1000)


def _shadows(tx: Tx, endpoint: str) -> list[Row]:
    c = variants.c
    query = sa.select(variants).where(c.endpoint == endpoint, c.shadow.is_not(None), c.status == VariantStatus.READY)
    return tx.rows(query.order_by(c.name))


def _spool(shadow: Row) -> str:
    return f"{KIND}/{shadow['id']}"


def _position(tx: Tx, shadow: Row) -> int:
    """Up to when (milliseconds) a shadow's answers have been compared: at first, when the variant was made."""
    found = tx.execute(sa.select(spools.c.position).where(spools.c.name == _spool(shadow))).scalar_one_or_none()
    return _ms(shadow["created_at"]) if found is None else int(found)


def _keep(ctx: Context, shadow: Row, start: int, end: int) -> None:
    """Compare a window (milliseconds), and keep its sums and that it has been compared."""
    found = _differences(ctx, shadow, start / 1000, end / 1000)
    with ctx.db.transaction() as tx:
        if _position(tx, shadow) != start:
            return  # somebody else kept it
        row = {"name": _spool(shadow), "position": end}
        tx.upsert(spools, [row], ("name",), ("position",))
        if found.compared:
            tx.execute(
                reports.insert().values(
                    id=tx.new_id("mr"),
                    endpoint=shadow["endpoint"],
                    variant=shadow["name"],
                    kind=KIND,
                    start_at=start / 1000,
                    end_at=end / 1000,
                    fired=False,
                    body=found.to_dict(),
                )
            )


def _differences(ctx: Context, shadow: Row, start: float, end: float) -> Differences:
    """The differences of requests made in ``start <= t < end``."""
    callers: dict[str, Answered] = {}
    copies: dict[str, Answered] = {}
    dropped = 0
    for record in requests.scan(ctx, shadow["endpoint"], start, end):
        meta = record.meta
        status = int(meta["status"])
        if not _ANSWERED[0] <= status < _ANSWERED[1] or meta.get("purpose") == "test":
            continue
        side = Answered(status, float(meta["latency_us"]), record.answer)
        if not meta.get("shadow"):
            callers[str(meta["id"])] = side
        elif meta.get("variant") == shadow["name"]:
            if status == DROPPED_STATUS and not record.answer:
                dropped += 1
            else:
                copies[str(meta["id"])] = side
    return compare([(each, callers[each], copies[each]) for each in sorted(copies) if each in callers], dropped)


def show(ctx: Context, actor: Actor, *, endpoint: str, variant: str | None = None) -> dict[str, Any]:
    """How the answers of an endpoint's shadow differ from what callers got, since it was started.

    ``variant``: whose report; by default the shadow of now, or else the one that was compared last. ``copy_percent`` is
    None for one that gets no copies any more.
    """
    with ctx.db.read() as tx:
        endpoints.endpoint_row(tx, endpoint)
        row = _chosen(tx, endpoint, variant)
        kept = tx.rows(
            sa.select(reports)
            .where(reports.c.endpoint == endpoint, reports.c.kind == KIND, reports.c.variant == row["name"])
            .order_by(reports.c.end_at)
        )
        position = _position(tx, row)
    now = ctx.clock.now()
    found = Differences()
    for report in kept:
        found += Differences.from_dict(report["body"])
    if row["shadow"] is not None:
        found += _differences(ctx, row, position / 1000, now)
    return {
        "endpoint": endpoint,
        "variant": row["name"],
        "model": row["model"],
        "version": row["number"],
        "status": row["status"],
        "copy_percent": row["shadow"],
        "start_at": kept[0]["start_at"] if kept else position / 1000,
        "end_at": now if row["shadow"] is not None or not kept else kept[-1]["end_at"],
        **found.describe(),
    }


def _chosen(tx: Tx, endpoint: str, variant: str | None) -> Row:
    """The variant that is asked about; raises ``NotFound`` when it never was a shadow."""
    if variant is not None:
        row = records.find(tx, "variant", endpoint=endpoint, name=variant)
        if row is None:
            raise NotFound(f"the endpoint {endpoint!r} has no variant {variant!r}")
        return row
    shadows = _shadows(tx, endpoint)
    if shadows:
        return shadows[-1]
    query = sa.select(reports.c.variant).where(reports.c.endpoint == endpoint, reports.c.kind == KIND)
    last = tx.row(query.order_by(reports.c.end_at.desc()).limit(1))
    row = None if last is None else records.find(tx, "variant", endpoint=endpoint, name=last["variant"])
    if row is None:
        raise NotFound(f"{endpoint} has no shadow; start one: loopline release {endpoint} VERSION --strategy shadow")
    return row
