import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from loopline.domain.quality import Classes, Numbers, by_minute, compare, from_dict
from loopline.errors import InvalidInput

RNG = np.random.default_rng(21)


def answers(rows=500, right=0.8):
    labels = RNG.choice(["a", "b", "c"], rows)
    predictions = np.where(RNG.random(rows) < right, labels, RNG.choice(["a", "b", "c"], rows))
    return predictions.tolist(), labels.tolist()


def classes(right, wrong):
    return Classes({("a", "a"): right, ("a", "b"): wrong})


def test_classification_quality_equals_scikit_learn():
    predictions, labels = answers()
    quality = Classes.of(zip(predictions, labels, strict=True))
    assert quality.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert quality.f1() == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    assert quality.f1("b") == pytest.approx(metrics.f1_score(labels, predictions, average=None)[1])
    matrix = metrics.confusion_matrix(labels, predictions)
    assert [[quality.confusion.get((y, p), 0) for p in "abc"] for y in "abc"] == matrix.tolist()
    expected = stats.binomtest(quality.right, quality.count).proportion_ci(method="wilson")
    assert quality.interval() == pytest.approx((expected.low, expected.high))


def test_regression_quality_equals_scikit_learn():
    labels = RNG.normal(50, 10, 300)
    predictions = labels + RNG.normal(1, 2, 300)
    quality = Numbers.of(zip(predictions, labels, strict=True))
    assert quality.rmse == pytest.approx(metrics.root_mean_squared_error(labels, predictions))
    assert quality.mae == pytest.approx(metrics.mean_absolute_error(labels, predictions))
    assert quality.bias == pytest.approx(np.mean(predictions - labels))


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_error_intervals_cover_the_truth_as_often_as_they_say(metric):
    truth = {"mae": np.sqrt(2 / np.pi), "rmse": 1.0}[metric]
    covered = 0
    for _ in range(400):
        low, high = Numbers.of((error, 0.0) for error in RNG.normal(size=200)).interval(metric)
        covered += low <= truth <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_minutes_merge_into_the_whole():
    predictions, labels = answers(120)
    at = 1_800_000_000 + RNG.uniform(0, 300, 120)
    whole = Classes.of(zip(predictions, labels, strict=True))
    minutes = by_minute(zip(at, predictions, labels, strict=True), numbers=False)
    assert list(minutes) == [1_800_000_000 + 60 * i for i in range(5)]
    assert sum(minutes.values(), Classes()) == whole
    numbers = by_minute([(59.9, 1.0, 0.0), (60.0, 3.0, 1.0)], numbers=True)
    assert {minute: quality.mae for minute, quality in numbers.items()} == {0: 1.0, 60: 2.0}
    assert numbers[0] + numbers[60] == Numbers.of([(1.0, 0.0), (3.0, 1.0)])


@pytest.mark.parametrize("quality", [Classes(), classes(3, 2), Numbers(), Numbers.of([(1.5, 1.0), (2.0, 4.0)])])
def test_json_round_trip(quality):
    assert from_dict(json.loads(json.dumps(quality.to_dict()))) == quality


def test_whole_numbers_text_and_booleans_meet_as_classes():
    """A label file says 1 or 1.0 where the model says 1."""
    assert Classes.of([(1, 1.0), (True, True), (0, 0)]).accuracy == 1.0


def test_nothing_has_no_quality():
    assert (Classes().accuracy, Classes().f1(), Classes().interval()) == (None, None, (0.0, 1.0))
    assert (Numbers().mae, Numbers().rmse, Numbers().bias) == (None, None, None)
    assert classes(1, 0).f1("z") == 0.0


@pytest.mark.parametrize(("right", "worse"), [(95, False), (92, False), (70, True)])
def test_a_window_is_worse_when_chance_does_not_explain_it(right, worse):
    found = compare(classes(right, 100 - right), classes(950, 50))
    assert found.worse is worse
    assert (found.metric, found.n, found.baseline) == ("accuracy", 100, 0.95)
    assert ("is worse than the baseline's 0.95" in found.message) is worse


def test_a_margin_allows_some_loss():
    assert compare(classes(800, 200), classes(950, 50)).worse
    assert not compare(classes(800, 200), classes(950, 50), margin=0.15).worse


def test_errors_that_grow_are_worse_and_errors_that_shrink_are_not():
    small, large = (Numbers.of((e, 0.0) for e in RNG.normal(0, scale, 400)) for scale in (1.0, 1.5))
    assert compare(large, small).worse
    assert not compare(small, large).worse
    assert not compare(large, small, margin=1.0).worse
    assert json.loads(json.dumps(compare(large, small).to_dict()))["metric"] == "mae"


def test_noise_is_seldom_called_worse():
    base = classes(900, 100)
    called = sum(compare(classes(int(k), 200 - int(k)), base).worse for k in RNG.binomial(200, 0.9, 500))
    assert called <= 25


@pytest.mark.parametrize("sides", [(Classes(), classes(1, 1)), (classes(1, 1), Classes()), (Numbers(), Numbers())])
def test_without_labelled_rows_there_is_no_comparison(sides):
    with pytest.raises(InvalidInput, match="labelled rows"):
        compare(*sides)


def test_kinds_do_not_mix_and_missing_values_are_refused():
    with pytest.raises(InvalidInput, match="other kind"):
        compare(classes(1, 1), Numbers.of([(1, 1), (2, 2)]))
    with pytest.raises(InvalidInput, match="leave it out"):
        Classes.of([("a", None)])
    for bad in ("ill", None, float("nan")):
        with pytest.raises(InvalidInput):
            Numbers.of([(1.0, bad)])
    with pytest.raises(InvalidInput):
        Numbers().interval("r2")


@pytest.mark.parametrize("value", [{}, {"kind": "images"}, {"kind": "numbers"}, {"kind": "classes", "confusion": [1]}])
def test_what_are_no_counts_is_refused(value):
    with pytest.raises(InvalidInput):
        from_dict(value)
