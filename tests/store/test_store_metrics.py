import math
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.errors import InvalidInput
from loopline.store import metrics
from loopline.store.metrics import Last, Point, SeriesPoint, Traffic


def log(db, points, run="ru_1"):
    with db.transaction() as tx:
        metrics.log_points(tx, run, points)


def read(db, key="loss", run="ru_1", **options):
    with db.read() as tx:
        return metrics.points(tx, run, key, **options)


def test_points_come_back_by_step_and_in_the_order_of_logging(db):
    log(db, [("loss", 3.0, 1, 10.0), ("loss", 1.0, 0, 11.0), ("acc", 0.5, 0, 11.0), ("loss", 2.0, 1, 9.0)])
    log(db, [("loss", 2.5, 1, 12.0)])
    log(db, [])
    assert read(db) == [
        Point(0, 1, 1.0, 11.0),
        Point(1, 0, 3.0, 10.0),
        Point(1, 2, 2.0, 9.0),
        Point(1, 3, 2.5, 12.0),
    ]
    assert read(db, "acc") == [Point(0, 0, 0.5, 11.0)]
    assert read(db, run="ru_2") == []


def test_reading_goes_on_where_it_stopped(db):
    log(db, [("loss", float(number), number // 3, 1.0) for number in range(20)])
    seen, after = [], None
    while page := read(db, limit=3, after=after):
        assert len(page) <= 3
        seen += page
        after = (page[-1].step, page[-1].number)
    assert [point.value for point in seen] == [float(number) for number in range(20)]


def test_the_last_value_is_the_one_of_the_highest_step_logged_last(db):
    log(db, [("a", 1.0, 5, 1.0), ("a", 2.0, 4, 2.0), ("b", 1.0, 0, 1.0), ("b", 3.0, 0, 2.0)])
    log(db, [("a", 9.0, 3, 9.0)])
    with db.read() as tx:
        assert metrics.last_values(tx, "ru_1") == {"a": Last(1.0, 5, 1.0, 3), "b": Last(3.0, 0, 2.0, 2)}
    log(db, [("a", 7.0, 5, 10.0)])
    with db.read() as tx:
        assert metrics.last_values(tx, "ru_1")["a"] == Last(7.0, 5, 10.0, 4)
        assert metrics.last_values(tx, "ru_2") == {}


def test_nan_and_the_infinities_and_extreme_numbers_come_back(db):
    values = [math.inf, -math.inf, 5e-324, 1.7976931348623157e308, math.nan]
    log(db, [("loss", value, step, 1.0) for step, value in enumerate(values)])
    found = [point.value for point in read(db)]
    assert found[:-1] == values[:-1]
    assert math.isnan(found[-1])
    with db.read() as tx:
        assert math.isnan(metrics.last_values(tx, "ru_1")["loss"].value)


def test_steps_of_64_bits_fit_and_longer_ones_are_refused(db):
    for step in (-(2**63), 2**63 - 1):
        log(db, [("loss", 1.0, step, 1.0)])
    for step in (-(2**63) - 1, 2**63):
        with pytest.raises(InvalidInput):
            log(db, [("loss", 1.0, 0, 1.0), ("loss", 1.0, step, 1.0)])
    for key in ("", "k" * 251, "a\0b"):
        with pytest.raises(InvalidInput):
            log(db, [(key, 1.0, 0, 1.0)])
    assert [point.step for point in read(db)] == [-(2**63), 2**63 - 1]


def test_a_thousand_metrics_at_once_and_again(db):
    points = [(f"k{number:04}", float(number), 0, 1.0) for number in range(1000)]
    log(db, points)
    log(db, points)
    with db.read() as tx:
        last = metrics.last_values(tx, "ru_1")
    assert list(last) == [key for key, *_ in points]
    assert {found.count for found in last.values()} == {2}


def test_writers_of_one_run_side_by_side_lose_nothing(db):
    def write(name):
        for number in range(20):
            log(db, [("loss", float(name * 100 + number), 0, 1.0), (f"own{name}", 1.0, number, 1.0)])

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read(db)
    assert [point.number for point in found] == list(range(80))
    assert {point.value for point in found} == {float(n * 100 + i) for n in range(4) for i in range(20)}
    with db.read() as tx:
        last = metrics.last_values(tx, "ru_1")
    assert last["loss"].count == 80
    assert last["loss"].value == found[-1].value


def test_traffic_adds_up(db):
    one = Traffic("e", "v1", 60, 120, 10, 2, 1, {"5": 7, "12": 3})
    two = Traffic("e", "v1", 60, 120, 5, 0, 1, {"5": 1, "40": 4})
    other = Traffic("e", "v2", 60, 120, 1, 0, 0, {"5": 1})
    with db.transaction() as tx:
        metrics.add_traffic(tx, [one])
        metrics.add_traffic(tx, [])
    with db.transaction() as tx:
        metrics.add_traffic(tx, [two, other, two])
    with db.read() as tx:
        (found,) = metrics.traffic(tx, "e", "v1", 0, 1000, period_seconds=60)
        assert found == Traffic("e", "v1", 60, 120, 20, 2, 3, {"5": 9, "12": 3, "40": 8})
        assert len(metrics.traffic(tx, "e", None, 0, 1000, period_seconds=60)) == 2
        assert metrics.traffic(tx, "e", None, 0, 1000, period_seconds=1) == []
        assert metrics.traffic(tx, "e", None, 121, 1000, period_seconds=60) == []
        assert metrics.traffic(tx, "e", None, 0, 120, period_seconds=60) == []
        assert metrics.traffic(tx, "x", None, 0, 1000, period_seconds=60) == []


_rows = st.lists(
    st.builds(
        Traffic,
        endpoint=st.sampled_from("ab"),
        variant=st.just("v"),
        period_seconds=st.sampled_from([1, 60]),
        at=st.sampled_from([0, 60]),
        count=st.integers(0, 2**40),
        errors_4xx=st.integers(0, 9),
        errors_5xx=st.integers(0, 9),
        latency=st.dictionaries(st.sampled_from(["1", "2", "3"]), st.integers(1, 9)),
    ),
    max_size=6,
)


@given(batches=st.lists(_rows, max_size=4))
def test_the_order_and_batches_in_which_traffic_arrives_do_not_matter(batches):
    rows = [row for batch in batches for row in batch]
    sums = {}
    for row in rows:
        sums[row.key] = sums[row.key].plus(row) if row.key in sums else row
    reverse = {}
    for row in reversed(rows):
        reverse[row.key] = row.plus(reverse[row.key]) if row.key in reverse else row
    assert sums == reverse
    assert sum(row.count for row in sums.values()) == sum(row.count for row in rows)


def test_adding_traffic_side_by_side_loses_nothing(db):
    def add():
        for number in range(20):
            with db.transaction() as tx:
                metrics.add_traffic(tx, [Traffic("e", "v", 1, number % 3, 1, 0, 0, {"7": 1})])

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as tx:
        found = metrics.traffic(tx, "e", "v", 0, 10, period_seconds=1)
    assert sum(row.count for row in found) == sum(row.latency["7"] for row in found) == 80


def test_pruning_removes_old_counters_of_one_second_only(db):
    rows = [Traffic("e", "v", period, at, 1, 0, 0) for period in (1, 60) for at in (0, 60, 120)]
    with db.transaction() as tx:
        metrics.add_traffic(tx, rows)
        assert metrics.prune(tx, before=120) == 2
        assert [row.at for row in metrics.traffic(tx, "e", "v", 0, 999, period_seconds=1)] == [120]
        assert len(metrics.traffic(tx, "e", "v", 0, 999, period_seconds=60)) == 3


def test_a_series_keeps_the_newest_value_of_each_time(db):
    with db.transaction() as tx:
        metrics.set_series(tx, "endpoint/e", "drift", [SeriesPoint(at, at / 10, 5) for at in (30, 10, 20)])
        metrics.set_series(tx, "endpoint/e", "drift", [SeriesPoint(20, 9.0, 6), SeriesPoint(40, math.inf, 1)])
        metrics.set_series(tx, "endpoint/e", "drift", [])
        metrics.set_series(tx, "endpoint/e", "nan", [SeriesPoint(1, math.nan, 0)])
    with db.read() as tx:
        found = metrics.get_series(tx, "endpoint/e", "drift", 0, 100)
        assert found == [
            SeriesPoint(10, 1.0, 5),
            SeriesPoint(20, 9.0, 6),
            SeriesPoint(30, 3.0, 5),
            SeriesPoint(40, math.inf, 1),
        ]
        assert metrics.get_series(tx, "endpoint/e", "drift", 0, 100, limit=2) == found[2:]
        assert metrics.get_series(tx, "endpoint/e", "drift", 20, 40) == found[1:3]
        assert math.isnan(metrics.get_series(tx, "endpoint/e", "nan", 0, 9)[0].value)
