import json

import numpy as np
import pytest
from scipy import optimize, stats

from loopline.domain.baselines import Baseline, Counts, Numeric, baseline_from_columns
from loopline.domain.drift import (
    DriftPolicy,
    Rule,
    chi2_test,
    expected_psi,
    ks_test,
    psi,
    psi_adjusted,
    report,
)
from loopline.errors import InvalidInput

LEVELS = (3, 5, 10, 20, 50, 200)
LITERAL = DriftPolicy(rule="psi > 0.1")


def table(rng, rows, shift=0.0):
    """14 numeric and 6 categorical columns, as in the measurement that the rules were chosen by."""
    columns = {f"x{i}": rng.normal(size=rows) for i in range(10)}
    columns |= {f"e{i}": rng.exponential(size=rows) for i in range(2)}
    columns |= {f"z{i}": np.where(rng.random(rows) < 0.6, 0.0, rng.exponential(size=rows)) for i in range(2)}
    for levels in LEVELS:
        weights = 1.0 / np.arange(1, levels + 1)
        columns[f"c{levels}"] = rng.choice([f"v{i}" for i in range(levels)], size=rows, p=weights / weights.sum())
    columns["x3"] = columns["x3"] + shift
    return columns


@pytest.fixture(scope="module")
def baseline():
    return baseline_from_columns(table(np.random.default_rng(20), 20_000))


def fired(baseline, policy, *, rows, windows, seed):
    rng = np.random.default_rng(seed)
    return sum(bool(report(baseline, baseline.count(table(rng, rows)), policy).drifted) for _ in range(windows))


def ten_cells(rows, value):
    """Counts over 10 cells, even but for two, whose PSI against an even reference is `value` (up to rounding)."""
    reference = np.full(10, 0.1)

    def distance(step):
        shares = reference + np.array([step, -step] + [0.0] * 8)
        return float(np.sum((shares - reference) * np.log(shares / reference))) - value

    step = optimize.brentq(distance, 1e-6, 0.0999)
    return tuple(np.rint((reference + np.array([step, -step] + [0.0] * 8)) * rows).astype(int).tolist())


def one_feature(rows=1_000_000):
    feature = Numeric(tuple(map(float, range(9))), Counts((rows // 10,) * 10, 0), None, None, None, None)
    return Baseline(rows, {"x": feature})


def test_psi_by_its_formula():
    assert psi([50, 50], [50, 50]) == 0.0
    assert psi([50, 50], [80, 20]) == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4))
    assert psi([50, 50, 0], [50, 50, 0]) == 0.0
    assert psi([100, 0], [90, 10]) == pytest.approx(-0.1 * np.log(0.9) + (0.1 - 1e-4) * np.log(0.1 / 1e-4), rel=1e-3)
    assert psi([0, 0], [5, 5]) == 0.0


@pytest.mark.parametrize(("rows", "measured"), [(100, 0.0972), (500, 0.0190), (1000, 0.00948), (5000, 0.00230)])
def test_psi_is_biased_as_expected_and_the_correction_removes_it(rows, measured):
    rng = np.random.default_rng(rows)
    references = rng.multinomial(20_000, [0.1] * 10, size=3000).tolist()
    windows = rng.multinomial(rows, [0.1] * 10, size=3000).tolist()
    pairs = list(zip(references, windows, strict=True))
    raw = np.mean([psi(*pair) for pair in pairs])
    assert raw == pytest.approx(measured, rel=0.05)
    assert expected_psi(*pairs[0]) == pytest.approx(9 * (1 / 20_000 + 1 / rows))
    assert abs(np.mean([psi_adjusted(*pair) for pair in pairs])) < 0.1 * raw


@pytest.mark.parametrize("seed", range(5))
def test_chi2_equals_scipy_when_no_cell_is_rare(seed):
    rng = np.random.default_rng(seed)
    reference, current = rng.integers(50, 90, 8).tolist(), rng.integers(30, 60, 8).tolist()
    expected = stats.chi2_contingency([reference, current], correction=False)
    outcome = chi2_test(reference, current)
    assert (outcome.statistic, outcome.degrees) == (pytest.approx(expected.statistic), expected.dof)
    assert outcome.p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_chi2_pools_rare_cells():
    pooled = chi2_test([1000, 1000, 20, 10, 3, 0], [100, 100, 2, 1, 1, 9])
    expected = stats.chi2_contingency([[33 + 1000, 1000], [13 + 100, 100]], correction=False)
    assert pooled.degrees == 1
    assert {round(pooled.statistic, 9)} == {round(expected.statistic, 9)}
    assert chi2_test([5, 1], [1, 0]).p_value == 1.0
    assert chi2_test([0, 0], [1, 0]).p_value == 1.0


def test_chi2_keeps_its_level_on_sparse_columns():
    rng = np.random.default_rng(3)
    weights = 1 / np.arange(1, 201)
    weights /= weights.sum()
    reference = rng.multinomial(20_000, weights).tolist()
    p = np.array([chi2_test(reference, window).p_value for window in rng.multinomial(300, weights, size=2000).tolist()])
    assert 0.03 < np.mean(p < 0.05) < 0.07
    assert np.mean(p < 0.001) < 0.005


def test_ks_on_fine_cells_approaches_scipy():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=3000), rng.normal(0.08, 1.0, size=2000)
    cells = np.linspace(-6, 6, 3001)
    outcome = ks_test(np.histogram(a, cells)[0].tolist(), np.histogram(b, cells)[0].tolist())
    assert outcome.statistic == pytest.approx(stats.ks_2samp(a, b).statistic, abs=0.002)
    scale = np.sqrt(a.size * b.size / (a.size + b.size))
    assert outcome.p_value == pytest.approx(stats.kstwobign.sf(scale * outcome.statistic), rel=1e-6)


@pytest.mark.parametrize(("rows", "windows", "at_most"), [(100, 400, 2), (500, 150, 0), (1000, 100, 0)])
def test_noise_does_not_fire_the_default_rule(baseline, rows, windows, at_most):
    assert fired(baseline, DriftPolicy(), rows=rows, windows=windows, seed=1) <= at_most


def test_noise_fires_the_literal_rule_on_a_hundred_rows(baseline):
    assert fired(baseline, LITERAL, rows=100, windows=30, seed=2) == 30
    two = DriftPolicy(rule="psi > 0.1", features=("x0", "c5"))
    assert 60 < fired(baseline, two, rows=100, windows=200, seed=3) < 120


@pytest.mark.parametrize(("rows", "others_at_most"), [(100, 1), (500, 0), (1000, 0)])
def test_a_shift_of_one_standard_deviation_names_that_feature_and_no_other(baseline, rows, others_at_most):
    rng = np.random.default_rng(rows)
    named = [report(baseline, baseline.count(table(rng, rows, shift=1.0))).drifted for _ in range(25)]
    assert all(names[0] == "x3" for names in named)
    assert sum(len(names) - 1 for names in named) <= others_at_most


def test_an_unseen_category_is_found(baseline):
    rng = np.random.default_rng(8)
    window = table(rng, 1000)
    window["c5"] = np.where(rng.random(1000) < 0.1, "never seen", window["c5"])
    assert report(baseline, baseline.count(window)).drifted == ("c5",)


def test_values_that_go_missing_are_drift(baseline):
    rng = np.random.default_rng(9)
    window = table(rng, 1000)
    window["x0"][:200] = np.nan
    assert report(baseline, baseline.count(window)).drifted == ("x0",)


@pytest.mark.parametrize("rule", ["default", "psi > 0.1"])
@pytest.mark.parametrize(("value", "drifts"), [(0.08, False), (0.12, True)])
def test_psi_of_8_and_of_12_hundredths(rule, value, drifts):
    window = {"x": Counts(ten_cells(100_000, value), 0)}
    found = report(one_feature(), window, DriftPolicy(rule=rule))
    assert found.features[0].psi == pytest.approx(value, abs=1e-4)
    assert bool(found.drifted) is drifts
    assert found.features[0].drifted is drifts


def test_the_literal_rule_says_what_it_does_on_a_small_window():
    window = {"x": Counts((10,) * 10, 0)}
    note = report(one_feature(), window, LITERAL).note
    chance = stats.chi2.sf(0.1 / (1 / 100 + 1 / 1_000_000), 9)
    assert "about 0.090 for 'x' (100 rows against 1000000)" in note
    assert f"about {100 * chance:.0f} % of windows" in note


def test_a_literal_rule_on_another_measure():
    window = {"x": Counts((10,) * 10, 0)}
    assert report(one_feature(), window, DriftPolicy(rule="ks >= 0")).drifted == ("x",)
    assert report(one_feature(), window, DriftPolicy(rule="p_value < 0.05")).drifted == ()


def test_too_few_rows_are_not_judged():
    window = {"x": Counts((99,) + (0,) * 9, 0)}
    for policy in (DriftPolicy(), LITERAL):
        found = report(one_feature(), window, policy)
        assert (found.drifted, found.judged) == ((), False)
        assert "99 rows and 100 are needed" in found.features[0].reason
    assert report(one_feature(), window, DriftPolicy(min_rows=99)).drifted == ("x",)


def test_an_empty_window_is_no_drift(baseline):
    empty = baseline.count({name: [] for name in baseline.features})
    assert report(baseline, empty, DriftPolicy(min_rows=1)).drifted == ()


def test_the_strongest_drift_comes_first():
    two = Baseline(1_000_000, {"mild": one_feature().features["x"], "strong": one_feature().features["x"]})
    window = {"mild": Counts(ten_cells(10_000, 0.15)), "strong": Counts(ten_cells(10_000, 0.19))}
    assert report(two, window).drifted == ("strong", "mild")


def test_a_report_is_plain_json(baseline):
    counts = baseline.count(table(np.random.default_rng(1), 200))
    plain = json.loads(json.dumps(report(baseline, counts).to_dict(), allow_nan=False))
    assert [feature["feature"] for feature in plain["features"]] == list(baseline.features)
    assert plain["features"][0]["p_adjusted"] >= plain["features"][0]["p_value"]
    assert plain["rows"] == 200


@pytest.mark.parametrize("text", ["psi", "psi > high", "psi = 0.1", "import os", "psi > 0.1 or 1", "cpu > 1", ""])
def test_what_is_no_rule_is_refused(text):
    with pytest.raises(InvalidInput, match="no drift rule"):
        DriftPolicy(rule=text)


def test_rules_parse_with_any_spacing():
    assert Rule.parse(" PSI>=.1 ") == Rule("psi", ">=", 0.1)
    assert str(Rule.parse("p_value<1e-3")) == "p_value < 0.001"


def test_unknown_features_and_foreign_counts_are_refused(baseline):
    with pytest.raises(InvalidInput, match="baseline has no feature 'y'"):
        report(one_feature(), {"x": Counts((1,) * 10)}, DriftPolicy(features=("y",)))
    with pytest.raises(InvalidInput, match="window has no feature 'x'"):
        report(one_feature(), {})
    with pytest.raises(InvalidInput, match="other cells"):
        report(one_feature(), {"x": Counts((1, 2), 0)})
