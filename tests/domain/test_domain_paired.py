import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from loopline.domain.measures import Evaluated
from loopline.domain.paired import bootstrap_of, mcnemar_of
from loopline.errors import InvalidInput


def split(rows, gained, lost, both=0):
    """Labels of 1 and two models' answers: `gained` rows only the first has right, `lost` only the second."""
    first, second = np.ones(rows, int), np.ones(rows, int)
    second[:gained] = 0
    first[gained : gained + lost] = 0
    first[gained + lost :][:both] = second[gained + lost :][:both] = 0
    return np.ones(rows, int), first, second


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (10, 3), (3, 10), (40, 25)])
def test_mcnemar_counts_discordant_rows_and_equals_the_binomial_test(gained, lost):
    found = mcnemar_of(*split(200, gained, lost, both=7))
    assert (found.candidate_only, found.champion_only) == (gained, lost)
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found.p_value == pytest.approx(expected)
    assert mcnemar_of(*split(200, gained, lost), mid_p=True).p_value <= found.p_value


@pytest.mark.parametrize(
    ("name", "score"),
    [
        ("rmse", metrics.root_mean_squared_error),
        ("mae", metrics.mean_absolute_error),
        ("r2", metrics.r2_score),
        ("f1", metrics.f1_score),
        ("roc_auc", metrics.roc_auc_score),
    ],
)
def test_the_interval_agrees_with_scipy(name, score):
    rng = np.random.default_rng(5)
    rows = 150
    if name in ("f1", "roc_auc"):
        labels = rng.integers(0, 2, rows)
        scores = [np.clip(labels * step + rng.uniform(0, 0.8, rows), 0, 1) for step in (0.35, 0.25)]
        answers = [(each > 0.5).astype(int) for each in scores]
    else:
        labels = rng.normal(size=rows)
        answers = [labels + rng.normal(0, spread, rows) for spread in (0.5, 0.6)]
        scores = [None, None]
    given = scores if name == "roc_auc" else answers
    models = [Evaluated(labels=labels, predictions=a, scores=s) for a, s in zip(answers, scores, strict=True)]
    got = bootstrap_of(name, *models, resamples=8000, seed=1)
    expected = stats.bootstrap(
        (labels, *given),
        lambda y, a, b: score(y, a) - score(y, b),
        paired=True,
        vectorized=False,
        n_resamples=500,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = expected.high - expected.low
    assert got.low == pytest.approx(expected.low, abs=0.12 * width)
    assert got.high == pytest.approx(expected.high, abs=0.12 * width)
    assert (got.level, got.resamples) == (0.95, 8000)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(6)
    covered = 0
    for trial in range(200):
        labels = rng.normal(size=100)
        models = [Evaluated(labels=labels, predictions=labels + rng.laplace(0, scale, 100)) for scale in (1.0, 1.2)]
        found = bootstrap_of("mae", *models, resamples=400, seed=trial)
        covered += found.low <= -0.2 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_counting_distinct_rows_is_the_same_draw_as_drawing_rows():
    labels, first, second = split(120, 20, 9, both=15)
    zeros = np.zeros(40, int)
    labels, first, second = (np.concatenate([part, zeros]) for part in (labels, first, second))
    models = [Evaluated(labels=labels, predictions=part) for part in (first, second)]
    got = bootstrap_of("accuracy", *models, resamples=20_000)
    rng = np.random.default_rng(1)
    gap = ((first == labels).astype(float) - (second == labels))[rng.integers(0, 160, (20_000, 160))].mean(axis=1)
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(gap, [0.025, 0.975])), abs=1 / 160 + 1e-9)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    rng = np.random.default_rng(8)
    labels = rng.normal(size=80)
    models = [Evaluated(labels=labels, predictions=labels + rng.normal(size=80)) for _ in range(2)]
    assert bootstrap_of("rmse", *models, seed=3) == bootstrap_of("rmse", *models, seed=3)
    assert bootstrap_of("rmse", *models, seed=3) != bootstrap_of("rmse", *models, seed=4)


def test_a_class_with_hardly_a_row_cannot_be_compared():
    labels = [1] + [0] * 99
    models = [Evaluated(labels=labels, predictions=labels, scores=np.linspace(1, 0, 100)) for _ in range(2)]
    with pytest.raises(InvalidInput, match="too few rows of some class"):
        bootstrap_of("roc_auc", *models)


def test_a_large_test_set_is_resampled_in_blocks():
    rng = np.random.default_rng(9)
    labels = rng.normal(size=50_000)
    models = [Evaluated(labels=labels, predictions=labels + rng.normal(0, s, 50_000)) for s in (1.0, 1.05)]
    found = bootstrap_of("rmse", *models, resamples=200)
    assert -0.07 < found.low < found.high < -0.03
