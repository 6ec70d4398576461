"""What is wrong with an alarm that can be told from its definition alone: it can never fire, or fires on the opposite
of what is meant, or counts in another unit. Each finding says what to write instead.

A definition is a native one: ``metric``, ``threshold``, ``comparison``, ``statistic``, ``period_seconds``,
``evaluation_periods``, ``missing``, and with ``namespace`` and ``dimensions`` a metric of `control.metrics`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from loopline.domain import cloudwatch
from loopline.domain.alarms import STATISTICS, percentile_of
from loopline.domain.looprules import PRODUCTION_METRICS, QUALITY_METRICS, TRAFFIC_METRICS
from loopline.domain.metrics import BUILT_IN
from loopline.errors import InvalidInput

_MICROSECONDS = 1_000.0  # a limit on latencies below this many is hardly meant


class Finding(NamedTuple):
    """One mistake: ``code`` is for programs; ``changes`` are the fields to write otherwise, None leaves one out."""

    code: str
    message: str
    changes: dict[str, Any]


class Bounds(NamedTuple):
    """What a statistic can be in a period that has a datapoint, both ends included."""

    low: float
    high: float


ANY = Bounds(-math.inf, math.inf)
_UP = Bounds(0.0, math.inf)
_COUNTED = Bounds(1.0, math.inf)
_SHARE = Bounds(0.0, 1.0)


def lint(definition: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a native alarm, the worst first; empty when nothing is."""
    rule = {"comparison": ">", "statistic": "Average", "missing": "missing", "evaluation_periods": 1, **definition}
    found = [*_unmeasured(rule), *_units(rule)]
    silent = _silence(rule)
    if silent:
        return [*found, *silent]
    bounds = bounds_of(rule)
    if not _can_breach(rule, bounds):
        found.append(_never(rule, bounds))
    elif bounds != ANY and _always_breaches(rule, bounds) and rule["missing"] != "breaching":
        found.append(
            Finding("always", f"it fires whenever there is a datapoint: {_value(rule)} is {_said(bounds)}", {})
        )
    elif rule["metric"] in PRODUCTION_METRICS and not rule.get("namespace") and _is_backwards(rule, bounds):
        message = f"it is inverted: it fires when {rule['metric']} is good"
        found.append(Finding("inverted", message, {"comparison": "<"}))
    return found


def bounds_of(rule: Mapping[str, Any]) -> Bounds:
    """What the alarm's statistic of its metric can be."""
    metric, statistic = rule["metric"], rule["statistic"]
    if rule.get("namespace"):
        return _of_each_request(metric, statistic) if rule["namespace"] == BUILT_IN else ANY
    if statistic == "SampleCount" or metric == "requests":
        return _COUNTED
    known = TRAFFIC_METRICS.get(metric) or QUALITY_METRICS.get(metric)
    return Bounds(known.low, known.high) if known is not None and statistic != "Sum" else _UP


def _of_each_request(metric: str, statistic: str) -> Bounds:
    """Of the platform's own metrics, of which each request is one value."""
    if statistic == "SampleCount":
        return _COUNTED
    if metric == "requests":
        return _COUNTED if statistic == "Sum" else Bounds(1.0, 1.0)
    if metric == "latency_us" or statistic == "Sum":
        return _UP
    return _SHARE if metric in ("errors_4xx", "errors_5xx", "requests_per_instance") else ANY


def _can_breach(rule: Mapping[str, Any], bounds: Bounds) -> bool:
    limit = float(rule["threshold"])
    if rule["missing"] == "breaching":
        return True
    return {
        ">": bounds.high > limit,
        ">=": bounds.high >= limit,
        "<": bounds.low < limit,
        "<=": bounds.low <= limit,
    }[rule["comparison"]]


def _always_breaches(rule: Mapping[str, Any], bounds: Bounds) -> bool:
    limit = float(rule["threshold"])
    return {
        ">": bounds.low > limit,
        ">=": bounds.low >= limit,
        "<": bounds.high < limit,
        "<=": bounds.high <= limit,
    }[rule["comparison"]]


def _is_backwards(rule: Mapping[str, Any], bounds: Bounds) -> bool:
    return rule["comparison"] in (">", ">=") and bounds.high == 1.0


def _value(rule: Mapping[str, Any]) -> str:
    return f"the {rule['statistic']} of {shown(rule)}"


def shown(rule: Mapping[str, Any]) -> str:
    """What whoever made the alarm calls its metric."""
    if not rule.get("namespace"):
        return str(rule["metric"])
    return cloudwatch.show_metric(rule["namespace"], rule["metric"], rule.get("dimensions") or {})[1]


def _said(bounds: Bounds) -> str:
    if bounds.low == bounds.high:
        return f"always {bounds.low:g}"
    if bounds.high == math.inf:
        return f"never below {bounds.low:g}"
    return f"between {bounds.low:g} and {bounds.high:g}"


def _condition(rule: Mapping[str, Any]) -> str:
    return f"{rule['comparison']} {rule['threshold']:g}"


def _silence(rule: Mapping[str, Any]) -> list[Finding]:
    """Alarms on how many requests there are: a period without any has no datapoint, so that only what is missing can
    tell of silence."""
    if rule["metric"] != "requests" or rule.get("namespace") not in (None, BUILT_IN):
        return []
    low, sign = rule["threshold"], rule["comparison"]
    cure = {"statistic": "Sum", "comparison": "<", "threshold": 1.0, "missing": "breaching", "evaluation_periods": 1}
    cure |= {"datapoints_to_alarm": None} if rule.get("datapoints_to_alarm") else {}
    counts = rule["statistic"] in ("Sum", "SampleCount") or not rule.get("namespace")
    if (sign == ">" and low < 1) or (sign == ">=" and low <= 1):
        message = (
            f"it is inverted: {_value(rule)} {_condition(rule)} fires on traffic and never on silence, in which there "
            f"is no datapoint at all; one period of {rule.get('period_seconds', 60)} s without a request is Sum < 1 "
            "with missing data as breaching"
        )
        return [Finding("inverted", message, cure)]
    if ((sign == "<" and low <= 1) or (sign == "<=" and low < 1)) and rule["missing"] != "breaching":
        message = (
            "it can never fire: a period without requests has no datapoint, and missing data is "
            f"{rule['missing'].replace('_', ' ')}; let missing data be breaching"
        )
        return [Finding("never", message, {"statistic": "Sum", "missing": "breaching"})]
    if not counts and sign in (">", ">="):
        message = f"it can never fire: {_value(rule)} is always 1, each request being one value; Sum counts requests"
        return [Finding("never", message, {"statistic": "Sum"})]
    return []


def _never(rule: Mapping[str, Any], bounds: Bounds) -> Finding:
    changes: dict[str, Any] = {}
    more = ""
    share = bounds == _SHARE and rule["comparison"] in (">", ">=")
    if share and 1 <= rule["threshold"] <= 100:
        changes = {"threshold": rule["threshold"] / 100}
        more = f"; {rule['threshold']:g} % is {changes['threshold']:g}"
    elif share:
        changes = {"statistic": "Sum"}
        more = "; Sum counts them"
    message = f"it can never fire: {_value(rule)} is {_said(bounds)}, and so never {_condition(rule)}{more}"
    return Finding("never", message, changes)


def _unmeasured(rule: Mapping[str, Any]) -> list[Finding]:
    """Metrics of endpoints that have no values under these dimensions."""
    if rule.get("namespace") != cloudwatch.ENDPOINTS:
        return []
    given = dict(rule.get("dimensions") or {})
    if rule["metric"] not in cloudwatch.METRICS:
        known = ", ".join(cloudwatch.METRICS)
        message = f"it can never fire: loopline measures no {rule['metric']} of endpoints; it measures {known}"
        return [Finding("unmeasured", message, {})]
    message = (
        f"it can never fire: {rule['metric']} is measured by EndpointName and VariantName together, and it names "
        f"{' and '.join(given) or 'neither'}"
    )
    if set(given) == {"EndpointName"}:
        return [Finding("unmeasured", message, {"dimensions": {**given, "VariantName": cloudwatch.ALL_TRAFFIC}})]
    return [Finding("unmeasured", message, {})]


def _units(rule: Mapping[str, Any]) -> list[Finding]:
    if rule.get("namespace") != BUILT_IN or rule["metric"] != "latency_us":
        return []
    if rule.get("unit") not in (None, "Microseconds"):
        message = f"it can never fire: {shown(rule)} is measured in Microseconds, and there is none in {rule['unit']}"
        return [Finding("never", message, {"unit": None})]
    limit, statistic = rule["threshold"], rule["statistic"]
    if rule["comparison"] in (">", ">=") and 0 < limit < _MICROSECONDS and statistic not in ("Sum", "SampleCount"):
        factor, unit = (1e6, "seconds") if limit <= 60 else (1e3, "milliseconds")
        message = f"{shown(rule)} counts microseconds: {limit:g} {unit} are {limit * factor:.0f}"
        return [Finding("unit", message, {"threshold": limit * factor})]
    return []


def corrected(definition: Mapping[str, Any], found: Iterable[Finding]) -> dict[str, Any]:
    """The definition with every finding's changes."""
    changed = dict(definition)
    for finding in found:
        changed.update(finding.changes)
    return {key: value for key, value in changed.items() if value is not None}


# -- calls of CloudWatch ----------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What is wrong with a PutMetricAlarm call, and the call without it."""

    findings: list[Finding]
    call: dict[str, Any]


def lint_call(given: Mapping[str, Any]) -> Verdict:
    """Judge the parameters of a PutMetricAlarm call; one that cannot be read is one finding."""
    try:
        definition = cloudwatch.read_alarm(given)
    except InvalidInput as error:
        return Verdict([Finding("invalid", error.message, {})], dict(given))
    found = [*_misplaced(given), *lint(definition)]
    if not found:
        return Verdict([], dict(given))
    better = corrected(definition, found)
    shown_call = cloudwatch.show_alarm(str(given.get("AlarmName", "")), better)
    kept = {member: value for member, value in given.items() if member not in _OF_DEFINITION}
    written = {member: value for member, value in shown_call.items() if member in given or _differs(member, value)}
    call = {member: (written | kept)[member] for member in (*shown_call, *kept) if member in written | kept}
    return Verdict(found, call)


_OF_DEFINITION = frozenset(
    {
        *("AlarmName", "AlarmDescription", "Namespace", "MetricName", "Dimensions", "Statistic", "ExtendedStatistic"),
        *("Period", "Unit", "EvaluationPeriods", "DatapointsToAlarm", "Threshold", "ComparisonOperator"),
        *("TreatMissingData", "EvaluateLowSampleCountPercentile"),
    }
)
_DEFAULTS = {"TreatMissingData": "missing", "EvaluateLowSampleCountPercentile": "evaluate"}


def _differs(member: str, value: Any) -> bool:
    return bool(value != _DEFAULTS.get(member))


def _misplaced(given: Mapping[str, Any]) -> list[Finding]:
    statistic = given.get("Statistic")
    if not statistic or statistic in STATISTICS:
        return []
    percentile_of(statistic)
    message = (
        f'{statistic} belongs in ExtendedStatistic: AWS refuses Statistic="{statistic}"; here it is taken as meant'
    )
    return [Finding("misplaced", message, {})]
