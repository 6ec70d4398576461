"""The monitor counts every request once, whatever happens to it, and names what drifts."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loopline import config
from loopline.domain.baselines import baseline_from_columns
from loopline.domain.capture import encode_compact
from loopline.domain.latency import GAMMA
from loopline.monitor.process import Monitor
from loopline.monitor.reports import ReportStream
from loopline.monitor.tail import Tail, delete_old
from loopline.monitor.windows import MAX_ROWS_PER_SECOND

SRC = Path(__file__).resolve().parents[2] / "src"
NAMES = [f"f{i}" for i in range(5)]
FEATURES = [{"name": name, "type": "number", "required": True} for name in NAMES]


def monitor(spool: Any, now: float = 1000.0) -> Monitor:
    return Monitor(config.load({}, dir=str(spool.dir)), now)


def totals(rows: list[dict[str, Any]]) -> tuple[int, int, int]:
    return tuple(sum(row[name] for row in rows) for name in ("count", "errors_4xx", "errors_5xx"))  # type: ignore[return-value]


def body(values: list[float]) -> bytes:
    return json.dumps({"instances": [values]}).encode()


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_torn_record_waits_for_its_rest(spool: Any) -> None:
    spool.write(1.0)
    data = spool.write(2.0)
    whole = spool.segment.read_bytes()
    spool.segment.write_bytes(whole[: -len(data) // 2])
    tail = Tail(spool.dir / "spool", {})
    assert [len(piece.records) for piece in tail.read(1 << 20)] == [1]
    spool.segment.write_bytes(whole)
    assert [len(piece.records) for piece in tail.read(1 << 20)] == [1]
    assert list(tail.read(1 << 20)) == []


def test_a_torn_record_at_the_end_of_a_finished_segment_is_left_behind(spool: Any) -> None:
    spool.write(1.0)
    with spool.segment.open("ab") as file:
        file.write(b"\x00" * 7)
    tail = Tail(spool.dir / "spool", {})
    assert sum(len(piece.records) for piece in tail.read(1 << 20)) == 1
    spool.rotate(5000.0)
    spool.write(5001.0)
    assert sum(len(piece.records) for piece in tail.read(1 << 20)) == 1


def test_a_record_longer_than_one_read_is_read(spool: Any) -> None:
    spool.write(1.0, body=b"x" * (3 << 20))
    records = [piece.records for piece in Tail(spool.dir / "spool", {}).read(1 << 20)]
    assert [len(each.bodies(np.array([0]))[0]) for each in records] == [3 << 20]


def test_several_gateways_are_read(spool: Any) -> None:
    spool.write(1.0)
    spool.gateway = spool.dir / "spool" / "gateway-1"
    spool.gateway.mkdir()
    spool.rotate(1000)
    spool.write(1.0)
    m = monitor(spool)
    m.step(1001.0)
    m.flush(1001.0)
    assert totals(spool.rows()) == (2, 0, 0)
    assert set(spool.lines()[-1]["positions"]) == {"gateway-0", "gateway-1"}


# -- counting ---------------------------------------------------------------------------------------------------------


def test_counts_are_exact_and_percentiles_within_five_percent(spool: Any) -> None:
    chance = np.random.default_rng(3)
    latencies = np.exp(chance.normal(9, 1, 5000))
    statuses = chance.choice([200, 404, 500], 5000, p=[0.9, 0.06, 0.04])
    for position, (latency, status) in enumerate(zip(latencies, statuses, strict=True)):
        spool.write(1000 + position // 500, latency_us=int(latency), status=int(status), variant=f"v{position % 2}")
    m = monitor(spool, 1010.0)
    m.step(1011.0)
    m.flush(1011.0)
    rows = spool.rows()
    assert totals(rows) == (5000, int((statuses == 404).sum()), int((statuses == 500).sum()))
    assert {(row["variant"], row["at"]) for row in rows} == {(v, 1000 + s) for v in ("v0", "v1") for s in range(10)}
    merged: dict[int, int] = {}
    for row in rows:
        for index, count in row["latency"].items():
            merged[int(index)] = merged.get(int(index), 0) + count
    ordered = np.repeat([2 * GAMMA**i / (GAMMA + 1) for i in sorted(merged)], [merged[i] for i in sorted(merged)])
    for percent in (50, 90, 99):
        assert np.percentile(ordered, percent) == pytest.approx(np.percentile(latencies, percent), rel=0.05)


def test_a_record_that_cannot_be_counted_does_not_stop_the_others(spool: Any) -> None:
    spool.write(1.0, status="x")
    spool.write(1.0, latency_us=None)
    spool.write(float("inf"))
    spool.write(2.0)
    m = monitor(spool)
    m.step(1001.0)
    m.flush(1001.0)
    assert totals(spool.rows()) == (1, 0, 0)


def test_what_the_platform_tries_out_is_no_traffic_and_copies_are_counted_apart(spool: Any) -> None:
    spool.watch(baseline(), FEATURES, window_seconds=60, every_seconds=1, min_rows=1)
    m = monitor(spool)
    given = body([0.0] * len(NAMES))
    spool.write(1000.0, given)
    spool.write(1000.0, given, purpose="test")
    spool.write(1000.0, given, purpose="async")
    spool.write(1000.0, given, shadow=True, variant="v2")
    m.step(1000.5)
    m.flush(1000.5)
    assert {row["variant"]: row["count"] for row in spool.rows()} == {"v1": 2, "v2/shadow": 1}
    window = m._windows["patients", "v1"]
    window.count()
    assert window.buckets[1000].requests == 2 and window.buckets[1000].counts["f0"].rows == 2


def test_both_forms_of_a_record_are_counted_and_named_ones_are_listed(spool: Any) -> None:
    context = {"endpoint": "patients", "variant": "v1", "content_type": "application/json", "join": "order-7"}
    first = spool.write(1000.0, b"{}", status=500)
    with spool.segment.open("ab") as file:
        file.write(encode_compact(json.dumps(context).encode(), b"rq_" + b"0" * 20, 1000.5, 200, 7, b"", b""))
    m = monitor(spool)
    m.step(1001.0)
    m.flush(1001.0)
    assert totals(spool.rows()) == (2, 0, 1)
    assert json.loads(spool.segment.with_suffix(".joins").read_text()) == [len(first), "order-7"]


def test_a_restart_goes_on_behind_the_last_whole_line(spool: Any) -> None:
    spool.write(1.0)
    m = monitor(spool)
    m.step(1001.0)
    m.flush(1001.0)
    spool.write(2.0)
    m.step(1002.0)
    m.flush(1002.0)
    path = next((spool.dir / "spool" / "monitor").glob("reports-*"))
    path.write_bytes(path.read_bytes()[:-5])  # killed within the second write
    again = monitor(spool)
    again.step(1003.0)
    again.flush(1003.0)
    assert totals(spool.rows()) == (2, 0, 0)
    assert [line["seq"] for line in spool.lines()] == [1, 2]


def test_report_files_rotate_and_resume_in_the_newest(spool: Any) -> None:
    folder = spool.dir / "spool" / "monitor"
    stream = ReportStream(folder, rotate_bytes=200)
    for number in range(10):
        stream.append(1.0, {"gateway-0": ("s", number)}, [{"kind": "traffic"}])
    assert len(list(folder.iterdir())) > 2
    again = ReportStream(folder, rotate_bytes=200)
    assert (again.seq, again.positions) == (10, {"gateway-0": ("s", 9)})
    newest = max(folder.iterdir())
    newest.write_bytes(b'{"torn')
    older = ReportStream(folder, rotate_bytes=200)
    assert older.seq < 10 and older.append(1.0, {}, [{}]) == older.seq


def test_kill_minus_nine_at_any_moment_neither_loses_nor_doubles(spool: Any) -> None:
    """A real process, killed again and again while records are being written."""
    chance = random.Random(5)
    errors = 0
    written = 0
    spool.rotate(time.time())

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "loopline.monitor", "--dir", str(spool.dir)],
            env={**os.environ, "PYTHONPATH": str(SRC)},
        )

    def write_for(seconds: float) -> None:
        nonlocal errors, written
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for _ in range(100):
                status = chance.choice([200, 200, 200, 503])
                spool.write(time.time(), status=status, latency_us=chance.randint(1, 10**6))
                errors += status == 503
                written += 1
            if chance.random() < 0.1:
                spool.rotate(time.time())

    kills = 0
    for _ in range(5):
        seen = len(spool.lines())
        process = start()
        deadline = time.monotonic() + 60
        while len(spool.lines()) == seen and time.monotonic() < deadline:
            write_for(0.05)  # until it has reported at least once
        write_for(chance.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        kills += 1
    write_for(0.1)
    process = start()
    deadline = time.monotonic() + 60
    while totals(spool.rows())[0] < written and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 0
    assert totals(spool.rows()) == (written, 0, errors)
    numbers = [line["seq"] for line in spool.lines()]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > kills


# -- drift ------------------------------------------------------------------------------------------------------------


def traffic(spool: Any, start: float, seconds: int, per_second: int, shift: float, seed: int) -> None:
    chance = np.random.default_rng(seed)
    for second in range(seconds):
        for values in chance.normal(0, 1, (per_second, len(NAMES))):
            values[2] += shift
            spool.write(start + second, body(values.tolist()), b'{"predictions": [0.5]}')


def baseline(rows: int = 5000) -> dict[str, Any]:
    chance = np.random.default_rng(0)
    return baseline_from_columns({name: chance.normal(0, 1, rows) for name in NAMES}).to_dict()


def drive(m: Monitor, start: float, end: float) -> None:
    now = start
    while now <= end:
        m.step(now)
        now += 0.5
    m.flush(end)


def test_a_shifted_feature_is_named_within_seconds_and_noise_fires_nothing(spool: Any) -> None:
    spool.watch(baseline(), FEATURES, window_seconds=10, every_seconds=1, min_rows=100, rule="default")
    m = monitor(spool, 1000.0)
    traffic(spool, 1000, 40, 50, 0.0, 1)
    drive(m, 1000.0, 1040.0)
    quiet = spool.rows("drift")
    assert len(quiet) >= 5 and not any(row["fired"] for row in quiet)
    traffic(spool, 1041, 12, 50, 1.0, 2)
    drive(m, 1041.0, 1055.0)
    loud = [row for row in spool.rows("drift") if row["fired"]]
    assert loud and all(row["body"]["drifted"] == ["f2"] for row in loud)
    assert loud[0]["end_at"] - 1041 <= 15 and loud[0]["body"]["sampled_share"] == 1.0


def test_noise_stays_silent_over_many_windows(spool: Any) -> None:
    spool.watch(baseline(), FEATURES, window_seconds=4, every_seconds=2, min_rows=100)
    m = monitor(spool, 1000.0)
    now = 1000.0
    for block in range(60):
        traffic(spool, now, 2, 60, 0.0, 100 + block)
        m.step(now + 2.0)
        now += 2.0
    m.flush(now)
    rows = spool.rows("drift")
    assert len(rows) >= 50
    assert sum(row["fired"] for row in rows) == 0


def test_with_the_defaults_a_change_is_seen_within_a_minute_and_two_hours_of_noise_are_silent(spool: Any) -> None:
    spool.watch(baseline(20_000), FEATURES)  # a window of an hour, judged once a minute
    m = monitor(spool, 0.0)
    start = 7200.0
    for block in range(120):
        traffic(spool, start + 60 * block, 60, 10, 0.0, 1000 + block)
        for second in range(0, 60, 10):
            m.step(start + 60 * block + second + 10)
    begun = start + 7200
    m.flush(begun)
    rows = spool.rows("drift")
    assert 100 <= len(rows) <= 125 and not any(row["fired"] for row in rows)
    traffic(spool, begun, 60, 10, 1.0, 5)
    drive(m, begun + 1, begun + 60)
    fired = [row for row in spool.rows("drift") if row["fired"]]
    assert fired[0]["end_at"] - begun <= 60 and fired[0]["body"]["drifted"] == ["f2"]
    assert fired[0]["end_at"] - fired[0]["start_at"] < 600  # a short window saw it; the hour is still mostly noise


def test_a_literal_rule_is_asked_about_the_whole_window_only(spool: Any) -> None:
    spool.watch(baseline(20_000), FEATURES, rule="psi > 0.1")
    m = monitor(spool, 0.0)
    for block in range(55):
        traffic(spool, 7200 + 60 * block, 60, 5, 0.0, block)
        m.step(7200 + 60 * block + 60.0)
    traffic(spool, 7200 + 3300, 60, 5, 1.0, 99)
    drive(m, 7200 + 3300, 7200 + 3360)
    assert not any(row["fired"] for row in spool.rows("drift"))


def test_windows_survive_a_kill_with_what_was_read_after_the_last_state(spool: Any) -> None:
    spool.watch(baseline(), FEATURES, window_seconds=60, every_seconds=1, min_rows=100)
    m = monitor(spool, 1000.0)
    traffic(spool, 1000, 4, 50, 1.0, 1)
    m.step(1004.0)
    m.save(1004.0)
    traffic(spool, 1005, 3, 50, 1.0, 2)
    m.step(1008.0)
    m.flush(1008.0)  # killed here: the state is behind the reports
    again = monitor(spool, 1009.0)
    drive(again, 1009.0, 1011.0)
    assert spool.rows("drift")[-1]["body"]["rows"] == 350
    assert totals(spool.rows())[0] == 350


def test_a_new_version_starts_with_an_empty_window(spool: Any) -> None:
    spool.watch(baseline(), FEATURES, window_seconds=60, every_seconds=1, min_rows=10)
    m = monitor(spool, 1000.0)
    traffic(spool, 1000, 4, 50, 1.0, 1)
    drive(m, 1004.0, 1006.0)
    assert spool.rows("drift")
    spool.watch(baseline(4000), FEATURES, window_seconds=60, every_seconds=1, min_rows=10)
    given = json.loads((spool.dir / "monitors.json").read_text())
    given["endpoints"]["patients"]["variants"]["v1"]["version"] = "ve_2"
    (spool.dir / "monitors.json").write_text(json.dumps(given))
    count = len(spool.rows("drift"))
    drive(m, 1007.0, 1012.0)
    assert len(spool.rows("drift")) == count


def test_rows_of_every_form_are_read_and_odd_ones_count_as_missing(spool: Any) -> None:
    columns = {"age": list(range(200)), "city": ["Oslo", "Rome"] * 100, "@prediction": ["a", "b"] * 100}
    features = [{"name": "age", "type": "number"}, {"name": "city", "type": "string"}]
    spool.watch(baseline_from_columns(columns).to_dict(), features, window_seconds=60, every_seconds=1, min_rows=1)
    answer = b'{"predictions": ["a"]}'
    spool.write(1000, b'{"age": 3, "city": "Oslo"}', answer)
    spool.write(1000, b'{"instances": [{"city": "Rome", "age": 4}]}', answer)
    spool.write(1000, b'{"instances": [[5, "Bonn"], [6, null]]}', b'{"predictions": [{"label": "b"}, "a"]}')
    spool.write(1000, b"7,Oslo\n,Rome\n", b'{"predictions": ["a", "a"]}', content_type="text/csv")
    spool.write(1000, b'{"instances": [["x", {"a": 1}]]}', answer)
    spool.write(1000, b'{"instances": [[1e999999, "Oslo"]]}', answer)
    spool.write(1000, b"[[[", answer)
    spool.write(1000, b'{"age": 3, "city": "Oslo"}', b"", status=400)
    m = monitor(spool, 1000.0)
    m.step(1000.5)
    window = m._windows["patients", "v1"]
    window.count()
    counts = window.buckets[1000].counts
    assert counts["age"].rows == 7 and counts["age"].missing == 2
    assert counts["city"].rows == 7 and counts["city"].cells[-1] >= 1
    assert counts["@prediction"].rows == 7


def test_beyond_the_cap_requests_are_counted_but_not_looked_at(spool: Any) -> None:
    spool.watch(baseline(), FEATURES, window_seconds=5, every_seconds=1, min_rows=100)
    m = monitor(spool, 1000.0)
    traffic(spool, 1000, 1, MAX_ROWS_PER_SECOND * 2, 0.0, 1)
    drive(m, 1001.0, 1003.0)
    report = spool.rows("drift")[-1]["body"]
    assert report["rows"] == MAX_ROWS_PER_SECOND and report["sampled_share"] == 0.5
    assert totals(spool.rows())[0] == MAX_ROWS_PER_SECOND * 2


def test_a_baseline_that_cannot_be_used_leaves_counting_alone(spool: Any, capsys: pytest.CaptureFixture[str]) -> None:
    spool.watch({"format": 99}, FEATURES)
    spool.write(1000)
    m = monitor(spool, 1000.0)
    m.step(1001.0)
    m.flush(1001.0)
    assert totals(spool.rows())[0] == 1
    assert "not watched" in capsys.readouterr().err


# -- keeping ----------------------------------------------------------------------------------------------------------


def test_only_consumed_segments_that_are_old_or_too_many_are_deleted(spool: Any) -> None:
    names = []
    for start in (1000, 2000, 3000, 4000):
        spool.rotate(start)
        spool.write(start + 1)
        names.append(spool.segment.name)
    assert delete_old(spool.gateway, names[0], before=1e9, keep_bytes=0) == []
    assert delete_old(spool.gateway, names[3], before=2000.5, keep_bytes=1 << 30) == names[:1]
    assert delete_old(spool.gateway, names[3], before=0, keep_bytes=600) == names[1:2]
    assert delete_old(spool.gateway, "9", before=1e9, keep_bytes=0) == names[2:3]  # the last one is being written
