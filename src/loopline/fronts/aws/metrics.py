"""CloudWatch's metrics: those that people send, and in AWS/SageMaker those that loopline measures of endpoints."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from loopline.control import metrics
from loopline.domain import cloudwatch, metricmath
from loopline.domain.access import Permission
from loopline.domain.alarms import STATISTICS
from loopline.errors import AwsError, InvalidInput
from loopline.fronts.aws.call import Call, Operation

RECENT_SECONDS = 3 * 3600
PAGE = 500


def put_metric_data(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Take in values."""
    namespace = given["Namespace"]
    if namespace.startswith("AWS/"):
        raise AwsError("InvalidParameterValue", "The value AWS/ for parameter Namespace is invalid.")
    data = [datum_of(each) for each in given.get("MetricData") or ()]
    metrics.put(call.ctx, call.actor, namespace=namespace, data=data)
    return {}


def datum_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """A native datum for a MetricDatum."""
    found: dict[str, Any] = {
        "name": given["MetricName"],
        "dimensions": cloudwatch.read_dimensions(given.get("Dimensions")),
        "unit": given.get("Unit"),
        "at": given["Timestamp"].timestamp() if given.get("Timestamp") else None,
        "value": given.get("Value"),
        "values": given.get("Values") or None,
        "counts": given.get("Counts") or None,
        "resolution": given.get("StorageResolution"),
    }
    statistics = given.get("StatisticValues")
    if statistics:
        names = {"count": "SampleCount", "sum": "Sum", "minimum": "Minimum", "maximum": "Maximum"}
        found["statistics"] = {name: statistics[member] for name, member in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def list_metrics(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What has values, by namespace and name."""
    recent = given.get("RecentlyActive")
    since = call.ctx.clock.now() - RECENT_SECONDS if recent else None
    rows = metrics.list_(call.ctx, call.actor, since=since, limit=1_000_000)["items"]
    wanted = [(each["Name"], each.get("Value")) for each in given.get("Dimensions") or ()]
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        namespace, name, dimensions = cloudwatch.show_metric(row["namespace"], row["name"], row["dimensions"])
        if given.get("Namespace") not in (None, namespace) or given.get("MetricName") not in (None, name):
            continue
        if all(key in dimensions and value in (None, dimensions[key]) for key, value in wanted):
            shown = cloudwatch.show_dimensions(dimensions)
            entry = {"Namespace": namespace, "MetricName": name, "Dimensions": shown}
            found[namespace, name, tuple(sorted(dimensions.items()))] = entry
    everything = [entry for _, entry in sorted(found.items(), key=lambda item: item[0])]
    offset = _offset(given.get("NextToken"))
    more = offset + PAGE < len(everything)
    return {"Metrics": everything[offset : offset + PAGE], "NextToken": str(offset + PAGE) if more else None}


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    if not token.isdecimal() or len(token) > 12:
        raise AwsError("InvalidNextToken", "The next token specified is invalid.")
    return int(token)


def _read(call: Call, metric: Mapping[str, Any], start: datetime, end: datetime, more: dict[str, Any]) -> Any:
    namespace, name, dimensions = cloudwatch.read_metric(
        metric["Namespace"], metric["MetricName"], cloudwatch.read_dimensions(metric.get("Dimensions"))
    )
    return metrics.points(
        call.ctx,
        call.actor,
        namespace=namespace,
        name=name,
        dimensions=dimensions,
        start=start.timestamp(),
        end=end.timestamp(),
        **more,
    )


def get_metric_statistics(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The points of one metric."""
    extended = list(given.get("ExtendedStatistics") or ())
    plain = list(given.get("Statistics") or ())
    if not plain and not extended:
        raise AwsError("MissingParameter", "Must specify either Statistics or ExtendedStatistics")
    more = {"period_seconds": given["Period"], "statistics": [*plain, *extended], "unit": given.get("Unit")}
    found = _read(call, given, given["StartTime"], given["EndTime"], more)
    unit = given.get("Unit") or metrics.shown_unit(
        call.ctx, call.actor, namespace=found["namespace"], name=found["name"], dimensions=found["dimensions"]
    )
    points = []
    for item in found["items"]:
        point = {"Timestamp": _time(item["at"]), "Unit": unit}
        point.update({name: item[name] for name in STATISTICS if name in item and name in plain})
        percentiles = {name: item[name] for name in extended if name in item}
        points.append({**point, **({"ExtendedStatistics": percentiles} if percentiles else {})})
    return {"Label": given["MetricName"], "Datapoints": points}


def _time(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def get_metric_data(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Several metrics at once, and expressions over them."""
    queries = {query["Id"]: query for query in given["MetricDataQueries"]}
    if len(queries) != len(given["MetricDataQueries"]):
        raise AwsError("ValidationError", "The Id of each query must be unique")
    found: dict[str, metricmath.Series] = {}
    for identifier in queries:
        _resolve(call, given, queries, identifier, found, ())
    down = given.get("ScanBy", "TimestampDescending") == "TimestampDescending"
    results = []
    for identifier, query in queries.items():
        if not query.get("ReturnData", True):
            continue
        points = sorted(found[identifier].items(), reverse=down)
        metric = (query.get("MetricStat") or {}).get("Metric") or {}
        results.append(
            {
                "Id": identifier,
                "Label": query.get("Label") or metric.get("MetricName") or identifier,
                "Timestamps": [_time(at) for at, _ in points],
                "Values": [value for _, value in points],
                "StatusCode": "Complete",
            }
        )
    return {"MetricDataResults": results, "Messages": []}


def _resolve(
    call: Call,
    given: dict[str, Any],
    queries: dict[str, Any],
    identifier: str,
    found: dict[str, metricmath.Series],
    asking: tuple[str, ...],
) -> metricmath.Series:
    """The series of one query, those of the queries that it names first."""
    if identifier in found:
        return found[identifier]
    if identifier not in queries or identifier in asking:
        raise AwsError("ValidationError", f"the expression names {identifier!r}, which is no query, or itself")
    query = queries[identifier]
    stat = query.get("MetricStat")
    if stat:
        more = {"period_seconds": stat["Period"], "statistics": [stat["Stat"]], "unit": stat.get("Unit")}
        items = _read(call, stat["Metric"], given["StartTime"], given["EndTime"], more)["items"]
        found[identifier] = {float(item["at"]): item[stat["Stat"]] for item in items if stat["Stat"] in item}
        return found[identifier]
    expression = query.get("Expression")
    if not expression:
        raise InvalidInput(f"the query {identifier!r} has neither a MetricStat nor an Expression")
    parts = {
        name: _resolve(call, given, queries, name, found, (*asking, identifier))
        for name in metricmath.names(expression)
    }
    found[identifier] = metricmath.evaluate(expression, parts)
    return found[identifier]


OPERATIONS = {
    "PutMetricData": Operation(put_metric_data, Permission.WRITE, "entities are not kept"),
    "ListMetrics": Operation(list_metrics, Permission.READ),
    "GetMetricStatistics": Operation(get_metric_statistics, Permission.READ),
    "GetMetricData": Operation(
        get_metric_data, Permission.READ, "of metric math: + - * / ^, ABS, CEIL, FLOOR, FILL, SUM, AVG, MIN, MAX"
    ),
}
