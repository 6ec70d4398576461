"""The table of a batch, read piece by piece: where it may be cut, and what each piece holds.

A chunk is a range of whole records; where the cuts lie depends on the file alone, so that a batch which begins anew
cuts as before. CSV (first line: the columns' names) and JSON lines are cut by bytes, Parquet by rows. A record that
cannot be read is given back with the reason; a file that is no table at all raises ``TableError``.
"""

# Jobs name files by plain paths, as all of the runtime does.
# ruff: noqa: PTH119, PTH123

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from operator import itemgetter
from typing import Any, NamedTuple

from .signature import InputError, Signature, parse_json
from .tables import KINDS, TableError

CHUNK_ROWS = 20_000  # about this many
MIN_CHUNK_BYTES, MAX_CHUNK_BYTES = 1 << 16, 8 << 20
MAX_RECORD_BYTES = 16 << 20
SAMPLE_BYTES = 1 << 16
SHOWN_CHARACTERS = 10_000  # of a record that is set aside
FORMS = {"csv": ",", "tsv": "\t", "jsonl": "", "ndjson": "", "parquet": ""}
_BLANK = re.compile(rb"^\r?\n", re.MULTILINE)
_BOM = b"\xef\xbb\xbf"

csv.field_size_limit(MAX_RECORD_BYTES)


class Bad(NamedTuple):
    """A record that is set aside. ``row`` counts from 1; ``input`` is the record as far as it could be read."""

    row: int
    reason: str
    input: Any


class Rows(NamedTuple):
    """What a chunk holds: rows as the model takes them (a list, or a matrix), the number of each (from 1), its kept
    values."""

    rows: Any
    numbers: Sequence[int]
    kept: list[list[Any]]
    inputs: Callable[[int], Any]  # the record at a place of ``rows``, for a person
    bad: list[Bad]


class Plan(NamedTuple):
    """How a file is cut: (start, length, rows) of each chunk; bytes, or rows of a Parquet file."""

    form: str
    header: list[str]
    chunks: list[tuple[int, int, int]]

    @property
    def rows(self) -> int:
        """Of the whole table."""
        return sum(chunk[2] for chunk in self.chunks)

    def first_row(self, number: int) -> int:
        """The number of a chunk's first row, counting from 1."""
        return 1 + sum(chunk[2] for chunk in self.chunks[:number])


def plan(path: str, form: str, chunk_rows: int = CHUNK_ROWS) -> Plan:
    """Cut a file into chunks of about ``chunk_rows``. Raises ``TableError``."""
    if form not in FORMS:
        raise TableError(f"{form!r} is no form of a batch's table; forms: {', '.join(FORMS)}")
    if form == "parquet":
        return _plan_parquet(path, chunk_rows)
    with open(path, "rb") as file:
        start, header = _read_header(file, FORMS[form], path) if FORMS[form] else (_after_mark(file), [])
        file.seek(start)
        sample = file.read(SAMPLE_BYTES)
        average = len(sample) / max(1, sample.count(b"\n"))
        target = int(min(max(chunk_rows * average, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES))
        if chunk_rows < CHUNK_ROWS:
            target = max(1, int(chunk_rows * average))
        file.seek(start)
        return Plan(form, header, list(_cut(file, start, target, FORMS[form], path)))


def _after_mark(file: Any) -> int:
    return len(_BOM) if file.read(len(_BOM)) == _BOM else 0


def _read_header(file: Any, delimiter: str, path: str) -> tuple[int, list[str]]:
    """Where the records begin, and the columns' names."""
    name, start = os.path.basename(path), _after_mark(file)
    file.seek(start)
    line = file.readline(MAX_RECORD_BYTES)
    try:
        while line.count(b'"') % 2 and (more := file.readline(MAX_RECORD_BYTES)):
            line += more
        header = next(csv.reader(io.StringIO(line.decode(), newline="\n"), delimiter=delimiter, strict=True), [])
    except (csv.Error, UnicodeDecodeError) as error:
        raise TableError(f"{name}, line 1: {error}") from None
    if not header or len(set(header)) != len(header):
        raise TableError(f"{name}: the first line must name each column once")
    return start + len(line), header


def _cut(file: Any, start: int, target: int, delimiter: str, path: str) -> Iterator[tuple[int, int, int]]:
    """Ranges of whole records of about ``target`` bytes, and how many rows each holds."""
    held = b""
    while True:
        block = file.read(max(target - len(held), 1 << 12))
        held += block
        if not held:
            return
        end, rows = _whole_records(held, delimiter, last=not block)
        if end:
            yield start, end, rows
            start, held = start + end, held[end:]
        elif len(held) > MAX_RECORD_BYTES:
            raise TableError(f"{os.path.basename(path)}: a record at byte {start} is longer than {MAX_RECORD_BYTES}")
        if not block:
            return


def _whole_records(data: bytes, delimiter: str, *, last: bool) -> tuple[int, int]:
    """(length, rows) of the records that end in ``data``, which begins with one. Blank lines are no rows."""
    end = len(data) if last else data.rfind(b"\n") + 1
    if delimiter and b'"' in data:
        return _whole_quoted(data[:end], delimiter, last=last)
    rows = data.count(b"\n", 0, end) + (last and not data.endswith(b"\n"))
    if b"\n\n" in data or b"\n\r\n" in data or data[:1] in (b"\n", b"\r"):
        rows -= len(_BLANK.findall(data, 0, end))
    return end, rows


def _whole_quoted(data: bytes, delimiter: str, *, last: bool) -> tuple[int, int]:
    """The same where a quoted cell may hold the end of a line: only the parser itself knows."""
    lines = _Lines(data.decode("latin-1"))  # one character for each byte; what divides records is ASCII
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    end = rows = 0
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return end, rows
        except csv.Error:
            row = [""]
        if lines.dry and not last:
            return end, rows  # this record goes on behind the data
        end, rows = lines.characters, rows + bool(row)


class _Lines:
    """Lines of a text (ended by ``\\n`` alone), with how much was handed out and whether more was asked for."""

    def __init__(self, text: str) -> None:
        self._lines = io.StringIO(text, newline="\n")
        self.taken: list[str] = []  # since it was last emptied
        self.characters = 0
        self.dry = False

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._lines.readline()
        if not line:
            self.dry = True
            raise StopIteration
        self.characters += len(line)
        self.taken.append(line)
        return line


# -- what a chunk holds -----------------------------------------------------------------------------------------------


class Reader:
    """Reads chunks of one table for one model. ``keep``: columns passed through. Raises ``TableError``.

    ``kinds``: how the columns of a CSV are read when the model has no signature, see ``possible_kinds``.
    """

    def __init__(
        self, path: str, plan_: Plan, signature: Signature | None, keep: list[str], kinds: list[str] | None = None
    ) -> None:
        self.path, self.plan, self.signature, self.keep, self.kinds = path, plan_, signature, keep, kinds
        if plan_.header:
            self._check_columns(plan_.header)
        self._first = [1]
        for chunk in plan_.chunks:
            self._first.append(self._first[-1] + chunk[2])

    def _check_columns(self, there: list[str]) -> None:
        required = []
        if self.signature is not None:
            required = [name for name, must in zip(self.signature.names, self.signature.required, strict=True) if must]
        for name in [*required, *self.keep]:
            if name not in there:
                what = ", which the model takes" if name in required else ""
                raise TableError(f"the table has no column {name!r}{what}; it has {', '.join(there)}")

    def read(self, number: int, *, matrix: bool = False) -> Rows:
        """The rows of a chunk; as a matrix of float64 where ``matrix`` says that the model takes one, and it can be."""
        first = self._first[number]
        if self.plan.form == "parquet":
            return self._objects(_parquet_rows(self.path, *self.plan.chunks[number][:2]), first, [])
        data = self._bytes(number)
        if not FORMS[self.plan.form]:
            return self._objects(*_json_lines(data, first))
        if matrix and (found := self._matrix(data, first)):
            return found
        cells, numbers, bad = _cells(data, FORMS[self.plan.form], self.plan.header, first)
        return self._from_cells(cells, numbers, bad)

    def possible_kinds(self, number: int) -> list[list[str]]:
        """The kinds that each column of a CSV chunk can be read as, the most special first."""
        cells, _, _ = _cells(self._bytes(number), FORMS[self.plan.form], self.plan.header, 1)
        return [_possible(set(column)) for column in zip(*cells, strict=True)] or [list(KINDS)] * len(self.plan.header)

    def _bytes(self, number: int) -> bytes:
        start, length, _ = self.plan.chunks[number]
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(length)

    def _from_cells(self, cells: list[list[str]], numbers: list[int], bad: list[Bad]) -> Rows:
        header = self.plan.header
        places = [header.index(name) for name in self.keep]
        if self.signature is None:
            rows, used = self._typed(cells), cells
        else:
            rows, numbers, used = self._checked(cells, numbers, bad)
        kept = [[row[place] for place in places] for row in used]
        return Rows(rows, numbers, kept, lambda place: dict(zip(header, used[place], strict=True)), bad)

    def _matrix(self, data: bytes, first: int) -> Rows | None:
        """The rows of a chunk in which every cell that the model takes is a finite number; None when it is not so.

        The numbers are those that the careful way gives: both read them as Python does.
        """
        header, delimiter = self.plan.header, FORMS[self.plan.form]
        if self.signature is None or set(self.signature.kinds) != {"number"} or b'"' in data or b"\r" in data:
            return None
        if not set(self.signature.names) <= set(header):
            return None
        numpy = import_module("numpy")
        with suppress(ValueError):
            lines = [line for line in data.decode().split("\n") if line]
            if {line.count(delimiter) for line in lines} != {len(header) - 1}:
                return None
            columns = [header.index(name) for name in self.signature.names]
            matrix = numpy.loadtxt(lines, delimiter=delimiter, usecols=columns, comments=None, ndmin=2)
            if matrix.shape != (len(lines), len(columns)) or not numpy.isfinite(matrix).all():
                return None
            places = [header.index(name) for name in self.keep]
            most = max(places, default=-1) + 1  # cells behind those that are kept need not be told apart
            cells = [line.split(delimiter, most) for line in lines] if places else []
            kept = [[row[place] for place in places] for row in cells] if places else [[]] * len(lines)
            numbers = range(first, first + len(lines))
            return Rows(
                matrix, numbers, kept, lambda at: dict(zip(header, lines[at].split(delimiter), strict=True)), []
            )
        return None

    def _checked(
        self, cells: list[list[str]], numbers: list[int], bad: list[Bad]
    ) -> tuple[list[Any], list[int], list[list[str]]]:
        """Rows by the model's signature: (rows, their numbers, their cells); what it refuses goes to ``bad``."""
        assert self.signature is not None
        header = self.plan.header
        places = [header.index(name) if name in header else -1 for name in self.signature.names]
        numeric = -1 not in places and all(kind == "number" for kind in self.signature.kinds)
        rows: list[Any]
        if numeric and (rows := _floats(cells, places)):
            return rows, numbers, cells
        rows, right, used = [], [], []
        for number, record in zip(numbers, cells, strict=True):
            picked = [record[place] if place >= 0 else "" for place in places]
            try:
                rows.append(self.signature.from_text(picked, number))
            except InputError as error:
                bad.append(Bad(number, str(error), dict(zip(header, record, strict=True))))
                continue
            right.append(number)
            used.append(record)
        return rows, right, used

    def _typed(self, cells: list[list[str]]) -> list[Any]:
        if not cells:
            return []
        header, kinds = self.plan.header, self.kinds or ["text"] * len(self.plan.header)
        columns = [
            [None if text == "" else KINDS[kind](text) for text in column]
            for kind, column in zip(kinds, zip(*cells, strict=True), strict=True)
        ]
        return [dict(zip(header, row, strict=True)) for row in zip(*columns, strict=True)]

    def _objects(self, records: list[Any], first: int | list[int], bad: list[Bad]) -> Rows:
        """Rows from objects, as JSON lines and Parquet have them."""
        numbers = list(range(first, first + len(records))) if isinstance(first, int) else first
        rows, right, used = [], [], []
        for number, record in zip(numbers, records, strict=True):
            try:
                rows.append(self._object(record, number))
            except InputError as error:
                bad.append(Bad(number, str(error), record))
                continue
            right.append(number)
            used.append(record)
        kept = [[_finite(record[name]) for name in self.keep] for record in used]
        return Rows(rows, right, kept, lambda place: used[place], bad)

    def _object(self, record: dict[str, Any], number: int) -> Any:
        for name in self.keep:
            if name not in record:
                raise InputError(f"row {number} has no {name!r}, which is to be kept")
        if self.signature is None:
            return record
        picked = {name: record[name] for name in self.signature.names if name in record}
        for name, kind in zip(self.signature.names, self.signature.kinds, strict=True):
            if kind == "string" and picked.get(name) is not None:
                picked[name] = str(picked[name])
        return self.signature.check(picked, number)


def _floats(cells: list[list[str]], places: list[int]) -> list[list[float]]:
    """These cells of each record as numbers; nothing when one is no finite number, which the signature then explains
    or allows."""
    pick = itemgetter(*places) if len(places) > 1 else lambda record: (record[places[0]],)
    try:
        rows = [list(map(float, pick(record))) for record in cells]
    except ValueError:
        return []
    total = sum(map(sum, rows))
    return rows if total - total == 0 else []


def _finite(value: Any) -> Any:
    """What JSON can hold: not a number is none."""
    return None if isinstance(value, float) and value - value != 0 else value


def _possible(texts: set[str]) -> list[str]:
    found = []
    for kind, reader in KINDS.items():
        try:
            for text in texts:
                if text != "":
                    reader(text)
        except ValueError:
            continue
        found.append(kind)
    return found


def _cells(data: bytes, delimiter: str, header: list[str], first: int) -> tuple[list[list[str]], list[int], list[Bad]]:
    """(cells of the right records, their numbers, the others) of a chunk of CSV."""
    try:
        text = data.decode()
        records = [row for row in csv.reader(io.StringIO(text, newline="\n"), delimiter=delimiter, strict=True) if row]
    except (UnicodeDecodeError, csv.Error):
        return _cells_one_by_one(data, delimiter, header, first)
    if all(map(len(header).__eq__, map(len, records))):
        return records, list(range(first, first + len(records))), []
    return _cells_one_by_one(data, delimiter, header, first)


def _cells_one_by_one(
    data: bytes, delimiter: str, header: list[str], first: int
) -> tuple[list[list[str]], list[int], list[Bad]]:
    lines = _Lines(data.decode(errors="surrogateescape"))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    cells: list[list[str]] = []
    numbers: list[int] = []
    bad: list[Bad] = []
    number = first
    while True:
        lines.taken.clear()
        reason = None
        try:
            row = next(reader)
        except StopIteration:
            return cells, numbers, bad
        except csv.Error as error:
            row, reason = [], f"row {number} is no CSV: {error}"
        if not row and reason is None:
            continue
        if reason is None and len(row) != len(header):
            reason = f"row {number} has {len(row)} cells; the header has {len(header)}"
        raw = "".join(lines.taken)
        if reason is None and not raw.isascii() and any("\udc80" <= letter <= "\udcff" for letter in raw):
            reason = f"row {number} is not UTF-8"
        if reason is None:
            cells.append(row)
            numbers.append(number)
        else:
            shown = raw.encode(errors="surrogateescape").decode(errors="replace").rstrip("\r\n")
            bad.append(Bad(number, reason, shown[:SHOWN_CHARACTERS]))
        number += 1


def _json_lines(data: bytes, first: int) -> tuple[list[Any], list[int], list[Bad]]:
    records: list[Any] = []
    numbers: list[int] = []
    bad: list[Bad] = []
    number = first
    for line in data.split(b"\n"):
        if not line.rstrip(b"\r"):
            continue
        try:
            record = parse_json(line)
            if not isinstance(record, dict):
                raise InputError("the line is no object")
        except InputError as error:
            reason = f"row {number}: {str(error).replace('the body', 'the line', 1)}"
            bad.append(Bad(number, reason, line.decode(errors="replace")[:SHOWN_CHARACTERS]))
        else:
            records.append(record)
            numbers.append(number)
        number += 1
    return records, numbers, bad


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _library() -> str:
    found = next((name for name in ("pyarrow", "polars") if find_spec(name)), None)
    if found is None:
        raise TableError("reading Parquet needs pyarrow or polars in the model's requirements.txt")
    return found


def _plan_parquet(path: str, chunk_rows: int) -> Plan:
    try:
        if _library() == "pyarrow":
            file = import_module("pyarrow.parquet").ParquetFile(path)
            header, rows = list(file.schema_arrow.names), int(file.metadata.num_rows)
        else:
            lazy = import_module("polars").scan_parquet(path)
            header = list(lazy.collect_schema().names())
            rows = int(lazy.select(import_module("polars").len()).collect().item())
    except (OSError, ValueError) as error:
        raise TableError(f"{os.path.basename(path)} cannot be read as Parquet: {error}") from None
    starts = range(0, rows, chunk_rows)
    sizes = [min(chunk_rows, rows - start) for start in starts]
    return Plan("parquet", header, [(start, size, size) for start, size in zip(starts, sizes, strict=True)])


def _parquet_rows(path: str, start: int, length: int) -> list[Any]:
    if _library() == "polars":
        rows: list[Any] = import_module("polars").scan_parquet(path).slice(start, length).collect().to_dicts()
        return rows
    return _arrow_rows(path, start, length)


def _arrow_rows(path: str, start: int, length: int) -> list[Any]:
    """Rows of a range that may lie in several row groups; only those are read."""
    arrow = import_module("pyarrow.parquet")
    file = arrow.ParquetFile(path, memory_map=True)
    rows: list[Any] = []
    before = 0
    for number in range(file.num_row_groups):
        count = file.metadata.row_group(number).num_rows
        begin, end = max(start - before, 0), min(start + length - before, count)
        if begin < end:
            rows += _group(path, number, file).slice(begin, end - begin).to_pylist()
        before += count
    return rows


_kept_group: tuple[str, int, Any] | None = None


def _group(path: str, number: int, file: Any) -> Any:
    """A row group, kept until another is asked for: the chunks of one group follow one another."""
    global _kept_group  # noqa: PLW0603 - one table is read by a process
    if _kept_group is None or _kept_group[:2] != (path, number):
        _kept_group = path, number, file.read_row_group(number)
    return _kept_group[2]
