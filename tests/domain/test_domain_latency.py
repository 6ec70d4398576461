import json

import numpy as np
import pytest

from loopline.domain.latency import ERROR, Histogram
from loopline.errors import InvalidInput

PERCENTS = (1, 10, 50, 90, 95, 99, 99.9)


def exact(values, percent):
    return np.quantile(values, percent / 100, method="lower")


@pytest.mark.parametrize("sigma", [0.1, 0.6, 2.0])
def test_percentiles_are_within_one_percent_of_the_true_sample(sigma):
    values = np.random.default_rng(7).lognormal(mean=8.0, sigma=sigma, size=20_000)
    histogram = Histogram.of(values)
    for percent in PERCENTS:
        assert histogram.percentile(percent) == pytest.approx(exact(values, percent), rel=ERROR * 1.0001)
    assert histogram.percentile(0) == values.min()
    assert histogram.percentile(100) == values.max()
    assert histogram.mean == pytest.approx(values.mean())


def test_merging_minutes_equals_one_histogram_of_everything():
    values = np.random.default_rng(8).gamma(2.0, 5_000.0, size=6_000)
    whole = Histogram.of(values)
    merged = sum((Histogram.of(part) for part in np.array_split(values, 60)), Histogram())
    assert merged.buckets == whole.buckets
    assert (merged.count, merged.minimum, merged.maximum) == (whole.count, whole.minimum, whole.maximum)
    assert [merged.percentile(p) for p in PERCENTS] == [whole.percentile(p) for p in PERCENTS]


def test_json_round_trip_is_exact_and_sparse():
    histogram = Histogram.of([120.0, 121.0, 5_000.0, 0.0, 0.5])
    text = json.dumps(histogram.to_dict())
    assert Histogram.from_dict(json.loads(text)) == histogram
    assert len(histogram.buckets) == 3
    empty = Histogram()
    assert Histogram.from_dict(json.loads(json.dumps(empty.to_dict()))) == empty


def test_an_empty_histogram_has_no_percentiles():
    assert Histogram().percentile(99) is None
    assert Histogram().mean is None
    assert Histogram.of([]) + Histogram.of([3.0]) == Histogram.of([3.0])


def test_a_constant_stream_reports_that_constant():
    assert Histogram.of([250.0] * 1000).percentile(99) == 250.0


@pytest.mark.parametrize("bad", [[-1.0], [float("nan")], [float("inf")]])
def test_values_that_are_no_durations_are_refused(bad):
    with pytest.raises(InvalidInput):
        Histogram.of(bad)


@pytest.mark.parametrize(
    "change", [{"error": 0.02}, {"count": 9}, {"buckets": {"x": 1}}, {"buckets": None}, {"buckets": {"1": -1, "2": 3}}]
)
def test_a_foreign_or_broken_histogram_is_refused(change):
    with pytest.raises(InvalidInput):
        Histogram.from_dict({**Histogram.of([5.0, 6.0]).to_dict(), **change})


def test_a_percentile_outside_0_to_100_is_refused():
    with pytest.raises(InvalidInput):
        Histogram.of([1.0]).percentile(101)
