import bisect
import json
import math

import numpy as np
import pytest

from loopline.domain.baselines import Baseline, Categorical, Counts, baseline_from_columns, category_key
from loopline.errors import InvalidInput


def table(rows=1000, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "age": rng.normal(40, 12, rows),
        "visits": rng.poisson(1.0, rows),
        "city": rng.choice(["Oslo", "Rome", "Lima"], rows, p=[0.6, 0.3, 0.1]),
        "smoker": rng.random(rows) < 0.2,
    }


def feature_of(values, **options):
    return baseline_from_columns({"x": values}, **options).features["x"]


def test_deciles_fill_ten_equal_cells():
    age = feature_of(np.random.default_rng(1).normal(size=1000))
    assert len(age.edges) == 9
    assert age.counts.cells == (100,) * 10


@pytest.mark.parametrize("rows", [1, 2, 7, 10, 11, 999])
def test_counts_always_add_up_and_agree_with_bisect(rows):
    values = np.random.default_rng(rows).exponential(size=rows).round(1)
    fitted = feature_of(values)
    expected = [0] * (len(fitted.edges) + 1)
    for value in values:
        expected[bisect.bisect_right(fitted.edges, value)] += 1
    assert list(fitted.counts.cells) == expected
    assert fitted.counts.rows == rows


def test_a_frequent_value_has_a_cell_of_its_own():
    values = np.concatenate([np.zeros(600), np.random.default_rng(2).exponential(size=400) + 0.5])
    assert feature_of(values).counts.cells[0] == 600
    middle = np.concatenate([np.full(500, 3.0), np.random.default_rng(3).uniform(0, 6, 500)])
    fitted = feature_of(middle)
    assert fitted.counts.cells[bisect.bisect_right(fitted.edges, 3.0)] == 500


def test_a_constant_column_sees_any_other_value():
    fitted = feature_of([7.0] * 50)
    assert fitted.counts.cells == (0, 50, 0)
    assert fitted.count([6.999, 7.0, 7.001, None]).to_dict() == {"cells": [1, 1, 1], "missing": 1}


def test_small_whole_numbers_get_a_cell_each():
    fitted = feature_of([0, 1, 2] * 40)
    assert fitted.edges == (1.0, 2.0)
    assert fitted.counts.cells == (40, 40, 40)


def test_missing_and_infinite_numbers():
    fitted = feature_of([1.0, None, float("nan"), float("inf"), -float("inf"), 2.0])
    assert fitted.counts.missing == 2
    assert sum(fitted.counts.cells) == 4
    assert (fitted.mean, fitted.minimum, fitted.maximum) == (1.5, 1.0, 2.0)
    assert all(map(math.isfinite, fitted.edges))


def test_a_column_without_any_value_has_one_empty_cell():
    fitted = feature_of([None, None])
    assert (fitted.edges, fitted.counts, fitted.mean) == ((), Counts((0,), 2), None)
    assert fitted.count([1.0]).cells == (1,)


def test_unseen_and_rare_categories_fall_in_the_last_cell():
    fitted = feature_of(["a"] * 5 + ["b"] * 3 + ["c", "d"], max_categories=2)
    assert fitted == Categorical(("a", "b"), Counts((5, 3, 2), 0))
    assert fitted.count(["b", "z", None, "a", "c"]) == Counts((1, 1, 2), 1)


def test_booleans_are_categories_and_named_numbers_may_be():
    fitted = feature_of([True, False, True])
    assert fitted.categories == ("true", "false")
    codes = feature_of([1, 2.0, 1, None], categorical=["x"])
    assert codes == Categorical(("1", "2"), Counts((2, 1, 0), 1))
    assert feature_of([True, 1, "1"], categorical=["x"]).counts.cells == (2, 1, 0)


@pytest.mark.parametrize(
    ("value", "key"),
    [("a", "a"), (True, "true"), (3, "3"), (3.0, "3"), (0.5, "0.5"), (None, None), (math.nan, None), (np.int8(3), "3")],
)
def test_category_keys(value, key):
    assert category_key(value) == key


def test_text_with_gaps_is_categorical_and_mixtures_are_refused():
    assert feature_of(["a", None, math.nan]).counts.missing == 2
    with pytest.raises(InvalidInput, match="neither"):
        feature_of(["a", 1])
    with pytest.raises(InvalidInput, match="neither"):
        feature_of(np.array(["2026-01-01"], dtype="datetime64[D]"))


def test_many_edges_count_as_few_do():
    values = np.random.default_rng(5).normal(size=5000)
    values[::100] = np.nan
    fine = feature_of(values, bins=100)
    expected = np.histogram(values[~np.isnan(values)], bins=[-np.inf, *fine.edges, np.inf])[0]
    assert list(fine.counts.cells) == expected.tolist()
    assert fine.counts.missing == 50


def test_windows_add_up_to_their_union():
    baseline = baseline_from_columns(table())
    whole = table(600, seed=9)
    parts = [{name: column[i::3] for name, column in whole.items()} for i in range(3)]
    first, second, third = (baseline.count(part) for part in parts)
    assert {name: first[name] + second[name] + third[name] for name in first} == baseline.count(whole)
    with pytest.raises(InvalidInput):
        first["age"] + first["city"]


def test_json_round_trip_is_exact():
    baseline = baseline_from_columns(table())
    assert Baseline.from_dict(json.loads(json.dumps(baseline.to_dict(), allow_nan=False))) == baseline
    counts = baseline.count(table(10))["city"]
    assert Counts.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts


def test_a_baseline_written_in_plain_python_is_read():
    values = sorted([5.0, 3.0, 8.0, 1.0, 9.0, 2.0, 7.0, 4.0, 6.0, 10.0])
    edges = [values[j * 10 // 10] for j in range(1, 10)]
    counts = [0] * 10
    for value in values:
        counts[bisect.bisect_right(edges, value)] += 1
    entry = {"kind": "numeric", "edges": edges, "counts": counts, "missing": 0}
    read = Baseline.from_dict({"format": 1, "rows": 10, "features": {"x": entry}})
    assert read.features["x"].edges == feature_of(values).edges
    assert read.features["x"].counts == feature_of(values).counts


GOOD = {"kind": "numeric", "edges": [1.0, 2.0], "counts": [1, 1, 1], "missing": 0}


@pytest.mark.parametrize(
    "entry",
    [
        {**GOOD, "edges": [2.0, 1.0]},
        {**GOOD, "edges": [1.0]},
        {**GOOD, "edges": [1.0, math.inf]},
        {**GOOD, "counts": [1, 1, 2]},
        {**GOOD, "counts": [1, 1, -1]},
        {**GOOD, "counts": [1, 1, 1.0]},
        {**GOOD, "missing": None},
        {**GOOD, "kind": "image"},
        {"kind": "categorical", "categories": ["a", "a"], "counts": [1, 1, 1], "missing": 0},
        {"kind": "categorical", "counts": [3], "missing": 0},
        [],
        None,
    ],
)
def test_a_baseline_that_does_not_add_up_is_refused_by_name(entry):
    with pytest.raises(InvalidInput, match="'x'"):
        Baseline.from_dict({"format": 1, "rows": 3, "features": {"x": entry}})


@pytest.mark.parametrize(
    "value", [{}, [], {"format": 2}, {"format": 1, "rows": 1}, {"format": 1, "rows": "1", "features": {}}]
)
def test_what_is_no_baseline_is_refused(value):
    with pytest.raises(InvalidInput):
        Baseline.from_dict(value)


def test_windows_must_have_the_columns_and_numbers_where_they_belong():
    baseline = baseline_from_columns(table())
    window = table(5)
    with pytest.raises(InvalidInput, match="'age'"):
        baseline.count({name: column for name, column in window.items() if name != "age"})
    with pytest.raises(InvalidInput, match="'age'"):
        baseline.count({**window, "age": ["old"] * 5})
    with pytest.raises(InvalidInput, match="'city'"):
        baseline.count({**window, "city": [["Oslo"]] * 5})


@pytest.mark.parametrize("columns", [{}, {"a": []}, {"a": [1.0], "b": [1.0, 2.0]}])
def test_tables_without_rows_or_of_ragged_columns_are_refused(columns):
    with pytest.raises(InvalidInput, match="one length"):
        baseline_from_columns(columns)
