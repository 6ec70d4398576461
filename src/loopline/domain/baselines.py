"""A baseline: what each column looked like in training, as counts that windows of traffic are compared with.

The JSON form, `Baseline.to_dict()`, may be written by any program (a training job writes it in plain Python):

    {"format": 1,
     "rows": 20000,
     "features": {
       "age":  {"kind": "numeric", "edges": [23.0, 31.0, ...], "counts": [2000, ...], "missing": 3,
                "mean": 44.1, "sd": 12.9, "minimum": 18.0, "maximum": 97.0},
       "city": {"kind": "categorical", "categories": ["Oslo", "Rome"], "counts": [15000, 4990, 7], "missing": 3}}}

* Every `counts` plus its `missing` add up to `rows`.
* numeric: `edges` are finite and strictly increasing; a value x belongs to cell bisect.bisect_right(edges, x), so
  there is one count more than edges and the outer cells are open. The default edges are the reference's deciles,
  sorted[j * n // 10] for j = 1..9, each once and only those above the minimum. A value that fills more than one such
  place also has the next larger value as an edge, so that it has a cell of its own; a constant column v has the edges
  v and the next larger double. NaN and null are missing. mean, sd (divisor n), minimum and maximum are those of the
  finite values, null when there are none.
* categorical: one count for each category and a last one for everything else ("other": categories that the baseline
  does not list or has never seen). A category's key is the text itself; true and false for booleans; 3 for 3 and 3.0.
* The model's answer is a column like any other; by convention it is called "@prediction", its score "@score".
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loopline.errors import InvalidInput

FORMAT = 1
PREDICTION = "@prediction"
SCORE = "@score"
_SCAN_EDGES = 32  # up to here one pass per edge is faster than a binary search per value

Column = Sequence[Any] | npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Counts:
    """How many rows fell in each cell of one column, and how many had no value. Windows add up with +."""

    cells: tuple[int, ...]
    missing: int = 0

    @property
    def rows(self) -> int:
        """All rows, those without a value included."""
        return sum(self.cells) + self.missing

    def __add__(self, other: "Counts") -> "Counts":
        if len(self.cells) != len(other.cells):
            raise InvalidInput("These counts belong to different baselines: their numbers of cells differ.")
        cells = tuple(a + b for a, b in zip(self.cells, other.cells, strict=True))
        return Counts(cells, self.missing + other.missing)

    def to_dict(self) -> dict[str, Any]:
        """{"cells": [...], "missing": n}"""
        return {"cells": list(self.cells), "missing": self.missing}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Counts":
        """The inverse of `to_dict`."""
        return cls(_whole_numbers(value.get("cells"), "cells"), _whole_numbers([value.get("missing")], "missing")[0])


@dataclass(frozen=True, slots=True)
class Numeric:
    """A column of numbers; `counts.cells` has one more entry than `edges`."""

    edges: tuple[float, ...]
    counts: Counts
    mean: float | None
    sd: float | None
    minimum: float | None
    maximum: float | None

    def count(self, column: Column) -> Counts:
        """The counts of a window of this column."""
        return _count_numbers(self.edges, _numbers(column))

    def to_dict(self) -> dict[str, Any]:
        """The entry of the JSON form."""
        return {
            "kind": "numeric",
            "edges": list(self.edges),
            "counts": list(self.counts.cells),
            "missing": self.counts.missing,
            "mean": self.mean,
            "sd": self.sd,
            "minimum": self.minimum,
            "maximum": self.maximum,
        }


@dataclass(frozen=True, slots=True)
class Categorical:
    """A column of categories; the last of `counts.cells` is everything that `categories` does not list."""

    categories: tuple[str, ...]
    counts: Counts

    def count(self, column: Column) -> Counts:
        """The counts of a window of this column."""
        found, missing = _count_categories(column)
        listed = tuple(found.get(category, 0) for category in self.categories)
        return Counts((*listed, found.total() - sum(listed)), missing)

    def to_dict(self) -> dict[str, Any]:
        """The entry of the JSON form."""
        return {
            "kind": "categorical",
            "categories": list(self.categories),
            "counts": list(self.counts.cells),
            "missing": self.counts.missing,
        }


Feature = Numeric | Categorical


@dataclass(frozen=True, slots=True)
class Baseline:
    """The reference of every watched column."""

    rows: int
    features: Mapping[str, Feature]

    def count(self, columns: Mapping[str, Column]) -> dict[str, Counts]:
        """The counts of a window: {feature: counts} for the baseline's features; others are passed over.

        InvalidInput names a feature that the window lacks, or whose values are not numbers where numbers belong.
        """
        absent = [name for name in self.features if name not in columns]
        if absent:
            raise InvalidInput(f"The window has no column {', '.join(map(repr, absent))}, which the baseline has.")
        counted = {}
        for name, feature in self.features.items():
            try:
                counted[name] = feature.count(columns[name])
            except InvalidInput as error:
                raise InvalidInput(f"Column {name!r}: {error.message}") from error
        return counted

    def to_dict(self) -> dict[str, Any]:
        """The JSON form described in the module's docstring."""
        return {
            "format": FORMAT,
            "rows": self.rows,
            "features": {name: feature.to_dict() for name, feature in self.features.items()},
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Baseline":
        """The baseline of its JSON form; whatever does not add up is InvalidInput and names the feature."""
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise InvalidInput(f"This is not a baseline of format {FORMAT}.")
        rows, features = value.get("rows"), value.get("features")
        if not isinstance(rows, int) or not isinstance(features, Mapping):
            raise InvalidInput("A baseline needs `rows` (a whole number) and `features` (a table).")
        return cls(rows, {str(name): _feature(str(name), entry, rows) for name, entry in features.items()})


def baseline_from_columns(
    columns: Mapping[str, Column], *, bins: int = 10, max_categories: int = 100, categorical: Collection[str] = ()
) -> Baseline:
    """The baseline of a training table, {column: values}, all of one length.

    Numbers get quantile cells, text and booleans (and whatever `categorical` names) get categories: the
    `max_categories` most frequent ones, ties in alphabetical order.
    """
    if bins < 2 or max_categories < 1:
        raise InvalidInput("A baseline needs 2 or more bins and 1 or more categories.")
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise InvalidInput("A baseline needs columns of one length, with 1 row or more.")
    features: dict[str, Feature] = {}
    for name, column in columns.items():
        if name in categorical or _is_categorical(name, column):
            features[name] = _fit_categories(column, max_categories)
        else:
            features[name] = _fit_numbers(column, bins)
    return Baseline(lengths.pop(), features)


def _fit_numbers(column: Column, bins: int) -> Numeric:
    values = _numbers(column)
    known = np.sort(values[~np.isnan(values)])
    edges = _edges(known, bins)
    finite = known[np.isfinite(known)]
    some = finite.size > 0
    return Numeric(
        edges=edges,
        counts=_count_numbers(edges, values),
        mean=float(finite.mean()) if some else None,
        sd=float(finite.std()) if some else None,
        minimum=float(finite[0]) if some else None,
        maximum=float(finite[-1]) if some else None,
    )


def _edges(ordered: npt.NDArray[np.float64], bins: int) -> tuple[float, ...]:
    """The cell edges of sorted values, by the rule of the module's docstring."""
    if ordered.size == 0:
        return ()
    first, last = float(ordered[0]), float(ordered[-1])
    if first == last:
        return (first, math.nextafter(first, math.inf)) if math.isfinite(first) else ()
    places = ordered[[j * ordered.size // bins for j in range(1, bins)]].tolist()
    edges = set(places)
    for value, times in Counter([first, *places]).items():
        if times > 1:
            above = int(np.searchsorted(ordered, value, side="right"))
            edges.update(ordered[above : above + 1].tolist())
    return tuple(sorted(edge for edge in edges if edge > first and math.isfinite(edge)))


def _fit_categories(column: Column, limit: int) -> Categorical:
    found, missing = _count_categories(column)
    kept = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:limit]
    listed = tuple(count for _, count in kept)
    return Categorical(tuple(key for key, _ in kept), Counts((*listed, found.total() - sum(listed)), missing))


def _numbers(column: Column) -> npt.NDArray[np.float64]:
    try:
        values = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"Numbers are needed here ({error}).") from error
    if values.ndim != 1:
        raise InvalidInput("A column is a flat list of values.")
    return values


def _count_numbers(edges: tuple[float, ...], values: npt.NDArray[np.float64]) -> Counts:
    known = values.size - int(np.count_nonzero(np.isnan(values)))
    if len(edges) <= _SCAN_EDGES:
        at_least = [known, *(int(np.count_nonzero(values >= edge)) for edge in edges), 0]
        cells = [more - less for more, less in itertools.pairwise(at_least)]
    else:
        index = np.searchsorted(np.asarray(edges), values[~np.isnan(values)], side="right")
        cells = np.bincount(index, minlength=len(edges) + 1).tolist()
    return Counts(tuple(cells), values.size - known)


def _count_categories(column: Column) -> tuple["Counter[str]", int]:
    values: Sequence[Any] = column.tolist() if isinstance(column, np.ndarray) else column
    found: Counter[str] = Counter()
    missing = 0
    try:
        # True == 1 in Python, so that a mixture of types is counted by type as well
        distinct = Counter(values) if len(set(map(type, values))) <= 1 else Counter((type(v), v) for v in values)
    except TypeError as error:
        raise InvalidInput(f"A category is a text, a number or a boolean ({error}).") from error
    for value, times in distinct.items():
        key = category_key(value[1] if isinstance(value, tuple) else value)
        if key is None:
            missing += times
        else:
            found[key] += times
    return found, missing


def category_key(value: Any) -> str | None:
    """The key that a category's value is counted under; None when it is missing (None or NaN)."""
    if isinstance(value, str):
        return value
    if value is None:
        return None
    if isinstance(value, np.generic):
        return category_key(value.item())
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_categorical(name: str, column: Column) -> bool:
    if isinstance(column, np.ndarray) and column.dtype.kind != "O":
        kinds = {str(column.dtype.kind)}
    else:
        types = {type(item) for item in column if not _is_missing(item)}
        kinds = {str(np.dtype(each).kind) for each in types}
    if kinds <= {"i", "u", "f"}:
        return False
    if kinds <= {"b", "U"}:
        return True
    raise InvalidInput(
        f"Column {name!r} holds neither numbers only nor text and booleans only: make it one of them, or name it as "
        "categorical."
    )


def _feature(name: str, entry: Any, rows: int) -> Feature:
    try:
        counts = Counts(
            _whole_numbers(entry["counts"], "counts"),
            _whole_numbers([entry["missing"]], "missing")[0],
        )
        feature: Feature
        if entry["kind"] == "numeric":
            edges = tuple(float(edge) for edge in entry["edges"])
            rising = all(a < b for a, b in itertools.pairwise(edges))
            sound = rising and all(map(math.isfinite, edges)) and len(counts.cells) == len(edges) + 1
            statistics = [_optional(entry.get(key)) for key in ("mean", "sd", "minimum", "maximum")]
            feature = Numeric(edges, counts, *statistics)
        elif entry["kind"] == "categorical":
            categories = tuple(str(category) for category in entry["categories"])
            sound = len(set(categories)) == len(categories) == len(counts.cells) - 1
            feature = Categorical(categories, counts)
        else:
            raise InvalidInput(f"its kind {entry['kind']!r} is neither numeric nor categorical")
    except (KeyError, TypeError, ValueError, AttributeError, InvalidInput) as error:
        raise InvalidInput(f"Feature {name!r} of the baseline cannot be read: {error!r}.") from error
    if not sound or counts.rows != rows:
        raise InvalidInput(f"Feature {name!r} of the baseline does not add up: see its edges, categories and counts.")
    return feature


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _whole_numbers(values: Any, name: str) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or not all(type(item) is int and item >= 0 for item in values):
        raise InvalidInput(f"`{name}` must hold whole numbers of 0 or more")
    return tuple(values)
