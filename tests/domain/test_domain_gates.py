import json

import numpy as np
import pytest

from loopline.domain.gates import Policy, judge
from loopline.domain.measures import Evaluated
from loopline.errors import InvalidInput


def model(rows, wrong, **options):
    """A model that answers `rows` labels of alternating 0 and 1 and is wrong on the rows given."""
    labels = np.arange(rows) % 2
    predictions = labels.copy()
    predictions[list(wrong)] ^= 1
    return Evaluated(labels=labels, predictions=predictions, **options)


def regressor(rows, spread, seed=0):
    labels = np.random.default_rng(99).normal(size=rows)
    return Evaluated(labels=labels, predictions=labels + np.random.default_rng(seed).normal(0, spread, rows))


def by_name(verdict):
    return {check.name: check for check in verdict.checks}


def test_a_threshold_that_is_missed_is_refused_in_a_sentence_with_numbers():
    verdict = judge(Policy(thresholds={"accuracy": 0.95}), model(171, range(12)))
    assert not verdict.passed
    assert verdict.checks[0].message == "accuracy 0.930 is below the threshold 0.950 (n=171)"
    assert verdict.summary == (
        "There is no champion yet, so only thresholds were checked. Refused, 1 of 1 checks failed: accuracy 0.930 is "
        "below the threshold 0.950 (n=171)."
    )


@pytest.mark.parametrize(("limit", "passed"), [(0.9, True), (1 - 12 / 171, True), (0.9299, False)])
def test_a_threshold_itself_passes(limit, passed):
    limit = limit if passed else 1 - 11.99 / 171
    assert judge(Policy(thresholds={"accuracy": limit}), model(171, range(12))).passed is passed


def test_thresholds_know_that_lower_is_better_for_errors():
    policy = {"metric": "rmse", "better_than_champion": "off"}
    candidate = regressor(100, 0.5)
    assert judge(Policy(thresholds={"rmse": 0.6}, **policy), candidate).passed
    refused = judge(Policy(thresholds={"rmse": 0.4}, **policy), candidate)
    assert "is above the threshold 0.400" in refused.checks[0].message
    assert judge(Policy(thresholds={"r2": 0.5}, **policy), candidate).passed


def test_a_first_version_needs_thresholds_only_and_says_so():
    verdict = judge(Policy(better_than_champion="required"), model(100, range(3)))
    assert verdict.passed and verdict.first
    assert "no champion yet" in verdict.summary


def test_close_numbers_are_told_apart():
    verdict = judge(Policy(thresholds={"accuracy": 0.95}), model(10_000, range(501)))
    assert "accuracy 0.9499 is below the threshold 0.9500" in verdict.checks[0].message


def test_better_is_mcnemar_for_accuracy():
    policy = Policy(better_than_champion="required")
    better = judge(policy, model(400, range(10)), model(400, range(10, 40)))
    check = better.checks[0]
    assert better.passed and not better.first
    assert (check.name, check.method, check.n) == ("better:accuracy", "McNemar, exact", 400)
    assert check.p_value == pytest.approx(0.00222, abs=1e-5)
    assert check.difference == pytest.approx(0.05)
    assert 0 < check.interval.low < 0.05 < check.interval.high
    assert "only the candidate is right on 30 rows, only the champion on 10" in check.message
    undecided = judge(policy, model(400, range(10)), model(400, range(10, 26)))
    assert not undecided.passed
    assert "not shown to be better" in undecided.summary
    worse = judge(policy, model(400, range(10, 40)), model(400, range(10)))
    assert not worse.passed
    assert "is worse than the champion" in worse.summary


@pytest.mark.parametrize(("alpha", "passed"), [(0.05, False), (0.1, True)])
def test_alpha_is_the_limit_of_the_p_value(alpha, passed):
    """5 gained and none lost: p = 2 / 2^5 = 0.0625."""
    policy = Policy(better_than_champion="required", alpha=alpha)
    assert judge(policy, model(100, []), model(100, range(5))).passed is passed


@pytest.mark.parametrize("metric", ["accuracy", "f1", "roc_auc"])
def test_identical_answers_are_not_better_and_not_worse(metric):
    scored = model(100, range(5), scores=np.linspace(0, 1, 100))
    refused = judge(Policy(metric=metric, better_than_champion="required"), scored, scored)
    assert not refused.passed
    assert "identical on all 100 rows" in refused.summary
    same = judge(Policy(metric=metric, better_than_champion="not_worse"), scored, scored)
    assert same.passed
    assert "identical answers" in same.checks[0].message
    assert judge(Policy(metric=metric, margin={metric: 0.0}), scored, scored).passed


def test_better_is_a_bootstrap_interval_for_other_metrics():
    policy = Policy(metric="rmse", better_than_champion="required")
    good, bad = regressor(300, 0.5, seed=1), regressor(300, 0.7, seed=2)
    won = judge(policy, good, bad).checks[0]
    assert won.passed and won.interval.high < 0 and won.p_value is None
    assert won.method == "paired bootstrap, 2000 resamples"
    assert not judge(policy, bad, good).passed
    assert not judge(policy, regressor(300, 0.5, seed=3), good).passed


def test_not_worse_without_a_margin_refuses_only_a_loss_that_is_shown():
    policy = Policy(better_than_champion="not_worse")
    slightly = judge(policy, model(400, range(12)), model(400, range(12, 20)))
    assert slightly.passed
    assert "not shown to be worse" in slightly.checks[0].message
    clearly = judge(policy, model(400, range(40)), model(400, range(40, 50)))
    assert not clearly.passed
    assert "is worse than the champion" in clearly.checks[0].message


@pytest.mark.parametrize(("margin", "passed"), [(0.05, True), (0.005, False)])
def test_not_worse_with_a_margin_must_be_shown(margin, passed):
    verdict = judge(Policy(margin={"accuracy": margin}), model(400, range(12)), model(400, range(12, 20)))
    check = verdict.checks[0]
    assert verdict.passed is passed
    assert passed == (check.interval.low >= -margin)
    assert check.required == margin
    assert ("at most" if passed else "possibly more than") in check.message


@pytest.mark.parametrize(("margin", "passed"), [(0.3, True), (0.01, False)])
def test_margins_of_errors_point_the_other_way(margin, passed):
    policy = Policy(metric="mae", margin={"mae": margin})
    check = judge(policy, regressor(200, 0.55, seed=4), regressor(200, 0.5, seed=5)).checks[0]
    assert check.passed is passed
    assert passed == (check.interval.high <= margin)


def test_other_metrics_can_be_guarded_beside_the_one_that_must_be_better():
    """Fewer mistakes, but all of them on positives: better accuracy must not buy worse recall."""
    candidate, champion = model(400, range(1, 40, 2)), model(400, range(0, 120, 2))
    policy = Policy(better_than_champion="required", margin={"recall": 0.02})
    checks = by_name(judge(policy, candidate, champion))
    assert checks["better:accuracy"].passed
    assert not checks["not_worse:recall"].passed
    assert not judge(policy, candidate, champion).passed


def test_slices_are_judged_on_their_rows():
    slices = {"sex=f": np.arange(100) < 20, "sex=m": np.arange(100) >= 20}
    candidate = model(100, range(4), slices=slices)
    policy = Policy(thresholds={"accuracy": 0.95}, slices={"sex=f": {"accuracy": 0.9}, "sex=m": {"accuracy": 0.9}})
    verdict = judge(policy, candidate)
    checks = by_name(verdict)
    assert checks["threshold:accuracy"].passed
    assert checks["slice:sex=m:accuracy"].passed
    failed = checks["slice:sex=f:accuracy"]
    assert (failed.passed, failed.n) == (False, 20)
    assert failed.message == "accuracy of slice 'sex=f' 0.800 is below the threshold 0.900 (n=20)"
    assert not verdict.passed


@pytest.mark.parametrize(
    ("slices", "cure"),
    [
        ({}, "no slice 'a'"),
        ({"a": [False] * 40}, "no row"),
        ({"a": [True] * 39}, "per row"),
        ({"a": [1] * 40}, "true or false"),
    ],
)
def test_slices_that_cannot_be_judged_are_refused(slices, cure):
    with pytest.raises(InvalidInput, match=cure):
        judge(Policy(slices={"a": {"accuracy": 0.5}}), model(40, [], slices=slices))


def test_a_metric_that_a_slice_cannot_have_is_refused_by_name():
    candidate = model(40, [], slices={"even": np.arange(40) % 2 == 0})
    with pytest.raises(InvalidInput, match="recall of slice 'even' is not defined"):
        judge(Policy(slices={"even": {"recall": 0.5}}), candidate)


def test_too_few_rows_are_refused():
    with pytest.raises(InvalidInput, match="20 rows and the gate needs 30"):
        judge(Policy(), model(20, []))


def test_the_champion_must_have_answered_the_same_rows():
    with pytest.raises(InvalidInput, match="different rows"):
        judge(Policy(), model(40, []), model(41, []))


def test_off_compares_nothing():
    verdict = judge(Policy(better_than_champion="off", thresholds={"f1": 0.1}), model(60, range(30)), model(60, []))
    assert verdict.passed
    assert [check.name for check in verdict.checks] == ["threshold:f1"]


def test_a_policy_that_asks_nothing_says_so():
    assert "asks for nothing" in judge(Policy(better_than_champion="off"), model(40, [])).summary


def test_a_verdict_is_the_same_every_time_and_plain_json():
    policy = Policy.from_dict({"metric": "f1", "better_than_champion": "required", "thresholds": {"accuracy": 0.9}})
    first, again = (judge(policy, model(300, range(9)), model(300, range(9, 40))) for _ in range(2))
    assert first == again
    plain = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert [check["name"] for check in plain["checks"]] == ["threshold:accuracy", "better:f1"]
    assert plain["checks"][1]["interval"]["level"] == 0.95


def test_a_policy_is_read_from_the_gate_table():
    table = {"mode": "enforce", "test": "patients-test", "label": "ill", "positive": "yes", "min_rows": 50}
    policy = Policy.from_dict({**table, "thresholds": {"recall": 0.9}, "slices": {"sex=f": {"recall": 0.8}}})
    assert (policy.positive, policy.min_rows) == ("yes", 50)
    assert policy.metrics == ("accuracy", "recall")


@pytest.mark.parametrize(
    ("table", "cure"),
    [
        ({"treshold": {}}, "no setting treshold"),
        ({"metric": "acuracy"}, "use one of"),
        ({"thresholds": {"auc": 0.9}}, "use one of"),
        ({"slices": {"a": {"auc": 0.9}}}, "use one of"),
        ({"better_than_champion": "yes"}, "better_than_champion must be"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": "low"}, "wrong kind"),
        ({"thresholds": 0.9}, "wrong kind"),
        ({"thresholds": {"f1": float("nan")}}, "finite"),
        ({"margin": {"f1": -0.1}}, "margins"),
        ({"min_rows": 0}, "min_rows"),
        ({"resamples": 10}, "resamples"),
    ],
)
def test_policies_that_cannot_be_used_are_refused(table, cure):
    with pytest.raises(InvalidInput, match=cure):
        Policy.from_dict(table)


def test_noise_passes_required_about_as_often_as_alpha_says():
    """Two models of equal merit: the candidate is called better in at most alpha / 2 of the cases."""
    rng = np.random.default_rng(12)
    policy = Policy(better_than_champion="required", resamples=100)
    passed = 0
    for _ in range(300):
        wrong = [np.flatnonzero(rng.random(200) < 0.15) for _ in range(2)]
        passed += judge(policy, model(200, wrong[0]), model(200, wrong[1])).passed
    assert passed <= 14
