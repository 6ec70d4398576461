"""Rows from the server become files that other programs read: every column, one type each, all or nothing."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from loopline.cli import rowfiles

ROWS: list[dict[str, Any]] = [
    {"age": 30, "city": "Oslo", "tags": [1], "@at": 1_763_683_200.5, "@label": None},
    {"age": 1.5, "city": None, "member": True, "@at": 1_763_683_201, "@label": 1},
    {"age": None, "city": 7, "member": False, "@at": 1_763_683_202.0, "@label": "yes"},
]


def chunks() -> Iterator[bytes]:
    """The lines, cut where nobody would cut them."""
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    for start in range(0, len(text), 7):
        yield text[start : start + 7]


def write(path: Path) -> int:
    return rowfiles.writer(path)(chunks(), path)


def test_lines_are_written_as_they_are(tmp_path: Path) -> None:
    assert write(tmp_path / "rows.jsonl") == 3
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == ROWS


def test_csv_has_every_column_of_every_row(tmp_path: Path) -> None:
    assert write(tmp_path / "rows.csv") == 3
    found = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["member"] for row in found] == ["", "True", "False"]
    assert found[0]["tags"] == "[1]" and list(tmp_path.iterdir()) == [tmp_path / "rows.csv"]


def test_parquet_columns_have_the_type_that_holds_all_their_values(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write(tmp_path / "rows.parquet") == 3
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "age": "double",
        "city": "string",
        "tags": "string",
        "@at": "timestamp[us, tz=UTC]",
        "@label": "string",
        "member": "bool",
    }
    assert table["age"].to_pylist() == [30.0, 1.5, None] and table["city"].to_pylist() == ["Oslo", None, "7"]
    assert table["@at"].to_pylist()[0].timestamp() == 1_763_683_200.5


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for suffix in (".jsonl", ".csv", ".parquet"):
        path = tmp_path / f"none{suffix}"
        assert rowfiles.writer(path)(iter(()), path) == 0 and path.exists()


def test_a_download_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b'{"age": 1}\n'
        raise ConnectionError

    for suffix in (".jsonl", ".csv"):
        path = tmp_path / f"rows{suffix}"
        with pytest.raises(ConnectionError):
            rowfiles.writer(path)(broken(), path)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there.csv").touch()
    for name, words in (("there.csv", "exists"), ("rows.xlsx", r"\.jsonl, \.csv, \.parquet")):
        with pytest.raises(click.UsageError, match=words):
            rowfiles.writer(tmp_path / name)
    monkeypatch.setattr(rowfiles, "find_spec", lambda _: None)
    with pytest.raises(click.UsageError, match=r"loopline\[parquet\]"):
        rowfiles.writer(tmp_path / "rows.parquet")
