import numpy as np
import pytest
from scipy import special, stats

from loopline.domain.distributions import (
    chi2_tail,
    holm,
    kolmogorov_tail,
    newcombe,
    normal_quantile,
    sign_test,
    wilson,
)
from loopline.errors import InvalidInput


@pytest.mark.parametrize("degrees", [1, 2, 3, 9, 10, 50, 199, 1000])
def test_chi2_tail_equals_scipy(degrees):
    for statistic in np.concatenate([np.linspace(0.001, 4 * degrees, 97), [degrees, degrees + 2, 20 * degrees]]):
        expected = stats.chi2.sf(statistic, degrees)
        assert chi2_tail(float(statistic), degrees) == pytest.approx(expected, rel=1e-9, abs=1e-13)


def test_chi2_tail_keeps_its_digits_far_out():
    assert chi2_tail(300.0, 9) == pytest.approx(stats.chi2.sf(300.0, 9), rel=1e-11)
    assert chi2_tail(0.0, 3) == 1.0
    assert chi2_tail(float("inf"), 3) == 0.0
    with pytest.raises(InvalidInput):
        chi2_tail(1.0, 0)


def test_kolmogorov_tail_equals_scipy():
    for x in np.linspace(0.01, 5.0, 200):
        assert kolmogorov_tail(float(x)) == pytest.approx(special.kolmogorov(x), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("trials", [1, 2, 5, 12, 13, 40, 1001])
def test_sign_test_equals_scipy_binomtest(trials):
    for successes in {0, 1, trials // 3, trials // 2, trials}:
        expected = stats.binomtest(successes, trials, 0.5).pvalue
        assert sign_test(successes, trials) == pytest.approx(expected, rel=1e-10)
        smaller = min(successes, trials - successes)
        mid = 2 * stats.binom.cdf(smaller, trials, 0.5) - stats.binom.pmf(smaller, trials, 0.5)
        assert sign_test(successes, trials, mid_p=True) == pytest.approx(mid, rel=1e-10)


def test_sign_test_of_nothing_is_one_and_of_the_impossible_is_refused():
    assert sign_test(0, 0) == 1.0
    with pytest.raises(InvalidInput):
        sign_test(3, 2)


def test_sign_test_of_a_million_trials_is_exact_enough():
    assert sign_test(498_000, 1_000_000) == pytest.approx(stats.binomtest(498_000, 1_000_000).pvalue, rel=1e-7)


def test_holm_is_bonferroni_for_the_smallest_and_never_decreases():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()
    assert max(holm([0.9, 0.8, 0.7])) == 1.0
    p = np.random.default_rng(1).uniform(size=20)
    adjusted = np.array(holm(p.tolist()))
    order = np.argsort(p)
    assert np.all(np.diff(adjusted[order]) >= 0)
    assert adjusted[order[0]] == pytest.approx(min(1.0, 20 * p.min()))


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 10), (171, 200), (1, 1)])
def test_wilson_equals_scipy(successes, trials):
    for level in (0.9, 0.95, 0.99):
        expected = stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
        assert wilson(successes, trials, level) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert wilson(0, 0) == (0.0, 1.0)


def test_newcombe_reproduces_the_published_examples():
    """Newcombe 1998, table II, method 10: 56/70 - 48/80 and 9/10 - 3/10."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert newcombe(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert newcombe(0, 0, 3, 10) == (-1.0, 1.0)


def test_normal_quantile_needs_a_probability():
    assert normal_quantile(0.975) == pytest.approx(stats.norm.ppf(0.975), rel=1e-12)
    with pytest.raises(InvalidInput):
        normal_quantile(1.0)
