"""The linter of alarms: each finding names a real mistake, its cure has none, and the three alarms of a document that
is read often."""

from typing import Any

import pytest

from loopline.domain import cloudwatch
from loopline.domain.alarmlint import corrected, lint, lint_call

DIMENSIONS = [
    {"Name": "EndpointName", "Value": "mlops-sentiment-endpoint"},
    {"Name": "VariantName", "Value": "AllTraffic"},
]


def call(name: str, metric: str, threshold: float, **more: Any) -> dict[str, Any]:
    """As the document's loop makes them."""
    return {
        "AlarmName": f"mlops-sentiment-{name}",
        "Namespace": "AWS/SageMaker",
        "MetricName": metric,
        "Dimensions": DIMENSIONS,
        "Period": more.pop("period", 300),
        "EvaluationPeriods": 2,
        "Threshold": threshold,
        "ComparisonOperator": "GreaterThanThreshold",
        "Statistic": more.pop("statistic", "Average"),
        "AlarmActions": ["arn:aws:sns:us-east-1:123456789012:ops"],
        **more,
    }


LATENCY = call("high-latency", "ModelLatency", 2_000_000, statistic="p99")
ERRORS = call("high-error-rate", "Invocation5XXErrors", 5)
SILENCE = call("no-traffic", "Invocations", 0, period=1800)


def test_the_latency_alarm_of_the_document_is_meant_as_an_extended_statistic() -> None:
    findings, better = lint_call(LATENCY)
    assert [found.code for found in findings] == ["misplaced"]
    assert "ExtendedStatistic" in findings[0].message
    assert better["ExtendedStatistic"] == "p99" and "Statistic" not in better
    assert better["Threshold"] == 2_000_000 and better["AlarmActions"] == LATENCY["AlarmActions"]


def test_the_error_alarm_of_the_document_can_never_fire() -> None:
    findings, better = lint_call(ERRORS)
    assert [found.code for found in findings] == ["never"]
    assert "never fire" in findings[0].message and "5 % is 0.05" in findings[0].message
    assert better["Threshold"] == 0.05 and better["Statistic"] == "Average"


def test_the_silence_alarm_of_the_document_is_inverted() -> None:
    findings, better = lint_call(SILENCE)
    assert [found.code for found in findings] == ["inverted"]
    assert "fires on traffic" in findings[0].message and "1800 s" in findings[0].message
    wanted = {
        "Statistic": "Sum",
        "ComparisonOperator": "LessThanThreshold",
        "Threshold": 1.0,
        "EvaluationPeriods": 1,
        "TreatMissingData": "breaching",
        "Period": 1800,
    }
    assert {member: better[member] for member in wanted} == wanted


@pytest.mark.parametrize("given", [LATENCY, ERRORS, SILENCE], ids=lambda given: given["AlarmName"])
def test_a_corrected_call_has_nothing_to_correct_and_is_python(given: dict[str, Any]) -> None:
    better = lint_call(given).call
    assert lint_call(better).findings == []
    made: dict[str, Any] = {}

    class Client:
        def put_metric_alarm(self, **given: Any) -> None:
            made.update(given)

    exec(cloudwatch.python_call(better), {"cw": Client()})
    assert made == better


def native(metric: str, threshold: float, comparison: str = ">", **more: Any) -> dict[str, Any]:
    return {
        "namespace": "loopline",
        "dimensions": {"endpoint": "shop"},
        "metric": metric,
        "threshold": threshold,
        "comparison": comparison,
        **more,
    }


@pytest.mark.parametrize(
    ("definition", "codes"),
    [
        (native("errors_5xx", 0.05), []),
        (native("errors_5xx", 1), ["never"]),
        (native("errors_5xx", 1, ">="), []),
        (native("errors_5xx", 250), ["never"]),
        (native("errors_5xx", 250, statistic="Sum"), []),
        (native("errors_4xx", 0, "<"), ["never"]),
        (native("requests", 100), ["never"]),
        (native("requests", 100, statistic="Sum"), []),
        (native("requests", 100, "<", statistic="Sum"), []),
        (native("requests", 1, "<", statistic="Sum"), ["never"]),
        (native("requests", 1, "<", statistic="Sum", missing="breaching"), []),
        (native("requests", 0, "<=", statistic="Sum", missing="not_breaching"), ["never"]),
        (native("requests", 0, statistic="Sum"), ["inverted"]),
        (native("requests", 1, ">=", statistic="SampleCount"), ["inverted"]),
        (native("latency_us", 2), ["unit"]),
        (native("latency_us", 500, statistic="p99"), ["unit"]),
        (native("latency_us", 2_000_000, statistic="p99"), []),
        (native("latency_us", 2_000_000, unit="Milliseconds"), ["never"]),
        (native("latency_us", 0, ">="), ["always"]),
        ({"namespace": "Shop", "metric": "orders", "threshold": 0, "comparison": ">"}, []),
        ({"namespace": "AWS/SageMaker", "metric": "Invocations", "threshold": 1, "comparison": ">"}, ["unmeasured"]),
        ({"namespace": "AWS/SageMaker", "metric": "Temperature", "threshold": 1, "comparison": ">"}, ["unmeasured"]),
        ({"metric": "error_rate", "threshold": 5, "comparison": ">"}, ["never"]),
        ({"metric": "error_rate", "threshold": 0.05, "comparison": ">"}, []),
        ({"metric": "errors_5xx", "threshold": 5, "comparison": ">"}, []),
        ({"metric": "requests", "threshold": 0, "comparison": ">"}, ["inverted"]),
        ({"metric": "requests", "threshold": 1, "comparison": "<"}, ["never"]),
        ({"metric": "accuracy", "threshold": 0.8, "comparison": ">"}, ["inverted"]),
        ({"metric": "accuracy", "threshold": 0.8, "comparison": "<"}, []),
        ({"metric": "psi.age", "threshold": 0.2, "comparison": ">"}, []),
    ],
)
def test_what_is_wrong_and_what_is_not(definition: dict[str, Any], codes: list[str]) -> None:
    found = lint(definition)
    assert [each.code for each in found] == codes
    if any(each.changes for each in found):
        assert lint(corrected(definition, found)) == []


def test_a_variant_is_missing_from_the_dimensions() -> None:
    findings, better = lint_call({**LATENCY, "Dimensions": DIMENSIONS[:1]})
    assert [found.code for found in findings] == ["misplaced", "unmeasured"]
    assert better["Dimensions"] == DIMENSIONS


@pytest.mark.parametrize("member", ["MetricName", "Namespace", "Period", "Threshold", "Statistic"])
def test_a_call_that_cannot_be_read_says_what_is_missing(member: str) -> None:
    (finding,) = lint_call({name: value for name, value in ERRORS.items() if name != member}).findings
    assert finding.code == "invalid" and member in finding.message


def test_names_go_to_native_ones_and_back() -> None:
    for variant in ("AllTraffic", "blue"):
        given = ("AWS/SageMaker", "ModelLatency", {"EndpointName": "shop", "VariantName": variant})
        assert cloudwatch.show_metric(*cloudwatch.read_metric(*given)) == given
    assert cloudwatch.read_metric("Shop", "Invocations", {"EndpointName": "x"}) == (
        "Shop",
        "Invocations",
        {"EndpointName": "x"},
    )
