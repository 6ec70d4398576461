"""What a variant answered over a stretch of time, from the counters that the monitor reports."""

import math
from collections import Counter

from loopline.control import monitoring
from loopline.domain.latency import Histogram
from loopline.domain.rollouts import Side
from loopline.store import metrics
from loopline.store.db import Tx
from loopline.store.metrics import Traffic

_SECONDS_LAST = monitoring.RAW_SECONDS - monitoring.MINUTE  # a stretch that began earlier is counted in minutes


def counted(tx: Tx, endpoint: str, variant: str, start: float, end: float) -> Traffic:
    """The requests from the second in which ``start`` lies until ``end``; of a long stretch, from its first whole
    minute.

    What was answered in that second before ``start`` is counted too: leaving the second out would overlook a burst.
    """
    return _merged(endpoint, variant, start, _rows(tx, endpoint, variant, start, end))


def _rows(tx: Tx, endpoint: str, variant: str, start: float, end: float) -> list[Traffic]:
    """The counters, one row for each second, or for each minute of a long stretch."""
    if end - start <= _SECONDS_LAST:
        return metrics.traffic(tx, endpoint, variant, math.floor(start), end, period_seconds=1)
    first = math.ceil(start / monitoring.MINUTE) * monitoring.MINUTE
    return metrics.traffic(tx, endpoint, variant, first, end, period_seconds=monitoring.MINUTE)


def _merged(endpoint: str, variant: str, start: float, rows: list[Traffic]) -> Traffic:
    buckets: Counter[str] = Counter()
    for row in rows:
        buckets.update(row.latency)
    return Traffic(
        endpoint,
        variant,
        0,
        int(start),
        sum(row.count for row in rows),
        sum(row.errors_4xx for row in rows),
        sum(row.errors_5xx for row in rows),
        dict(buckets),
    )


def latencies(found: Traffic) -> Histogram:
    """How long the answers took, in microseconds."""
    return monitoring.histogram_of(found.latency)


def side(tx: Tx, endpoint: str, variant: str, start: float, end: float) -> Side:
    """What a step of a rollout is judged by."""
    rows = _rows(tx, endpoint, variant, start, end)
    found = _merged(endpoint, variant, start, rows)
    merged = latencies(found)
    p50, p99 = merged.percentile(50), merged.percentile(99)
    periods = (latencies(row).percentile(99) for row in rows)
    return Side(
        requests=found.count,
        errors_5xx=found.errors_5xx,
        p50_ms=None if p50 is None else p50 / 1000,
        p99_ms=None if p99 is None else p99 / 1000,
        p99s_ms=tuple(each / 1000 for each in periods if each is not None),
    )
