"""Search: resources whose description meets a search expression.

The language is that of SageMaker's API reference, "SearchExpression" and "Filter". A resource is searched in the form
in which it is described, with its tags; who adds one adds a line to ``RESOURCES``.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from loopline.control import registry, scripts, tags
from loopline.domain.access import Permission
from loopline.errors import AwsError
from loopline.fronts.aws import groups, models, packages, training
from loopline.fronts.aws.call import Call, Operation

DEFAULT_RESULTS = 10
MAX_DEPTH = 20
PAGE = 500

Record = dict[str, Any]


# -- resources --------------------------------------------------------------------------------------------------------


def _packages(call: Call) -> Iterator[Record]:
    tagged = _tags_of(call, "version")
    for row in _all(lambda cursor: registry.list_versions(call.ctx, call.actor, limit=PAGE, cursor=cursor)):
        yield {**packages.told(call, row), "Tags": tagged.get(row["id"], {})}


def _groups(call: Call) -> Iterator[Record]:
    tagged = _tags_of(call, "model")
    for row in _all(lambda cursor: registry.list_models(call.ctx, call.actor, limit=PAGE, cursor=cursor)):
        yield {**groups.told(call, row), "Tags": tagged.get(row["id"], {})}


def _training_jobs(call: Call) -> Iterator[Record]:
    tagged = _tags_of(call, "script")
    contract = training.CONTRACT
    for row in _all(lambda cursor: scripts.list_(call.ctx, call.actor, contract=contract, limit=PAGE, cursor=cursor)):
        found = training.describe_training_job(call, {"TrainingJobName": row["name"]})
        measured = {each["MetricName"]: each["Value"] for each in found["FinalMetricDataList"]}
        yield {**found, METRICS: measured, "Tags": tagged.get(row["id"], {})}


RESOURCES: Mapping[str, Callable[[Call], Iterator[Record]]] = {
    "ModelPackage": _packages,
    "ModelPackageGroup": _groups,
    "TrainingJob": _training_jobs,
}
METRICS = "Metrics"  # which a training job is searched by, beside what describes it


def _all(page: Callable[[str | None], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every row of a list."""
    cursor = None
    while True:
        found = page(cursor)
        yield from found["items"]
        cursor = found["next"]
        if cursor is None:
            return


def _tags_of(call: Call, noun: str) -> dict[str, dict[str, str]]:
    """{id: its tags} of a noun's records."""
    found: dict[str, dict[str, str]] = {}
    for row in tags.known(call.ctx, call.actor, noun=noun)["items"]:
        found.setdefault(row["record"], {})[row["key"]] = row["value"]
    return found


# -- the operation ----------------------------------------------------------------------------------------------------


def search(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Search."""
    resource = given["Resource"]
    if resource not in RESOURCES:
        known = ", ".join(sorted(RESOURCES))
        raise AwsError("ValidationException", f"loopline cannot search {resource}; it can search {known}")
    expression, by = given.get("SearchExpression") or {}, given.get("SortBy") or _latest(resource)
    _check(resource, expression, 0)
    _check_property(resource, by)
    found = [record for record in RESOURCES[resource](call) if _meets(record, expression)]
    down = given.get("SortOrder") != "Ascending"
    present = [record for record in found if _values(record, by)]
    present.sort(key=lambda record: _order(_values(record, by)[0]), reverse=down)
    found = present + [record for record in found if not _values(record, by)]
    start, limit = _offset(given.get("NextToken")), given.get("MaxResults") or DEFAULT_RESULTS
    return {
        "Results": [{resource: _public(resource, record)} for record in found[start : start + limit]],
        "NextToken": str(start + limit) if len(found) > start + limit else None,
        "TotalHits": {"Value": len(found), "Relation": "EqualTo"},
    }


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    if not (token.isascii() and token.isdecimal() and len(token) < 10):
        raise AwsError("ValidationException", "NextToken is not one that a search gave")
    return int(token)


def _public(resource: str, record: Record) -> Record:
    """The record as SearchRecord has it."""
    shown = groups.fitting(resource, record)
    return {**shown, "Tags": [{"Key": key, "Value": value} for key, value in record["Tags"].items()] or None}


# -- expressions ------------------------------------------------------------------------------------------------------


def _check(resource: str, expression: Mapping[str, Any], depth: int) -> None:
    """Raise ``AwsError`` for an expression that asks for what a resource has not, or is nested too deeply."""
    if depth > MAX_DEPTH:
        raise AwsError("ValidationException", f"a search expression is nested at most {MAX_DEPTH} deep")
    for each in expression.get("Filters") or ():
        _check_property(resource, each["Name"])
    for nested in expression.get("NestedFilters") or ():
        _check_property(resource, nested["NestedPropertyName"])
    for inner in expression.get("SubExpressions") or ():
        _check(resource, inner, depth + 1)


def _members(resource: str) -> Any:
    return models.service("sagemaker").model.shape_for(resource).members


def _latest(resource: str) -> str:
    """What AWS sorts by unless it is told."""
    return "LastModifiedTime" if "LastModifiedTime" in _members(resource) else "CreationTime"


def _check_property(resource: str, name: str) -> None:
    first = name.partition(".")[0]
    if first not in _members(resource) and (resource, first) != ("TrainingJob", METRICS):
        raise AwsError("ValidationException", f"{resource} has no property {first}: {name}")


def _meets(record: Record, expression: Mapping[str, Any]) -> bool:
    """Whether a record is what an expression asks for; one that asks nothing finds everything."""
    answers = [_passes(record, each) for each in expression.get("Filters") or ()]
    answers += [_nested(record, each) for each in expression.get("NestedFilters") or ()]
    answers += [_meets(record, each) for each in expression.get("SubExpressions") or ()]
    if not answers:
        return True
    return any(answers) if expression.get("Operator") == "Or" else all(answers)


def _nested(record: Record, nested: Mapping[str, Any]) -> bool:
    """Whether one and the same entry of a list passes every filter; their names begin with that of the list."""
    place = nested["NestedPropertyName"]
    filters = [{**each, "Name": each["Name"].removeprefix(f"{place}.")} for each in nested["Filters"]]
    entries = [entry for entry in _values(record, place) if isinstance(entry, dict)]
    return any(all(_passes(entry, each) for each in filters) for entry in entries)


def _values(record: Any, name: str) -> list[Any]:
    """What stands under a dotted name; of lists, what stands in any of their entries. Keys may hold dots themselves."""
    if isinstance(record, list):
        return [value for entry in record for value in _values(entry, name)]
    if not isinstance(record, Mapping):
        return []
    if name in record:
        value = record[name]
        return [] if value is None else list(value) if isinstance(value, list) else [value]
    first, dot, rest = name.partition(".")
    return _values(record.get(first), rest) if dot else []


def _passes(record: Record, condition: Mapping[str, Any]) -> bool:
    values = _values(record, condition["Name"])
    wanted = condition.get("Value")
    operator = condition.get("Operator") or ("Exists" if wanted is None else "Equals")
    if operator in ("Exists", "NotExists"):
        return bool(values) == (operator == "Exists")
    if wanted is None:
        raise AwsError("ValidationException", f"the operator {operator} needs a Value")
    if operator == "NotEquals":
        return not any(_equal(value, wanted) for value in values)
    return any(_COMPARISONS[operator](value, wanted) for value in values)


def _equal(value: Any, wanted: str) -> bool:
    moment = _moment(value, wanted)
    if moment is not None:
        return moment[0] == moment[1]
    if isinstance(value, bool):
        return str(value).lower() == wanted.lower()
    if isinstance(value, int | float):
        return value == _number(wanted)
    return str(value) == wanted


def _is_in(value: Any, wanted: str) -> bool:
    return any(_equal(value, part.strip()) for part in wanted.split(","))


def _ordered(test: Callable[[float, float], bool]) -> Callable[[Any, str], bool]:
    """A comparison of times, or of numbers; a text is compared as the number that it writes."""

    def compare(value: Any, wanted: str) -> bool:
        moment = _moment(value, wanted)
        if moment is not None:
            return test(*moment)
        try:
            found = float(value)
        except (TypeError, ValueError):
            return False
        return test(found, _number(wanted))

    return compare


_COMPARISONS: Mapping[str, Callable[[Any, str], bool]] = {
    "Equals": _equal,
    "Contains": lambda value, wanted: wanted in str(value),
    "In": _is_in,
    "GreaterThan": _ordered(lambda a, b: a > b),
    "GreaterThanOrEqualTo": _ordered(lambda a, b: a >= b),
    "LessThan": _ordered(lambda a, b: a < b),
    "LessThanOrEqualTo": _ordered(lambda a, b: a <= b),
}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise AwsError("ValidationException", f"{text!r} is not a number to compare with") from None


def _moment(value: Any, wanted: str) -> tuple[float, float] | None:
    """Both sides as seconds where the wanted one is written as a time; a number alone is no time."""
    if not isinstance(value, float) or "-" not in wanted[1:]:
        return None
    try:
        read = datetime.fromisoformat(wanted)
    except ValueError:
        return None
    return value, (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def _order(value: Any) -> tuple[int, float, str]:
    """Numbers by size, before texts by letters."""
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


OPERATIONS = {
    "Search": Operation(search, Permission.READ, f"of {', '.join(RESOURCES)}"),
}
