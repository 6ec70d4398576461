"""Tables from files: CSV, JSON, JSON lines, npy and Parquet, as rows (dicts) or as what a library makes of them.

CSV is typed by column, with the standard library alone: a column is boolean, whole, decimal or text for all its rows;
an empty cell is None. A number with a leading zero (``007``) is a text, and so are ``nan`` and ``inf``.
"""

import csv
import json
import math
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

Row = dict[str, Any]


class TableError(ValueError):
    """A file that is no table; the message names the file and the line."""


def read(path: str, hint: str | None = None) -> Any:
    """A data file as ``hint`` asks (rows, pandas, polars, pyarrow, numpy); without a hint as its suffix suggests:
    CSV and JSON lines as rows, JSON as its value, npy as an array, Parquet as a data frame, else the path itself.
    """
    suffix = os.path.splitext(path)[1].lower()
    if hint in ("pandas", "polars", "pyarrow"):
        return _frame(path, suffix, hint)
    if suffix == ".parquet":
        return read_rows(path) if hint == "rows" else read_parquet(path, hint)
    if suffix == ".npy":
        return import_module("numpy").load(path, allow_pickle=False)
    if hint == "numpy":
        rows = read_rows(path)
        return import_module("numpy").array([list(row.values()) for row in rows], dtype=float)
    if suffix == ".json":
        return _json(path)
    if suffix in (".csv", ".tsv", ".jsonl", ".ndjson"):
        return read_rows(path)
    from pathlib import Path

    return Path(path)


def read_rows(path: str, form: str | None = None) -> list[Row]:
    """The rows of a table. ``form``: csv, tsv, json, jsonl, parquet; None = by the suffix. Raises ``TableError``."""
    readers: dict[str, Callable[[str], list[Row]]] = {
        "csv": _csv_rows,
        "tsv": lambda name: _csv_rows(name, "\t"),
        "json": _json_rows,
        "jsonl": _line_rows,
        "ndjson": _line_rows,
        "parquet": _parquet_rows,
    }
    kind = form or os.path.splitext(path)[1].lower().lstrip(".")
    if kind not in readers:
        raise TableError(f"{os.path.basename(path)} is no table known here: use {', '.join(readers)}")
    return readers[kind](path)


def read_cells(path: str, delimiter: str = ",") -> tuple[list[str], list[list[str]]]:
    """Header and cells of a CSV file as texts. Raises ``TableError``."""
    name = os.path.basename(path)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            cells = []
            for row in reader:
                if row and len(row) != len(header):
                    raise TableError(f"{name}, line {reader.line_num}: {len(row)} cells; the header has {len(header)}")
                if row:
                    cells.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise TableError(f"{name}, line {reader.line_num}: {error}") from None
    if not header or len(set(header)) != len(header):
        raise TableError(f"{name}: the first line must name each column once")
    return header, cells


def _csv_rows(path: str, delimiter: str = ",") -> list[Row]:
    header, cells = read_cells(path, delimiter)
    columns = [_typed(list(column)) for column in zip(*cells, strict=True)]
    return [dict(zip(header, row, strict=True)) for row in zip(*columns, strict=True)]


def _typed(column: list[str]) -> list[Any]:
    known = [text for text in column if text != ""]
    for reader in KINDS.values():
        try:
            values = {text: reader(text) for text in set(known)}
        except ValueError:
            continue
        return [values.get(text) for text in column]
    raise AssertionError("every text is a text")


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise ValueError(text) from None


def _whole(text: str) -> int:
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or (digits[0] == "0" and len(digits) > 1):
        raise ValueError(text)
    return int(text)


def _decimal(text: str) -> float:
    number = float(text)
    whole = text.lstrip("+-").partition(".")[0]
    if not math.isfinite(number) or "_" in text or text != text.strip() or (whole[:1] == "0" and len(whole) > 1):
        raise ValueError(text)
    return number


# How a column's cells are read, the most special first; a reader raises ValueError for what it cannot be.
KINDS: dict[str, Callable[[str], Any]] = {"boolean": _boolean, "whole": _whole, "decimal": _decimal, "text": str}


def _json(path: str) -> Any:
    with open(path, "rb") as file:
        try:
            return json.loads(file.read())
        except ValueError as error:
            raise TableError(f"{os.path.basename(path)}: {error}") from None


def _check_rows(rows: Any, path: str) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TableError(f"{os.path.basename(path)} must be a list of objects, one for each row")
    return rows


def _json_rows(path: str) -> list[Row]:
    return _check_rows(_json(path), path)


def _line_rows(path: str) -> list[Row]:
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except ValueError as error:
                    raise TableError(f"{os.path.basename(path)}, line {number}: {error}") from None
    return _check_rows(rows, path)


def _parquet_rows(path: str) -> list[Row]:
    table = read_parquet(path, None)
    if hasattr(table, "to_pylist"):
        rows: list[Row] = table.to_pylist()
    elif hasattr(table, "to_dicts"):
        rows = table.to_dicts()
    else:
        rows = table.to_dict("records")
    return rows


def read_parquet(path: str, hint: str | None) -> Any:
    """A Parquet file as the hinted library's table; without a hint as that of the library which wrote it."""
    library = hint if hint in ("pandas", "polars", "pyarrow") else _writer(path)
    candidates = [library] if hint == library else [library, "pandas", "polars", "pyarrow"]
    found = next((name for name in candidates if name and find_spec(name)), None)
    if found is None:
        raise TableError("reading Parquet needs pandas, polars or pyarrow in requirements.txt")
    if found == "pyarrow":
        return import_module("pyarrow.parquet").read_table(path)
    return import_module(found).read_parquet(path)


def _writer(path: str) -> str:
    """Which library wrote a Parquet file, by its footer: ``footer | u32 length | PAR1``."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        if len(tail) < 8 or tail[4:] != b"PAR1":
            raise TableError(f"{os.path.basename(path)} is no Parquet file")
        file.seek(max(0, size - 8 - int.from_bytes(tail[:4], "little")))
        footer = file.read(size)
    if b"Polars" in footer:
        return "polars"
    return "pandas" if b"pandas" in footer else "pyarrow"


def _frame(path: str, suffix: str, library: str) -> Any:
    """A data frame, read by the library itself so that its own rules for types hold."""
    if suffix == ".parquet":
        return read_parquet(path, library)
    lines = suffix in (".jsonl", ".ndjson")
    if library == "pandas":
        pandas = import_module("pandas")
        if suffix in (".json", ".jsonl", ".ndjson"):
            return pandas.read_json(path, lines=lines)
        return pandas.read_csv(path, sep="\t" if suffix == ".tsv" else ",")
    if library == "polars":
        polars = import_module("polars")
        if lines:
            return polars.read_ndjson(path)
        return polars.read_json(path) if suffix == ".json" else polars.read_csv(path, separator=_separator(suffix))
    return import_module("pyarrow").Table.from_pylist(read_rows(path))


def _separator(suffix: str) -> str:
    return "\t" if suffix == ".tsv" else ","
