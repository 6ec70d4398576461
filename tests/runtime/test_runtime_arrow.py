"""Arrow bodies, where the environment has pyarrow: tables by name, and nothing that is larger than it looks."""

import io
import math
import random

import numpy as np
import pytest

from loopline.runtime.contents import Reader
from loopline.runtime.signature import InputError, Signature

pa = pytest.importorskip("pyarrow", reason="pyarrow is a project's own package")

KIND = b"application/vnd.apache.arrow.stream"
SIGNATURE = Signature([{"name": "a", "type": "number"}, {"name": "b", "type": "integer", "required": False}])
TABLE = {"b": [1, None], "a": [0.5, 2.0]}


def stream(columns, **options) -> bytes:
    table, file = pa.table(columns), io.BytesIO()
    with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return file.getvalue()


def read(body: bytes, *, signature=SIGNATURE, matrices=True):
    return Reader(signature, matrices=matrices).read([(KIND, b"id", body)])[0]


def test_columns_go_by_name():
    assert read(stream(TABLE), matrices=False) == [[0.5, 1], [2.0, None]]
    np.testing.assert_array_equal(read(stream(TABLE)), [[0.5, 1.0], [2.0, math.nan]])
    assert read(stream({"s": ["x", None], "n": [1, 2]}), signature=None) == [{"s": "x", "n": 1}, {"s": None, "n": 2}]


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"a": [1.0], "c": [1]}, "unknown feature 'c'"),
        ({"b": [1]}, "lacks the feature 'a'"),
        ({"a": ["x"]}, "must be a number, not a string"),
        ({"a": [True]}, "must be a number, not a boolean"),
        ({"a": [[1]]}, "has the type list"),
        ({"a": [math.nan], "b": [1]}, "'a' is required"),
        ({"a": [1.0], "b": [1.5]}, "whole number"),
    ],
)
def test_a_wrong_table_is_refused(columns, part):
    answer = read(stream(columns))
    assert isinstance(answer, InputError) and part in str(answer)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_what_grows_when_it_is_read_is_refused(compression):
    large = {"a": np.zeros(100_000), "b": np.zeros(100_000, dtype=int)}
    assert "compressed" in str(read(stream(large, compression=compression)))
    assert "has the type null" in str(read(stream({"a": pa.nulls(1 << 20)})))


def test_any_change_of_the_bytes_is_a_table_or_an_error():
    right, generator = stream(TABLE), random.Random(1)
    for _ in range(2000):
        wrong = bytearray(right)
        for _ in range(generator.randrange(1, 6)):
            wrong[generator.randrange(len(wrong))] = generator.randrange(256)
        assert isinstance(read(bytes(wrong[: generator.randrange(len(wrong))])), InputError | np.ndarray)
        assert isinstance(read(bytes(wrong)), InputError | np.ndarray)
