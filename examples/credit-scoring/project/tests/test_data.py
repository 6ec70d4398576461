"""Checked before any training: the tables are what the pipeline takes them for."""

import csv
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.mark.parametrize("name", ["applicants.csv", "applicants-test.csv"])
def test_every_row_is_whole_and_both_ends_occur(name):
    with (DATA / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all("" not in row.values() for row in rows)
    assert {row["defaulted"] for row in rows} == {"0", "1"}
