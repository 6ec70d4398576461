"""From the body of a predict request to checked rows: JSON or CSV, against a version's signature.

A checked row is a list of values in signature order. Without a signature rows are passed on as they came.
"""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from operator import itemgetter
from typing import Any

MAX_DEPTH = 64
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_KINDS: dict[str, frozenset[type]] = {
    "number": frozenset({int, float}),
    "integer": frozenset({int, float}),
    "string": frozenset({str}),
    "boolean": frozenset({bool}),
}
_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0"})


class InputError(ValueError):
    """The request is wrong; ``row`` (0-based) and ``feature`` say where, when the place is known."""

    def __init__(self, message: str, row: int | None = None, feature: str | None = None) -> None:
        super().__init__(message)
        self.row = row
        self.feature = feature


def _refuse_constant(name: str) -> Any:
    raise InputError(f"{name} is not JSON; a missing value is null")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InputError(f"the key {twice!r} appears twice in one object")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InputError(f"the number {text[:40]} is too large")
    return number


_decode = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_keys).decode
_decode_large = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_keys
).decode
_LARGE = re.compile(rb"\d[eE]\+?\d{3}|(?<!\d)\d{300}")  # only then can a number be infinite


def _check_depth(body: bytes) -> None:
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(f"the JSON is nested deeper than {MAX_DEPTH} levels")
        elif first in b"]}":
            depth -= 1


def parse_json(body: bytes, *, finite: bool = False) -> Any:
    """Strict JSON: no NaN or Infinity, no key twice in an object, at most ``MAX_DEPTH`` levels; else ``InputError``.

    ``finite`` refuses 1e999 as well, for which a signature has a better message: it knows row and feature.
    """
    _check_depth(body)
    try:
        return (_decode_large if finite and _LARGE.search(body) else _decode)(body.decode())
    except InputError:
        raise
    except UnicodeDecodeError:
        raise InputError("the body is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except (ValueError, RecursionError):
        raise InputError(
            "the body is not JSON that can be read: a number is too long or the nesting too deep"
        ) from None


class Signature:
    """The features of a version, compiled for checking rows.

    ``features`` is the list of ``{"name", "type": number|integer|string|boolean, "required": bool}`` of the registry.
    A feature that is not required may be absent or null and arrives at the model as ``None``. Numbers arrive as
    ``float``, integers as ``int``.
    """

    def __init__(self, features: list[dict[str, Any]]) -> None:
        self.names = [str(feature["name"]) for feature in features]
        self.kinds = [str(feature.get("type", "number")) for feature in features]
        self.required = [bool(feature.get("required", True)) for feature in features]
        unknown = sorted(set(self.kinds) - set(_KINDS))
        if unknown:
            raise ValueError(f"the signature has the unknown type {unknown[0]!r}")
        if not features:
            raise ValueError("the signature has no features")
        if len(set(self.names)) != len(self.names):
            raise ValueError("the signature names a feature twice")
        self._known = frozenset(self.names)
        self._numeric = all(kind == "number" for kind in self.kinds)
        self._pick = self._picker()

    def _picker(self) -> Callable[[dict[str, Any]], list[Any]]:
        if len(self.names) == 1:
            only = self.names[0]
            return lambda row: [row[only]]
        getter = itemgetter(*self.names)
        return lambda row: list(getter(row))

    def check(self, row: Any, index: int) -> list[Any]:
        """``row`` (object or array) as values in signature order. Raises ``InputError`` naming row and feature."""
        values = self._arrange(row, index)
        if self._numeric and _NUMBERS.issuperset(map(type, values)):
            try:
                numbers = list(map(float, values))
            except OverflowError:
                numbers = [math.inf]
            if math.isfinite(sum(numbers)):  # infinity and NaN survive any sum
                return numbers
        return [self._value(value, position, index) for position, value in enumerate(values)]

    def _arrange(self, row: Any, index: int) -> list[Any]:
        if isinstance(row, list):
            if len(row) != len(self.names):
                raise InputError(f"row {index} has {len(row)} values; the model takes {len(self.names)}", index)
            return row
        if not isinstance(row, dict):
            raise InputError(f"row {index} must be an object or an array, not {_type_name(row)}", index)
        if len(row) == len(self.names):
            try:
                return self._pick(row)
            except KeyError:
                pass
        for name in row:
            if name not in self._known:
                raise InputError(f"row {index} has the unknown feature {name!r}", index, name)
        for name, required in zip(self.names, self.required, strict=True):
            if required and name not in row:
                raise InputError(f"row {index} lacks the feature {name!r}", index, name)
        return [row.get(name) for name in self.names]

    def _value(self, value: Any, position: int, index: int) -> Any:
        name, kind = self.names[position], self.kinds[position]
        if value is None:
            if self.required[position]:
                raise InputError(f"row {index}: {name!r} is required and must not be null", index, name)
            return None
        if type(value) not in _KINDS[kind]:
            raise InputError(f"row {index}: {name!r} must be a {kind}, not {_type_name(value)}", index, name)
        if kind in ("number", "integer"):
            return self._number(value, kind, name, index)
        return value

    def _number(self, value: int | float, kind: str, name: str, index: int) -> int | float:
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise InputError(f"row {index}: {name!r} must be a finite number", index, name)
        if kind == "number":
            return number
        if number != math.floor(number):
            raise InputError(f"row {index}: {name!r} must be a whole number, not {value}", index, name)
        return int(value)

    def from_text(self, cells: list[str], index: int) -> list[Any]:
        """One CSV row: every cell is read as its feature's type, an empty one as null. Raises ``InputError``."""
        if len(cells) != len(self.names):
            raise InputError(f"row {index} has {len(cells)} values; the model takes {len(self.names)}", index)
        return self.check([self._cell(text, position, index) for position, text in enumerate(cells)], index)

    def _cell(self, text: str, position: int, index: int) -> Any:
        kind = self.kinds[position]
        if kind == "string":
            return text
        word = text.strip()
        if not word:
            return None
        if kind == "boolean" and word.lower() in _TRUE | _FALSE:
            return word.lower() in _TRUE
        if kind in ("number", "integer"):
            try:
                return int(word) if kind == "integer" and word.lstrip("+-").isdecimal() else float(word)
            except ValueError:
                pass
        name = self.names[position]
        raise InputError(f"row {index}: {name!r} must be a {kind}, not the text {word[:40]!r}", index, name)


_NUMBERS = _KINDS["number"]


def _type_name(value: Any) -> str:
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def read_json(body: bytes, signature: Signature | None) -> list[Any]:
    """The rows of a JSON body, checked. Raises ``InputError`` for anything but a right one."""
    rows = _json_rows(body, finite=signature is None)
    return rows if signature is None else [signature.check(row, index) for index, row in enumerate(rows)]


def _json_rows(body: bytes, *, finite: bool) -> list[Any]:
    document = parse_json(body, finite=finite)
    if not isinstance(document, dict):
        raise InputError('the body must be one row as an object, or {"instances": [row, ...]}')
    if "instances" not in document:
        return [document]
    if len(document) > 1:
        extra = next(key for key in document if key != "instances")
        raise InputError(f"the key {extra!r} beside 'instances' is not known")
    rows = document["instances"]
    if not isinstance(rows, list):
        raise InputError("'instances' must be an array of rows")
    return rows


def read_csv(body: bytes, signature: Signature | None) -> list[Any]:
    """The rows of a CSV body without a header, checked. Raises ``InputError``."""
    try:
        table = [cells for cells in csv.reader(io.StringIO(body.decode(), newline=""), strict=True) if cells]
    except UnicodeDecodeError:
        raise InputError("the body is not UTF-8") from None
    except csv.Error as error:
        raise InputError(f"the body is not CSV: {error}") from None
    if signature is not None:
        return [signature.from_text(cells, index) for index, cells in enumerate(table)]
    return [[_free_cell(text) for text in cells] for cells in table]


def _free_cell(text: str) -> Any:
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
