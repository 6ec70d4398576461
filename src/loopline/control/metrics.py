"""Metrics: numbers that people send, and in the namespace ``loopline`` those that the platform measures of endpoints.

Values are added up by the minute (by the second, too, where they were sent with a resolution of 1) when they arrive,
so that a million of them take no more room than sixty; `domain.metrics` says what is kept. Sending changes no record,
so that it writes no events.

In the namespace ``loopline``, with the dimensions ``endpoint`` and, for one of them, ``variant``, each request is one
value: ``requests`` 1, ``errors_4xx`` and ``errors_5xx`` 0 or 1, ``latency_us``, and ``requests_per_instance`` the
share of one of the servers.
"""

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from loopline.control import events, monitoring
from loopline.control.context import Context
from loopline.domain import metrics as rules
from loopline.domain.access import Actor
from loopline.domain.alarms import percentile_of
from loopline.domain.capture import COPIES
from loopline.domain.metrics import BUILT_IN, Sent, Summary
from loopline.errors import InvalidInput
from loopline.store import metrics as counters
from loopline.store.db import Row, Tx
from loopline.store.metrics import Traffic
from loopline.store.schema import endpoints, metric_points, metrics, traffic, variants

FINE_SECONDS = 3 * 3600  # points of one second are kept so long
MAX_POINTS = 1440 * 8
_MEASURED = {
    "requests": rules.NO_UNIT,
    "errors_4xx": rules.NO_UNIT,
    "errors_5xx": rules.NO_UNIT,
    "latency_us": "Microseconds",
    "requests_per_instance": rules.NO_UNIT,
}
_LOCK = 0x6D657472


def put(ctx: Context, actor: Actor, *, namespace: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    """Take in data of a namespace: ``domain.metrics.read_datum`` says what one is; all of them or none.

    Raises ``InvalidInput``, also for the namespace that the platform keeps for itself.
    """
    if namespace == BUILT_IN:
        raise InvalidInput(f"the namespace {BUILT_IN!r} holds what the platform measures; choose another")
    if not 0 < len(data) <= rules.MAX_DATA:
        raise InvalidInput(f"data holds 1 to {rules.MAX_DATA} values, not {len(data)}")
    now = ctx.clock.now()
    sent = [rules.read_datum(namespace, datum, now) for datum in data]
    with ctx.db.transaction() as tx:
        _add(tx, sent)
    return {"accepted": len(sent)}


def _add(tx: Tx, sent: list[Sent]) -> None:
    if tx.postgres:  # one at a time reads and then writes the same points
        tx.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    known = {
        each.metric: {
            "key": each.metric,
            "namespace": each.namespace,
            "name": each.name,
            "dimensions": dict(each.dimensions),
            "seen_at": tx.now,
        }
        for each in sent
    }
    tx.upsert(metrics, list(known.values()), ("key",), ("seen_at",))
    sums: dict[tuple[str, int, int, str], Summary] = {}
    for each in sent:
        for period in {each.period_seconds, monitoring.MINUTE}:
            key = (each.metric, period, each.at // period * period, each.unit)
            sums[key] = sums[key] + each.summary if key in sums else each.summary
    c = metric_points.c
    keys = sa.tuple_(c.metric, c.period_seconds, c.at, c.unit)
    for row in tx.rows(sa.select(metric_points).where(keys.in_(list(sums)))):
        key = (row["metric"], row["period_seconds"], row["at"], row["unit"])
        sums[key] = _summary(row) + sums[key]
    rows = [
        {
            **dict(zip(("metric", "period_seconds", "at", "unit"), key, strict=True)),
            "count": each.count,
            "total": each.total,
            "minimum": each.minimum,
            "maximum": each.maximum,
            "buckets": {str(bucket): count for bucket, count in each.buckets.items()},
        }
        for key, each in sums.items()
    ]
    changed = ("count", "total", "minimum", "maximum", "buckets")
    tx.upsert(metric_points, rows, ("metric", "period_seconds", "at", "unit"), changed)


def _summary(row: Row) -> Summary:
    buckets = {int(key): float(count) for key, count in (row["buckets"] or {}).items()}
    return Summary(row["count"], row["total"], row["minimum"], row["maximum"], buckets)


def prune(ctx: Context) -> None:
    """Tick: forget fine points soon, and everything after 30 days; a metric without points is listed no more."""
    now = ctx.clock.now()
    c = metric_points.c
    with ctx.db.transaction() as tx:
        fine = sa.and_(c.period_seconds < monitoring.MINUTE, c.at < now - FINE_SECONDS)
        tx.execute(metric_points.delete().where(sa.or_(fine, c.at < now - monitoring.KEEP_SECONDS)))
        tx.execute(metrics.delete().where(metrics.c.seen_at < now - monitoring.KEEP_SECONDS))


# -- reading ----------------------------------------------------------------------------------------------------------


def list_(
    ctx: Context,
    actor: Actor,
    *,
    namespace: str | None = None,
    name: str | None = None,
    dimensions: list[str] | None = None,
    since: float | None = None,
    limit: int = 500,
    cursor: str | None = None,
) -> dict[str, Any]:
    """Metrics that have points, by namespace and name. ``dimensions``: ``name=value``, or ``name`` with any value;
    ``since``: only what was sent, or counted, after that time."""
    offset = events.cursor_offset(cursor)
    wanted = [each.partition("=") for each in dimensions or ()]
    with ctx.db.read() as tx:
        found = [*_sent(tx, namespace, name, since), *_built_in(tx, namespace, name, since)]
    found = [row for row in found if all(_has(row["dimensions"], *each) for each in wanted)]
    found.sort(key=lambda row: (row["namespace"], row["name"], sorted(row["dimensions"].items())))
    return events.page(found[offset : offset + limit + 1], limit, offset)


def _has(dimensions: Mapping[str, str], name: str, equals: str, value: str) -> bool:
    return name in dimensions and (not equals or dimensions[name] == value)


def _sent(tx: Tx, namespace: str | None, name: str | None, since: float | None) -> list[Row]:
    query = sa.select(metrics.c.namespace, metrics.c.name, metrics.c.dimensions, metrics.c.seen_at)
    for column, value in ((metrics.c.namespace, namespace), (metrics.c.name, name)):
        if value is not None:
            query = query.where(column == value)
    if since is not None:
        query = query.where(metrics.c.seen_at >= since)
    return [{**row, "dimensions": row["dimensions"] or {}} for row in tx.rows(query)]


def _built_in(tx: Tx, namespace: str | None, name: str | None, since: float | None) -> list[Row]:
    if namespace not in (None, BUILT_IN) or (name is not None and name not in _MEASURED):
        return []
    c = traffic.c
    seen = sa.func.max(c.at)
    query = sa.select(c.endpoint, c.variant, seen.label("seen_at")).group_by(c.endpoint, c.variant)
    if since is not None:
        query = query.having(seen >= since)
    present = set(tx.execute(sa.select(endpoints.c.name)).scalars())
    rows = [row for row in tx.rows(query) if row["endpoint"] in present and not row["variant"].endswith(COPIES)]
    called: dict[tuple[str, str], str] = {
        (row["endpoint"], row["name"]): row["called"] or row["name"]
        for row in tx.rows(sa.select(variants.c.endpoint, variants.c.name, variants.c.called))
    }
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        shown = called.get((row["endpoint"], row["variant"]), row["variant"])
        for variant in ("", str(shown)):
            key = (str(row["endpoint"]), variant)
            found[key] = max(found.get(key, 0.0), float(row["seen_at"]))
    return [
        {
            "namespace": BUILT_IN,
            "name": measured,
            "dimensions": {"endpoint": endpoint, **({"variant": variant} if variant else {})},
            "seen_at": at,
        }
        for (endpoint, variant), at in found.items()
        for measured in _MEASURED
        if name in (None, measured)
    ]


def read(
    ctx: Context,
    actor: Actor,
    *,
    namespace: str,
    name: str,
    dimensions: list[str] | None = None,
    start: float | None = None,
    end: float | None = None,
    period_seconds: int = 60,
    statistics: list[str] | None = None,
    unit: str | None = None,
) -> dict[str, Any]:
    """The points of one metric by time, the last hour unless told otherwise: ``at`` and each of ``statistics``
    (Average, Sum, Minimum, Maximum, SampleCount, p99, ...). ``dimensions``: ``name=value``, all that it has."""
    pairs = [each.partition("=") for each in dimensions or ()]
    end = ctx.clock.now() if end is None else end
    return points(
        ctx,
        actor,
        namespace=namespace,
        name=name,
        dimensions={key: value for key, _, value in pairs},
        start=end - 3600 if start is None else start,
        end=end,
        period_seconds=period_seconds,
        statistics=list(statistics or ("Average", "Sum", "Minimum", "Maximum", "SampleCount")),
        unit=unit,
    )


def points(
    ctx: Context,
    actor: Actor,
    *,
    namespace: str,
    name: str,
    dimensions: dict[str, str],
    start: float,
    end: float,
    period_seconds: int,
    statistics: list[str],
    unit: str | None = None,
) -> dict[str, Any]:
    """As ``read``, with everything said."""
    for each in statistics:
        percentile_of(each)
    check_period(period_seconds)
    if not start < end or (end - start) / period_seconds > MAX_POINTS:
        raise InvalidInput(f"start must be before end, with at most {MAX_POINTS} periods between them")
    rules.check_metric(namespace, name, dimensions)
    with ctx.db.read() as tx:
        found = summaries(tx, namespace, name, dimensions, start, end, period_seconds=period_seconds, unit=unit)
    items = []
    for at, summary in sorted(found.items()):
        values = {each: summary.statistic(each) for each in statistics}
        items.append({"at": at, **{each: value for each, value in values.items() if value is not None}})
    return {"namespace": namespace, "name": name, "dimensions": dimensions, "items": items, "next": None}


def check_period(seconds: int) -> None:
    """Raise ``InvalidInput`` unless numbers are kept in such periods: 1, 5, 10, 20, 30 seconds or whole minutes."""
    if seconds not in (1, 5, 10, 20, 30) and (seconds < 1 or seconds % monitoring.MINUTE):
        raise InvalidInput(f"a period is 1, 5, 10, 20 or 30 seconds, or whole minutes, not {seconds} seconds")


def unit_of(namespace: str, name: str) -> str | None:
    """The unit of what the platform measures; None for what people send, whose points say it."""
    return _MEASURED.get(name) if namespace == BUILT_IN else None


def shown_unit(ctx: Context, actor: Actor, *, namespace: str, name: str, dimensions: dict[str, str]) -> str | None:
    """The unit in which a metric's points were sent; the first by name of several, None where there is no point."""
    known = unit_of(namespace, name)
    if known is not None:
        return known
    key = rules.key_of(namespace, name, dimensions)
    query = sa.select(sa.func.min(metric_points.c.unit)).where(metric_points.c.metric == key)
    with ctx.db.read() as tx:
        found: str | None = tx.execute(query).scalar_one_or_none()
    return found


def summaries(
    tx: Tx,
    namespace: str,
    name: str,
    dimensions: Mapping[str, str],
    start: float,
    end: float,
    *,
    period_seconds: int,
    unit: str | None = None,
) -> dict[int, Summary]:
    """{start of the period: what was measured in it} of periods with ``start <= at < end``; of one unit, or all."""
    fine = period_seconds < monitoring.MINUTE
    kept = 1 if fine else monitoring.MINUTE
    begin = math.floor(start / period_seconds) * period_seconds
    if namespace == BUILT_IN:
        if unit not in (None, unit_of(namespace, name)):
            return {}
        return _traffic(tx, name, dimensions, begin, end, kept, period_seconds)
    c = metric_points.c
    key = rules.key_of(namespace, name, dimensions)
    query = sa.select(metric_points).where(c.metric == key, c.period_seconds == kept, c.at >= begin, c.at < end)
    if unit is not None:
        query = query.where(c.unit == unit)
    return rules.merge(((row["at"], _summary(row)) for row in tx.rows(query)), period_seconds)


def _traffic(
    tx: Tx, name: str, dimensions: Mapping[str, str], start: float, end: float, kept: int, period_seconds: int
) -> dict[int, Summary]:
    if name not in _MEASURED or not {"endpoint"} <= set(dimensions) <= {"endpoint", "variant"}:
        return {}
    rows = counters.traffic(tx, dimensions["endpoint"], None, start, end, period_seconds=kept)
    servers = 1
    if "variant" in dimensions or name == "requests_per_instance":
        named, servers = _servers(tx, dimensions["endpoint"], dimensions.get("variant"))
        rows = [row for row in rows if row.variant in named or "variant" not in dimensions]
    rows = [row for row in rows if not row.variant.endswith(COPIES)]
    return rules.merge(((row.at, _of_traffic(row, name, servers)) for row in rows if row.count), period_seconds)


def _servers(tx: Tx, endpoint: str, variant: str | None) -> tuple[set[str], int]:
    """The variants that go by this name (or all), and how many servers those that answer have, at least one."""
    c = variants.c
    query = sa.select(c.name, c.instances, c.status).where(c.endpoint == endpoint)
    if variant is not None:
        query = query.where(sa.or_(c.name == variant, c.called == variant))
    rows = tx.rows(query)
    ready = sum(int(row["instances"] or 0) for row in rows if row["status"] == "Ready")
    return {row["name"] for row in rows}, max(ready, 1)


def _of_traffic(row: Traffic, name: str, servers: int) -> Summary:
    """Counters of requests as one value for each request."""
    if name == "latency_us":
        return Summary.of_histogram(monitoring.histogram_of(row.latency))
    if name in ("requests", "requests_per_instance"):
        return Summary.of([1.0 / (servers if name == "requests_per_instance" else 1)], [float(row.count)])
    failed = row.errors_4xx if name == "errors_4xx" else row.errors_5xx
    pairs = [(value, float(count)) for value, count in ((0.0, row.count - failed), (1.0, failed)) if count > 0]
    return Summary.of([value for value, _ in pairs], [count for _, count in pairs])
