"""Counters of traffic: per second, endpoint and variant."""

from collections.abc import Iterable
from typing import Any

from loopline.domain.capture import CaptureRecord
from loopline.domain.latency import Histogram

LARGEST_LATENCY_US = 86_400_000_000.0  # a day; anything longer can only be a clock that was set

Key = tuple[str, str, int]


class Counters:
    """Adds up requests between two flushes."""

    def __init__(self) -> None:
        self._latencies: dict[Key, list[float]] = {}
        self._statuses: dict[Key, list[int]] = {}

    def add(self, records: Iterable[CaptureRecord]) -> None:
        """Count these requests; a record without endpoint or time cannot be told apart and is passed over."""
        latencies, statuses = self._latencies, self._statuses
        for record in records:
            meta = record.meta
            try:
                key = (meta["endpoint"], meta.get("variant") or "", int(meta["at"]))
                status, latency = int(meta["status"]), float(meta["latency_us"])
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            if key not in latencies:
                latencies[key], statuses[key] = [], []
            latencies[key].append(latency if 0.0 <= latency <= LARGEST_LATENCY_US else 0.0)
            statuses[key].append(status)

    def take(self) -> list[dict[str, Any]]:
        """The rows since the last call: ``latency`` holds requests per bucket of ``domain.latency`` (microseconds)."""
        rows = []
        for key, latencies in self._latencies.items():
            statuses = self._statuses[key]
            endpoint, variant, at = key
            buckets = Histogram.of(latencies).buckets
            rows.append(
                {
                    "kind": "traffic",
                    "endpoint": endpoint,
                    "variant": variant,
                    "at": at,
                    "count": len(statuses),
                    "errors_4xx": sum(400 <= status < 500 for status in statuses),
                    "errors_5xx": sum(status >= 500 for status in statuses),
                    "latency": {str(index): count for index, count in buckets.items()},
                }
            )
        self._latencies, self._statuses = {}, {}
        return rows
