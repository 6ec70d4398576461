"""Alarms and metrics in the words of CloudWatch, and back: tables and pure translations.

Sources: "Monitor Amazon SageMaker AI with Amazon CloudWatch" (the metrics of endpoints), botocore's shapes
``PutMetricAlarmInput``, ``MetricAlarm`` and ``MetricDatum``. ``ModelLatency`` is loopline's latency of a request: the
time from its arrival to its answer.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from loopline.domain.alarms import STATISTICS, percentile_of
from loopline.domain.metrics import BUILT_IN
from loopline.errors import InvalidInput

ENDPOINTS = "AWS/SageMaker"
ALL_TRAFFIC = "AllTraffic"  # the variant of an endpoint with one; here: all of its variants together
METRICS = {
    "Invocations": "requests",
    "Invocation4XXErrors": "errors_4xx",
    "Invocation5XXErrors": "errors_5xx",
    "ModelLatency": "latency_us",
    "InvocationsPerInstance": "requests_per_instance",
}
_SHOWN = {native: name for name, native in METRICS.items()}
COMPARISONS = {
    "GreaterThanThreshold": ">",
    "GreaterThanOrEqualToThreshold": ">=",
    "LessThanThreshold": "<",
    "LessThanOrEqualToThreshold": "<=",
}
_COMPARISONS = {sign: name for name, sign in COMPARISONS.items()}
MISSING = {"missing": "missing", "ignore": "ignore", "breaching": "breaching", "notBreaching": "not_breaching"}
_MISSING = {native: name for name, native in MISSING.items()}


def read_dimensions(given: Iterable[Mapping[str, str]] | None) -> dict[str, str]:
    """``[{"Name", "Value"}]`` as a mapping; raises ``InvalidInput`` for a name that stands there twice."""
    pairs = [(each.get("Name", ""), each.get("Value", "")) for each in given or ()]
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidInput("a dimension is given twice")
    return found


def show_dimensions(dimensions: Mapping[str, str]) -> list[dict[str, str]]:
    """The inverse of ``read_dimensions``."""
    return [{"Name": name, "Value": value} for name, value in dimensions.items()]


def read_metric(namespace: str, name: str, dimensions: Mapping[str, str]) -> tuple[str, str, dict[str, str]]:
    """(namespace, name, dimensions) of loopline; what is no metric of an endpoint stays what it is."""
    if namespace != ENDPOINTS or name not in METRICS or set(dimensions) != {"EndpointName", "VariantName"}:
        return namespace, name, dict(dimensions)
    found = {"endpoint": dimensions["EndpointName"]}
    if dimensions["VariantName"] != ALL_TRAFFIC:
        found["variant"] = dimensions["VariantName"]
    return BUILT_IN, METRICS[name], found


def show_metric(namespace: str, name: str, dimensions: Mapping[str, str]) -> tuple[str, str, dict[str, str]]:
    """The inverse of ``read_metric``."""
    if namespace != BUILT_IN or name not in _SHOWN or "endpoint" not in dimensions:
        return namespace, name, dict(dimensions)
    variant = dimensions.get("variant", ALL_TRAFFIC)
    return ENDPOINTS, _SHOWN[name], {"EndpointName": dimensions["endpoint"], "VariantName": variant}


def read_statistic(given: Mapping[str, Any]) -> str:
    """``Statistic`` or ``ExtendedStatistic`` of a call; a percentile in the first place is taken for the second.

    Raises ``InvalidInput`` when there is none, or one of each.
    """
    said = [each for each in (given.get("Statistic"), given.get("ExtendedStatistic")) if each]
    if len(said) != 1:
        raise InvalidInput("give one of Statistic and ExtendedStatistic, not " + ("both" if said else "neither"))
    percentile_of(str(said[0]))
    return str(said[0])


def read_alarm(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a native alarm for a PutMetricAlarm call, without its actions; raises ``InvalidInput``."""
    for member in ("Metrics", "ThresholdMetricId"):
        if given.get(member):
            raise InvalidInput(f"{member} is not supported: an alarm watches one metric, named by MetricName")
    for member in ("MetricName", "Namespace", "Period", "Threshold", "EvaluationPeriods", "ComparisonOperator"):
        if given.get(member) is None:
            raise InvalidInput(f"the parameter {member} is missing")
    namespace, metric, dimensions = read_metric(
        given["Namespace"], given["MetricName"], read_dimensions(given.get("Dimensions"))
    )
    return {
        "name": given.get("AlarmName"),
        "namespace": namespace,
        "metric": metric,
        "dimensions": dimensions,
        "threshold": float(given["Threshold"]),
        "statistic": read_statistic(given),
        "period_seconds": given["Period"],
        "evaluation_periods": given["EvaluationPeriods"],
        "datapoints_to_alarm": given.get("DatapointsToAlarm"),
        "comparison": _one_of(COMPARISONS, given["ComparisonOperator"], "ComparisonOperator"),
        "missing": _one_of(MISSING, given.get("TreatMissingData") or "missing", "TreatMissingData"),
        "low_samples": given.get("EvaluateLowSampleCountPercentile") or "evaluate",
        "unit": given.get("Unit"),
        "description": given.get("AlarmDescription"),
    }


def _one_of(table: Mapping[str, str], value: str, member: str) -> str:
    if value not in table:
        raise InvalidInput(f"{member} cannot be {value!r}; it is one of {', '.join(table)}")
    return table[value]


def show_alarm(name: str, definition: Mapping[str, Any], endpoint: str | None = None) -> dict[str, Any]:
    """The members of PutMetricAlarm, which are those of MetricAlarm, for a native alarm; without its actions."""
    namespace = definition.get("namespace") or BUILT_IN
    native = dict(definition.get("dimensions") or {})
    if not definition.get("namespace"):
        named = {"EndpointName": endpoint, "VariantName": definition.get("variant")}
        native = {key: value for key, value in named.items() if value}
    space, metric, dimensions = show_metric(namespace, definition["metric"], native)
    statistic = definition.get("statistic", "Average")
    found = {
        "AlarmName": name,
        "AlarmDescription": definition.get("description"),
        "Namespace": space,
        "MetricName": metric,
        "Dimensions": show_dimensions(dimensions),
        "Statistic": statistic if statistic in STATISTICS else None,
        "ExtendedStatistic": None if statistic in STATISTICS else statistic,
        "Period": definition.get("period_seconds", 60),
        "Unit": definition.get("unit"),
        "EvaluationPeriods": definition.get("evaluation_periods", 1),
        "DatapointsToAlarm": definition.get("datapoints_to_alarm"),
        "Threshold": definition["threshold"],
        "ComparisonOperator": _COMPARISONS[definition.get("comparison", ">")],
        "TreatMissingData": _MISSING[definition.get("missing", "missing")],
        "EvaluateLowSampleCountPercentile": definition.get("low_samples"),
    }
    return {member: value for member, value in found.items() if value is not None}


def python_call(call: Mapping[str, Any]) -> str:
    """A call as a script has it."""
    lines = [f"    {member}={_literal(value)},\n" for member, value in call.items()]
    return "cw.put_metric_alarm(\n" + "".join(lines) + ")"


def _literal(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return repr(int(value))
    return repr(value)
