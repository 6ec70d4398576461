"""Metrics that people send, what the platform measures of requests, and alarms on both: by a clock moved by hand."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from loopline.control import alarms, dashboards, deliveries, metrics, monitoring, publishing, topics
from loopline.control.context import Context
from loopline.domain import cloudwatch
from loopline.domain.access import Actor
from loopline.domain.alarmlint import lint_call
from loopline.domain.latency import Histogram
from loopline.errors import Conflict, InvalidInput, NotFound
from loopline.monitor.reports import ReportStream
from loopline.store import records
from loopline.store.schema import metric_points
from loopline.testing.clock import ManualClock
from loopline.testing.world import World

NOW = 1_790_000_400.0 - 1_790_000_400.0 % 1800  # a whole half hour
ANA = Actor("ana", "editor")
ENDPOINT = "mlops-sentiment-endpoint"
DIMENSIONS = [{"Name": "EndpointName", "Value": ENDPOINT}, {"Name": "VariantName", "Value": "AllTraffic"}]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def ctx(tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setattr(alarms, "SETTLE_SECONDS", 0.0)  # what these tests report is complete
    world = World(tmp_path / "data", clock=clock)
    with world.ctx.db.transaction() as tx:
        settings: dict[str, Any] = {}
        records.create(tx, "endpoint", actor="ana", name=ENDPOINT, project="", settings=settings, created_by="ana")
        for name, called, instances in (("b-1", "blue", 2), ("g-1", "green", 1)):
            records.create(
                tx,
                "variant",
                actor="ana",
                endpoint=ENDPOINT,
                name=name,
                called=called,
                weight=50.0,
                instances=instances,
                digest="d",
            )
    yield world.ctx
    world.close()


Tell = Callable[..., None]


@pytest.fixture
def tell(ctx: Context) -> Tell:
    """Report requests as the monitor does, and take them in."""
    out = ReportStream(ctx.settings.dir / "spool" / "monitor")

    def _tell(at: float, count: int, *, ms: float = 10.0, failed: int = 0, variant: str = "b-1") -> None:
        buckets = Histogram.of([ms * 1000] * count).buckets
        row = {
            "kind": "traffic",
            "endpoint": ENDPOINT,
            "variant": variant,
            "at": int(at),
            "count": count,
            "errors_4xx": 0,
            "errors_5xx": failed,
            "latency": {str(k): v for k, v in buckets.items()},
        }
        out.append(ctx.clock.now(), {}, [row])
        monitoring.ingest(ctx)

    return _tell


def send(ctx: Context, *values: float, name: str = "orders", **more: Any) -> None:
    metrics.put(ctx, ANA, namespace="Shop", data=[{"name": name, "value": value, **more} for value in values])


def read(ctx: Context, name: str, statistics: list[str], **more: Any) -> list[dict[str, Any]]:
    given: dict[str, Any] = {"namespace": "Shop", "start": NOW - 3600, "end": NOW + 7200, **more}
    given["dimensions"] = [f"{key}={value}" for key, value in given.get("dimensions", {}).items()]
    return list(metrics.read(ctx, ANA, name=name, statistics=statistics, **given)["items"])


# -- what people send -------------------------------------------------------------------------------------------------


def test_values_of_a_minute_are_added_up_however_they_came(ctx: Context, clock: ManualClock) -> None:
    send(ctx, 1.0, 3.0)
    metrics.put(ctx, ANA, namespace="Shop", data=[{"name": "orders", "values": [2.0, 10.0], "counts": [2, 1]}])
    clock.advance(60)
    send(ctx, 7.0)
    found = read(ctx, "orders", ["Sum", "SampleCount", "Maximum", "p50"])
    assert found == [
        {"at": NOW, "Sum": 18.0, "SampleCount": 5.0, "Maximum": 10.0, "p50": pytest.approx(2.0, rel=0.01)},
        {"at": NOW + 60, "Sum": 7.0, "SampleCount": 1.0, "Maximum": 7.0, "p50": 7.0},
    ]
    (longer,) = read(ctx, "orders", ["Sum"], period_seconds=300)
    assert longer == {"at": NOW, "Sum": 25.0}


def test_a_million_values_take_one_row_a_minute(ctx: Context) -> None:
    for _ in range(3):
        data = [{"name": "n", "values": [float(k) for k in range(100)], "counts": [100.0] * 100}] * 100
        metrics.put(ctx, ANA, namespace="Shop", data=data)
    with ctx.db.read() as tx:
        (row,) = tx.rows(sa.select(metric_points))
    assert row["count"] == 3_000_000 and len(row["buckets"]) <= 100


def test_seconds_are_kept_where_they_are_asked_for_and_for_three_hours(ctx: Context, clock: ManualClock) -> None:
    send(ctx, 1.0, resolution=1)
    clock.advance(5)
    send(ctx, 2.0, resolution=1)
    assert [each["at"] for each in read(ctx, "orders", ["Sum"], period_seconds=1, end=NOW + 60)] == [NOW, NOW + 5]
    clock.advance(4 * 3600)
    metrics.prune(ctx)
    assert read(ctx, "orders", ["Sum"], period_seconds=1, end=NOW + 60) == []
    assert read(ctx, "orders", ["Sum"], end=NOW + 60) == [{"at": NOW, "Sum": 3.0}]
    clock.advance(31 * 86_400)
    metrics.prune(ctx)
    assert metrics.list_(ctx, ANA, namespace="Shop")["items"] == []


def test_dimensions_and_units_tell_metrics_apart(ctx: Context) -> None:
    send(ctx, 1.0, dimensions={"city": "Taipei"}, unit="Count")
    send(ctx, 5.0, dimensions={"city": "Taipei"}, unit="Seconds")
    send(ctx, 9.0, dimensions={"city": "Kyoto"})
    assert read(ctx, "orders", ["Sum"]) == []
    assert read(ctx, "orders", ["Sum"], dimensions={"city": "Taipei"})[0]["Sum"] == 6.0
    assert read(ctx, "orders", ["Sum"], dimensions={"city": "Taipei"}, unit="Count")[0]["Sum"] == 1.0
    listed = metrics.list_(ctx, ANA, dimensions=["city=Kyoto"])["items"]
    assert [(row["namespace"], row["name"], row["dimensions"]) for row in listed] == [
        ("Shop", "orders", {"city": "Kyoto"})
    ]
    first = metrics.list_(ctx, ANA, namespace="Shop", limit=1)
    assert len(first["items"]) == 1 and metrics.list_(ctx, ANA, namespace="Shop", cursor=first["next"])["items"]


def test_all_of_a_request_is_taken_or_none(ctx: Context) -> None:
    with pytest.raises(InvalidInput, match="give one of"):
        metrics.put(ctx, ANA, namespace="Shop", data=[{"name": "a", "value": 1.0}, {"name": "b"}])
    assert metrics.list_(ctx, ANA, namespace="Shop")["items"] == []
    with pytest.raises(InvalidInput, match="choose another"):
        metrics.put(ctx, ANA, namespace="loopline", data=[{"name": "requests", "value": 1.0}])


# -- what the platform measures ---------------------------------------------------------------------------------------


def test_each_request_is_one_value(ctx: Context, tell: Tell) -> None:
    tell(NOW + 1, 90, ms=20.0, failed=9)
    tell(NOW + 2, 10, ms=200.0, variant="g-1")
    every = ["SampleCount", "Sum", "Average", "Minimum", "Maximum"]

    def found(name: str, **dimensions: str) -> list[float]:
        (item,) = read(
            ctx, name, every, namespace="loopline", dimensions={"endpoint": ENDPOINT, **dimensions}, end=NOW + 60
        )
        return [item[each] for each in every]

    assert found("requests") == [100, 100, 1, 1, 1]
    assert found("errors_5xx") == pytest.approx([100, 9, 0.09, 0, 1])
    assert found("errors_5xx", variant="blue") == pytest.approx([90, 9, 0.1, 0, 1])
    assert found("errors_5xx", variant="g-1") == pytest.approx([10, 0, 0, 0, 0])
    assert found("latency_us", variant="blue")[2] == pytest.approx(20_000, rel=0.02)
    assert read(ctx, "requests", every, namespace="loopline", dimensions={"endpoint": "other"}) == []
    names = {(row["name"], row["dimensions"].get("variant")) for row in metrics.list_(ctx, ANA)["items"]}
    assert ("latency_us", "blue") in names and ("requests", None) in names


# -- alarms -----------------------------------------------------------------------------------------------------------


def alarm(ctx: Context, **given: Any) -> None:
    """As PutMetricAlarm makes one."""
    arguments = cloudwatch.read_alarm({"Namespace": "AWS/SageMaker", "Dimensions": DIMENSIONS, **given})
    alarms.put(ctx, ANA, actions=["topic:ops"], **arguments)


def states(ctx: Context) -> dict[str, str]:
    alarms.evaluate(ctx)
    return {row["name"]: row["status"] for row in alarms.list_(ctx, ANA)["items"]}


DOCUMENT = (
    {"AlarmName": "high-latency", "MetricName": "ModelLatency", "Threshold": 2_000_000, "Statistic": "p99"},
    {"AlarmName": "high-error-rate", "MetricName": "Invocation5XXErrors", "Threshold": 5, "Statistic": "Average"},
    {"AlarmName": "no-traffic", "MetricName": "Invocations", "Threshold": 0, "Statistic": "Average", "Period": 1800},
)
REST = {"Period": 300, "EvaluationPeriods": 2, "ComparisonOperator": "GreaterThanThreshold"}


def test_the_three_alarms_of_a_document_corrected_fire_and_clear(ctx: Context, clock: ManualClock, tell: Tell) -> None:
    for each in DOCUMENT:
        given = {"Namespace": "AWS/SageMaker", "Dimensions": DIMENSIONS, **REST, **each}
        alarm(ctx, **lint_call(given).call)
    for n in range(30):
        tell(clock.now() + 60 * n, 100)
    clock.advance(1800)
    well = {"high-latency": "OK", "high-error-rate": "OK", "no-traffic": "OK"}
    assert states(ctx) == well
    for n in range(10):  # slow and failing, for two periods of 300 s
        tell(clock.now() + 60 * n, 100, ms=2500.0, failed=6)
    clock.advance(600)
    assert states(ctx) == {**well, "high-latency": "ALARM", "high-error-rate": "ALARM"}
    for n in range(10):
        tell(clock.now() + 60 * n, 100)
    clock.advance(1200)  # the end of the half hour that had traffic
    assert states(ctx) == {**well, "high-latency": "OK", "high-error-rate": "OK"}
    clock.advance(1790)
    assert states(ctx)["no-traffic"] == "OK"
    clock.advance(10)  # a whole half hour without
    assert states(ctx)["no-traffic"] == "ALARM"
    tell(clock.now() + 5, 1)
    clock.advance(1800)
    assert states(ctx)["no-traffic"] == "OK"


def test_the_same_alarms_as_printed_behave_as_the_linter_says(ctx: Context, clock: ManualClock, tell: Tell) -> None:
    topics.create(ctx, ANA, name="ops", events=[])
    for each in DOCUMENT:
        alarm(ctx, **{**REST, **each})
    codes = {(row["alarm"], row["code"]) for row in alarms.lint(ctx, ANA)["items"]}
    assert codes == {("high-error-rate", "never"), ("no-traffic", "inverted")}
    for n in range(60):
        tell(clock.now() + 60 * n, 100, failed=100)
    clock.advance(3600)
    found = states(ctx)
    assert found["high-error-rate"] == "OK"  # every request fails, and it does not fire
    assert found["no-traffic"] == "ALARM"  # on traffic
    clock.advance(4 * 3600)
    assert states(ctx)["no-traffic"] == "INSUFFICIENT_DATA"  # silence, and it does not fire


def test_an_alarm_on_what_people_send_judges_one_unit_and_tells_its_topics(ctx: Context, clock: ManualClock) -> None:
    topics.create(ctx, ANA, name="ops", events=[])
    topics.create(ctx, ANA, name="calm", events=[])
    for topic in ("ops", "calm"):
        topics.subscribe(ctx, ANA, topic=topic, kind="webhook", url="https://example.com/hook")
    alarms.put(
        ctx,
        ANA,
        name="Too few orders (shop)",
        namespace="Shop",
        metric="orders",
        unit="Count",
        threshold=5,
        comparison="<",
        statistic="Sum",
        period_seconds=60,
        actions=["topic:ops"],
        ok_actions=["topic:calm"],
        description="The shop sells less than it should.",
    )
    send(ctx, 100.0, unit="Seconds")
    send(ctx, 1.0, unit="Count")
    clock.advance(60)
    assert states(ctx) == {"Too few orders (shop)": "ALARM"}
    send(ctx, 9.0, unit="Count")
    clock.advance(60)
    assert states(ctx) == {"Too few orders (shop)": "OK"}
    (fired,) = deliveries.list_(ctx, ANA, topic="ops")["items"]
    (cleared,) = deliveries.list_(ctx, ANA, topic="calm")["items"]
    assert fired["body"]["type"] == "alarm.ALARM" and cleared["body"]["type"] == "alarm.OK"
    assert fired["body"]["data"]["definition"]["description"] == "The shop sells less than it should."
    acted = [row["reason"] for row in alarms.history(ctx, ANA, name="Too few orders (shop)")["items"]]
    assert "the subscribers of ops are told" in acted


def test_a_topic_that_is_not_there_is_a_refusal_on_record(ctx: Context) -> None:
    alarms.put(ctx, ANA, name="a", namespace="Shop", metric="orders", threshold=1, actions=["topic:gone"])
    alarms.set_state(ctx, ANA, name="a", state="ALARM", reason="to see")
    kinds = [(row["kind"], row["reason"]) for row in alarms.history(ctx, ANA, name="a")["items"]]
    assert ("refused", "there is no topic 'gone'") in kinds


def test_a_state_set_by_hand_acts_and_is_put_back_at_the_next_evaluation(ctx: Context, clock: ManualClock) -> None:
    topics.create(ctx, ANA, name="ops", events=[])
    topics.subscribe(ctx, ANA, topic="ops", kind="slack", url="https://example.com/hook")
    alarms.put(ctx, ANA, name="a", namespace="Shop", metric="orders", threshold=1, actions=["topic:ops"])
    alarms.set_state(ctx, ANA, name="a", state="ALARM", reason="a drill")
    assert states(ctx) == {"a": "ALARM"}
    assert alarms.set_state(ctx, ANA, name="a", state="ALARM", reason="again")["status"] == "ALARM"
    (sent,) = deliveries.list_(ctx, ANA, topic="ops")["items"]
    assert "a drill" in sent["body"]["data"]["summary"]
    clock.advance(61)
    assert states(ctx) == {"a": "INSUFFICIENT_DATA"}
    with pytest.raises(NotFound):
        alarms.set_state(ctx, ANA, name="b", state="OK", reason="")
    with pytest.raises(InvalidInput, match="no state"):
        alarms.set_state(ctx, ANA, name="a", state="FINE", reason="")


def test_actions_can_be_switched_off_while_the_alarm_is_judged(ctx: Context, clock: ManualClock) -> None:
    topics.create(ctx, ANA, name="ops", events=[])
    topics.subscribe(ctx, ANA, topic="ops", kind="slack", url="https://example.com/hook")
    alarms.put(ctx, ANA, name="a", namespace="Shop", metric="orders", threshold=1, actions=["topic:ops"])
    alarms.switch_actions(ctx, ANA, name="a", on=False)
    alarms.set_state(ctx, ANA, name="a", state="ALARM", reason="a drill")
    assert deliveries.list_(ctx, ANA, topic="ops")["items"] == []
    alarms.switch_actions(ctx, ANA, name="a", on=True)
    alarms.set_state(ctx, ANA, name="a", state="OK", reason="over")
    alarms.set_state(ctx, ANA, name="a", state="ALARM", reason="a drill")
    assert len(deliveries.list_(ctx, ANA, topic="ops")["items"]) == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"metric": "requests"}, "which endpoint"),
        ({"namespace": "Shop", "period_seconds": 90}, "period"),
        ({"namespace": "Shop", "statistic": "p101"}, "statistic"),
        ({"namespace": "Shop", "actions": ["page"]}, "not an action"),
        ({"namespace": "Shop", "ok_actions": ["topic:a/b"]}, "a topic"),
        ({"namespace": "Shop", "name": "a/b"}, "not a name"),
    ],
)
def test_what_cannot_be_watched_is_refused(ctx: Context, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        alarms.put(ctx, ANA, **{"name": "a", "metric": "orders", "threshold": 1.0, **given})
    assert alarms.list_(ctx, ANA)["items"] == []


# -- publishing, dashboards -------------------------------------------------------------------------------------------


def test_what_is_published_goes_to_every_subscriber_once(ctx: Context) -> None:
    topics.create(ctx, ANA, name="ops", events=[])
    for path in ("a", "b"):
        topics.subscribe(ctx, ANA, topic="ops", kind="webhook", url=f"https://example.com/{path}")
    topics.subscribe(ctx, ANA, topic="ops", kind="slack", url="https://example.com/c")
    sent = publishing.publish(ctx, ANA, topic="ops", subject="Hello", message="all", by_kind={"slack": "you"})
    bodies = [row["body"]["data"] for row in deliveries.list_(ctx, ANA)["items"]]
    assert len(sent["deliveries"]) == 3 and sorted(body["message"] for body in bodies) == ["all", "all", "you"]
    assert {body["summary"] for body in bodies} == {"Hello: all", "Hello: you"}
    with pytest.raises(NotFound):
        publishing.publish(ctx, ANA, topic="none", message="x")
    for bad in ({"message": ""}, {"message": "x" * 300_000}, {"message": "x", "subject": "a\nb"}):
        with pytest.raises(InvalidInput):
            publishing.publish(ctx, ANA, topic="ops", **bad)


def test_dashboards_are_kept_as_they_are_put(ctx: Context, clock: ManualClock) -> None:
    body = '{"widgets": [ ]}'
    made = dashboards.put(ctx, ANA, name="MLOps-SentimentEndpoint", body=body)
    clock.advance(5)
    assert dashboards.put(ctx, ANA, name="MLOps-SentimentEndpoint", body='{"widgets":[]}')["id"] == made["id"]
    assert dashboards.show(ctx, ANA, name="MLOps-SentimentEndpoint")["body"] == '{"widgets":[]}'
    dashboards.put(ctx, ANA, name="Other", body=body)
    listed = dashboards.list_(ctx, ANA, prefix="MLOps")["items"]
    assert [(row["name"], row["size_bytes"]) for row in listed] == [("MLOps-SentimentEndpoint", 14)]
    assert listed[0]["changed_at"] == NOW + 5
    with pytest.raises(NotFound):
        dashboards.delete(ctx, ANA, dashboards=["Other", "none"])
    dashboards.delete(ctx, ANA, dashboards=["Other", "MLOps-SentimentEndpoint"])
    assert dashboards.list_(ctx, ANA)["items"] == []
    for bad in ("", "[]", "{"):
        with pytest.raises(InvalidInput):
            dashboards.put(ctx, ANA, name="Bad", body=bad)


def test_a_topic_of_a_name_is_there_once(ctx: Context) -> None:
    topics.create(ctx, ANA, name="ops", events=[], settings={"DisplayName": "Ops"})
    with pytest.raises(Conflict):
        topics.create(ctx, ANA, name="ops", events=[])
    topics.set_settings(ctx, ANA, name="ops", settings={"DisplayName": "Night shift"})
    assert topics.list_(ctx, ANA)["items"][0]["settings"] == {"DisplayName": "Night shift"}
