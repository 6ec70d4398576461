"""Rows in a file's own way of writing."""

from loopline.domain.tables import Style, cells

HEADER = ["n", "f", "flag", "bit", "word", "TF"]
ROWS = [["1", "1.5", "true", "0", "a", "TRUE"], ["-2", "2", "false", "1", "b", "FALSE"], ["", "", "", "", "", ""]]


def test_values_are_written_as_the_file_writes_them() -> None:
    style = Style.of(HEADER, ROWS)
    values = {"n": 3.0, "f": 3.0, "flag": True, "bit": False, "word": "c,d", "TF": 1, "unknown": 9}
    assert cells(values, HEADER, style) == ["3", "3.0", "true", "0", "c,d", "TRUE"]


def test_what_is_missing_is_empty_and_a_fraction_stays_one() -> None:
    style = Style.of(HEADER, ROWS)
    assert cells({"n": 3.5, "flag": None}, HEADER, style) == ["3.5", "", "", "", "", ""]


def test_a_file_that_says_nothing_gets_python_s_words() -> None:
    style = Style.of(["a", "b"], [["x"], []])
    assert cells({"a": True, "b": 1.0}, ["a", "b"], style) == ["True", "1.0"]


def test_long_whole_numbers_keep_every_digit() -> None:
    style = Style.of(["a"], [["1"]])
    assert cells({"a": 2**60 + 1}, ["a"], style) == [str(2**60 + 1)]
