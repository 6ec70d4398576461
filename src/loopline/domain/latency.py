"""Latencies as log-bucket histograms that add up: every percentile within 1 % of a true sample, in a few hundred bytes.

A value v > `SMALLEST` microseconds falls in bucket ceil(log(v) / log(GAMMA)), GAMMA = (1 + ERROR) / (1 - ERROR); the
bucket's middle 2 GAMMA^i / (GAMMA + 1) is within ERROR of everything in it (Masson, Rim and Lee, DDSketch, VLDB 2019).
Bucket 0 holds everything up to `SMALLEST`. Two histograms add bucket by bucket, so minutes merge into days exactly.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from loopline.errors import InvalidInput

ERROR = 0.01
GAMMA = (1.0 + ERROR) / (1.0 - ERROR)
SMALLEST = 1.0
_LOG_GAMMA = math.log(GAMMA)


def bucket_numbers(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The bucket of each value; they must be finite and not negative."""
    return np.ceil(np.log(np.maximum(values, SMALLEST)) / _LOG_GAMMA).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of non-negative values (microseconds for latencies); `buckets` holds the occupied ones only."""

    count: int = 0
    total: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    buckets: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Iterable[float] | npt.NDArray[Any]) -> "Histogram":
        """The histogram of these values; NaN, infinite and negative ones are refused with InvalidInput."""
        array = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        if array.size == 0:
            return cls()
        if not np.isfinite(array).all() or array.min() < 0.0:
            raise InvalidInput("A histogram takes finite values of 0 or more only.")
        counts = np.bincount(bucket_numbers(array))
        occupied = np.flatnonzero(counts)
        return cls(
            count=int(array.size),
            total=float(array.sum()),
            minimum=float(array.min()),
            maximum=float(array.max()),
            buckets=dict(zip(occupied.tolist(), counts[occupied].tolist(), strict=True)),
        )

    def __add__(self, other: "Histogram") -> "Histogram":
        merged = dict(self.buckets)
        for index, count in other.buckets.items():
            merged[index] = merged.get(index, 0) + count
        return Histogram(
            count=self.count + other.count,
            total=self.total + other.total,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
            buckets=merged,
        )

    @property
    def mean(self) -> float | None:
        """The arithmetic mean, exact; None when empty."""
        return self.total / self.count if self.count else None

    def percentile(self, percent: float) -> float | None:
        """The value at rank floor(percent / 100 x (count - 1)) of the sorted values, within ERROR; None when empty.

        Values up to SMALLEST are known to that absolute precision only. 0 and 100 give the exact minimum and maximum.
        """
        if not 0.0 <= percent <= 100.0:
            raise InvalidInput(f"A percentile lies between 0 and 100, not at {percent!r}.")
        if self.count == 0:
            return None
        rank = percent / 100.0 * (self.count - 1)
        if rank <= 0.0:
            return self.minimum
        if rank >= self.count - 1:
            return self.maximum
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen > rank:
                middle = 2.0 * GAMMA**index / (GAMMA + 1.0) if index > 0 else SMALLEST
                return min(max(middle, self.minimum), self.maximum)
        raise InvalidInput("The histogram's buckets do not add up to its count.")

    def to_dict(self) -> dict[str, Any]:
        """{"error", "count", "total", "minimum", "maximum", "buckets": {"index": count}}; null ends when empty."""
        return {
            "error": ERROR,
            "count": self.count,
            "total": self.total,
            "minimum": self.minimum if self.count else None,
            "maximum": self.maximum if self.count else None,
            "buckets": {str(index): self.buckets[index] for index in sorted(self.buckets)},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Histogram":
        """The inverse of `to_dict`; a histogram of another bucket width or with wrong counts is InvalidInput."""
        try:
            buckets = {int(index): int(count) for index, count in value["buckets"].items()}
            count, total = int(value["count"]), float(value["total"])
            ends = (float(value["minimum"]), float(value["maximum"])) if count else (math.inf, -math.inf)
            width = float(value["error"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput(f"This is not a histogram: {error!r}.") from error
        if width != ERROR or sum(buckets.values()) != count or min(buckets.values(), default=1) < 1:
            raise InvalidInput("This histogram has another bucket width, or its buckets do not add up to its count.")
        return cls(count=count, total=total, minimum=ends[0], maximum=ends[1], buckets=buckets)
