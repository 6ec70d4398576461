import itertools

import pytest

from loopline.domain.alarms import Alarm, Datapoint, datapoint, evaluate, may_act
from loopline.domain.latency import Histogram
from loopline.domain.states import AlarmStatus
from loopline.errors import InvalidInput

OK, ALARM, NO_DATA = AlarmStatus.OK, AlarmStatus.ALARM, AlarmStatus.INSUFFICIENT_DATA
KEEP = None
NOW = 1_800_000_000.0
PERIOD = 60

# The two tables of the CloudWatch user guide, oldest datapoint first: the states for missing, ignore, breaching and
# not_breaching.
THREE_OF_THREE = {
    "0-X-X": (OK, OK, OK, OK),
    "----0": (OK, OK, OK, OK),
    "-----": (NO_DATA, KEEP, ALARM, OK),
    "0XX-X": (ALARM, ALARM, ALARM, ALARM),
    "--X--": (ALARM, KEEP, ALARM, OK),
    "0----": (OK, OK, OK, OK),
    "----X": (NO_DATA, KEEP, ALARM, OK),
    "X----": (ALARM, KEEP, ALARM, OK),
}
TWO_OF_THREE = {
    "0-X-X": (ALARM, ALARM, ALARM, ALARM),
    "00X0X": (ALARM, ALARM, ALARM, ALARM),
    "0-X--": (OK, OK, ALARM, OK),
    "----0": (OK, OK, ALARM, OK),
    "---X-": (ALARM, KEEP, ALARM, OK),
    "----X": (NO_DATA, KEEP, ALARM, OK),
}
TREATMENTS = ("missing", "ignore", "breaching", "not_breaching")
CASES = [
    (needed, pattern, treatment, expected, previous)
    for needed, table in ((3, THREE_OF_THREE), (2, TWO_OF_THREE))
    for pattern, row in table.items()
    for (treatment, expected), previous in itertools.product(zip(TREATMENTS, row, strict=True), AlarmStatus)
]


def points(pattern, *, period=PERIOD, now=NOW):
    values = {"0": 1.0, "X": 9.0}
    start = now - len(pattern) * period
    return [Datapoint(start + i * period, values[mark]) for i, mark in enumerate(pattern) if mark != "-"]


def alarm(**changes):
    return Alarm(**{"metric": "m", "threshold": 5.0, "period_seconds": PERIOD, "evaluation_periods": 3, **changes})


@pytest.mark.parametrize(("needed", "pattern", "treatment", "expected", "previous"), CASES)
def test_the_published_tables_of_missing_data_hold(needed, pattern, treatment, expected, previous):
    watched = alarm(datapoints_to_alarm=needed, missing=treatment)
    result = evaluate(watched, points(pattern), previous, now=NOW)
    assert result.state == (previous if expected is KEEP else expected), result.reason
    assert result.changed == (result.state != previous)
    assert len(result.datapoints) <= 3


def test_the_tables_are_all_there():
    assert len(CASES) == 14 * 4 * 3


def test_a_fresh_breach_with_gaps_waits_and_an_older_one_alarms():
    watched = alarm()
    assert evaluate(watched, points("---X-"), OK, now=NOW).state == NO_DATA
    assert evaluate(watched, points("--X--"), OK, now=NOW).state == ALARM
    assert evaluate(watched, points("-X-0-"), OK, now=NOW).state == OK


def test_only_ended_periods_within_the_range_count():
    watched = alarm(evaluation_periods=1)
    running = Datapoint(NOW, 9.0)
    too_old = Datapoint(NOW - 4 * PERIOD, 9.0)
    assert evaluate(watched, [running, too_old], OK, now=NOW + 59).state == NO_DATA
    assert evaluate(watched, [running, too_old], OK, now=NOW + 60).state == ALARM


def test_datapoints_in_any_order_decide_alike_and_duplicates_are_refused():
    some = points("0XXXX")
    assert evaluate(alarm(), list(reversed(some)), OK, now=NOW) == evaluate(alarm(), some, OK, now=NOW)
    with pytest.raises(InvalidInput, match="merge"):
        evaluate(alarm(), [*some, Datapoint(some[-1].at + 1, 2.0)], OK, now=NOW)


def test_a_datapoint_that_is_not_a_number_is_missing():
    assert evaluate(alarm(), [Datapoint(NOW - PERIOD, float("nan"))], OK, now=NOW).state == NO_DATA


@pytest.mark.parametrize(
    ("comparison", "value", "breaches"),
    [(">", 5, False), (">", 5.1, True), (">=", 5, True), ("<", 5, False), ("<", 4, True), ("<=", 5, True)],
)
def test_comparisons(comparison, value, breaches):
    watched = alarm(comparison=comparison, evaluation_periods=1)
    state = evaluate(watched, [Datapoint(NOW - PERIOD, value)], now=NOW).state
    assert state == (ALARM if breaches else OK)


def test_silence_alarm_fires_without_traffic_and_clears_with_it():
    silence = alarm(metric="requests", statistic="Sum", comparison="<", threshold=1, missing="breaching")
    assert evaluate(silence, [], OK, now=NOW).state == ALARM
    assert evaluate(silence, points("-----0"), ALARM, now=NOW).state == OK


@pytest.mark.parametrize(
    ("statistic", "expected"),
    [("Average", 2.5), ("Sum", 10), ("Minimum", 1), ("Maximum", 4), ("SampleCount", 4), ("p0", 1), ("p100", 4)],
)
def test_statistics_of_a_period(statistic, expected):
    assert datapoint(60.0, statistic, Histogram.of([1, 2, 3, 4])) == Datapoint(60.0, expected, 4)
    assert datapoint(60.0, statistic, Histogram()) is None


@pytest.mark.parametrize("statistic", ["P99", "p101", "median", "p", "p-1", "p9.99999999999999"])
def test_unknown_statistics_are_refused(statistic):
    with pytest.raises(InvalidInput, match="statistic"):
        alarm(statistic=statistic)


@pytest.mark.parametrize(
    ("statistic", "limit"), [("p99", 1000), ("p99.9", 10_000), ("p90", 100), ("p5", 200), ("Sum", 0)]
)
def test_percentiles_need_enough_samples(statistic, limit):
    assert alarm(statistic=statistic).low_sample_limit == limit


def test_low_samples_keep_the_state_when_asked():
    few = [Datapoint(NOW - PERIOD, 9.0, samples=999)]
    many = [Datapoint(NOW - PERIOD, 9.0, samples=1000)]
    careful = alarm(statistic="p99", evaluation_periods=1, low_samples="ignore")
    assert evaluate(careful, few, OK, now=NOW).state == OK
    assert "1000 samples" in evaluate(careful, few, OK, now=NOW).reason
    assert evaluate(careful, many, OK, now=NOW).state == ALARM
    assert evaluate(alarm(statistic="p99", evaluation_periods=1), few, OK, now=NOW).state == ALARM


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation_periods": 0},
        {"datapoints_to_alarm": 4},
        {"datapoints_to_alarm": 0},
        {"period_seconds": 0},
        {"threshold": float("nan")},
        {"comparison": "=="},
        {"missing": "notBreaching"},
        {"low_samples": "never"},
        {"evaluation_periods": 1441},
    ],
)
def test_alarms_that_cannot_be_evaluated_are_refused(change):
    with pytest.raises(InvalidInput, match="cannot be evaluated"):
        alarm(**change)


def test_the_reason_reads_well_with_numbers():
    result = evaluate(alarm(datapoints_to_alarm=2, missing="breaching"), points("--X0-")[:1], OK, now=NOW)
    assert result.reason == (
        "3 of the last 3 datapoints of m (Average: 9, 2 missing taken as breaching) are above the threshold 5; "
        "2 make an alarm."
    )
    assert result.to_dict()["state"] == "ALARM"


def test_flapping_gets_one_action_per_cooldown():
    taken = []
    for minute in range(600):
        if may_act(taken, minute * 60.0, cooldown_seconds=3600, budget=100, budget_window_seconds=86_400)[0]:
            taken.append(minute * 60.0)
    assert taken == [hour * 3600.0 for hour in range(10)]


def test_the_budget_holds_within_its_window_and_returns_after_it():
    allow = {"cooldown_seconds": 0, "budget": 2, "budget_window_seconds": 100}
    assert may_act([0, 50], 60, **allow)[0] is False
    assert "40 s" in may_act([50, 0], 60, **allow)[1]
    assert may_act([0, 50], 100, **allow)[0] is True
    assert may_act([], 0, **{**allow, "budget": 0})[0] is False


def test_actions_recorded_in_the_future_count_as_now():
    assert may_act([500.0], 100.0, cooldown_seconds=10, budget=5, budget_window_seconds=100)[0] is False
