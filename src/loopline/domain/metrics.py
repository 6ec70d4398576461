"""Metrics that people send: what one may be called, and how many values become one small summary that adds up.

A metric is a name in a namespace with dimensions; the same name with other dimensions is another metric. What is kept
of a period is a `Summary`: count, sum, ends, and counts per bucket of a logarithmic scale (as `domain.latency`, for
any sign), so that every percentile is within 1 % of a value that was sent. Limits are those of CloudWatch
(PutMetricData), so that what was written for it fits.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loopline.domain.alarms import Datapoint, percentile_of
from loopline.domain.latency import GAMMA, SMALLEST, Histogram
from loopline.errors import InvalidInput

BUILT_IN = "loopline"  # the namespace of what the platform measures itself
MAX_DIMENSIONS = 30
MAX_DATA = 1000
MAX_VALUES = 150
MAX_TEXT = 255
LARGEST = 2.0**360
RESOLUTIONS = (1, 60)
OLDEST_SECONDS, NEWEST_SECONDS = 14 * 86_400, 2 * 3600
NO_UNIT = "None"
UNITS = (
    *("Seconds", "Microseconds", "Milliseconds"),
    *(f"{size}{unit}" for unit in ("bytes", "bits") for size in ("Kilo", "Mega", "Giga", "Tera")),
    *("Bytes", "Bits", "Percent", "Count", NO_UNIT),
    *(f"{size}{unit}/Second" for unit in ("bytes", "bits") for size in ("Kilo", "Mega", "Giga", "Tera")),
    *("Bytes/Second", "Bits/Second", "Count/Second"),
)
_LOG_GAMMA = math.log(GAMMA)
_MIDDLE = 1 << 17  # beyond the number of any double's bucket, so that keys keep the order and the sign of values


@dataclass(frozen=True, slots=True)
class Summary:
    """What is kept of a period's values. ``buckets`` may hold fewer than ``count``: a statistic set tells its ends
    and its sum only, and then there are no percentiles."""

    count: float = 0.0
    total: float = 0.0
    minimum: float = math.inf
    maximum: float = -math.inf
    buckets: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Sequence[float], counts: Sequence[float] | None = None) -> "Summary":
        """These values, each as often as ``counts`` says (once); raises ``InvalidInput`` for what is no number."""
        counts = [1.0] * len(values) if counts is None else counts
        if len(counts) != len(values):
            raise InvalidInput(f"there are {len(values)} values and {len(counts)} counts; each value has one count")
        buckets: dict[int, float] = {}
        for value, count in zip(values, counts, strict=True):
            _check_number(value, "a value")
            if not 0 < count < LARGEST:
                raise InvalidInput(f"a count must be more than 0, not {count!r}")
            key = bucket_of(value)
            buckets[key] = buckets.get(key, 0.0) + count
        if not buckets:
            return cls()
        total = math.fsum(value * count for value, count in zip(values, counts, strict=True))
        return cls(float(sum(counts)), total, float(min(values)), float(max(values)), buckets)

    @classmethod
    def of_statistics(cls, count: float, total: float, minimum: float, maximum: float) -> "Summary":
        """A statistic set; where its ends are equal or it holds one value, every value is known."""
        for what, number in (("sum", total), ("minimum", minimum), ("maximum", maximum)):
            _check_number(number, what)
        if not 0 < count < LARGEST:
            raise InvalidInput(f"a statistic set's count must be more than 0, not {count!r}")
        if minimum > maximum:
            raise InvalidInput(f"a statistic set's minimum, {minimum:g}, is above its maximum, {maximum:g}")
        known = {bucket_of(minimum): float(count)} if minimum == maximum else {}
        return cls(float(count), float(total), float(minimum), float(maximum), known)

    @classmethod
    def of_histogram(cls, values: Histogram) -> "Summary":
        """The same of latencies, in microseconds."""
        if not values.count:
            return cls()
        buckets = {_MIDDLE + max(index, 0): float(count) for index, count in values.buckets.items()}
        return cls(float(values.count), values.total, values.minimum, values.maximum, buckets)

    def __add__(self, other: "Summary") -> "Summary":
        merged = dict(self.buckets)
        for key, count in other.buckets.items():
            merged[key] = merged.get(key, 0.0) + count
        return Summary(
            self.count + other.count,
            self.total + other.total,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            merged,
        )

    def statistic(self, name: str) -> float | None:
        """Average, Sum, Minimum, Maximum, SampleCount or a percentile; None where there is nothing to tell it from."""
        percent = percentile_of(name)
        if self.count <= 0:
            return None
        if percent is not None:
            return self._percentile(percent)
        return {
            "Average": self.total / self.count,
            "Sum": self.total,
            "Minimum": self.minimum,
            "Maximum": self.maximum,
            "SampleCount": self.count,
        }[name]

    def _percentile(self, percent: float) -> float | None:
        known = sum(self.buckets.values())
        if known < self.count * (1.0 - 1e-9):
            return None  # some of it came as statistic sets
        rank = percent / 100.0 * known
        if percent <= 0.0:
            return self.minimum
        seen = 0.0
        for key in sorted(self.buckets):
            seen += self.buckets[key]
            if seen >= rank * (1.0 - 1e-12):
                return min(max(value_of(key), self.minimum), self.maximum)
        return self.maximum

    def datapoint(self, at: float, statistic: str) -> Datapoint | None:
        """What an alarm on this statistic sees of the period that begins ``at``."""
        value = self.statistic(statistic)
        return None if value is None else Datapoint(at=at, value=value, samples=max(int(self.count), 1))


def bucket_of(value: float) -> int:
    """The key of a value's bucket; keys are in the order of values, and 0 has a bucket of its own."""
    if value == 0.0:
        return 0
    number = math.ceil(math.log(abs(value)) / _LOG_GAMMA) + _MIDDLE
    return number if value > 0 else -number


def value_of(key: int) -> float:
    """The middle of a bucket: within 1 % of everything in it."""
    if key == 0:
        return 0.0
    number = abs(key) - _MIDDLE
    middle = SMALLEST if number == 0 else 2.0 * math.exp(number * _LOG_GAMMA) / (GAMMA + 1.0)
    return middle if key > 0 else -middle


def key_of(namespace: str, name: str, dimensions: Mapping[str, str]) -> str:
    """What a metric is found by: SHA-256 of namespace, name and dimensions in the order of their names."""
    text = json.dumps([namespace, name, sorted(dimensions.items())], ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check_metric(namespace: str, name: str, dimensions: Mapping[str, str]) -> None:
    """Raise ``InvalidInput`` unless a metric may be called so."""
    _check_text(namespace, "a namespace")
    _check_text(name, "a metric's name")
    if not isinstance(dimensions, Mapping) or len(dimensions) > MAX_DIMENSIONS:
        raise InvalidInput(f"a metric has at most {MAX_DIMENSIONS} dimensions, each with a name and a value")
    for key, value in dimensions.items():
        _check_text(key, "a dimension's name")
        _check_text(value, f"the dimension {key}")


def _check_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable() or not value.strip():
        raise InvalidInput(f"{what} has 1 to {MAX_TEXT} printable characters, unlike {str(value)[:80]!r}")


def _check_number(value: object, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        raise InvalidInput(f"{what} must be a finite number between -2^360 and 2^360, not {value!r}")


@dataclass(frozen=True, slots=True)
class Sent:
    """One datum, checked: ``at`` is the start of its period."""

    namespace: str
    name: str
    dimensions: Mapping[str, str]
    unit: str
    period_seconds: int
    at: int
    summary: Summary

    @property
    def metric(self) -> str:
        """The metric's key."""
        return key_of(self.namespace, self.name, self.dimensions)


_FIELDS = frozenset({"name", "dimensions", "unit", "at", "value", "values", "counts", "statistics", "resolution"})


def read_datum(namespace: str, datum: Mapping[str, Any], now: float) -> Sent:
    """A datum as it was sent, checked; raises ``InvalidInput``.

    ``name``; one of ``value``, ``values`` (with ``counts``) and ``statistics`` {count, sum, minimum, maximum};
    ``dimensions`` {name: value}, ``unit``, ``at`` (seconds since the epoch; now), ``resolution`` 60 or 1 second.
    """
    unknown = sorted(set(datum) - _FIELDS)
    if unknown:
        raise InvalidInput(f"{unknown[0]!r} is not a field of a datum; known: {', '.join(sorted(_FIELDS))}")
    name, dimensions = datum.get("name", ""), datum.get("dimensions") or {}
    check_metric(namespace, name, dimensions)
    unit = datum.get("unit") or NO_UNIT
    if unit not in UNITS:
        raise InvalidInput(f"{unit!r} is no unit; units: {', '.join(UNITS)}")
    resolution = datum.get("resolution") or 60
    if resolution not in RESOLUTIONS:
        raise InvalidInput(f"resolution must be 1 or 60 seconds, not {resolution!r}")
    at = now if datum.get("at") is None else datum["at"]
    _check_number(at, "at")
    if not now - OLDEST_SECONDS <= at <= now + NEWEST_SECONDS:
        raise InvalidInput("a datum may be two weeks old, or two hours ahead, and no more")
    start = math.floor(at / resolution) * resolution
    return Sent(namespace, name, dict(dimensions), unit, resolution, start, _summary(datum, name))


def _summary(datum: Mapping[str, Any], name: str) -> Summary:
    forms = [form for form in ("value", "values", "statistics") if datum.get(form) is not None]
    if len(forms) != 1:
        said = " and ".join(forms) or "none of them"
        raise InvalidInput(f"{name}: give one of value, values and statistics, not {said}")
    if forms == ["value"]:
        return Summary.of([datum["value"]])
    if forms == ["values"]:
        values = datum["values"]
        if not isinstance(values, Sequence) or not 0 < len(values) <= MAX_VALUES:
            raise InvalidInput(f"{name}: values holds 1 to {MAX_VALUES} numbers")
        return Summary.of(values, datum.get("counts"))
    found = datum["statistics"]
    missing = [key for key in ("count", "sum", "minimum", "maximum") if key not in found]
    if missing:
        raise InvalidInput(f"{name}: statistics has no {missing[0]}")
    return Summary.of_statistics(found["count"], found["sum"], found["minimum"], found["maximum"])


def merge(points: Iterable[tuple[int, Summary]], period_seconds: int) -> dict[int, Summary]:
    """Summaries added up to longer periods, by the start of the period."""
    found: dict[int, Summary] = {}
    for at, summary in points:
        start = at // period_seconds * period_seconds
        found[start] = found[start] + summary if start in found else summary
    return found
