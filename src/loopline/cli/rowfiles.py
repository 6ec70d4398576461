"""JSON lines from the server as a file for analysis: as they are, as CSV, or typed as Parquet.

CSV and Parquet need to know every column before the first row, so the lines are kept in a file beside the target first.
The target appears under its name when it is whole.
"""

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import click

from loopline.cli.runs import check_target

ROWS_AT_ONCE = 10_000
TIME = "@at"

Write = Callable[[Iterable[bytes], Path], int]


def writer(target: Path) -> Write:
    """What writes this kind of file; a target that is there already or of an unknown kind is a usage error."""
    check_target(target)
    kinds: dict[str, Write] = {".jsonl": _lines, ".csv": _csv, ".parquet": _parquet}
    if target.suffix not in kinds:
        raise click.UsageError(f"{target.name}: the name must end in {', '.join(kinds)}")
    if target.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise click.UsageError("Parquet is written with pyarrow: pip install 'loopline[parquet]', or export to .csv")
    return kinds[target.suffix]


@contextlib.contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A place beside the target that becomes it, or vanishes."""
    draft = target.with_name(f".{target.name}.new")
    try:
        yield draft
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _lines(chunks: Iterable[bytes], target: Path) -> int:
    rows = 0
    with _whole(target) as draft, draft.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
            rows += chunk.count(b"\n")
    return rows


def _csv(chunks: Iterable[bytes], target: Path) -> int:
    with _whole(target) as draft, _kept(chunks, target) as (source, kinds):
        with draft.open("w", newline="") as file:
            table = csv.DictWriter(file, kinds)
            table.writeheader()
            rows = 0
            for row in _rows(source):
                table.writerow({name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in row.items()})
                rows += 1
        return rows


def _parquet(chunks: Iterable[bytes], target: Path) -> int:
    arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    types = {bool: arrow.bool_(), int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
    with _whole(target) as draft, _kept(chunks, target) as (source, kinds):
        fields = {name: types[kind] for name, kind in kinds.items()}
        if TIME in fields:
            fields[TIME] = arrow.timestamp("us", tz="UTC")
        rows, left = 0, _rows(source)
        with parquet.ParquetWriter(draft, arrow.schema(list(fields.items())), compression="zstd") as file:
            while part := list(islice(left, ROWS_AT_ONCE)):
                columns = {name: [_value(name, row.get(name), kind) for row in part] for name, kind in kinds.items()}
                file.write_table(arrow.table({n: arrow.array(c, fields[n]) for n, c in columns.items()}))
                rows += len(part)
        return rows


@contextlib.contextmanager
def _kept(chunks: Iterable[bytes], target: Path) -> Iterator[tuple[Path, dict[str, type]]]:
    """The lines in a file, and {column: the type that all its values have}, in the order of appearance."""
    source = target.with_name(f".{target.name}.lines")
    try:
        with source.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
        kinds: dict[str, type | None] = {}
        for row in _rows(source):
            for name, value in row.items():
                kinds[name] = _common(kinds.get(name), value)
        yield source, {name: kind or str for name, kind in kinds.items()}
    finally:
        source.unlink(missing_ok=True)


def _rows(source: Path) -> Iterator[dict[str, Any]]:
    with source.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _common(kind: type | None, value: Any) -> type | None:
    """The type of a column that had ``kind`` so far and now has this value, too; text holds everything."""
    if value is None:
        return kind
    found = type(value) if type(value) in (bool, int, float) else str
    if kind in (None, found):
        return found
    return float if {kind, found} == {int, float} else str


def _value(name: str, value: Any, kind: type) -> Any:
    if value is None:
        return None
    if name == TIME:
        return round(value * 1e6)
    if kind is str and not isinstance(value, str):
        return json.dumps(value)
    return kind(value)
