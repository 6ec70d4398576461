"""Counters of traffic: per second, endpoint and variant."""

from typing import Any

import numpy as np
import numpy.typing as npt

from loopline.domain.capture import COPIES
from loopline.domain.capturecolumns import Columns
from loopline.domain.latency import bucket_numbers

LARGEST_LATENCY_US = 86_400_000_000.0  # a day; anything longer can only be a clock that was set
LARGEST_TIME = 2.0**40
UNCOUNTED = "test"  # the purpose of requests that the platform made to try a version out

Key = tuple[str, str, int]


class Counters:
    """Adds up requests between two flushes."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], int] = {}  # {(endpoint, variant): number}
        self._seen: dict[Key, list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {}  # (statuses, buckets) by second

    def add(self, records: Columns) -> None:
        """Count these requests; a record without endpoint or time cannot be told apart and is passed over.

        Requests with the purpose ``test`` are not counted; copies are, under their variant's name and ``COPIES``.
        """
        if not len(records):
            return
        numbers = np.array([self._number(context) for context in records.contexts], dtype=np.int64)
        with np.errstate(invalid="ignore"):
            good = (records.at >= 0.0) & (records.at < LARGEST_TIME)
        good &= (numbers[records.context] >= 0) & np.isfinite(records.status) & np.isfinite(records.latency_us)
        at = records.at[good].astype(np.int64)
        latency, status = records.latency_us[good], records.status[good]
        latency[(latency < 0.0) | (latency > LARGEST_LATENCY_US)] = 0.0
        buckets = bucket_numbers(latency).astype(np.int16)
        together = numbers[records.context[good]] << 41 | at
        names = list(self._series)
        for group in np.unique(together).tolist():
            chosen = together == group
            key = (*names[group >> 41], group & (1 << 41) - 1)
            self._seen.setdefault(key, []).append((status[chosen], buckets[chosen]))

    def _number(self, context: dict[str, Any]) -> int:
        """The number of the series that a context's requests belong to; -1 for none."""
        endpoint, variant = context.get("endpoint"), context.get("variant") or ""
        if not isinstance(endpoint, str) or not isinstance(variant, str) or context.get("purpose") == UNCOUNTED:
            return -1
        if context.get("shadow") is True:
            variant += COPIES
        return self._series.setdefault((endpoint, variant), len(self._series))

    def take(self) -> list[dict[str, Any]]:
        """The rows since the last call: ``latency`` holds requests per bucket of ``domain.latency`` (microseconds)."""
        rows = []
        for (endpoint, variant, at), parts in self._seen.items():
            status = np.concatenate([each for each, _ in parts])
            counts = np.bincount(np.concatenate([each for _, each in parts]))
            occupied = np.flatnonzero(counts)
            rows.append(
                {
                    "kind": "traffic",
                    "endpoint": endpoint,
                    "variant": variant,
                    "at": at,
                    "count": len(status),
                    "errors_4xx": int(np.count_nonzero((status >= 400) & (status < 500))),
                    "errors_5xx": int(np.count_nonzero(status >= 500)),
                    "latency": dict(zip(map(str, occupied.tolist()), counts[occupied].tolist(), strict=True)),
                }
            )
        self._series, self._seen = {}, {}
        return rows
