"""Finished segments become Parquet, each row once, whatever the process is killed at; the log itself stays."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from loopline import config
from loopline.monitor.compaction import Compaction
from loopline.monitor.parquet import Writer

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

SRC = Path(__file__).resolve().parents[2] / "src"
DAY = 1_763_683_200.0  # 2025-11-21 00:00 UTC
FEATURES = [
    {"name": "age", "type": "integer"},
    {"name": "city", "type": "string"},
    {"name": "member", "type": "boolean"},
]


def run(spool: Any) -> int:
    return Writer(spool.dir, pyarrow, parquet).run()


def files(spool: Any) -> list[Path]:
    return sorted((spool.dir / "captured").glob("*/day=*/*"))


def rows(spool: Any) -> list[dict[str, Any]]:
    return [row for path in files(spool) for row in parquet.ParquetFile(path).read().to_pylist()]


def fill(spool: Any, start: float, count: int) -> None:
    """A segment that is finished, because another one is begun after it."""
    spool.rotate(start)
    for number in range(count):
        body = json.dumps({"instances": [[30 + number, "Oslo", True]]}).encode()
        spool.write(start + number, body, b'{"predictions": [0.5]}', join=f"order-{start:.0f}-{number}")
    spool.rotate(start + 1000)
    spool.write(start + 1000, status=503)


def test_rows_have_the_features_types_and_what_was_answered(spool: Any) -> None:
    spool.watch({"format": 1}, FEATURES)
    spool.rotate(DAY)
    spool.write(DAY, b'{"instances": [[30, "Oslo", true], [null, "Rome", false]]}', b'{"predictions": ["a", "b"]}')
    spool.write(DAY + 1, b'{"age": 41, "city": "Bergen"}', b'{"predictions": [{"label": "a", "score": 0.9}]}')
    spool.write(DAY + 2, b"50,007,true\n", b'{"predictions": ["b"]}', content_type="text/csv")
    spool.write(DAY + 3, b'{"age": 1}', b'{"predictions": ["a"]}', purpose="test")
    spool.write(DAY + 4, b'{"age": 1}', b"{}", status=400)
    spool.write(DAY + 5)
    spool.rotate(DAY + 9)
    spool.write(DAY + 9)
    assert run(spool) == 1
    schema = parquet.ParquetFile(files(spool)[0]).schema_arrow
    assert [str(schema.field(name).type) for name in ("age", "city", "member")] == ["double", "string", "bool"]
    assert str(schema.field("@at").type) == "timestamp[us, tz=UTC]"
    found = rows(spool)
    assert [(row["age"], row["city"], row["member"]) for row in found] == [
        (30.0, "Oslo", True),
        (None, "Rome", False),
        (41.0, "Bergen", None),
        (50.0, "007", True),
    ]
    assert [(row["@row"], row["@prediction"], row["@score"]) for row in found] == [
        (0, "a", None),
        (1, "b", None),
        (0, "a", 0.9),
        (0, "b", None),
    ]
    assert found[0]["@at"] == datetime.fromtimestamp(DAY, UTC) and found[0]["@endpoint"] == "patients"
    folders = json.loads((spool.dir / "captured" / "endpoints.json").read_text())
    assert files(spool)[0].parts[-3] == folders["patients"] and files(spool)[0].parts[-2] == "day=2025-11-21"


def test_the_segment_that_grows_is_left_alone_and_nothing_comes_twice(spool: Any) -> None:
    fill(spool, DAY, 5)
    assert run(spool) == 1 and len(rows(spool)) == 5
    assert run(spool) == 0 and len(rows(spool)) == 5
    fill(spool, DAY + 2000, 3)
    assert run(spool) == 1
    assert sorted(row["@join"] for row in rows(spool)) == sorted(
        [f"order-{DAY:.0f}-{n}" for n in range(5)] + [f"order-{DAY + 2000:.0f}-{n}" for n in range(3)]
    )
    assert spool.segment.exists()


def test_a_run_that_was_killed_before_it_noted_its_end_is_done_anew(spool: Any) -> None:
    fill(spool, DAY, 5)
    run(spool)
    state = spool.dir / "captured" / "state.json"
    state.unlink()
    (files(spool)[0].parent / "gateway-0-1-2.new").write_bytes(b"torn")
    fill(spool, DAY + 2000, 3)
    run(spool)
    assert len(rows(spool)) == 8 and all(path.suffix == ".parquet" for path in files(spool))


def test_names_of_a_version_that_serves_no_more_are_remembered(spool: Any) -> None:
    spool.watch({"format": 1}, FEATURES)
    fill(spool, DAY, 1)
    run(spool)
    (spool.dir / "monitors.json").write_text("{}")
    fill(spool, DAY + 2000, 1)
    run(spool)
    assert [row["city"] for row in rows(spool)] == ["Oslo", "Oslo"]


def test_what_nobody_named_is_named_by_place(spool: Any) -> None:
    fill(spool, DAY, 1)
    run(spool)
    assert [(row["x0"], row["x1"], row["x2"]) for row in rows(spool)] == [(30.0, "Oslo", True)]


def test_days_that_are_over_are_deleted(spool: Any) -> None:
    fill(spool, DAY, 1)
    fill(spool, DAY + 86_400, 1)
    run(spool)
    Writer(spool.dir, pyarrow, parquet).delete_before(DAY + 86_400 + 10)
    assert [path.parent.name for path in files(spool)] == ["day=2025-11-22"]


def test_the_program_writes_and_a_second_one_leaves_it_alone(spool: Any) -> None:
    fill(spool, DAY, 2)
    argv = [sys.executable, "-m", "loopline.monitor.parquet", "--dir", str(spool.dir)]
    environ = {**os.environ, "PYTHONPATH": str(SRC), "LOOPLINE_CAPTURE_DAYS": "36500"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=True)
    assert "1 files of captured rows written" in done.stdout and len(rows(spool)) == 2


def test_the_monitor_starts_it_when_it_is_time(spool: Any) -> None:
    fill(spool, DAY, 2)
    settings = config.load({"LOOPLINE_CAPTURE_DAYS": "36500"}, dir=str(spool.dir))
    compaction = Compaction(settings, 1000.0, every_seconds=60.0)
    compaction.poll(1030.0)
    assert compaction.child is None
    compaction.poll(1060.0)
    assert compaction.child is not None
    compaction.child.wait(60)
    compaction.poll(1061.0)
    assert compaction.child is None
    compaction.stop()
