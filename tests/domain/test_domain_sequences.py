"""Confidence sequences: they may be looked at after every observation, and are still right."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopline.domain.sequences import MIN_MEANS, Means, Shares, compare, of_mean, of_share

ALPHA = 0.05


def _ever_refuted(p: float, outcomes: np.ndarray) -> int:
    """How many streams (rows of 0 and 1) leave p out of their interval at any time, by the test martingale itself.

    An interval holds p exactly while the mixture's likelihood is below 1/alpha times that of p; this is the same
    condition as ``of_share`` solves for, over all lengths at once.
    """
    n = np.arange(1, outcomes.shape[1] + 1)
    hits = outcomes.cumsum(axis=1)
    lgamma = np.vectorize(math.lgamma)
    table = lgamma(np.arange(0, outcomes.shape[1] + 1) + 0.5)  # log Gamma(k + 1/2)
    mixture = table[hits] + table[n - hits] - lgamma(n + 1.0)[None, :] - 2 * math.lgamma(0.5)
    likelihood = hits * math.log(p) + (n - hits) * math.log1p(-p)
    return int((mixture - likelihood >= math.log(1 / ALPHA)).any(axis=1).sum())


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5])
def test_a_thousand_streams_looked_at_after_every_observation_are_wrong_no_more_often_than_said(p: float) -> None:
    outcomes = np.random.default_rng(int(p * 1000)).random((1000, 2000)) < p
    assert _ever_refuted(p, outcomes) / 1000 <= ALPHA


def test_the_interval_is_the_one_whose_coverage_was_counted() -> None:
    rng = np.random.default_rng(7)
    for _ in range(200):
        n = int(rng.integers(1, 500))
        p = float(rng.uniform(0.01, 0.99))
        hits = int(rng.binomial(n, p))
        low, high = of_share(hits, n, ALPHA)
        stream = np.array([[True] * hits + [False] * (n - hits)])
        at_the_end = math.lgamma(hits + 0.5) + math.lgamma(n - hits + 0.5) - math.lgamma(n + 1) - 2 * math.lgamma(0.5)
        refuted = at_the_end - hits * math.log(p) - (n - hits) * math.log1p(-p) >= math.log(1 / ALPHA)
        assert (low <= p <= high) is not refuted, stream.shape


@given(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.01, 0.05, 0.2]))
def test_an_interval_holds_its_share_and_lies_between_0_and_1(hits: int, misses: int, alpha: float) -> None:
    low, high = of_share(hits, hits + misses, alpha)
    assert 0 <= low <= high <= 1
    if hits + misses:
        assert low <= hits / (hits + misses) <= high
    wider = of_share(hits, hits + misses, alpha / 10)
    assert wider[0] <= low and high <= wider[1]


def test_two_equal_versions_watched_after_every_request_are_hardly_ever_told_apart() -> None:
    rng, wrong = np.random.default_rng(3), 0
    for _ in range(100):
        ours, theirs = (rng.random((2, 400)) < 0.1).cumsum(axis=1)
        for n in range(1, 401):
            found = compare("e", Shares(n, int(theirs[n - 1])), Shares(n, int(ours[n - 1])), higher_is_better=False)
            if found.verdict != "undecided":
                wrong += 1
                break
    assert wrong <= 100 * ALPHA


def test_means_are_missed_no_more_often_than_said() -> None:
    rng = np.random.default_rng(5)
    values = rng.exponential(1.0, (1000, 2000))
    n = np.arange(1, 2001)
    totals, squares = values.cumsum(axis=1), (values**2).cumsum(axis=1)
    missed = 0
    for row in range(1000):
        looks = range(200, 2000, 20)  # the guarantee is asymptotic: from a first number of observations on
        intervals = (of_mean(int(n[i]), float(totals[row, i]), float(squares[row, i]), ALPHA) for i in looks)
        missed += any(not low <= 1.0 <= high for low, high in intervals)
    assert missed / 1000 <= ALPHA
    assert of_mean(MIN_MEANS - 1, 10.0, 10.0, ALPHA) == (0.0, math.inf)


def test_a_difference_is_found_and_called_by_its_name() -> None:
    better = compare("error_rate", Shares(5000, 500), Shares(5000, 250), higher_is_better=False)
    assert better.verdict == "better" and better.interval[1] < 0
    assert "the challenger is better" in better.words()
    worse = compare("accuracy", Shares(5000, 4750), Shares(5000, 4500), higher_is_better=True)
    assert worse.verdict == "worse" and worse.interval[1] < 0
    assert compare("mae", Means(5000, 5000.0, 7500.0), Means(5000, 4000.0, 5000.0), higher_is_better=False).verdict == (
        "better"
    )


def test_a_difference_that_does_not_matter_is_no_verdict() -> None:
    sides = Shares(20000, 2000), Shares(20000, 1600)
    assert compare("e", *sides, higher_is_better=False).verdict == "better"
    assert compare("e", *sides, higher_is_better=False, min_effect=0.02).verdict == "undecided"
    assert compare("e", *sides, higher_is_better=False, min_effect=0.05).verdict == "same"


def test_nothing_seen_decides_nothing() -> None:
    found = compare("mae", Means(0, 0.0, 0.0), Means(0, 0.0, 0.0), higher_is_better=False)
    assert found.verdict == "undecided"
    assert found.to_dict()["interval"] == [None, None]
    assert compare("e", Shares(0, 0), Shares(10, 10), higher_is_better=False).verdict == "undecided"
