"""What the monitor found, in the database and as answers: traffic, drift, quality.

The monitor's numbered lines are taken once each: their number moves in the transaction that keeps what they say.
"""

import functools
import json
import math
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from loopline.control.context import Context
from loopline.domain import names
from loopline.domain.access import FUNCTION_SCOPE, Actor
from loopline.domain.capture import COPIES
from loopline.domain.latency import GAMMA, SMALLEST, Histogram
from loopline.errors import InvalidInput, NotFound
from loopline.store import metrics, records
from loopline.store.db import Row, Tx
from loopline.store.metrics import SeriesPoint, Traffic
from loopline.store.schema import endpoints, reports, series, spools, variants, versions

SPOOL = "monitor"
MINUTE = 60
RAW_SECONDS = 900  # one-second counters are kept so long
KEEP_SECONDS = 30 * 86_400  # one-minute counters, series and reports
REPORT_SECONDS = 60  # reports that change nothing are kept this far apart
MAX_POINTS = 5000
_LINES_AT_ONCE = 200
_LIVE = ("Starting", "Ready", "Warm")


# -- taking in --------------------------------------------------------------------------------------------------------


def ingest(ctx: Context) -> int:
    """Take in what the monitor has reported since the last time; gives the number of lines. A tick, and on wake."""
    taken = 0
    while True:
        with ctx.db.read() as tx:
            position = _position(tx)
        lines = list(_lines(ctx, position))
        if not lines:
            break
        with ctx.db.transaction() as tx:
            if _position(tx) != position:
                continue  # another thread took them
            for line in lines:
                _take(tx, line["rows"])
            row = {"name": SPOOL, "position": lines[-1]["seq"]}
            tx.upsert(spools, [row], ("name",), ("position",))
        taken += len(lines)
        if len(lines) < _LINES_AT_ONCE:
            break
    return taken


def _position(tx: Tx) -> int:
    found = tx.execute(sa.select(spools.c.position).where(spools.c.name == SPOOL)).scalar_one_or_none()
    return int(found or 0)


def _lines(ctx: Context, position: int) -> Iterator[dict[str, Any]]:
    """The next whole lines after ``position``, at most ``_LINES_AT_ONCE``."""
    cached = ctx.cache.get("monitor_spool", ("", 0, 0))
    left = _LINES_AT_ONCE
    for path in _report_files(ctx, position):
        name, offset, seq = cached if cached[0] == path.name and cached[2] <= position else (path.name, 0, 0)
        with path.open("rb") as file:
            file.seek(offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                line = json.loads(raw)
                if line["seq"] > position:
                    if left == 0:
                        return
                    left -= 1
                    yield line
                offset, seq = offset + len(raw), line["seq"]
                ctx.cache["monitor_spool"] = (name, offset, seq)


def _report_files(ctx: Context, position: int) -> list[Path]:
    """The report files that can hold lines after ``position``: each is named by the number of its first."""
    files = sorted((ctx.settings.dir / "spool" / "monitor").glob("reports-*.jsonl"))
    first = [int(path.stem.removeprefix("reports-")) for path in files]
    return [path for path, following in zip(files, [*first, math.inf][1:], strict=True) if following > position + 1]


def _take(tx: Tx, rows: list[dict[str, Any]]) -> None:
    counted = []
    for row in rows:
        if row["kind"] == "traffic":
            values = {key: row[key] for key in ("endpoint", "variant", "count", "errors_4xx", "errors_5xx", "latency")}
            if row["at"] >= tx.now - RAW_SECONDS:
                counted.append(Traffic(period_seconds=1, at=row["at"], **values))
            counted.append(Traffic(period_seconds=MINUTE, at=row["at"] // MINUTE * MINUTE, **values))
        elif row["kind"] == "drift":
            _take_drift(tx, row)
    metrics.add_traffic(tx, counted)


def _take_drift(tx: Tx, row: dict[str, Any]) -> None:
    """Series ``drift`` (how many features drifted), ``psi.F`` and ``drift.F`` of each; a report now and then."""
    at, scope, body = int(row["end_at"]), scope_of(row["endpoint"], row["variant"]), row["body"]
    metrics.set_series(tx, scope, "drift", [SeriesPoint(at, float(len(body["drifted"])), body["rows"])])
    for feature in body["features"]:
        name = str(feature["feature"])[:120]
        metrics.set_series(tx, scope, f"psi.{name}", [SeriesPoint(at, feature["psi"], feature["n"])])
        metrics.set_series(tx, scope, f"drift.{name}", [SeriesPoint(at, float(feature["drifted"]), feature["n"])])
    last = last_report(tx, row["endpoint"], row["variant"], "drift")
    if last is not None and last["fired"] == row["fired"] and row["end_at"] - last["end_at"] < REPORT_SECONDS:
        return
    tx.execute(
        reports.insert().values(
            id=tx.new_id("mr"),
            endpoint=row["endpoint"],
            variant=row["variant"],
            kind="drift",
            start_at=row["start_at"],
            end_at=row["end_at"],
            fired=row["fired"],
            body={**body, "version": row["version"]},
        )
    )


def last_report(tx: Tx, endpoint: str, variant: str, kind: str) -> Row | None:
    """The newest report of a kind on a variant."""
    c = reports.c
    query = sa.select(reports).where(c.endpoint == endpoint, c.kind == kind, c.variant == variant)
    return tx.row(query.order_by(c.end_at.desc()).limit(1))


def scope_of(endpoint: str, variant: str) -> str:
    """The scope of a variant's series; ``/`` stands in no name."""
    return f"{endpoint}/{variant}"


def prune(ctx: Context) -> None:
    """Tick: remove what is too old, and report files that have been taken in whole."""
    now = ctx.clock.now()
    with ctx.db.transaction() as tx:
        metrics.prune(tx, now - RAW_SECONDS)
        tx.execute(series.delete().where(series.c.at < now - KEEP_SECONDS))
        tx.execute(reports.delete().where(reports.c.end_at < now - KEEP_SECONDS))
        position = _position(tx)
    needed = {path.name for path in _report_files(ctx, position)}
    for path in (ctx.settings.dir / "spool" / "monitor").glob("reports-*.jsonl"):
        if path.name not in needed and now - path.stat().st_mtime > RAW_SECONDS:
            path.unlink(missing_ok=True)
    write_monitors(ctx)  # mends what a kill between a commit and the file left undone


# -- telling the monitor what to watch --------------------------------------------------------------------------------


def write_monitors(ctx: Context) -> bool:
    """Write ``monitors.json`` from the endpoints and what they serve; says whether it changed."""
    with ctx.cache.setdefault("monitors_lock", threading.Lock()):  # else an older view could be written last
        return _write_monitors(ctx)


def _write_monitors(ctx: Context) -> bool:
    with ctx.db.read() as tx:
        found = {
            row["name"]: {"variants": _watched(tx, row["name"]), **_monitor_settings(row)}
            for row in tx.rows(sa.select(endpoints).where(endpoints.c.status != "Deleted").order_by(endpoints.c.name))
        }
    text = json.dumps({"endpoints": found}, separators=(",", ":"), sort_keys=True)
    path = ctx.settings.dir / "monitors.json"
    if path.exists() and path.read_text() == text:
        return False
    temporary = path.with_name(f".monitors.{ctx.ids.new('tm')}")
    temporary.write_text(text)
    temporary.replace(path)
    return True


def react(ctx: Context, tx: Tx, event: dict[str, Any]) -> None:
    """Reaction: tell the monitor when endpoints or what they serve have changed."""
    if event["noun"] in ("endpoint", "variant"):
        tx.after_commit.append(functools.partial(_rewrite, ctx))


def _rewrite(ctx: Context) -> None:
    write_monitors(ctx)


def _monitor_settings(endpoint: Row) -> dict[str, Any]:
    settings = endpoint["settings"] or {}
    return {
        "monitor": settings.get("monitor") or {},
        "label": settings.get("label"),
        "positive": settings.get("positive"),
    }


def _watched(tx: Tx, endpoint: str) -> dict[str, Any]:
    query = (
        sa.select(variants.c.name, versions.c.id, versions.c.baseline, versions.c.signature)
        .join(versions, versions.c.id == variants.c.version)
        .where(variants.c.endpoint == endpoint, variants.c.status.in_(_LIVE))
    )
    return {
        row["name"]: {"version": row["id"], "baseline": row["baseline"], "signature": row["signature"]}
        for row in tx.rows(query)
        if row["baseline"]
    }


# -- answers ----------------------------------------------------------------------------------------------------------


def endpoint_row(tx: Tx, endpoint: str) -> Row:
    """The endpoint, or the function of ``function:NAME``; raises ``NotFound``."""
    kind, _, function = endpoint.partition(":")
    if kind == FUNCTION_SCOPE and function:
        row = records.find(tx, "function", name=function)
    else:
        row = tx.row(sa.select(endpoints).where(endpoints.c.name == endpoint))
    if row is None:
        known = [each["name"] for each in tx.rows(sa.select(endpoints.c.name))]
        raise NotFound(f"there is no endpoint {endpoint!r}{names.meant(endpoint, known)}")
    return row


def histogram_of(buckets: dict[str, int]) -> Histogram:
    """Buckets of ``domain.latency`` as a histogram; its ends and its sum are those of the buckets' middles (1 %)."""
    counts = {int(index): count for index, count in buckets.items()}
    if not counts:
        return Histogram()
    middles = {index: 2.0 * GAMMA**index / (GAMMA + 1.0) if index > 0 else SMALLEST for index in counts}
    return Histogram(
        count=sum(counts.values()),
        total=sum(middles[index] * count for index, count in counts.items()),
        minimum=middles[min(counts)],
        maximum=middles[max(counts)],
        buckets=counts,
    )


def merge(rows: Iterable[Traffic], period_seconds: int, *, by_variant: bool) -> dict[tuple[str, int], Traffic]:
    """Counters added up to periods, by (variant or "", start of the period); copies to shadows are in no total."""
    found: dict[tuple[str, int], Traffic] = {}
    for row in rows:
        if not by_variant and row.variant.endswith(COPIES):
            continue
        variant, at = (row.variant if by_variant else ""), row.at // period_seconds * period_seconds
        moved = Traffic(
            row.endpoint, variant, period_seconds, at, row.count, row.errors_4xx, row.errors_5xx, row.latency
        )
        found[variant, at] = found[variant, at].plus(moved) if (variant, at) in found else moved
    return found


def describe(row: Traffic, seconds: float) -> dict[str, Any]:
    """Counters with what people ask of them: rates, and latency percentiles in milliseconds."""
    latency = histogram_of(row.latency)

    def milliseconds(value: float | None) -> float | None:
        return None if value is None else round(value / 1000, 3)

    return {
        "requests": row.count,
        "requests_per_second": round(row.count / seconds, 4) if seconds > 0 else None,
        "errors_4xx": row.errors_4xx,
        "errors_5xx": row.errors_5xx,
        "error_rate": round(row.errors_5xx / row.count, 6) if row.count else None,
        "latency_ms": {
            "average": milliseconds(latency.mean),
            **{f"p{percent}": milliseconds(latency.percentile(percent)) for percent in (50, 90, 99)},
        },
    }


def traffic(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    start: float | None = None,
    end: float | None = None,
    period_seconds: int = MINUTE,
    variant: str | None = None,
) -> dict[str, Any]:
    """Requests, errors and latency of an endpoint per variant and period, and over the whole time.

    ``start`` and ``end`` default to the last hour. Periods below a minute reach back 15 minutes; longer ones are whole
    minutes. Raises ``NotFound`` and ``InvalidInput``.
    """
    end = ctx.clock.now() if end is None else end
    start = end - 3600 if start is None else start
    if period_seconds < 1 or (period_seconds > MINUTE and period_seconds % MINUTE):
        raise InvalidInput("period_seconds must be 1 to 60, or whole minutes")
    if not start < end or (end - start) / period_seconds > MAX_POINTS:
        raise InvalidInput(f"start must be before end, with at most {MAX_POINTS} periods between them")
    raw = 1 if period_seconds < MINUTE else MINUTE
    with ctx.db.read() as tx:
        endpoint_row(tx, endpoint)
        rows = metrics.traffic(tx, endpoint, variant, start // raw * raw, end, period_seconds=raw)
    periods = merge(rows, period_seconds, by_variant=True)
    whole = merge(
        (Traffic(r.endpoint, r.variant, 1, 0, r.count, r.errors_4xx, r.errors_5xx, r.latency) for r in rows),
        1,
        by_variant=True,
    )
    total = merge(whole.values(), 1, by_variant=False)
    nothing = Traffic(endpoint, "", 1, 0, 0, 0, 0)
    return {
        "endpoint": endpoint,
        "start": start,
        "end": end,
        "period_seconds": period_seconds,
        "total": describe(total.get(("", 0), nothing), end - start),
        "variants": {name: describe(row, end - start) for (name, _), row in sorted(whole.items())},
        "items": [
            {"at": at, "variant": name, **describe(row, period_seconds)}
            for (name, at), row in sorted(periods.items(), key=lambda item: (item[0][1], item[0][0]))
        ],
    }


def drift(ctx: Context, actor: Actor, *, endpoint: str, variant: str | None = None, limit: int = 20) -> dict[str, Any]:
    """The newest drift reports of an endpoint, the newest first; ``fired`` says whether the rule picked a feature."""
    return _reports(ctx, endpoint, variant, "drift", limit)


def _reports(ctx: Context, endpoint: str, variant: str | None, kind: str, limit: int) -> dict[str, Any]:
    query = sa.select(reports).where(reports.c.endpoint == endpoint, reports.c.kind == kind)
    if variant is not None:
        query = query.where(reports.c.variant == variant)
    with ctx.db.read() as tx:
        endpoint_row(tx, endpoint)
        rows = tx.rows(query.order_by(reports.c.end_at.desc()).limit(min(limit, 1000)))
    return {"items": rows, "next": None}


def get_series(
    ctx: Context,
    actor: Actor,
    *,
    endpoint: str,
    name: str,
    variant: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> dict[str, Any]:
    """Points of a series such as ``psi.age`` or ``accuracy``, by variant; the last day unless told otherwise."""
    end = ctx.clock.now() + 1 if end is None else end
    start = end - 86_400 if start is None else start
    with ctx.db.read() as tx:
        endpoint_row(tx, endpoint)
        found = variant_series(tx, endpoint, name, start, end)
    return {
        "endpoint": endpoint,
        "name": name,
        "variants": {
            each: [{"at": p.at, "value": None if math.isnan(p.value) else p.value, "count": p.count} for p in points]
            for each, points in found.items()
            if variant in (None, each)
        },
    }


def variant_series(tx: Tx, endpoint: str, name: str, start: float, end: float) -> dict[str, list[SeriesPoint]]:
    """{variant: points with start <= at < end} of a series of an endpoint's variants."""
    c = series.c
    present = tx.execute(sa.select(variants.c.name).where(variants.c.endpoint == endpoint)).scalars()
    scopes = {scope_of(endpoint, variant): variant for variant in present}
    query = (
        sa.select(series)
        .where(c.scope.in_(list(scopes)), c.name == name, c.at >= start, c.at < end)
        .order_by(c.scope, c.at)
    )
    found: dict[str, list[SeriesPoint]] = {}
    for row in tx.rows(query):
        value = math.nan if row["value"] is None else row["value"]
        found.setdefault(scopes[row["scope"]], []).append(SeriesPoint(row["at"], value, row["count"]))
    return found
