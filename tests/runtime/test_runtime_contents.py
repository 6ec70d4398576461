"""What bodies mean: the quick way and the careful way agree, and binary bodies are read without trust."""

import io
import json
import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loopline.runtime import accelerator, arrays
from loopline.runtime.contents import Reader
from loopline.runtime.decoding import QuickDecoder
from loopline.runtime.signature import InputError, Signature

CORE = accelerator.load(str(Path(msgspec.__file__).parent))
JSON, CSV, NPY, ARROW = b"application/json", b"text/csv", b"application/x-npy", b"application/vnd.apache.arrow.stream"


def signature(*kinds: str, optional: int = 0) -> Signature:
    first_optional = len(kinds) - optional
    return Signature(
        [{"name": f"f{at}", "type": kind, "required": at < first_optional} for at, kind in enumerate(kinds)]
    )


SIGNATURES = [
    signature("number", "number"),
    signature("number"),
    signature("number", "integer", "boolean"),
    signature("number", "string"),
    signature("number", "number", "number", optional=2),
    signature("string", "integer", "boolean", optional=3),
    Signature([{"name": "a:b", "type": "number"}, {"name": 'q"uote', "type": "number"}]),
    Signature([{"name": "brace}{", "type": "number"}, {"name": "ä b", "type": "number"}]),
]

NUMBERS = st.sampled_from(
    [
        b"0",
        b"-0",
        b"1",
        b"2.5",
        b"-1e-7",
        b"1E5",
        b"1e999",
        b"-1e400",
        b"9007199254740993",
        b"12345678901234567890",
        b"9" * 400,
        b"9" * 5000,
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"1e",
        b"0x1",
        b"1_0",
        b"NaN",
        b"Infinity",
        b"-Infinity",
    ]
) | st.floats(allow_nan=False, allow_infinity=False).map(lambda value: repr(value).encode())
OTHERS = st.sampled_from(
    [
        b"true",
        b"false",
        b"null",
        b'"x"',
        b'"1"',
        b'"a:b"',
        b'"}"',
        b'"\xff"',
        b'"\\ud800"',
        b'"\\u0000"',
        b'"\n"',
        b"[]",
        b"[1]",
        b"{}",
        b'{"f0":1}',
        b"[" * 70 + b"]" * 70,
        b"",
        b" ",
        b"1 2",
        b"//",
        b"\xef\xbb\xbf",
    ]
)
VALUES = st.one_of(NUMBERS, NUMBERS, OTHERS)
SPACE = st.sampled_from([b"", b"", b"", b" ", b"\n", b"\t", b"\r\n", b"\x0b", b"\xa0"])
KEYS = st.sampled_from(
    [b'"f0"', b'"f1"', b'"f2"', b'"f\\u0030"', b'"a:b"', b'"brace}{"', b'"instances"', b'"F0"', b"f0"]
)


@st.composite
def rows(draw):
    if draw(st.booleans()):
        return b"[%b]" % (draw(SPACE) + b",").join(draw(st.lists(VALUES, max_size=4)))
    pairs = draw(st.lists(st.tuples(KEYS, SPACE, VALUES), max_size=4))
    return b"{%b}" % b",".join(b"%b:%b%b" % pair for pair in pairs)


@st.composite
def bodies(draw):
    given_rows = draw(st.lists(rows(), max_size=3))
    form = draw(st.integers(0, 5))
    if form == 0 and given_rows:
        return given_rows[0]
    key = draw(st.sampled_from([b'"instances"', b'"instances"', b'"instances"', b'"inst\\u0061nces"', b'"other"']))
    text = b"{%b:%b[%b]}" % (key, draw(SPACE), b",".join(given_rows))
    if form == 1:
        extra = draw(st.sampled_from([b',"instances":[]}', b',"x":1}', b",}", b"]}", b"}}", b"},{}", b"", b"} "]))
        return text[:-1] + extra
    if form == 2:
        at = draw(st.integers(0, len(text)))
        return text[:at] + draw(st.sampled_from([b"", b",", b"[", b"]", b"}", b"{", b'"', b"\x00"])) + text[at + 1 :]
    return text


def seen(part):
    """A verdict that can be compared: the values with their types, or the error."""
    if isinstance(part, InputError):
        return str(part), part.row, part.feature
    return [[(type(value), value) for value in row] for row in part]


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(SIGNATURES), st.lists(st.tuples(st.just(JSON), bodies()), min_size=1, max_size=5))
@example(
    SIGNATURES[0], [(JSON, b'{"instances":[[1,2]'), (JSON, b"[3,4]]}"), (JSON, b'{"instances":[]},{"instances":[]}')]
)
@example(SIGNATURES[3], [(JSON, b'{"f0":1,"f1":"x}'), (JSON, b'{"}'), (JSON, b'{"f0":1,"f1":"y"},{"f0":1,"f1":"z"}')])
@example(SIGNATURES[0], [(JSON, b'{"f0":1,"f0":2,"f1":3}')])
@example(SIGNATURES[4], [(JSON, b'{"f0":1,"f1":null}'), (JSON, b'{"f0":1,"f2":2,"f2":3}')])
def test_both_ways_of_reading_json_say_the_same(features, requests):
    calls = [(kind, b"id", body) for kind, body in requests]
    quick, careful = Reader(features, CORE).read(calls), Reader(features).read(calls)
    assert [seen(part) for part in quick] == [seen(part) for part in careful]


CELLS = st.one_of(NUMBERS, NUMBERS, st.sampled_from([b"", b" ", b'"1"', b"x", b"true", b"[", b"],[", b"1]", b"\xff"]))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SIGNATURES),
    st.lists(st.lists(CELLS, max_size=3).map(b",".join), max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\r", b",\r", b"\n\n"]),
    st.sampled_from([b"", b"\n", b"\r\n", b"\n\n", b" "]),
)
def test_both_ways_of_reading_csv_say_the_same(features, lines, end, last):
    calls = [(CSV, b"id", end.join(lines) + last)]
    assert seen(Reader(features, CORE).read(calls)[0]) == seen(Reader(features).read(calls)[0])


def test_the_quick_way_is_taken_for_what_is_usual():
    decoder = QuickDecoder(CORE, signature("number", "number"))
    usual = [
        b'{"instances":[[1,2],[3,4.5]]}',
        b'{"instances": [{"f1": 2, "f0": 1}]}',
        b'{"f0":1,"f1":2}',
        b"1,2\n3,4\n",
    ]
    found = decoder.decode(usual, [False, False, False, True])
    assert found == [[(1.0, 2.0), (3.0, 4.5)], [(1.0, 2.0)], [(1.0, 2.0)], [(1.0, 2.0), (3.0, 4.0)]]


def test_one_wrong_body_does_not_take_the_quick_way_from_the_others():
    right = b'{"instances":[[1,2]]}'
    found = QuickDecoder(CORE, signature("number", "number")).decode(
        [right, b'{"instances":[["x"]]}', right], [False] * 3
    )
    assert found == [[(1.0, 2.0)], None, [(1.0, 2.0)]]


def test_the_accelerator_leaves_nothing_behind_and_takes_nothing_away(monkeypatch):
    own = object()
    monkeypatch.setitem(__import__("sys").modules, "msgspec", own)
    import sys

    before = {name for name in sys.modules if name.startswith("msgspec")}
    assert accelerator.load(str(Path(CORE.__file__).parent)) is not None
    assert {name for name in sys.modules if name.startswith("msgspec")} == before
    assert sys.modules["msgspec"] is own


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF no"])
def test_an_accelerator_that_cannot_be_loaded_is_done_without(tmp_path, content):
    if content is not None:
        for suffix in __import__("importlib.machinery").machinery.EXTENSION_SUFFIXES:
            (tmp_path / f"_core{suffix}").write_bytes(content)
        (tmp_path / "_utils.py").write_text("")
    assert accelerator.load(str(tmp_path)) is None
    assert accelerator.load(None) is None


# -- npy --------------------------------------------------------------------------------------------------------------


def npy(matrix) -> bytes:
    file = io.BytesIO()
    np.save(file, matrix)
    return file.getvalue()


def read(features, content_type, body, *, matrices=True):
    (part,) = Reader(features, matrices=matrices).read([(content_type, b"id", body)])
    return part


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f8", "i1", "i2", "<i4", ">i8", "u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_npy_body_is_the_matrix_that_was_saved(kind, order):
    matrix = np.asarray(np.arange(6).reshape(3, 2), dtype=kind, order=order)
    part = read(signature("number", "number"), NPY, npy(matrix))
    assert part.dtype == np.float64
    assert part.flags.c_contiguous
    assert part.tolist() == np.arange(6.0).reshape(3, 2).tolist()


def test_npy_rows_for_a_model_that_takes_rows_are_of_the_features_types():
    features = Signature([{"name": "a", "type": "integer"}, {"name": "b", "type": "number", "required": False}])
    rows = read(features, NPY, npy(np.array([[3.0, math.nan], [4.0, 0.5]])), matrices=False)
    assert rows == [[3, None], [4, 0.5]]
    assert [type(row[0]) for row in rows] == [int, int]


def test_an_npy_body_with_objects_runs_nothing():
    class Bomb:
        def __reduce__(self):
            return (exec, ("raise SystemExit('it ran')",))

    file = io.BytesIO()
    np.save(file, np.array([[Bomb()]], dtype=object), allow_pickle=True)
    assert "integers or floats" in str(read(signature("number"), NPY, file.getvalue()))


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    raw = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + len(raw).to_bytes(2 if version == 1 else 4, "little") + raw + data


@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "not an npy file"),
        (b"\x93NUMPY", "not an npy file"),
        (b"PK\x03\x04" + bytes(100), "not an npy file"),
        (b"\x93NUMPY\x04\x00" + bytes(100), "not an npy file"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100), "too long"),
        (header("{'descr': '<f8'}"), "other fields"),
        (header("__import__('os').system('true')"), "cannot be read"),
        (header("(" * 3000), "cannot be read"),
        (header("{'descr': '<f8', 'fortran_order': 0, 'shape': (1, 2)}", bytes(16)), "cannot be read"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 2)}", bytes(16)), "cannot be read"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (True, 2)}", bytes(16)), "cannot be read"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", bytes(16)), "two dimensions"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2)}", bytes(15)), "length does not fit"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2)}", bytes(17)), "length does not fit"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}"), "numbers at most"),
        (header("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 0)}"), "the model takes 2"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 2)}", bytes(16)), "integers or floats"),
        (header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1, 2)}", bytes(16)), "integers or floats"),
        (header("{'descr': '<c16', 'fortran_order': False, 'shape': (1, 2)}", bytes(32)), "integers or floats"),
        (npy(np.zeros((1, 3))), "the model takes 2"),
        (npy(np.array([[1, math.inf]])), "row 0: 'f1' must be a finite number"),
        (npy(np.array([[1, 1], [math.nan, 1]])), "row 1: 'f0' is required"),
    ],
)
def test_a_wrong_npy_body_is_refused(body, part):
    answer = read(signature("number", "number"), NPY, body)
    assert isinstance(answer, InputError)
    assert part in str(answer)


def test_an_npy_body_is_refused_where_a_feature_is_no_number_and_where_a_whole_number_is_not_whole():
    assert "other features" in str(read(signature("number", "string"), NPY, npy(np.zeros((1, 2)))))
    error = read(signature("number", "integer"), NPY, npy(np.array([[1, 2.5]])))
    assert (str(error), error.row, error.feature) == ("row 0: 'f1' must be a whole number, not 2.5", 0, "f1")


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200) | st.binary(max_size=120).map(lambda tail: npy(np.zeros((1, 2)))[:70] + tail), st.booleans()
)
def test_any_bytes_are_a_matrix_or_an_error(body, matrices):
    for kind in (NPY, JSON, CSV):
        part = read(signature("number", "number"), kind, body, matrices=matrices)
        assert isinstance(part, InputError | list | np.ndarray)


# -- Arrow ------------------------------------------------------------------------------------------------------------


def test_without_pyarrow_an_arrow_body_is_refused_in_words(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "no pyarrow" in str(read(signature("number"), ARROW, b""))


def test_an_unknown_content_type_names_the_known_ones():
    assert "application/json, text/csv, application/x-npy" in str(read(None, b"text/html", b""))


# -- matrices ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.none() | st.floats(width=64) | st.integers(-5, 5), min_size=2, max_size=2), min_size=1))
def test_a_matrix_of_rows_is_what_numpy_makes_of_them(given_rows):
    matrix = arrays.matrix_of(given_rows, 2)
    np.testing.assert_array_equal(matrix, np.array(given_rows, dtype=float))
    assert matrix.flags.writeable


@given(st.lists(st.tuples(*[st.none() | st.floats(width=32) | st.integers(-(2**24), 2**24)] * 2), min_size=1))
def test_a_matrix_of_single_precision_holds_the_same_numbers(given_rows):
    matrix = arrays.matrix_of(given_rows, 2, single=True)
    absent = any(value is None for row in given_rows for value in row)
    assert matrix.dtype == (np.float64 if absent else np.float32)
    np.testing.assert_array_equal(matrix, np.array(given_rows, dtype=float))


@pytest.mark.parametrize("number", [3.5e38, -1e300])
def test_a_number_that_single_precision_cannot_hold_is_an_error(number):
    with pytest.raises(OverflowError):
        arrays.matrix_of([(1.0, number)], 2, single=True)
    assert arrays.matrix_of([(1.0, math.inf)], 2, single=True)[0, 1] == math.inf


def test_json_without_a_signature_is_passed_on():
    assert read(None, JSON, json.dumps({"instances": [[1, "a"]]}).encode()) == [[1, "a"]]


@pytest.mark.parametrize(
    "body",
    [b'{"instances":[[1,2],[3,4.5]]}', b'{"instances":[[1]]}', b'{"instances":[{"0":1,"1":2}]}', b'{"0":1,"1":2}'],
)
def test_a_model_without_a_signature_gets_the_same_rows_when_its_columns_are_known(body):
    calls = [(JSON, b"id", body)]
    assert Reader(None, CORE, matrices=True, columns=2).read(calls) in (
        Reader(None).read(calls),
        [[tuple(row) for row in Reader(None).read(calls)[0]]],
    )
