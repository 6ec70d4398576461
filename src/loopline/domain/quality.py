"""Quality in production: predictions joined with the labels that arrived later, as sums that add up minute by minute.

`Classes` and `Numbers` hold what accuracy, F1, RMSE and MAE need and nothing else, so that minutes merge into any
window exactly. `compare` says whether a window is worse than the baseline by more than chance.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loopline.domain.baselines import category_key
from loopline.domain.distributions import newcombe, normal_quantile, wilson
from loopline.errors import InvalidInput

MINUTE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Classes:
    """How often each (label, prediction) occurred; keys as in `baselines.category_key`."""

    confusion: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of(cls, pairs: Iterable[tuple[Any, Any]]) -> "Classes":
        """The counts of (prediction, label) pairs; InvalidInput when one of the two is missing."""
        return cls(dict(Counter((_class(label), _class(prediction)) for prediction, label in pairs)))

    def __add__(self, other: "Classes") -> "Classes":
        return Classes(dict(Counter(self.confusion) + Counter(other.confusion)))

    @property
    def count(self) -> int:
        """How many pairs."""
        return sum(self.confusion.values())

    @property
    def right(self) -> int:
        """How many predictions equal their label."""
        return sum(times for (label, prediction), times in self.confusion.items() if label == prediction)

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class that occurs as label or prediction, sorted."""
        return tuple(sorted({key for pair in self.confusion for key in pair}))

    @property
    def accuracy(self) -> float | None:
        """The share of right predictions; None without a pair."""
        return self.right / self.count if self.count else None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of the accuracy."""
        return wilson(self.right, self.count, level)

    def f1(self, positive: Any = None) -> float | None:
        """F1 of the positive class, or the mean over all classes that occur; None without a pair."""
        if not self.confusion:
            return None
        chosen = self.classes if positive is None else (_class(positive),)
        return sum(map(self._f1, chosen)) / len(chosen)

    def _f1(self, name: str) -> float:
        occurrences = sum(
            times * ((name == label) + (name == guess)) for (label, guess), times in self.confusion.items()
        )
        return 2.0 * self.confusion.get((name, name), 0) / occurrences if occurrences else 0.0

    def to_dict(self) -> dict[str, Any]:
        """{"kind": "classes", "confusion": [[label, prediction, count], ...]}, sorted."""
        return {
            "kind": "classes",
            "confusion": [[label, prediction, times] for (label, prediction), times in sorted(self.confusion.items())],
        }


@dataclass(frozen=True, slots=True)
class Numbers:
    """Sums over the errors e = prediction - label: count, e, |e|, e^2, e^4 (for the interval of RMSE)."""

    count: int = 0
    error: float = 0.0
    absolute: float = 0.0
    square: float = 0.0
    fourth: float = 0.0

    @classmethod
    def of(cls, pairs: Iterable[tuple[Any, Any]]) -> "Numbers":
        """The sums of (prediction, label) pairs; InvalidInput when one of the two is no finite number."""
        errors = [_number(prediction) - _number(label) for prediction, label in pairs]
        return cls(
            len(errors),
            math.fsum(errors),
            math.fsum(map(abs, errors)),
            math.fsum(e**2 for e in errors),
            math.fsum(e**4 for e in errors),
        )

    def __add__(self, other: "Numbers") -> "Numbers":
        return Numbers(
            self.count + other.count,
            self.error + other.error,
            self.absolute + other.absolute,
            self.square + other.square,
            self.fourth + other.fourth,
        )

    @property
    def bias(self) -> float | None:
        """The mean error; above 0 the model predicts too much."""
        return self.error / self.count if self.count else None

    @property
    def mae(self) -> float | None:
        """The mean absolute error; None without a pair."""
        return self.absolute / self.count if self.count else None

    @property
    def rmse(self) -> float | None:
        """The root of the mean squared error; None without a pair."""
        return math.sqrt(self.square / self.count) if self.count else None

    def interval(self, metric: str, level: float = 0.95) -> tuple[float, float]:
        """Normal interval of "mae" or "rmse" (that of the mean square, rooted); (0, inf) with fewer than two pairs."""
        if metric not in ("mae", "rmse"):
            raise InvalidInput(f"Errors have the metrics mae and rmse, not {metric!r}.")
        if self.count < 2:
            return 0.0, math.inf
        z = normal_quantile(0.5 + level / 2.0)
        mean, square = (self.absolute, self.square) if metric == "mae" else (self.square, self.fourth)
        mean, square = mean / self.count, square / self.count
        half = z * math.sqrt(max(0.0, square - mean * mean) / (self.count - 1))
        low, high = max(0.0, mean - half), mean + half
        return (low, high) if metric == "mae" else (math.sqrt(low), math.sqrt(high))

    def to_dict(self) -> dict[str, Any]:
        """{"kind": "numbers", ...} with the five sums."""
        return {"kind": "numbers", **asdict(self)}


Quality = Classes | Numbers


def from_dict(value: Mapping[str, Any]) -> Quality:
    """The inverse of both `to_dict`s."""
    try:
        if value["kind"] == "numbers":
            sums = (float(value[key]) for key in ("error", "absolute", "square", "fourth"))
            return Numbers(int(value["count"]), *sums)
        if value["kind"] == "classes":
            return Classes({(str(a), str(b)): int(times) for a, b, times in value["confusion"]})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"These are no quality counts: {error!r}.") from error
    raise InvalidInput(f"Quality counts are of kind classes or numbers, not {value['kind']!r}.")


def by_minute(rows: Iterable[tuple[float, Any, Any]], *, numbers: bool) -> dict[int, Quality]:
    """{start of the minute, seconds since the epoch: quality} of (at, prediction, label) rows in any order.

    `at` is when the prediction was made: late labels count for the minute that they judge.
    """
    grouped: dict[int, list[tuple[Any, Any]]] = {}
    for at, prediction, label in rows:
        grouped.setdefault(math.floor(at / MINUTE_SECONDS) * MINUTE_SECONDS, []).append((prediction, label))
    make = Numbers.of if numbers else Classes.of
    return {minute: make(grouped[minute]) for minute in sorted(grouped)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A window's quality against the baseline's; `interval` is that of observed - baseline."""

    metric: str
    observed: float
    baseline: float
    interval: tuple[float, float]
    level: float
    n: int
    worse: bool
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "interval": list(self.interval)}


def compare(current: Quality, baseline: Quality, *, margin: float = 0.0, level: float = 0.95) -> Comparison:
    """Whether `current` is worse than `baseline`: the whole interval of the difference lies beyond `margin`.

    Classes: accuracy, Newcombe's interval of two independent proportions. Numbers: MAE, the two intervals combined in
    the same way. InvalidInput when the kinds differ or one side has too few pairs (1, or 2 for numbers).
    """
    if isinstance(current, Classes) and isinstance(baseline, Classes):
        _enough(current.count, baseline.count, 1)
        observed, reference = current.right / current.count, baseline.right / baseline.count
        interval = newcombe(current.right, current.count, baseline.right, baseline.count, level)
        metric, worse = "accuracy", interval[1] < -margin
    elif isinstance(current, Numbers) and isinstance(baseline, Numbers):
        _enough(current.count, baseline.count, 2)
        observed, reference = current.absolute / current.count, baseline.absolute / baseline.count
        (low, high), (other_low, other_high) = current.interval("mae", level), baseline.interval("mae", level)
        interval = (
            observed - reference - math.hypot(observed - low, other_high - reference),
            observed - reference + math.hypot(high - observed, reference - other_low),
        )
        metric, worse = "mae", interval[0] > margin
    else:
        raise InvalidInput("Classes and numbers cannot be compared: the baseline is of the other kind.")
    words = "is worse than" if worse else "is not shown to be worse than"
    basis = f"n={current.count}; {100 * level:g} % interval"
    message = (
        f"{metric} {observed:.4g} {words} the baseline's {reference:.4g} ({basis} "
        f"of the difference {interval[0]:+.4f} to {interval[1]:+.4f}, margin {margin:g})"
    )
    return Comparison(
        metric=metric,
        observed=observed,
        baseline=reference,
        interval=interval,
        level=level,
        n=current.count,
        worse=worse,
        message=message,
    )


def _enough(current: int, baseline: int, needed: int) -> None:
    if min(current, baseline) < needed:
        raise InvalidInput(f"{needed} labelled rows are needed on both sides; there are {current} and {baseline}.")


def _class(value: Any) -> str:
    key = category_key(value)
    if key is None:
        raise InvalidInput("A pair has no label or no prediction: leave it out until both are there.")
    return key


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{value!r} is no number; for classes count classes.") from error
    if not math.isfinite(number):
        raise InvalidInput(f"{value!r} is no finite number.")
    return number
