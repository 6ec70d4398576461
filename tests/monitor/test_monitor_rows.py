"""Many bodies read at once say what each of them says when it is read alone."""

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.captured import arrange, predictions_of, rows_of
from loopline.monitor.rows import RowReader, Rows, read_answers

NAMES = ["age", "income", "city"]
KINDS = ["integer", "number", "string"]
JSON = "application/json"

values = st.tuples(
    st.none() | st.integers(-100, 100),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
)
bodies = st.one_of(
    st.lists(values.map(list), min_size=1, max_size=3).map(lambda rows: {"instances": rows}),
    st.lists(values.map(lambda row: dict(zip(NAMES, row, strict=True))), min_size=1, max_size=3).map(
        lambda rows: {"instances": rows}
    ),
    values.map(lambda row: {**dict(zip(NAMES, row, strict=True)), "more": [1]}),
    st.sampled_from([{"instances": [[1, 2]]}, {"instances": [{"age": "x"}]}, {"instances": 3}, [[1, 2.5, "a"]], "odd"]),
).map(lambda value: json.dumps(value).encode())
odd = st.sampled_from([b"[[[", b"{}", b'{"instances":[]},{"instances":[]}', b"\xff"])


def table(found: Rows) -> list[list[Any]]:
    """The rows as they are, None for what is missing, in an order that does not matter."""
    rows = [list(row) for row in found.rows]
    if found.matrix is not None:
        rows += [[None if np.isnan(value) else value for value in row] for row in found.matrix.tolist()]
    return sorted(rows, key=repr)


def alone(body: bytes, watched: list[str]) -> list[list[Any]]:
    rows = [arrange(row, NAMES) for row in rows_of(JSON, body) or ()]
    found = [[row[NAMES.index(name)] for name in watched] for row in rows if row is not None]
    return [[float(v) if isinstance(v, int) else v for v in row] for row in found]


@pytest.mark.parametrize("watched", [["age", "income", "city"], ["income", "age"], ["city"]])
@given(st.lists(bodies | odd, min_size=1, max_size=9))
def test_many_bodies_at_once_say_what_each_says(watched: list[str], given_: list[bytes]) -> None:
    reader = RowReader(NAMES, KINDS, watched, [name for name in watched if name != "city"])
    found = reader.read(JSON, given_)
    readable = [place for place, body in enumerate(given_) if rows_of(JSON, body) is not None]
    assert list(found.requests) == readable
    got = [[float(v) if isinstance(v, int) else v for v in row] for row in table(found)]
    assert sorted(got, key=repr) == sorted((row for body in given_ for row in alone(body, watched)), key=repr)


def test_rows_of_numbers_are_a_matrix_in_the_order_that_is_wanted() -> None:
    reader = RowReader(NAMES, ["number"] * 3, ["city", "age"], ["city", "age"])
    arrays = reader.read(JSON, [b'{"instances": [[1, 2, 3], [4, null, 6]]}'] * 2)
    objects = reader.read(JSON, [b'{"instances": [{"city": 3, "age": 1}, {"age": 4, "city": 6}]}'] * 2)
    for found in (arrays, objects):
        assert found.matrix is not None and found.matrix.tolist() == [[3, 1], [6, 4]] * 2 and found.rows == []


def test_lines_of_csv_are_typed() -> None:
    found = RowReader(NAMES, KINDS, NAMES, NAMES[:2]).read("text/csv; charset=utf-8", [b"1,2.5,Oslo\n,x,\n", b""])
    assert list(found.requests) == [0] and found.rows == [[1.0, 2.5, "Oslo"], [None, None, ""]]


def test_a_matrix_in_numpys_own_format_is_read() -> None:
    file = io.BytesIO()
    np.save(file, np.array([[30.0, np.nan], [40.0, 2.5]]))
    reader = RowReader(NAMES[:2], KINDS[:2], NAMES[:2], NAMES[:2])
    found = reader.read("application/x-npy", [file.getvalue(), b"\x93NUMPY"])
    assert list(found.requests) == [0] and found.rows == [[30.0, None], [40.0, 2.5]]


@pytest.mark.parametrize(
    ("answers", "predictions", "scores"),
    [
        ([b'{"predictions":[0.5]}', b'{"predictions":[1.5,0.25]}'], [0.5, 1.5, 0.25], [0.5, 0.25]),
        ([b'{"predictions":["a"]}', b'{"predictions":[1,true]}'], ["a", 1, True], []),
        ([b'{"predictions":[{"label":"a","score":0.7}]}', b'{"predictions":["b"]}'], ["a", "b"], [0.7]),
        ([b'{"predictions":[0.5]}', b"odd", b'{"error":1}'], [0.5], [0.5]),
        ([b'{"predictions":[]}'], [], []),
        ([], [], []),
    ],
)
def test_answers_become_predictions_and_scores(answers: list[bytes], predictions: list[Any], scores: list[Any]) -> None:
    found = read_answers(answers, None)
    assert [list(each) for each in found] == [predictions, scores]
    single = [each for answer in answers for each in predictions_of(answer) or ()]
    assert [each.value for each in single if each.value is not None] == predictions


spreads = st.dictionaries(st.sampled_from(["0", "1", "a"]), st.floats(0, 1) | st.just(1) | st.none(), max_size=3)
labelled = st.fixed_dictionaries(
    {"prediction": st.sampled_from([0, 1, "a", True, None, 1.5]), "probabilities": spreads}
)


@given(st.lists(labelled | st.just({"prediction": "a"}), min_size=1), st.sampled_from([None, 1, "a", True]))
def test_labels_with_probabilities_say_what_each_says(given_: list[dict[str, Any]], positive: Any) -> None:
    answer = json.dumps({"predictions": given_}).encode()
    single = predictions_of(answer, positive) or []
    predictions, scores = read_answers([answer], positive)
    assert list(predictions) == [each.value for each in single if each.value is not None]
    assert list(scores) == [each.score for each in single if each.score is not None]
    assert list(read_answers([answer], positive, scores=False)[0]) == list(predictions)
