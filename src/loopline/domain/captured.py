"""What captured requests say: rows, predictions, and in which spool segment a request lies. Pure functions over bytes.

A segment is called ``<start in ms, 15 digits>.seg``; a request id carries the time it was made. Beside a segment may
stand ``<same>.joins``: one JSON line ``[offset, join id]`` for each record to which a client gave an id of its own.
"""

import bisect
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.lib import format as npy

SUFFIX = ".seg"
JOINS_SUFFIX = ".joins"
LONGEST_REQUEST_SECONDS = 3700.0  # the longest time-out that an endpoint may have, and the time to write the record
_SEGMENT = re.compile(r"[0-9]{15}\.seg")
_NUMBERS = frozenset({int, float})
_LABELS = ("prediction", "label", "class")
_SCORES = ("score", "probability")
_DISTRIBUTIONS = ("probabilities", "scores")

Row = list[Any] | dict[str, Any]


class Prediction(NamedTuple):
    """One row's answer: a class or number, and a score where there is one."""

    value: Any
    score: float | None
    probabilities: Mapping[str, float] | None = None


# -- segments ---------------------------------------------------------------------------------------------------------


def segments(names: Iterable[str]) -> list[str]:
    """The segment names among file names, oldest first."""
    return sorted(name for name in names if _SEGMENT.fullmatch(name))


def started_at(segment: str) -> float:
    """When a segment was begun, in seconds since the epoch."""
    return int(segment[: -len(SUFFIX)]) / 1000


def candidates(names: Sequence[str], start: float, end: float) -> list[str]:
    """Of sorted segment names, those that can hold records of requests made in ``start <= t <= end``."""
    # A record is written when the request has ended. Clocks of two processes differ by less than a second.
    last = bisect.bisect_right(names, end + LONGEST_REQUEST_SECONDS, key=started_at)
    first = bisect.bisect_left(names, start - 1.0, key=started_at)
    return list(names[max(first - 1, 0) : last])


def encode_join(offset: int, join: str) -> bytes:
    """One line of a segment's index of join ids."""
    return msgspec.json.encode([offset, join]) + b"\n"


def find_joins(index: bytes, wanted: Mapping[str, Any]) -> dict[str, set[int]]:
    """{join id: offsets of its records, or of their blocks} of those wanted that the index lists; a torn last line is
    passed over."""
    found: dict[str, set[int]] = {}
    for line in index.splitlines():
        try:
            offset, join = json.loads(line)
        except (ValueError, TypeError):
            continue
        if join in wanted:
            found.setdefault(join, set()).add(offset)
    return found


# -- rows -------------------------------------------------------------------------------------------------------------


def rows_of(content_type: str, body: bytes) -> list[Row] | None:
    """The rows of a predict request as they were sent; None when there are none to be read."""
    if content_type.startswith("text/csv"):
        try:
            return [
                list(cells) for cells in csv.reader(f"{line}\n" for line in body.decode().split("\n")) if cells
            ] or None
        except (UnicodeDecodeError, csv.Error):
            return None
    if content_type.startswith("application/x-npy"):
        return _npy_rows(body)
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    if isinstance(value, dict):
        value = value.get("instances", [value])
    if not isinstance(value, list) or not all(isinstance(row, list | dict) for row in value):
        return None
    return value or None


def _npy_rows(body: bytes) -> list[Row] | None:
    """The rows of a matrix of numbers as ``numpy.save`` writes it, NaN as None."""
    file = io.BytesIO(body)
    try:
        version = npy.read_magic(file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, transposed, dtype = read_header(file)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if dtype.kind not in "iuf" or len(shape) != 2 or len(body) - file.tell() != math.prod(shape) * dtype.itemsize:
        return None
    flat = np.frombuffer(body, dtype=dtype, offset=file.tell())
    rows = flat.reshape(shape, order="F" if transposed else "C").astype(float).tolist()
    return [[None if math.isnan(value) else value for value in row] for row in rows] or None


def arrange(row: Row, names: Sequence[str]) -> list[Any] | None:
    """A row's values in the order of ``names``, None for those it lacks; None when it is an array of another length."""
    if isinstance(row, list):
        return row if len(row) == len(names) else None
    return [row.get(name) for name in names]


def typed(values: Sequence[Any], kinds: Sequence[str]) -> list[Any]:
    """Values as their features' types (number, integer, string, boolean); what is none becomes None."""
    return [_typed(value, kind) for value, kind in zip(values, kinds, strict=True)]


def _typed(value: Any, kind: str) -> Any:
    if value is None or kind == "string":
        return value if isinstance(value, str) else None if value is None else str(value)
    if kind == "boolean":
        if isinstance(value, str):
            return {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower())
        return value if isinstance(value, bool) else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def predictions_of(answer: bytes, positive: Any = None) -> list[Prediction] | None:
    """The predictions of an answer ``{"predictions": [...]}``; None when there are none.

    A prediction is a number or a class, or an object with it as ``prediction`` (or ``label``, ``class``) and with
    ``score`` (or ``probability``) or ``probabilities`` by class, of which the positive class's is the score.
    """
    try:
        value = msgspec.json.decode(answer)
    except (msgspec.DecodeError, RecursionError):
        return None
    found = value.get("predictions") if isinstance(value, dict) else None
    if not isinstance(found, list):
        return None
    return [prediction_of(each, positive) for each in found]


def prediction_of(value: Any, positive: Any) -> Prediction:
    """One entry of the predictions of an answer."""
    if not isinstance(value, dict):
        score = value if type(value) is float and 0.0 <= value <= 1.0 else None
        return Prediction(value if _is_scalar(value) else None, score)
    label = next((value[key] for key in _LABELS if key in value), None)
    score = next((value[key] for key in _SCORES if type(value.get(key)) in _NUMBERS), None)
    spread = next((value[key] for key in _DISTRIBUTIONS if isinstance(value.get(key), dict)), None)
    if spread is not None:
        spread = {str(name): float(share) for name, share in spread.items() if type(share) in _NUMBERS}
        if label is None and spread:
            label = max(spread, key=lambda name: spread[name])
        if score is None and spread:
            score = spread.get(class_key(positive)) if positive is not None else max(spread.values())
    return Prediction(label if _is_scalar(label) else None, None if score is None else float(score), spread)


def class_key(value: Any) -> str:
    """A class as a key of JSON: true, 1 and 1.0 as programs write them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int | float)
