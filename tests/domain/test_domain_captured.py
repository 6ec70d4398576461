"""What captured requests say, in every form in which rows and predictions are sent."""

import io
from typing import Any

import numpy as np
import pytest

from loopline.domain import captured


@pytest.mark.parametrize(
    ("content_type", "body", "rows"),
    [
        ("application/json", b'{"instances": [[1, 2], [3, 4]]}', [[1, 2], [3, 4]]),
        ("application/json", b'{"instances": [{"a": 1}]}', [{"a": 1}]),
        ("application/json; charset=utf-8", b'{"a": 1}', [{"a": 1}]),
        ("", b"[[1]]", [[1]]),
        ("text/csv", b'1,"a ""b"""\n2,"c\nd"\n', [["1", 'a "b"'], ["2", "c\nd"]]),
        ("text/csv; header=absent", b"1,2\r\n3,4\r\n", [["1", "2"], ["3", "4"]]),
        ("application/json", b'{"instances": [1, 2]}', None),
        ("application/json", b'{"instances": []}', None),
        ("application/json", b"\xff", None),
        ("application/json", b"[" * 100_000, None),
        ("text/csv", b"\xff\xfe", None),
        ("text/csv", b"", None),
    ],
)
def test_rows_of_a_request(content_type: str, body: bytes, rows: Any) -> None:
    assert captured.rows_of(content_type, body) == rows


@pytest.mark.parametrize(
    ("answer", "positive", "predictions"),
    [
        (b'{"predictions": ["a", 3, true]}', None, [("a", None), (3, None), (True, None)]),
        (b'{"predictions": [0.75, 12.5]}', None, [(0.75, 0.75), (12.5, None)]),
        (b'{"predictions": [{"label": "a", "score": 0.9}]}', None, [("a", 0.9)]),
        (b'{"predictions": [{"prediction": 1, "probabilities": {"0": 0.2, "1": 0.8}}]}', 1, [(1, 0.8)]),
        (b'{"predictions": [{"probabilities": {"ill": 0.3, "well": 0.7}}]}', "ill", [("well", 0.3)]),
        (b'{"predictions": [null, {"x": 1}, [1]]}', None, [(None, None)] * 3),
    ],
)
def test_predictions_of_an_answer(answer: bytes, positive: Any, predictions: list[tuple[Any, Any]]) -> None:
    found = captured.predictions_of(answer, positive)
    assert found is not None and [(each.value, each.score) for each in found] == predictions


@pytest.mark.parametrize("answer", [b"", b"[]", b'{"error": {}}', b'{"predictions": 3}', b"\xff"])
def test_what_is_no_answer_has_no_predictions(answer: bytes) -> None:
    assert captured.predictions_of(answer) is None


def test_rows_are_arranged_and_typed() -> None:
    assert captured.arrange({"b": 2, "c": 3}, ["a", "b"]) == [None, 2]
    assert captured.arrange([1], ["a", "b"]) is None
    assert captured.typed(["1.5", "", "x", "TRUE", "nan"], ["number", "number", "string", "boolean", "number"]) == [
        1.5,
        None,
        "x",
        True,
        None,
    ]


def test_segments_are_chosen_by_the_time_in_an_id() -> None:
    listed = captured.segments(
        [f"{second * 1000:015d}.seg" for second in (3000, 100, 9000, 200)] + ["x.joins", "1.seg"]
    )
    assert [captured.started_at(name) for name in listed] == [100, 200, 3000, 9000]
    # written when the request ended, up to an hour after it was made
    assert [captured.started_at(n) for n in captured.candidates(listed, 250.0, 250.0)] == [200, 3000]
    assert [captured.started_at(n) for n in captured.candidates(listed, 50.0, 99.0)] == [100, 200, 3000]
    assert [captured.started_at(n) for n in captured.candidates(listed, 9e9, 9e9)] == [9000]


def test_an_index_of_join_ids_is_read_up_to_a_torn_line() -> None:
    index = captured.encode_join(0, "a") + captured.encode_join(70, "b") + captured.encode_join(90, "b") + b'[120, "c'
    assert captured.find_joins(index, dict.fromkeys(["b", "c", "z"])) == {"b": {70, 90}}


def test_a_matrix_that_numpy_saved_is_rows_and_anything_else_is_none():
    def saved(matrix, **options):
        file = io.BytesIO()
        np.save(file, matrix, **options)
        return file.getvalue()

    kind = "application/x-npy"
    assert captured.rows_of(kind, saved(np.array([[1, 2], [3, 4]], dtype="i4", order="F"))) == [[1.0, 2.0], [3.0, 4.0]]
    assert captured.rows_of(kind, saved(np.array([[0.5, np.nan]]))) == [[0.5, None]]
    for wrong in (
        b"",
        b"no",
        saved(np.zeros(3)),
        saved(np.zeros((0, 2))),
        saved(np.array([["a"]])),
        saved(np.array([[{}]], dtype=object), allow_pickle=True),
        saved(np.zeros((2, 2)))[:-1],
        saved(np.zeros((2, 2))).replace(b"(2, 2)", b"(9, 9)"),
    ):
        assert captured.rows_of(kind, wrong) is None
    assert captured.rows_of("application/vnd.apache.arrow.stream", b"\xff\xff\xff\xff") is None
