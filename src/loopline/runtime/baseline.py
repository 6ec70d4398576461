"""The baseline of a training table and the signature of the model, taken by the training run itself.

The JSON is that of ``loopline.domain.baselines``, whose docstring defines it; a test holds the two together. numpy only
makes it faster.
"""

import json
import math
import sys
import warnings
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from typing import Any

from . import tracking

FORMAT = 1
BINS = 10
MAX_CATEGORIES = 100
MAX_ROWS = 200_000  # a larger table is thinned evenly: a decile of this many rows is good to 0.1 %
PREDICTION, SCORE = "@prediction", "@score"

Columns = dict[str, list[Any]]


class BaselineError(ValueError):
    """No baseline can be taken; the message says why."""


# -- the JSON ---------------------------------------------------------------------------------------------------------


def of_columns(columns: Columns, categorical: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The baseline of columns of one length. Numbers get decile cells, all else and ``categorical`` get categories.

    Raises ``BaselineError`` when there is no row or a column is shorter than another.
    """
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise BaselineError("the table has no rows, or columns of different lengths")
    features = {
        name: _categories(column) if name in categorical or not _is_numeric(column) else _numbers(column)
        for name, column in columns.items()
    }
    return {"format": FORMAT, "rows": lengths.pop(), "features": features}


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_numeric(column: list[Any]) -> bool:
    return {type(value) for value in column if value is not None} <= {int, float}


def _numbers(column: list[Any]) -> dict[str, Any]:
    known = sorted(float(value) for value in column if not _missing(value))
    edges = _edges(known)
    counts = [0] * (len(edges) + 1)
    start = 0
    for cell, edge in enumerate([*edges, math.inf]):
        end = len(known) if cell == len(edges) else bisect_left(known, edge, start)
        counts[cell], start = end - start, end
    finite = [value for value in known if math.isfinite(value)]
    mean = math.fsum(finite) / len(finite) if finite else None
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / len(finite)) if mean is not None else None
    return {
        "kind": "numeric",
        "edges": edges,
        "counts": counts,
        "missing": len(column) - len(known),
        "mean": mean,
        "sd": sd,
        "minimum": finite[0] if finite else None,
        "maximum": finite[-1] if finite else None,
    }


def _edges(ordered: list[float]) -> list[float]:
    if not ordered:
        return []
    first, last = ordered[0], ordered[-1]
    if first == last:
        return [first, math.nextafter(first, math.inf)] if math.isfinite(first) else []
    places = [ordered[j * len(ordered) // BINS] for j in range(1, BINS)]
    edges = set(places)
    for value, times in Counter([first, *places]).items():
        if times > 1:
            above = bisect_right(ordered, value)
            edges.update(ordered[above : above + 1])
    return sorted(edge for edge in edges if edge > first and math.isfinite(edge))


def _categories(column: list[Any]) -> dict[str, Any]:
    found = Counter(_key(value) for value in column if not _missing(value))
    kept = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES]
    listed = [count for _, count in kept]
    return {
        "kind": "categorical",
        "categories": [key for key, _ in kept],
        "counts": [*listed, sum(found.values()) - sum(listed)],
        "missing": len(column) - sum(found.values()),
    }


def _key(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    return str(value)


# -- tables -----------------------------------------------------------------------------------------------------------


def columns_of(table: Any, names: Sequence[str] | None = None) -> Columns | None:
    """Columns of plain values of a data frame, an Arrow table, a 2-D array, or a list of dicts or of lists.

    None when it is no table. Columns without a name are called x0, x1, ... Raises ``BaselineError`` when ``names`` are
    not as many as the columns.
    """
    columns = _named_columns(table)
    if columns is None:
        rows = _unnamed_rows(table)
        if rows is None:
            return None
        columns = {f"x{index}": list(column) for index, column in enumerate(zip(*rows, strict=True))}
    if names is not None:
        if len(names) != len(columns):
            raise BaselineError(f"there are {len(names)} feature names for {len(columns)} columns")
        columns = dict(zip(map(str, names), columns.values(), strict=True))
    return {name: [_plain(value) for value in column] for name, column in columns.items()}


def _named_columns(table: Any) -> Columns | None:
    if hasattr(table, "columns") and hasattr(table, "dtypes"):  # pandas, Polars
        step = _stride(len(table))
        return {str(name): table[name].to_numpy()[::step].tolist() for name in table.columns}
    if hasattr(table, "column_names") and hasattr(table, "to_pydict"):  # Arrow
        step = _stride(table.num_rows)
        return {str(name): values[::step] for name, values in table.to_pydict().items()}
    if isinstance(table, list) and table and all(isinstance(row, dict) for row in table):
        names = dict.fromkeys(name for row in table for name in row)
        rows = table[:: _stride(len(table))]
        return {str(name): [row.get(name) for row in rows] for name in names}
    return None


def _unnamed_rows(table: Any) -> list[Any] | None:
    if getattr(table, "ndim", None) == 2 and hasattr(table, "tolist"):
        rows: list[Any] = table[:: _stride(len(table))].tolist()
        return rows
    if isinstance(table, list) and table and all(isinstance(row, list | tuple) for row in table):
        return table[:: _stride(len(table))] if len({len(row) for row in table}) == 1 else None
    return None


def _stride(rows: int) -> int:
    return max(1, math.ceil(rows / MAX_ROWS))


def _plain(value: Any) -> Any:
    if type(value) in (float, int, str, bool) or value is None:
        return value
    item = value.item() if hasattr(value, "item") else value
    if type(item) in (float, int, str, bool) or item is None:
        return item
    return None if type(item).__name__ in ("NAType", "NaTType") else str(item)


# -- the model --------------------------------------------------------------------------------------------------------


def take(model: Any, arguments: dict[str, Any]) -> str | None:
    """Write the baseline and the signature of a model trained by a step; the reason when that is not possible.

    The training table is the first argument whose columns the model names (``feature_names_in_``), or has as many of as
    the model was fitted with (``n_features_in_``), for a table whose columns cannot be anything else.
    """
    home = tracking.folder()
    if home is None or _taken(home):
        return None
    reason = "none of the step's arguments is a table"
    for table in arguments.values():
        columns = columns_of(table)
        if columns is None:
            continue
        features = _features(model, table, columns)
        if isinstance(features, str):
            reason = features
            continue
        seen = {name: columns[name] for name in features}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model fitted with names may be asked without
            answers = _answers(model, table, seen)
        _write(home, seen, answers)
        return None
    return reason


def _taken(home: str) -> bool:
    import os

    return os.path.exists(f"{home}/outputs/baseline.json")


def _features(model: Any, table: Any, columns: Columns) -> list[str] | str:
    """Which columns the model was trained on; or why that is not known."""
    names = getattr(model, "feature_names_in_", None)
    if names is not None:
        wanted = [str(name) for name in names]
        lacking = [name for name in wanted if name not in columns]
        return wanted if not lacking else f"the model was trained on {lacking[0]!r}, which no argument has as a column"
    count = getattr(model, "n_features_in_", None)
    if count is None:
        return "the model does not say which features it was trained on"
    if count != len(columns):
        return f"the model was trained on {count} features, the table has {len(columns)} columns"
    if isinstance(table, list) and isinstance(table[0], dict):
        # Which place each key took in the training rows is not known, and a guess would mix up the features.
        return "the model does not name its features"
    return list(columns)


def _answers(model: Any, table: Any, seen: Columns) -> Columns:
    """The model's predictions and, for two classes, its scores on the table; nothing when it cannot be asked."""
    rows = _rows_for(model, table, seen)
    answers = {PREDICTION: [_plain(value) for value in _as_list(model.predict(rows))]}
    if len(getattr(model, "classes_", ())) == 2 and callable(getattr(model, "predict_proba", None)):
        answers[SCORE] = [float(row[1]) for row in _as_list(model.predict_proba(rows))]
    count = len(next(iter(seen.values())))
    if any(len(values) != count for values in answers.values()):
        raise BaselineError(f"predict gave {len(answers[PREDICTION])} answers for {count} rows")
    return answers


def _rows_for(model: Any, table: Any, seen: Columns) -> Any:
    """The table as the model was fitted with it: a frame by name, else rows in the model's order."""
    if hasattr(table, "columns") and hasattr(table, "dtypes"):
        chosen = table[list(seen)][:: _stride(len(table))]
        return chosen if getattr(model, "feature_names_in_", None) is not None else chosen.to_numpy()
    rows = [list(row) for row in zip(*seen.values(), strict=True)]
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return rows
    plain = all(_is_numeric(column) for column in seen.values())
    return numpy.array(rows, dtype=float) if plain else numpy.array(rows, dtype=object)


def _as_list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def signature_of(columns: Columns) -> list[dict[str, Any]]:
    """The features of a signature: name, type, and whether a value must be given.

    A column of whole numbers is a ``number``: that training saw no fraction is no promise that traffic brings none.
    """
    return [
        {"name": name, "type": _type(column), "required": not any(map(_missing, column))}
        for name, column in columns.items()
    ]


def _type(column: list[Any]) -> str:
    kinds = {type(value) for value in column if not _missing(value)}
    if kinds == {bool}:
        return "boolean"
    return "number" if kinds <= {int, float} else "string"


def _write(home: str, features: Columns, answers: Columns) -> None:
    described: dict[str, Any] = {"features": signature_of(features)}
    categorical = frozenset(name for name in answers if name == PREDICTION and _is_class(answers))
    if PREDICTION in answers:
        kinds = {type(value) for value in answers[PREDICTION]}
        described["prediction"] = {"type": "integer" if kinds == {int} else _type(answers[PREDICTION])}
        if categorical:
            described["prediction"]["classes"] = sorted(set(answers[PREDICTION]), key=lambda item: (str(item), item))
    for name, document in (("baseline", of_columns({**features, **answers}, categorical)), ("signature", described)):
        with open(f"{home}/outputs/{name}.json", "w", encoding="utf-8") as file:
            file.write(json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False))
    tracking.write([{"kind": "baseline", "path": "outputs/baseline.json"}])


def _is_class(answers: Columns) -> bool:
    """Whether predictions are classes: not numbers, or few whole numbers."""
    values = answers[PREDICTION]
    return not _is_numeric(values) or (all(type(value) is int for value in values) and len(set(values)) <= BINS)


def log_baseline(table: Any, feature_names: Sequence[str] | None = None, score: Any = None) -> None:
    """Write the baseline and the signature of a table as the model sees it. Raises ``BaselineError``.

    ``score``: the model's answer for each row. Outside a job nothing is written.
    """
    columns = columns_of(table, feature_names)
    if columns is None:
        raise BaselineError(f"a {type(table).__name__} is no table: give rows, a 2-D array or a data frame")
    answers: Columns = {}
    if score is not None:
        given = [_plain(value) for value in _as_list(score)]
        answers[PREDICTION] = given[:: _stride(len(given))]
        if len(answers[PREDICTION]) != len(next(iter(columns.values()), [])):
            raise BaselineError("score must have one value for each row of the table")
    home = tracking.folder()
    if home is not None:
        _write(home, columns, answers)
