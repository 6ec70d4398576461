"""What a batch gives: predictions as columns of CSV, as JSON lines or as Parquet; pieces first, then one file.

Columns: those that are kept, then the prediction's. A prediction that is an object gives a column for each of its keys
(in CSV an object inside it one for each of its own: ``probabilities.yes``); any other is the column ``prediction``. In
CSV null is an empty cell, truth is ``true`` or ``false``, and a list is its JSON.
"""

# Jobs name files by plain paths, as all of the runtime does.
# ruff: noqa: PTH123

import csv
import hashlib
import io
import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

COPY_BYTES = 1 << 20
PLAIN = "prediction"
FORMS = ("csv", "jsonl", "parquet")
_PLAIN_TYPES = frozenset({str, int, float, type(None)})


class OutputError(ValueError):
    """The output cannot be written; the message says why."""


def _native(value: Any) -> Any:
    for name in ("tolist", "item"):
        method = getattr(value, name, None)
        if callable(method):
            return method()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def _encoder(default: Callable[[Any], Any]) -> Callable[[Any], str]:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=default).encode


_encode = _encoder(_native)
_encode_kept = _encoder(str)  # what is passed through may be a date or a decimal


def problem_of(prediction: Any) -> str | None:
    """Why a prediction cannot be written, or None."""
    try:
        _encode(prediction)
    except (TypeError, ValueError, RecursionError) as error:
        return f"the prediction is not JSON: {error}"
    return None


def part(form: str, keep: list[str], kept: list[list[Any]], predictions: list[Any]) -> tuple[list[str], bytes]:
    """(the columns after the kept ones, the piece's bytes) of some rows. CSV pieces have no header.

    Raises ``ValueError`` when a prediction is not JSON, see ``problem_of``.
    """
    if form != "csv":
        return _lines(keep, kept, predictions)
    return part_of_columns(keep, kept, *_columns(predictions))


def part_of_columns(
    keep: list[str], kept: list[list[Any]], names: list[str], columns: list[list[Any]]
) -> tuple[list[str], bytes]:
    """``part`` for CSV, of predictions that are columns already."""
    _check_names(keep, names)
    texts = [_cells(column) for column in columns]
    buffer = io.StringIO(newline="")
    write = csv.writer(buffer, lineterminator="\n").writerows
    if keep:
        kept_texts = [_cells(list(column), _encode_kept) for column in zip(*kept, strict=True)]
        write(zip(*kept_texts, *texts, strict=True))
    else:
        write(zip(*texts, strict=True))
    return names, buffer.getvalue().encode(errors="replace")


def _check_names(keep: list[str], names: list[str]) -> None:
    twice = [name for name in keep if name in names]
    if twice:
        raise OutputError(f"the kept column {twice[0]!r} is a column of the predictions, too")


def _lines(keep: list[str], kept: list[list[Any]], predictions: list[Any]) -> tuple[list[str], bytes]:
    names: dict[str, None] = {}
    lines = []
    for values, prediction in zip(kept, predictions, strict=True):
        fields = prediction if isinstance(prediction, dict) else {PLAIN: prediction}
        names.update(dict.fromkeys(map(str, fields)))
        first = _encode_kept(dict(zip(keep, values, strict=True))) if keep else "{}"
        rest = _encode(fields)
        lines.append(rest if first == "{}" else first if rest == "{}" else f"{first[:-1]},{rest[1:]}")
    _check_names(keep, list(names))
    return list(names), "".join(line + "\n" for line in lines).encode(errors="replace")


def _columns(predictions: list[Any]) -> tuple[list[str], list[list[Any]]]:
    """Predictions as named columns, in the order in which the names first appear."""
    if not any(isinstance(prediction, dict) for prediction in predictions):
        return [PLAIN], [predictions]
    rows = [prediction if isinstance(prediction, dict) else {PLAIN: prediction} for prediction in predictions]
    first = rows[0].keys()
    keys = list(first) if all(row.keys() == first for row in rows) else list(dict.fromkeys(k for r in rows for k in r))
    names: list[str] = []
    columns: list[list[Any]] = []
    for key in keys:
        column = [row.get(key) for row in rows]
        if any(isinstance(value, dict) for value in column):
            inner_names, inner = _columns([value if isinstance(value, dict) else {"": value} for value in column])
            for name, values in zip(inner_names, inner, strict=True):
                if name or any(value is not None for value in values):
                    names.append(f"{key}.{name}" if name else str(key))
                    columns.append(values)
        else:
            names.append(str(key))
            columns.append(column)
    return names, columns


def _cells(column: list[Any], encode: Callable[[Any], str] = _encode) -> list[Any]:
    """What the CSV writer spells rightly by itself stays as it is."""
    if set(map(type, column)) <= _PLAIN_TYPES:
        numbers = [value for value in column if type(value) is float]
        total = sum(numbers)
        if total - total == 0:
            return column
    return [_cell(value, encode) for value in column]


def _cell(value: Any, encode: Callable[[Any], str]) -> Any:
    if value is None or isinstance(value, str):
        return value
    return encode(value).strip('"')


# -- one file from the pieces -----------------------------------------------------------------------------------------


class _Digesting:
    """A new file whose digest is known when it is closed."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "xb")  # noqa: SIM115 - closed by ``close``
        self._sha = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        self._sha.update(data)
        self.size += len(data)
        self._file.write(data)

    def copy(self, path: str) -> None:
        with open(path, "rb") as source:
            while piece := source.read(COPY_BYTES):
                self.write(piece)

    def close(self) -> tuple[int, str]:
        self._file.close()
        return self.size, self._sha.hexdigest()


def join(paths: list[str], target: str) -> tuple[int, str]:
    """Write pieces one after another to a new file; gives its size and SHA-256."""
    out = _Digesting(target)
    for path in paths:
        out.copy(path)
    return out.close()


def join_csv(paths: list[str], columns: list[list[str]], keep: list[str], target: str) -> tuple[list[str], int, str]:
    """One CSV with a header from pieces without; gives (columns, size, SHA-256).

    Where pieces differ in their columns, the file has them all, and a cell is empty where a piece had none.
    """
    names = list(dict.fromkeys(name for each in columns for name in each)) or [PLAIN]
    _check_names(keep, names)
    out = _Digesting(target)
    out.write(_csv_lines([[*keep, *names]]))
    for path, own in zip(paths, columns, strict=True):
        if own == names:
            out.copy(path)
            continue
        places = [*range(len(keep)), *(len(keep) + own.index(name) if name in own else -1 for name in names)]
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                out.write(_csv_lines([[row[place] if place >= 0 else "" for place in places]]))
    size, digest = out.close()
    return [*keep, *names], size, digest


def _csv_lines(rows: list[list[str]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def library_for_parquet() -> str:
    """The library of this environment that writes Parquet; raises ``OutputError``."""
    found = next((name for name in ("polars", "pyarrow") if find_spec(name)), None)
    if found is None:
        raise OutputError("writing Parquet needs polars or pyarrow in the model's requirements.txt")
    return found


def join_parquet(paths: list[str], target: str) -> tuple[int, str]:
    """One Parquet file from pieces of JSON lines; gives its size and SHA-256. Types are those of all pieces."""
    if library_for_parquet() == "polars":
        _join_by_polars(paths, target)
    else:
        _join_by_arrow(paths, target)
    from .values import digest_file

    return digest_file(target)


def _join_by_polars(pieces: list[str], target: str) -> None:
    polars = import_module("polars")
    if not pieces:
        polars.DataFrame({PLAIN: []}).write_parquet(target)
        return
    polars.scan_ndjson(pieces, infer_schema_length=None).sink_parquet(target)


def _join_by_arrow(pieces: list[str], target: str) -> None:
    arrow, reader, writer = (import_module(name) for name in ("pyarrow", "pyarrow.json", "pyarrow.parquet"))
    schemas = [reader.read_json(path).schema for path in pieces]
    if not schemas:
        writer.write_table(arrow.table({PLAIN: []}), target)
        return
    schema = arrow.unify_schemas(schemas, promote_options="permissive")
    options = reader.ParseOptions(explicit_schema=schema)
    with writer.ParquetWriter(target, schema) as out:
        for path in pieces:
            out.write_table(reader.read_json(path, parse_options=options))
