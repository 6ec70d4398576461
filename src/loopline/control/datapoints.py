"""What an alarm sees: one datapoint for each period in which there was something to measure."""

import math
from collections.abc import Sequence

from loopline.control import labels, monitoring
from loopline.control import metrics as published
from loopline.domain.alarms import Alarm, Datapoint, datapoint, percentile_of
from loopline.domain.looprules import QUALITY_METRICS, TRAFFIC_METRICS
from loopline.domain.quality import Quality
from loopline.errors import InvalidInput
from loopline.store import metrics
from loopline.store.db import Row, Tx
from loopline.store.metrics import Traffic

MINUTE = monitoring.MINUTE
_COUNTS = ("requests", "errors_4xx", "errors_5xx")
_MEASURED = ("accuracy", "balanced_accuracy", "precision", "recall", "f1", "mae", "mse", "rmse", "labels")


def check_metric(metric: str) -> str:
    """``metric`` itself when something in production measures it; raises ``InvalidInput`` otherwise."""
    family, dot, feature = metric.partition(".")
    if dot and family in ("psi", "drift") and feature:
        return metric
    if metric in TRAFFIC_METRICS or metric in _MEASURED:
        return metric
    why = "only a gate measures it" if metric in QUALITY_METRICS else "nothing measures it"
    known = ", ".join((*TRAFFIC_METRICS, *_MEASURED[:-1], "psi.FEATURE", "drift.FEATURE"))
    raise InvalidInput(f"{metric!r} is no metric of an endpoint: {why}; metrics: {known}")


def of(tx: Tx, row: Row, rule: Alarm, now: float) -> list[Datapoint]:
    """The datapoints of the alarm's evaluation range, oldest first; ``row`` is the alarm."""
    period = rule.period_seconds
    end = math.floor(now / period) * period
    start = end - period * rule.range_periods
    if row["definition"].get("namespace"):
        return _published(tx, row["definition"], rule, start, end)
    variant = row["definition"].get("variant")
    if rule.metric in (*_COUNTS, "error_rate", "latency_ms"):
        raw = 1 if period % MINUTE or period < MINUTE else MINUTE
        if now - start > monitoring.RAW_SECONDS:
            raw = MINUTE
        found = metrics.traffic(tx, row["endpoint"], variant, start, end, period_seconds=raw)
        periods = monitoring.merge(found, period, by_variant=False)
        points = [_traffic_point(at, traffic, rule) for (_, at), traffic in sorted(periods.items())]
        return [point for point in points if point is not None]
    if rule.metric in _MEASURED:
        return _labelled(tx, row, rule, start, end)
    series = monitoring.variant_series(tx, row["endpoint"], rule.metric, start, end)
    values: dict[int, list[float]] = {}
    for name, points_of_variant in series.items():
        if variant in (None, name):
            for point in points_of_variant:
                if not math.isnan(point.value):
                    values.setdefault(point.at // period * period, []).append(point.value)
    return [Datapoint(at, statistic(rule.statistic, each), len(each)) for at, each in sorted(values.items())]


def _published(tx: Tx, definition: Row, rule: Alarm, start: float, end: float) -> list[Datapoint]:
    """Of a metric of a namespace: one that people send, or the platform's with each request as one value."""
    found = published.summaries(
        tx,
        definition["namespace"],
        rule.metric,
        definition.get("dimensions") or {},
        start,
        end,
        period_seconds=rule.period_seconds,
        unit=definition.get("unit"),
    )
    points = [summary.datapoint(at, rule.statistic) for at, summary in sorted(found.items())]
    return [point for point in points if point is not None]


def _traffic_point(at: int, row: Traffic, rule: Alarm) -> Datapoint | None:
    if row.count == 0:
        return None
    if rule.metric == "latency_ms":
        point = datapoint(at, rule.statistic, monitoring.histogram_of(row.latency))
        if point is None or rule.statistic == "SampleCount":
            return point
        return Datapoint(at, point.value / 1000, point.samples)
    if rule.statistic == "SampleCount":
        return Datapoint(at, float(row.count), row.count)
    if rule.metric == "error_rate":
        return Datapoint(at, row.errors_5xx / row.count, row.count)
    counts = {"requests": row.count, "errors_4xx": row.errors_4xx, "errors_5xx": row.errors_5xx}
    return Datapoint(at, float(counts[rule.metric]), row.count)


def _labelled(tx: Tx, row: Row, rule: Alarm, start: float, end: float) -> list[Datapoint]:
    """Quality of what was labelled in each period; sums are per minute, so that shorter periods see whole minutes."""
    period = rule.period_seconds
    positive = (monitoring.endpoint_row(tx, row["endpoint"])["settings"] or {}).get("positive")
    variant = row["definition"].get("variant")
    merged = labels.merged(tx, row["endpoint"], labels.LABELLED, start, end, variant=variant)
    sums: dict[int, Quality] = {}
    for minute, quality in merged.items():
        at = minute // period * period
        sums[at] = labels.add(sums[at], quality) if at in sums else quality
    found = []
    for at, quality in sorted(sums.items()):
        value = labels.measures(quality, positive).get(rule.metric)
        if value is not None:
            found.append(Datapoint(at, value, quality.count))
    return found


def statistic(name: str, values: Sequence[float]) -> float:
    """A statistic of at least one value; percentiles by the nearest lower rank."""
    percent = percentile_of(name)
    if percent is not None:
        ordered = sorted(values)
        return ordered[math.floor(percent / 100 * (len(ordered) - 1))]
    if name == "SampleCount":
        return float(len(values))
    if name == "Average":
        return sum(values) / len(values)
    if name == "Sum":
        return sum(values)
    return min(values) if name == "Minimum" else max(values)
