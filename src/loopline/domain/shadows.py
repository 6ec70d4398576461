"""What a shadow answers where another version answers the callers: differences as sums that add up, window by window.

A request is compared row by row where both answers have predictions, and byte by byte otherwise. Fractions and scores
differ by how much; classes, texts and whole numbers differ or not, and stand in a matrix.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from loopline.domain.baselines import category_key
from loopline.domain.captured import Prediction, predictions_of
from loopline.domain.latency import Histogram

UNIT = 1e9  # a histogram is exact from 1 on; differences are kept as multiples of 1e-9
CLOSE = 1e-9  # relative: numbers that differ by no more are the same
MAX_CELLS = 400  # of the matrix; what comes later is counted as OTHER
MAX_EXAMPLES = 20
OTHER = ("(other)", "(other)")
_FAILED = 500


class Answered(NamedTuple):
    """One side of a request."""

    status: int
    latency_us: float
    answer: bytes


@dataclass(frozen=True, slots=True)
class Differences:
    """``compared`` requests of which ``differing`` were answered otherwise; ``rows`` of them had a prediction each.

    ``amounts``: absolute differences of numbers, in units of 1e-9; ``labels``: how often (caller's, shadow's) occurred;
    latencies in microseconds; ``dropped`` copies were not sent, because the shadow was behind; ``examples``: ids of
    requests that differ.
    """

    compared: int = 0
    differing: int = 0
    rows: int = 0
    differing_rows: int = 0
    errors: int = 0
    shadow_errors: int = 0
    dropped: int = 0
    amounts: Histogram = field(default_factory=Histogram)
    labels: Mapping[tuple[str, str], int] = field(default_factory=dict)
    latency: Histogram = field(default_factory=Histogram)
    shadow_latency: Histogram = field(default_factory=Histogram)
    examples: tuple[str, ...] = ()

    def __add__(self, other: "Differences") -> "Differences":
        return Differences(
            self.compared + other.compared,
            self.differing + other.differing,
            self.rows + other.rows,
            self.differing_rows + other.differing_rows,
            self.errors + other.errors,
            self.shadow_errors + other.shadow_errors,
            self.dropped + other.dropped,
            self.amounts + other.amounts,
            _capped(Counter(self.labels) + Counter(other.labels)),
            self.latency + other.latency,
            self.shadow_latency + other.shadow_latency,
            (self.examples + other.examples)[-MAX_EXAMPLES:],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain = {name: getattr(self, name) for name in _COUNTS}
        histograms = {name: getattr(self, name).to_dict() for name in _HISTOGRAMS}
        labels = [[ours, theirs, times] for (ours, theirs), times in sorted(self.labels.items())]
        return {**plain, **histograms, "labels": labels, "examples": list(self.examples)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Differences":
        """The inverse of ``to_dict``."""
        plain: dict[str, Any] = {name: int(value[name]) for name in _COUNTS}
        histograms: dict[str, Any] = {name: Histogram.from_dict(value[name]) for name in _HISTOGRAMS}
        return cls(
            **plain,
            **histograms,
            labels={(ours, theirs): int(times) for ours, theirs, times in value["labels"]},
            examples=tuple(value["examples"]),
        )

    def describe(self) -> dict[str, Any]:
        """The report for people: shares, quantiles, milliseconds."""
        amounts = self.amounts
        return {
            "compared": self.compared,
            "dropped": self.dropped,
            "differing": self.differing,
            "differing_share": self.differing / self.compared if self.compared else None,
            "rows": self.rows,
            "differing_rows": self.differing_rows,
            "numbers": None
            if not amounts.count
            else {
                "rows": amounts.count,
                "mean_abs": (amounts.mean or 0.0) / UNIT,
                "max_abs": amounts.maximum / UNIT,
                **{f"p{percent}_abs": _amount(amounts.percentile(percent)) for percent in (50, 90, 99)},
            },
            "labels": [
                {"caller": ours, "shadow": theirs, "rows": times, "same": ours == theirs}
                for (ours, theirs), times in sorted(self.labels.items(), key=lambda item: -item[1])
            ],
            "latency_ms": {"caller": _milliseconds(self.latency), "shadow": _milliseconds(self.shadow_latency)},
            "errors": {"caller": self.errors, "shadow": self.shadow_errors},
            "examples": list(self.examples),
        }


_COUNTS = ("compared", "differing", "rows", "differing_rows", "errors", "shadow_errors", "dropped")
_HISTOGRAMS = ("amounts", "latency", "shadow_latency")


def _amount(found: float | None) -> float:
    """A difference; what is below the unit is none."""
    return 0.0 if found is None or found <= 1.0 else found / UNIT


def _milliseconds(found: Histogram) -> dict[str, float | None]:
    return {
        f"p{percent}": None if (value := found.percentile(percent)) is None else round(value / 1000, 3)
        for percent in (50, 99)
    }


def _capped(counts: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    if len(counts) <= MAX_CELLS:
        return dict(counts)
    kept = dict(counts.most_common(MAX_CELLS - 1))
    kept[OTHER] = kept.get(OTHER, 0) + sum(counts.values()) - sum(kept.values())
    return kept


def compare(pairs: Sequence[tuple[str, Answered, Answered]], dropped: int = 0) -> Differences:
    """The differences in (request id, what the caller got, what the shadow said); ``dropped`` copies were not sent."""
    labels: Counter[tuple[str, str]] = Counter()
    amounts: list[float] = []
    examples: list[str] = []
    rows = differing_rows = 0
    for identifier, ours, theirs in pairs:
        here = _rows(ours, theirs)
        if here is None:
            differs = (ours.status, ours.answer) != (theirs.status, theirs.answer)
        else:
            changed = sum(_row(one, other, amounts, labels) for one, other in here)
            rows, differing_rows, differs = rows + len(here), differing_rows + changed, changed > 0
        if differs:
            examples.append(identifier)
    return Differences(
        len(pairs),
        len(examples),
        rows,
        differing_rows,
        sum(ours.status >= _FAILED for _, ours, _ in pairs),
        sum(theirs.status >= _FAILED for _, _, theirs in pairs),
        dropped,
        Histogram.of([amount * UNIT for amount in amounts]),
        _capped(labels),
        Histogram.of([max(ours.latency_us, 0.0) for _, ours, _ in pairs]),
        Histogram.of([max(theirs.latency_us, 0.0) for _, _, theirs in pairs]),
        tuple(examples[-MAX_EXAMPLES:]),
    )


def _rows(ours: Answered, theirs: Answered) -> list[tuple[Prediction, Prediction]] | None:
    """Both sides' predictions row by row; None where they cannot be laid side by side."""
    if ours.status >= 300 or theirs.status >= 300:
        return None
    here, there = predictions_of(ours.answer), predictions_of(theirs.answer)
    if not here or not there or len(here) != len(there) or any(row.value is None for row in (*here, *there)):
        return None
    return list(zip(here, there, strict=True))


def _row(one: Prediction, other: Prediction, amounts: list[float], labels: Counter[tuple[str, str]]) -> bool:
    """Whether a row was answered otherwise; counts how."""
    differs = False
    if isinstance(one.value, float) or isinstance(other.value, float):
        numbers = [(one.value, other.value)]
    else:
        labels[str(category_key(one.value)), str(category_key(other.value))] += 1
        differs = one.value != other.value
        numbers = [] if one.score is None or other.score is None else [(one.score, other.score)]
    for ours, theirs in numbers:
        try:
            amount = abs(float(ours) - float(theirs))
        except (TypeError, ValueError, OverflowError):
            differs = True  # a number against a text
            continue
        amounts.append(amount)
        differs = differs or amount > CLOSE * max(abs(float(ours)), abs(float(theirs)))
    return differs
