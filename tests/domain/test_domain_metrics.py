"""Metrics that people send: summaries that add up, percentiles within 1 %, and what is refused."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.metrics import MAX_VALUES, Summary, bucket_of, key_of, merge, read_datum, value_of
from loopline.errors import InvalidInput

NOW = 1_800_000_000.0
NUMBERS = st.floats(-1e30, 1e30, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-30)


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.lists(NUMBERS, min_size=1, max_size=40))
def test_two_summaries_add_up_to_that_of_all_values(left: list[float], right: list[float]) -> None:
    together, whole = Summary.of(left) + Summary.of(right), Summary.of([*left, *right])
    assert together.buckets == whole.buckets and together.count == whole.count
    assert (together.minimum, together.maximum) == (whole.minimum, whole.maximum)
    assert together.total == pytest.approx(whole.total, rel=1e-9, abs=1e-9 * max(map(abs, [*left, *right])))


@given(NUMBERS)
def test_a_bucket_is_within_one_percent_of_what_falls_into_it(value: float) -> None:
    assert value_of(bucket_of(value)) == pytest.approx(value, rel=0.0101)


@given(NUMBERS, NUMBERS)
def test_buckets_are_in_the_order_of_values(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert bucket_of(low) <= bucket_of(high)


def test_percentiles_of_any_sign_are_within_one_percent() -> None:
    chance = random.Random(3)
    values = [chance.gauss(0, 50) for _ in range(5000)]
    summary, ordered = Summary.of(values), sorted(values)
    for percent in (1, 10, 50, 90, 99, 99.9):
        rank = math.ceil(percent / 100 * len(values)) - 1
        assert summary.statistic(f"p{percent}") == pytest.approx(ordered[rank], rel=0.011)
    assert summary.statistic("p0") == ordered[0] and summary.statistic("p100") == ordered[-1]


def test_counts_repeat_values() -> None:
    summary = Summary.of([1.0, 5.0], [3, 1])
    assert [summary.statistic(name) for name in ("SampleCount", "Sum", "Average", "p75", "p99")] == [
        4.0,
        8.0,
        2.0,
        pytest.approx(1.0, rel=0.01),
        pytest.approx(5.0, rel=0.01),
    ]


def test_a_statistic_set_has_no_percentiles_unless_all_its_values_are_known() -> None:
    known, unknown = Summary.of_statistics(3, 6, 2, 2), Summary.of_statistics(3, 6, 1, 3)
    assert known.statistic("p99") == 2.0
    assert unknown.statistic("p99") is None and unknown.statistic("Average") == 2.0
    assert (known + unknown).statistic("p50") is None


def test_a_metric_is_told_by_its_dimensions_in_any_order() -> None:
    one = key_of("Shop", "orders", {"a": "1", "b": "2"})
    assert one == key_of("Shop", "orders", {"b": "2", "a": "1"})
    assert one != key_of("Shop", "orders", {"a": "1"}) != key_of("Shop/orders", "", {"a": "1"})


def test_periods_add_up() -> None:
    points = [(0, Summary.of([1.0])), (60, Summary.of([2.0])), (300, Summary.of([9.0]))]
    assert {at: each.total for at, each in merge(points, 300).items()} == {0: 3.0, 300: 9.0}


@pytest.mark.parametrize(
    ("datum", "says"),
    [
        ({"name": ""}, "name"),
        ({"name": "x"}, "give one of"),
        ({"name": "x", "value": 1, "values": [1]}, "give one of"),
        ({"name": "x", "value": math.nan}, "finite"),
        ({"name": "x", "value": math.inf}, "finite"),
        ({"name": "x", "value": "1"}, "finite"),
        ({"name": "x", "value": True}, "finite"),
        ({"name": "x", "values": []}, "1 to"),
        ({"name": "x", "values": [1.0] * (MAX_VALUES + 1)}, "1 to"),
        ({"name": "x", "values": [1, 2], "counts": [1]}, "one count"),
        ({"name": "x", "values": [1], "counts": [0]}, "more than 0"),
        ({"name": "x", "statistics": {"count": 1, "sum": 1, "minimum": 1}}, "maximum"),
        ({"name": "x", "statistics": {"count": 1, "sum": 1, "minimum": 2, "maximum": 1}}, "above"),
        ({"name": "x", "value": 1, "unit": "Furlongs"}, "unit"),
        ({"name": "x", "value": 1, "resolution": 7}, "resolution"),
        ({"name": "x", "value": 1, "at": NOW - 15 * 86_400}, "two weeks"),
        ({"name": "x", "value": 1, "at": NOW + 3 * 3600}, "two weeks"),
        ({"name": "x", "value": 1, "dimensions": {f"d{n}": "v" for n in range(31)}}, "30"),
        ({"name": "x", "value": 1, "dimensions": {"d": "a\nb"}}, "printable"),
        ({"name": "x", "value": 1, "colour": "red"}, "colour"),
    ],
)
def test_what_is_no_datum_is_refused_in_words(datum: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        read_datum("Shop", datum, NOW)
