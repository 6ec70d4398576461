"""What a variant answered over a stretch of time, from the counters that the monitor reports."""

import math
from collections import Counter

from loopline.control import monitoring
from loopline.domain.rollouts import Side
from loopline.store import metrics
from loopline.store.db import Tx


def side(tx: Tx, endpoint: str, variant: str, start: float, end: float) -> Side:
    """The counted requests from the second in which ``start`` lies until ``end``.

    What was answered in that second before ``start`` is counted too: leaving the second out would overlook a burst.
    """
    rows = metrics.traffic(tx, endpoint, variant, math.floor(start), end, period_seconds=1)
    buckets: Counter[str] = Counter()
    for row in rows:
        buckets.update(row.latency)
    merged = monitoring.histogram_of(buckets)
    p50, p99 = merged.percentile(50), merged.percentile(99)
    return Side(
        requests=sum(row.count for row in rows),
        errors_5xx=sum(row.errors_5xx for row in rows),
        p50_ms=None if p50 is None else p50 / 1000,
        p99_ms=None if p99 is None else p99 / 1000,
    )
