"""The three alarms that a document puts on its endpoint, corrected: they fire and clear on real requests by boto3.

Latency and errors are watched in periods of ten seconds; silence in its half hour, looked at from other times of day.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from loopline.control import alarms
from loopline.testing.clock import ManualClock
from loopline.testing.live import Platform, until
from loopline.testing.world import World

ENDPOINT = "sentiment"
HALF_HOUR = 1800
SETTLED = 60.0  # by then what was asked in a period has been counted
ON_ENDPOINT = [{"Name": "EndpointName", "Value": ENDPOINT}, {"Name": "VariantName", "Value": "AllTraffic"}]


@pytest.fixture(scope="module")
def cloudwatch(hosting: Any, client: Callable[..., Any]) -> Any:
    """The endpoint, and the alarms on it; ``fail`` takes more than two seconds and fails."""
    hosting.configure(2, variables={"SLOW": "2.2"})
    hosting.start(ENDPOINT, "x2")
    found = client("cloudwatch")
    common = {"Namespace": "AWS/SageMaker", "Dimensions": ON_ENDPOINT, "ComparisonOperator": "GreaterThanThreshold"}
    topic = client("sns").create_topic(Name="ml-alarms")["TopicArn"]
    for name, metric, given in (
        ("high-latency", "ModelLatency", {"ExtendedStatistic": "p99", "Threshold": 2_000_000}),
        ("high-error-rate", "Invocation5XXErrors", {"Statistic": "Average", "Threshold": 0.05}),
    ):
        answer = found.put_metric_alarm(
            AlarmName=name, MetricName=metric, Period=10, EvaluationPeriods=2, AlarmActions=[topic], **common, **given
        )
        assert "x-loopline-warning" not in answer["ResponseMetadata"]["HTTPHeaders"]
    answer = found.put_metric_alarm(
        **{**common, "ComparisonOperator": "LessThanThreshold"},
        AlarmName="no-traffic",
        MetricName="Invocations",
        Statistic="Sum",
        Threshold=1,
        Period=HALF_HOUR,
        EvaluationPeriods=1,
        TreatMissingData="breaching",
        AlarmActions=[topic],
    )
    assert "x-loopline-warning" not in answer["ResponseMetadata"]["HTTPHeaders"]
    return found


def states(cloudwatch: Any, *names: str) -> dict[str, str]:
    found = cloudwatch.describe_alarms(AlarmNames=list(names))["MetricAlarms"]
    return {each["AlarmName"]: each["StateValue"] for each in found}


def test_slow_and_failing_requests_fire_both_alarms_and_good_ones_clear_them(
    hosting: Any, cloudwatch: Any, platform: Platform
) -> None:
    both = ("high-latency", "high-error-rate")

    def asked_until(rows: Any, wanted: str) -> None:
        def look() -> bool:
            try:
                hosting.ask(ENDPOINT, rows)
            except ClientError as error:
                assert rows == "fail" and error.response["Error"]["Code"] == "ModelError"
            return states(cloudwatch, *both) == dict.fromkeys(both, wanted)

        until(look, f"both alarms are {wanted}", 180.0, pause=0.2)

    asked_until("fail", "ALARM")
    reasons = {name: platform.call("GET", f"/api/alarms/{name}")["reason"] for name in both}
    assert all(reasons.values()), reasons
    asked_until([1.0], "OK")
    for name in both:
        history = cloudwatch.describe_alarm_history(AlarmName=name, HistoryItemType="StateUpdate")["AlarmHistoryItems"]
        assert history[0]["HistorySummary"] == "Alarm updated from ALARM to OK"
        assert any(each["HistorySummary"].endswith("to ALARM") for each in history)


def test_half_an_hour_without_requests_fires_and_traffic_clears(
    hosting: Any, cloudwatch: Any, platform: Platform
) -> None:
    before = platform.call("GET", f"/api/endpoints/{ENDPOINT}/traffic")["total"]["requests"]
    hosting.ask(ENDPOINT, [1.0])
    asked = time.time()
    counted = f"/api/endpoints/{ENDPOINT}/traffic"
    until(lambda: platform.call("GET", counted)["total"]["requests"] > before, "the request is counted", 60.0)
    platform.stop()
    start = asked // HALF_HOUR * HALF_HOUR  # of the half hour in which it was asked

    def looked_at(seconds: float) -> str:
        """The alarm's state after a look at a time of day, at which nothing runs but the rules."""
        world = World(platform.folder, clock=ManualClock(seconds + SETTLED))
        try:
            alarms.evaluate(world.ctx)
            (row,) = [each for each in alarms.list_(world.ctx, world.actor)["items"] if each["name"] == "no-traffic"]
            return str(row["status"])
        finally:
            world.close()

    assert looked_at(start - HALF_HOUR) == "ALARM"  # nobody had asked yet
    assert looked_at(start + HALF_HOUR) == "OK"
    assert looked_at(start + 2 * HALF_HOUR - SETTLED - 60) == "OK"  # silent for less than its period
    assert looked_at(start + 2 * HALF_HOUR) == "ALARM"
    assert looked_at(start + HALF_HOUR) == "OK"
