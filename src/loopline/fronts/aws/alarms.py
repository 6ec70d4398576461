"""CloudWatch's alarms. What is wrong with one, as far as its definition tells, is a warning with the right call."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from loopline.control import alarms, events
from loopline.domain import alarmlint, cloudwatch
from loopline.domain.access import Permission
from loopline.errors import AwsError, NotFound
from loopline.fronts.aws import arns
from loopline.fronts.aws.call import Call, Operation

_STATES = ("OK", "ALARM", "INSUFFICIENT_DATA")
_HISTORY = {
    "created": "ConfigurationUpdate",
    "changed": "ConfigurationUpdate",
    "deleted": "ConfigurationUpdate",
    "moved": "StateUpdate",
    "acted": "Action",
    "refused": "Action",
}
MAX_HISTORY = 1000


def put_metric_alarm(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Create an alarm, or replace its definition."""
    arguments = cloudwatch.read_alarm(given)
    for name, member in (
        ("actions", "AlarmActions"),
        ("ok_actions", "OKActions"),
        ("insufficient_data_actions", "InsufficientDataActions"),
    ):
        arguments[name] = _actions(call, given.get(member) or ())
    alarms.put(call.ctx, call.actor, actions_enabled=given.get("ActionsEnabled", True), **arguments)
    verdict = alarmlint.lint_call(given)
    if verdict.findings:
        said = "; ".join(found.message for found in verdict.findings)
        call.warn(f"{given['AlarmName']}: {said}. Write: {cloudwatch.python_call(verdict.call)}")
    return {}


def _actions(call: Call, given: Iterable[str]) -> list[str]:
    """Native actions for ARNs: a topic's subscribers are told; nothing else can be done by a name of AWS's."""
    found = []
    for text in given:
        arn = arns.find(text)
        if arn is not None and arn.service == "sns":
            found.append(f"{alarms.TOPIC}{arn.resource}")
        else:
            call.warn(f"the action {text!r} is left out: alarms act on SNS topics, and on rollouts that name them")
    return found


def _shown_actions(call: Call, actions: Iterable[str] | None) -> list[str]:
    topics = [each.removeprefix(alarms.TOPIC) for each in actions or () if each.startswith(alarms.TOPIC)]
    return [call.arn("sns", topic) for topic in topics]


def _alarm(call: Call, row: dict[str, Any]) -> dict[str, Any]:
    """A MetricAlarm."""
    definition = row["definition"] or {}
    return {
        **cloudwatch.show_alarm(row["name"], definition, row["endpoint"]),
        "AlarmArn": call.arn("cloudwatch", f"alarm:{row['name']}"),
        "AlarmConfigurationUpdatedTimestamp": row["created_at"],
        "ActionsEnabled": definition.get("actions_enabled", True),
        "AlarmActions": _shown_actions(call, row["actions"]),
        "OKActions": _shown_actions(call, definition.get("ok_actions")),
        "InsufficientDataActions": _shown_actions(call, definition.get("insufficient_data_actions")),
        "StateValue": row["status"],
        "StateReason": row["reason"] or "Unchecked: Initial alarm creation",
        "StateUpdatedTimestamp": row["since_at"],
        "StateTransitionedTimestamp": row["since_at"],
    }


def describe_alarms(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Alarms by name, those of loop.toml among them."""
    if given.get("AlarmTypes") and "MetricAlarm" not in given["AlarmTypes"]:
        return {"MetricAlarms": [], "CompositeAlarms": []}
    rows = alarms.list_(call.ctx, call.actor, status=given.get("StateValue"))["items"]
    found = []
    for row in rows:
        wanted = given.get("AlarmNames")
        if (wanted and row["name"] not in wanted) or not row["name"].startswith(given.get("AlarmNamePrefix") or ""):
            continue
        shown = _alarm(call, row)
        prefix = given.get("ActionPrefix")
        if prefix and not any(action.startswith(prefix) for action in shown["AlarmActions"]):
            continue
        found.append(shown)
    offset = events.cursor_offset(given.get("NextToken"))
    limit = given.get("MaxRecords") or 50
    page = events.page(found[offset : offset + limit + 1], limit, offset)
    return {"MetricAlarms": page["items"], "CompositeAlarms": [], "NextToken": page["next"]}


def describe_alarms_for_metric(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The alarms that watch one metric."""
    dimensions = cloudwatch.read_dimensions(given.get("Dimensions"))
    wanted = {name: given.get(name) for name in ("Statistic", "ExtendedStatistic", "Period", "Unit") if given.get(name)}
    found = []
    for row in alarms.list_(call.ctx, call.actor)["items"]:
        shown = _alarm(call, row)
        same = shown["Namespace"] == given["Namespace"] and shown["MetricName"] == given["MetricName"]
        fits = all(shown.get(name) == value for name, value in wanted.items())
        if same and fits and cloudwatch.read_dimensions(shown["Dimensions"]) == dimensions:
            found.append(shown)
    return {"MetricAlarms": found}


def describe_alarm_history(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """What happened to alarms, the newest first."""
    names = {row["id"]: row["name"] for row in alarms.list_(call.ctx, call.actor)["items"]}
    wanted = given.get("AlarmName")
    record = next((identifier for identifier, name in names.items() if name == wanted), None)
    if wanted is not None and record is None:
        return {"AlarmHistoryItems": []}
    rows = events.list_(call.ctx, call.actor, noun="alarm", record=record, limit=MAX_HISTORY)["items"]
    begin, end = (each.timestamp() if each else None for each in (given.get("StartDate"), given.get("EndDate")))
    found = []
    for row in rows:
        kind = _HISTORY.get(row["kind"])
        outside = (begin is not None and row["at"] < begin) or (end is not None and row["at"] > end)
        if kind is not None and not outside and given.get("HistoryItemType") in (None, kind):
            found.append(_history(row, kind, names.get(row["record"]) or str((row["data"] or {}).get("name", ""))))
    if given.get("ScanBy") == "TimestampAscending":
        found.reverse()
    offset, limit = events.cursor_offset(given.get("NextToken")), given.get("MaxRecords") or 100
    page = events.page(found[offset : offset + limit + 1], limit, offset)
    return {"AlarmHistoryItems": page["items"], "NextToken": page["next"]}


def _history(row: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    summary = {
        "StateUpdate": f"Alarm updated from {row['before']} to {row['after']}",
        "Action": str(row["reason"]),
        "ConfigurationUpdate": f'Alarm "{name}" {row["kind"]}',
    }[kind]
    data = {"version": "1.0", "actor": row["actor"], "reason": row["reason"]}
    if kind == "StateUpdate":
        data["oldState"] = {"stateValue": row["before"]}
        data["newState"] = {"stateValue": row["after"], "stateReason": row["reason"]}
    return {
        "AlarmName": name,
        "AlarmType": "MetricAlarm",
        "Timestamp": datetime.fromtimestamp(row["at"], UTC),
        "HistoryItemType": kind,
        "HistorySummary": summary,
        "HistoryData": json.dumps(data),
    }


def delete_alarms(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Remove alarms; when one of them is not there, none."""
    for name in given["AlarmNames"]:
        try:
            alarms.show(call.ctx, call.actor, name=name)
        except NotFound:
            raise AwsError("ResourceNotFound", f"Alarm {name} not found", 404) from None
    for name in dict.fromkeys(given["AlarmNames"]):
        alarms.delete(call.ctx, call.actor, name=name)
    return {}


def set_alarm_state(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Put an alarm into a state, until it is evaluated again."""
    state, reason = given["StateValue"], given["StateReason"]
    if state not in _STATES:
        raise AwsError("InvalidParameterValue", f"StateValue is one of {', '.join(_STATES)}, not {state!r}")
    alarms.set_state(call.ctx, call.actor, name=given["AlarmName"], state=state, reason=reason)
    return {}


def enable_alarm_actions(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Let alarms act again."""
    return _switch(call, given["AlarmNames"], on=True)


def disable_alarm_actions(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """Let alarms be judged without acting."""
    return _switch(call, given["AlarmNames"], on=False)


def _switch(call: Call, names: Iterable[str], *, on: bool) -> dict[str, Any]:
    for name in names:
        alarms.switch_actions(call.ctx, call.actor, name=name, on=on)
    return {}


OPERATIONS = {
    "PutMetricAlarm": Operation(
        put_metric_alarm, Permission.WRITE, "one metric: no metric math, no anomaly detection; actions: SNS topics"
    ),
    "DescribeAlarms": Operation(describe_alarms, Permission.READ, "metric alarms only"),
    "DescribeAlarmsForMetric": Operation(describe_alarms_for_metric, Permission.READ),
    "DescribeAlarmHistory": Operation(describe_alarm_history, Permission.READ, "of alarms that are there"),
    "DeleteAlarms": Operation(delete_alarms, Permission.WRITE),
    "SetAlarmState": Operation(set_alarm_state, Permission.WRITE),
    "EnableAlarmActions": Operation(enable_alarm_actions, Permission.WRITE),
    "DisableAlarmActions": Operation(disable_alarm_actions, Permission.WRITE),
}
