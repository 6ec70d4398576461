"""Binary bodies: npy (one matrix of numbers) and Arrow's stream format (one table), read without trusting a length.

numpy and pyarrow are the model's environment's; without them such a body is refused in words. ``matrix_of`` makes the
float matrix that most models take out of checked rows.
"""

import ast
import math
import struct
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from itertools import chain
from typing import Any

from .signature import InputError, Signature

MAX_CELLS = 1 << 24  # of a binary body: 128 MB as floats
MAX_HEADER_BYTES = 4096
_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}
_NPY_TYPES = frozenset(
    order + kind
    for order in "<>|="
    for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")
    if order != "|" or kind in ("i1", "u1")
)
_NO_NPY = "the body is not an npy file of numbers"
_NUMERIC = {"number", "integer"}


def matrix_of(rows: Sequence[Sequence[Any]], width: int | None, *, single: bool = False) -> Any:
    """Rows as a matrix of float64, None as NaN. ``width`` is the length that every row is known to have, or None.

    ``single`` asks for float32 where that is as cheap, which is where ``width`` is known and no value is None. Raises
    ``OverflowError`` for a number that float32 cannot hold.
    """
    if width:
        numbers = _numbers(width * len(rows), single)
        buffer = bytearray(numbers.size)
        try:
            numbers.pack_into(buffer, 0, *chain.from_iterable(rows))
        except struct.error:  # a None, which numpy knows what to do with
            pass
        else:
            return _numpy().frombuffer(buffer, "<f4" if single else "f8").reshape(len(rows), width)
    return _numpy().array(rows, dtype=float)


@lru_cache(maxsize=256)
def _numbers(count: int, single: bool) -> struct.Struct:
    """Single ones in a stated byte order: the machine's own makes an infinity of what a float32 cannot hold."""
    return struct.Struct(f"<{count}f" if single else f"{count}d")


@lru_cache(maxsize=1)
def _numpy() -> Any:
    return import_module("numpy")


def _library(name: str, what: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"the model's environment has no {name}, which {what} needs; send JSON or CSV") from None


# -- npy --------------------------------------------------------------------------------------------------------------


def read_npy(body: bytes, signature: Signature | None) -> Any:
    """A matrix, one row per row, as float64. Raises ``InputError``.

    The format is numpy's, versions 1 to 3: integers and floats only, in either order of rows and columns; objects,
    which would run code when they are read, are refused by their type. NaN stands for null.
    """
    if signature is not None and not set(signature.kinds) <= _NUMERIC:
        raise InputError("an npy body holds numbers; this model also takes other features: send JSON, CSV or Arrow")
    kind, transposed, shape, start = _npy_header(body[: _npy_start(body)])
    numpy = _library("numpy", "an npy body")
    dtype = numpy.dtype(kind)
    if len(shape) != 2:
        raise InputError(f"an npy body must have two dimensions, rows and features, not {len(shape)}")
    if shape[0] * shape[1] > MAX_CELLS:
        raise InputError(f"an npy body may have {MAX_CELLS} numbers at most")
    if len(body) - start != shape[0] * shape[1] * dtype.itemsize:
        raise InputError(f"the npy body's header says {shape[0]} x {shape[1]} of {kind}, which its length does not fit")
    flat = numpy.frombuffer(body, dtype=dtype, offset=start)
    matrix = flat.reshape(shape, order="F" if transposed else "C").astype(numpy.float64, order="C")
    return check_matrix(matrix, signature)


def _npy_start(body: bytes) -> int:
    """Where the numbers begin: after magic, version, the header's length and the header."""
    length = _LENGTHS.get(body[6]) if len(body) > 12 and body.startswith(_MAGIC) and body[7] == 0 else None
    if length is None:
        raise InputError(_NO_NPY)
    size: int = length.unpack_from(body, 8)[0]
    end = 8 + length.size + size
    if size > MAX_HEADER_BYTES or end > len(body):
        raise InputError(f"{_NO_NPY}: its header is too long")
    return end


@lru_cache(maxsize=128)  # clients send the same header again and again
def _npy_header(head: bytes) -> tuple[str, bool, tuple[int, ...], int]:
    """(type, columns first, shape, where the numbers begin)."""
    start = 8 + _LENGTHS[head[6]].size
    try:
        header = ast.literal_eval(head[start:].decode().strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise InputError(f"{_NO_NPY}: its header cannot be read") from None
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise InputError(f"{_NO_NPY}: its header has other fields than descr, fortran_order and shape")
    kind, transposed, shape = header["descr"], header["fortran_order"], header["shape"]
    if not isinstance(kind, str) or kind not in _NPY_TYPES:
        raise InputError(f"an npy body must hold integers or floats, not {str(kind)[:40]!r}")
    if type(transposed) is not bool or not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
        raise InputError(f"{_NO_NPY}: its header cannot be read")
    return kind, transposed, shape, len(head)


def check_matrix(matrix: Any, signature: Signature | None) -> Any:
    """A float matrix that a signature accepts; NaN only where a feature may be absent. Raises ``InputError``."""
    numpy = import_module("numpy")
    rows, width = matrix.shape
    if signature is not None and width != len(signature.names):
        raise InputError(f"row 0 has {width} values; the model takes {len(signature.names)}", 0)
    fine = numpy.isfinite(matrix)
    if fine.all() and (signature is None or "integer" not in signature.kinds):
        return matrix
    if signature is not None:
        optional = [at for at, needed in enumerate(signature.required) if not needed]
        fine[:, optional] |= numpy.isnan(matrix[:, optional])
        whole = [at for at, kind in enumerate(signature.kinds) if kind == "integer"]
        fine[:, whole] &= (numpy.floor(matrix[:, whole]) == matrix[:, whole]) | numpy.isnan(matrix[:, whole])
    if rows and width and not fine.all():
        row, at = (int(place) for place in numpy.argwhere(~fine)[0])
        if signature is None:
            raise InputError(f"row {row}: value {at} must be a finite number", row)
        value = float(matrix[row, at])
        values: list[Any] = [0] * width
        values[at] = None if math.isnan(value) else value
        signature.check(values, row)  # which has the words for it
    return matrix


# -- Arrow ------------------------------------------------------------------------------------------------------------


def read_arrow(body: bytes, signature: Signature | None) -> Any:
    """The rows of a table whose columns go by name: integers, floats, booleans and texts. Raises ``InputError``."""
    arrow = _library("pyarrow", "an Arrow body")
    try:
        with arrow.ipc.open_stream(body) as stream:
            _check_columns(arrow, stream.schema, signature)
            _refuse_compression(arrow, body)
            batches, cells = [], 0
            for batch in stream:
                cells += batch.num_rows * max(1, batch.num_columns)
                if cells > MAX_CELLS:
                    raise InputError(f"an Arrow body may have {MAX_CELLS} values at most")
                batch.validate(full=True)
                batches.append(batch)
            table = arrow.Table.from_batches(batches, schema=stream.schema)
    except (arrow.ArrowException, OSError, ValueError, struct.error, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the body is not an Arrow stream: {str(error)[:200]}") from None
    if signature is not None and _is_matrix(arrow, table, signature):
        numpy = import_module("numpy")
        columns = [table.column(name).to_numpy().astype(numpy.float64) for name in signature.names]
        return check_matrix(numpy.column_stack(columns), signature)
    rows = table.to_pylist()
    return rows if signature is None else [signature.check(row, index) for index, row in enumerate(rows)]


def _is_matrix(arrow: Any, table: Any, signature: Signature) -> bool:
    """Whether a table is numbers only, of every feature, for a model that takes numbers only."""
    types = [table.schema.field(name).type for name in table.schema.names]
    return (
        set(signature.kinds) <= _NUMERIC
        and set(table.schema.names) == set(signature.names)
        and all(arrow.types.is_integer(kind) or arrow.types.is_floating(kind) for kind in types)
    )


def _check_columns(arrow: Any, schema: Any, signature: Signature | None) -> None:
    """Only plain types, before anything is read: a null or run-end column has more rows than bytes."""
    types = arrow.types
    for field in schema:
        kind = field.type
        plain = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        if not (plain or types.is_string(kind) or types.is_large_string(kind)):
            raise InputError(f"the column {field.name!r} has the type {kind}; send numbers, booleans or texts")
    if len(set(schema.names)) != len(schema.names):
        raise InputError("the table names a column twice")
    if signature is not None:
        for name in schema.names:
            if name not in signature.names:
                raise InputError(f"the table has the unknown feature {name!r}", None, name)


def _refuse_compression(arrow: Any, body: bytes) -> None:
    """A compressed batch may be a thousand times larger than its body: its flatbuffer's header says whether it is one.

    Message {version, header_type, header, ...}; RecordBatch {length, nodes, buffers, compression, ...}.
    Source: format/Message.fbs of Apache Arrow.
    """
    for message in arrow.ipc.MessageReader.open_stream(body):
        if message.type != "record batch":
            continue
        data = message.metadata.to_pybytes()
        root = struct.unpack_from("<I", data)[0]
        header = _field(data, root, 2)
        if header is not None and _field(data, header + struct.unpack_from("<I", data, header)[0], 3) is not None:
            raise InputError("the Arrow stream is compressed; send it without compression")


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a flatbuffer table keeps a field; None when it has none."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = struct.unpack_from("<H", data, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None
