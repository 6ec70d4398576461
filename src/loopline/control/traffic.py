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
    if end - start <= _SECONDS_LAST:
        rows = metrics.traffic(tx, endpoint, variant, math.floor(start), end, period_seconds=1)
    else:
        first = math.ceil(start / monitoring.MINUTE) * monitoring.MINUTE
        rows = metrics.traffic(tx, endpoint, variant, first, end, period_seconds=monitoring.MINUTE)
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
    found = counted(tx, endpoint, variant, start, end)
    merged = latencies(found)
    p50, p99 = merged.percentile(50), merged.percentile(99)
    return Side(
        requests=found.count,
        errors_5xx=found.errors_5xx,
        p50_ms=None if p50 is None else p50 / 1000,
        p99_ms=None if p99 is None else p99 / 1000,
    )
